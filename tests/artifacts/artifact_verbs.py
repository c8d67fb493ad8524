"""One verb in a process of its own, to be killed: forked from a server that has imported everything."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engineroom import documents
from engineroom.artifacts import backup, bucket, exporting, folder, garbage, holds, manifest, restore
from engineroom.artifacts.copying import copy
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store

CHUNK_BYTES = 1 << 20
PART_BYTES = 4 << 20
#: A condemnation of a killed collection would hold the next publication up for two minutes.
CONDEMNED_SECONDS = 4.0
PRELOADED = [bucket.__name__, folder.__name__, backup.__name__, "obstore.store", __name__]


class Verb:
    """A verb at work. ``go`` has it begin, ``end`` waits for it or kills it."""

    def __init__(self, verb: str, **arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._ours, theirs = context.Pipe()
        settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._process = context.Process(target=_run, args=(verb, arguments, settings, theirs))
        self._process.start()
        theirs.close()
        assert self._ours.poll(60)
        assert self._ours.recv() == "ready"
        self._begin = 0.0

    def go(self) -> "Verb":
        self._ours.send("go")
        self._begin = time.monotonic()
        return self

    def end(self, *, kill_after: float | None = None) -> float:
        """Seconds from ``go`` to the end. With ``kill_after`` it gets SIGKILL so many seconds after ``go``."""
        # Ends early where the verb does, and where the process dies: its end of the pipe is closed then.
        left = 120 if kill_after is None else max(0.0, kill_after - (time.monotonic() - self._begin))
        self._ours.poll(left)
        took = time.monotonic() - self._begin
        if kill_after is None:
            assert self._ours.recv() == "done"
            self._process.join(60)
            assert self._process.exitcode == 0
        self._process.kill()
        self._process.join(60)
        self._ours.close()
        self._process.close()
        return took


def run(verb: str, *, kill_after: float | None = None, **arguments: Any) -> float:
    """One verb, alone."""
    return Verb(verb, **arguments).go().end(kill_after=kill_after)


def _run(verb: str, arguments: dict[str, Any], settings: dict[str, str], told: Connection) -> None:
    os.environ.update(settings)
    documents.CHUNK_BYTES = CHUNK_BYTES
    manifest.PART_BYTES = PART_BYTES
    holds.CONDEMNED_SECONDS = CONDEMNED_SECONDS
    told.send("ready")
    assert told.recv() == "go"
    _VERBS[verb](**arguments)
    told.send("done")


def _publish(tree: Path, to: str) -> None:
    reference = Reference.parse(to)
    publish(tree, reference, store=open_store(reference))


def _copy(source: str, to: str) -> None:
    here, there = Reference.parse(source), Reference.parse(to)
    copy(here, there, source_store=open_store(here), store=open_store(there))


def _gc(root: str) -> None:
    garbage.collect(open_store(root), grace_seconds=0)


def _export(source: str, to: Path) -> None:
    exporting.export([Reference.parse(source)], to)


def _import(path: Path, to: str) -> None:
    exporting.import_bundle(path, to)


def _backup(source: str, to: str, folder: Path) -> None:
    backup.backup([Reference.parse(source)], Reference.parse(to), folders=[folder])


def _restore(source: str, to: str, folder: Path) -> None:
    restore.restore(Reference.parse(source), to=to, folder_to=folder)


_VERBS = {
    "publish": _publish,
    "copy": _copy,
    "gc": _gc,
    "export": _export,
    "import": _import,
    "backup": _backup,
    "restore": _restore,
}
