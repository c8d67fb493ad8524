"""Files of the Hub brought into a folder: in parallel, resumed where an earlier run was cut off, and checked.

The client's own downloads cannot be resumed by another process: since huggingface_hub pull request 4228 each goes
into a temporary file of its own, which no later call looks for. So the bytes are moved here, over the client's
session. What lies in the folder is what has arrived; it is hashed again before it is continued, never trusted.
"""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from engineroom.checkpoint.disk import check_space, disk_errors, readable
from engineroom.checkpoint.hub import Hub, Listing, RemoteFile, pause_before_retry, quiet_client
from engineroom.errors import HubError
from engineroom.progress import Progress, Task

#: Connections at a time. The Hub's CDN gives each of them some 100 MB/s, and a disk rarely takes more than a few.
PARALLEL = 8
_BLOCK = 1 << 20


class _StoppedError(Exception):
    """Another file failed, or the user gave up."""


def download(hub: Hub, listing: Listing, paths: list[str], folder: Path, *, title: str, progress: Progress) -> None:
    """Bring the files ``paths`` of ``listing`` into ``folder``; what is there already is checked and continued.

    Raises HubError, InputError (gated, bad token), or StoreError where the disk is full or cannot be written.
    """
    files = [hub.describe(listing, path) for path in paths]
    there = {file.path: _size(folder / file.path) for file in files}
    total, arrived = sum(file.size for file in files), sum(min(there[file.path], file.size) for file in files)
    check_space(folder, total - arrived)
    if arrived > 0:
        progress.say(
            f"{title}: {readable(arrived)} of {readable(total)} are here from an earlier run; going on from there"
        )
    stop = threading.Event()
    with (
        disk_errors(folder, lambda: sum(max(file.size - _size(folder / file.path), 0) for file in files)),
        quiet_client(),
        progress.task(title, total) as task,
        ThreadPoolExecutor(max_workers=PARALLEL) as pool,
    ):
        futures = [
            pool.submit(_Transfer(hub, listing, file, folder / file.path, task=task, stop=stop).run) for file in files
        ]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Transfer:
    """One file on its way."""

    def __init__(
        self, hub: Hub, listing: Listing, file: RemoteFile, path: Path, *, task: Task, stop: threading.Event
    ) -> None:
        self._hub, self._listing, self._file, self._path = hub, listing, file, path
        self._task, self._stop = task, stop
        self._reported = 0
        self._restart()

    def run(self) -> None:
        """Raises HubError, InputError or OSError."""
        resumed = self._take_over()
        self._receive_all()
        if not self._is_right() and resumed:
            # The part from the earlier run was bad (a power cut leaves such parts): once more from the beginning.
            self._path.unlink(missing_ok=True)
            self._restart()
            self._receive_all()
        if not self._is_right():
            self._path.unlink(missing_ok=True)
            raise HubError(
                f"what arrived is not what the Hub lists: its {'SHA-256' if self._file.sha256 else 'git hash'} differs",
                where=f"{self._listing.source}: {self._file.path}",
                fix="it was deleted; fetch again, without the mirror or proxy if you use one",
            )

    def _restart(self) -> None:
        self._position = 0
        self._hash: Any = hashlib.sha256() if self._file.sha256 else hashlib.sha1(usedforsecurity=False)
        if not self._file.sha256:  # git hashes a header before the content
            self._hash.update(b"blob %d\0" % self._file.size)

    def _take_over(self) -> bool:
        """Hash what an earlier run left. Whether there was anything."""
        if _size(self._path) > self._file.size:
            self._path.unlink()
        if not self._path.exists():
            return False
        with self._path.open("rb") as part:
            while block := part.read(_BLOCK):
                self._check_stop()
                self._count(block)
        return self._position > 0

    def _receive_all(self) -> None:
        failures = 0
        if self._file.size == 0:
            self._path.touch()
        while self._position < self._file.size:
            before = self._position
            problem: Exception
            try:
                self._receive()
                if self._position >= self._file.size:
                    break
                problem = _ended_early()
            except Exception as error:
                if isinstance(error, OSError) and not _is_http(error):
                    raise
                if isinstance(error, _StoppedError):
                    raise
                problem = error
            if self._position > before:
                failures = 0
            pause = pause_before_retry(problem, failures)
            if pause is None:
                source, gated = self._listing.source, self._listing.gated
                raise self._hub.explain(problem, source, gated=gated, path=self._file.path) from None
            failures += 1
            self._stop.wait(pause)
            self._check_stop()

    def _receive(self) -> None:
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # documented, not re-exported

        headers = self._hub.headers()
        if self._position:
            headers["range"] = f"bytes={self._position}-"
        url, timeout = self._hub.url(self._listing, self._file.path), self._hub.timeout
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            if response.status_code == 416:  # the server does not know ranges of this file
                self._path.unlink(missing_ok=True)
                self._restart()
                raise _ended_early()
            hf_raise_for_status(response)
            begin = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
            if self._position and (response.status_code != 206 or begin != str(self._position)):
                self._restart()  # the whole file comes, not the rest of it
                if response.status_code == 206:
                    self._path.unlink(missing_ok=True)
                    raise _ended_early()
            with self._path.open("ab" if self._position else "wb") as part:
                # As they come: with a block size the client holds bytes back, and a broken connection loses them.
                for block in response.iter_bytes():
                    self._check_stop()
                    part.write(block)
                    self._count(block)
                    if self._position > self._file.size:
                        break
                part.flush()
                os.fsync(part.fileno())

    def _count(self, block: bytes) -> None:
        self._hash.update(block)
        self._position += len(block)
        if self._position > self._reported:  # a file that begins anew is not counted twice
            self._task.advance(min(self._position, self._file.size) - self._reported)
            self._reported = min(self._position, self._file.size)

    def _is_right(self) -> bool:
        digest = self._hash.hexdigest()
        return self._position == self._file.size and digest == (self._file.sha256 or self._file.git_sha1)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_http(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return isinstance(error, HfHubHTTPError | OfflineModeIsEnabled)


def _ended_early() -> Exception:
    import httpx2

    return httpx2.RemoteProtocolError("the server ended before the file did")
