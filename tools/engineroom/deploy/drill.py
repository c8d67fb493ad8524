"""The restore drill: restore a backup somewhere else, serve it with a real Triton, and ask it for one token.

A backup that was never restored is a hope. The drill goes the way of a real restoration, into a folder of its own, and
removes that folder afterwards.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engineroom.artifacts.copying import in_store
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.restore import Restored, restore
from engineroom.artifacts.stores import open_store
from engineroom.errors import IncompatibleError, InputError, ServerError, StoreError
from engineroom.folders import disk_errors
from engineroom.progress import Progress
from engineroom.repository.record import FILE as RECORD_FILE
from engineroom.repository.record import BuildRecord


@dataclass(frozen=True)
class Served:
    """One artifact that answered."""

    reference: Reference
    """In the backup's words: name, tag and digest."""
    load_seconds: float
    """Until Triton had loaded it."""
    text: str
    """The one token."""


@dataclass(frozen=True)
class Drilled:
    """A drill that went well."""

    restored: Restored
    restore_seconds: float
    served: tuple[Served, ...]


def drill(
    backup: Reference, *, cache: Path, scratch: Path | None = None, to: str | None = None, progress: Progress
) -> Drilled:
    """Restore ``backup`` into a folder below ``scratch``, and serve and ask every artifact in it.

    Folders and values of the backup are restored too. With ``to`` the artifacts go into that store and stay there;
    what is served is pulled from it.

    Raises:
        IncompatibleError: an artifact's runtime does not run on this machine.
        ServerError: the restored model does not load, or gives no token.
        What :func:`engineroom.artifacts.restore.restore` and ``pull`` raise.
    """
    with _room(scratch) as room:
        begin = time.monotonic()
        folders, values = room / "folders", room / "values.yaml"
        root = to or f"file://{room}/store"
        done = _restore(backup, root, folders, values, progress)
        seconds = time.monotonic() - begin
        served = _serve(done, root, room, cache, progress)
    return Drilled(done, seconds, tuple(served))


@contextmanager
def _room(scratch: Path | None) -> Iterator[Path]:
    with disk_errors(scratch or Path(tempfile.gettempdir())):
        room = Path(tempfile.mkdtemp(prefix="engineroom-drill-", dir=scratch)).absolute()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _restore(backup: Reference, root: str, folders: Path, values: Path, progress: Progress) -> Restored:
    from engineroom.artifacts.backup import find_backup
    from engineroom.artifacts.closure import read_backup

    store = open_store(backup)
    found, pointer = find_backup(backup, store=store)
    _, record = read_backup(store, pointer, where=str(found))
    size = sum(folder.size for folder in record.folders)
    if (free := shutil.disk_usage(folders.parent).free) < size:
        raise StoreError(
            f"its folders have {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            where=str(folders.parent),
            fix="name a roomier place with --scratch",
        )
    return restore(
        found,
        to=root if record.artifacts else None,
        folder_to=folders if record.folders else None,
        values_to=values if record.values else None,
        progress=progress,
    )


def _serve(done: Restored, root: str, room: Path, cache: Path, progress: Progress) -> Sequence[Served]:
    from engineroom.serving.answer import Prompt
    from engineroom.serving.chat import render_chat
    from engineroom.serving.client import ask
    from engineroom.serving.server import TritonServer
    from engineroom.serving.tree import find_program

    if not done.record.artifacts:
        raise InputError("the backup has no artifact to serve", where=str(done.backup), fix="leave --drill away")
    program = find_program(cache, progress=progress)
    served = []
    for saved in done.record.artifacts:
        reference = in_store(root, saved.name, None).pinned(saved.digest)
        tree = room / "served" / saved.digest.removeprefix("sha256:")[:16]
        pull(reference, tree, store=open_store(reference), progress=progress)
        record = BuildRecord.read(tree / RECORD_FILE, made_by="engineroom assemble")
        _check_runtime(record, private=program.private, where=saved.source)
        begin = time.monotonic()
        with TritonServer.of_tree(tree, program) as server:
            with progress.task(f"load {saved.name} in Triton", None, unit=""):
                server.start()
            loaded = time.monotonic() - begin
            chat = record.model.chat_template is not None
            question = "What is the capital of France?"
            text = render_chat(record, [{"role": "user", "content": question}]) if chat else question
            prompt = Prompt(text, max_tokens=1, add_special_tokens=False if chat else None)
            answer = ask(server.address, record.model.client_model, prompt)
            pieces = "".join(piece.text for piece in answer)
            if answer.summary.tokens < 1:
                raise ServerError("the restored model gave no token", where=saved.source, fix="restore another backup")
        shutil.rmtree(tree, ignore_errors=True)
        served.append(Served(Reference.parse(saved.source), loaded, pieces))
    return served


def _check_runtime(record: BuildRecord, *, private: bool, where: str) -> None:
    if private and record.inputs.runtime != "ctranslate2":
        raise IncompatibleError(
            f"everything was restored and verified, but the runtime {record.inputs.runtime} does not run here",
            where=where,
            fix="run the drill in the image of its runtime, on its GPU",
        )
