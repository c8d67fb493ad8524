"""Holds: how those who write into a store and those who remove blobs from it keep out of each other's way.

No store of ours can remove an object on the condition that nobody needs it, so both sides leave *notices* in the
store and look at the other side's:

* A writer posts a **hold**, the list of blobs that its artifact will name, before it asks which of them are there.
  Then it looks for collections that are about to remove one of them, and waits for those to end.
* A collection posts what it **condemned** before it removes anything. Then it reads the holds, and after them the
  tags, and spares what they name.

Each writes first and looks second, and listings of a folder, of S3, of Google Cloud Storage and of Azure show what was
written before: so at least one of the two sees the other. A writer sets its tag before it withdraws its hold, and a
collection reads holds before tags: so an artifact is seen under one of them at any time. No age is compared for this,
except to tell who was killed: a hold counts for a day, and is posted again every hour by who is alive; a condemnation
counts for :data:`CONDEMNED_SECONDS`, and who posted it stops removing after half of them and posts anew.

Ages are differences of times that the store wrote, so that no clock but the store's matters.
"""

import secrets
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from pydantic import Field

from engineroom.artifacts.store import CollectableStore, NoticeEntry, Store
from engineroom.documents import Document
from engineroom.errors import ArtifactCorruptError, DocumentError, EngineroomError, StoreError
from engineroom.progress import QUIET, Progress

#: A hold that was not renewed for so long is one of a process that was killed.
HOLD_SECONDS = 24 * 3600.0
RENEW_SECONDS = 3600.0
#: A condemnation older than this is one of a process that was killed.
CONDEMNED_SECONDS = 120.0
_POLL_SECONDS = 1.0

HOLD, CONDEMNED, NAMED = "hold-", "condemned-", "named-"


class BlobList(Document):
    """What a hold protects, or a collection is about to remove."""

    blobs: list[str] = Field(default_factory=list)
    """Hexadecimal digests, sorted."""


class Hold:
    """A promise that no collection removes certain blobs."""

    def __init__(self, store: CollectableStore, blobs: Collection[str]) -> None:
        self._store = store
        self._name = HOLD + secrets.token_hex(16)
        self._data = BlobList(blobs=sorted(set(blobs))).to_json()
        self._posted = 0.0
        self._lock = threading.Lock()

    def post(self) -> None:
        """Post it, or post it again."""
        with self._lock:
            posted = boot_time()
            self._store.post(self._name, self._data)
            self._posted = posted

    def confirm(self) -> None:
        """Called before the tag is set. Raises :class:`StoreError` where the hold has run out."""
        if self._posted and boot_time() - self._posted > HOLD_SECONDS * 0.9:
            raise StoreError(
                "this process was stopped for so long that what it wrote may have been collected",
                where=self._store.root,
                fix="run it again; what is still there is not sent again",
            )

    def wait_for_collections(self, progress: Progress) -> None:
        """Wait until no living collection is about to remove a blob of this hold."""
        mine = set(BlobList.parse(self._data, where="the hold").blobs)
        told = False
        while True:
            listed = self._store.notices()
            now = next((entry.modified for entry in listed if entry.name == self._name), None)
            if now is not None:
                others = [entry for entry in listed if entry.name.startswith(CONDEMNED)]
                alive = [entry for entry in others if age(entry, now) < CONDEMNED_SECONDS]
                if not any(mine & set(read_blob_list(self._store, entry)) for entry in alive):
                    return
            if not told:
                progress.say(f"a garbage collection of {self._store.root} is at work: waiting for it")
                told = True
            time.sleep(_POLL_SECONDS)
            self.post()  # its time is the store's own "now"

    def withdraw(self) -> None:
        """Let collections have what no tag names. A hold that stays counts for a day."""
        with suppress(EngineroomError):
            self._store.withdraw(self._name)


@contextmanager
def holding(store: Store, blobs: Collection[str], *, progress: Progress = QUIET) -> Iterator[Hold | None]:
    """Keep ``blobs`` (hexadecimal digests), those that come meanwhile included, from being collected.

    Ask for what is there, send what is not and set the tag inside. None for stores that collect by themselves.
    """
    if not isinstance(store, CollectableStore):
        yield None
        return
    hold, over = Hold(store, blobs), threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_SECONDS):
            with suppress(EngineroomError):  # a day's worth of attempts
                hold.post()

    hold.post()
    threading.Thread(target=renew, daemon=True, name="hold").start()
    try:
        hold.wait_for_collections(progress)
        yield hold
    finally:
        over.set()
        hold.withdraw()


def keep_named(store: Store, digest: str) -> None:
    """Tell collections that a tag named this manifest (``sha256:…``) until now.

    Called before a tag is moved or removed: what it named is kept for the grace period, for who is still using it.
    """
    if isinstance(store, CollectableStore):
        store.post(NAMED + digest.removeprefix("sha256:"), b"{}")


def read_blob_list(store: CollectableStore, entry: NoticeEntry) -> list[str]:
    """The blobs of a notice; none where it was withdrawn. Raises :class:`ArtifactCorruptError`."""
    data = store.read_notice(entry.name)
    if data is None:
        return []
    try:
        return BlobList.parse(data, where=f"{store.root}/notices/{entry.name}").blobs
    except DocumentError as error:
        raise ArtifactCorruptError(
            f"the notice is malformed: {error.found}",
            where=error.where,
            fix="remove it when nothing is being published",
        ) from None


def age(entry: NoticeEntry, now: datetime) -> float:
    """Seconds."""
    return (now - entry.modified).total_seconds()


def boot_time() -> float:
    """Seconds that go on while the machine sleeps, as the store's do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
