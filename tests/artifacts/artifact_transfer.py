"""One publication or one pull in a process of its own, to be killed.

Forked from a server that has imported everything, so that 100 of them start in no time; chunks and parts are small.
"""

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from artifact_trees import contents_of

from engineroom import documents
from engineroom.artifacts import bucket, folder, manifest
from engineroom.artifacts.cache import Cache
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store

CHUNK_BYTES = 1 << 20
PART_BYTES = 4 << 20
PRELOADED = [bucket.__name__, folder.__name__, "obstore.store", __name__]


def transfer(verb: str, reference: str, place: Path, *, kill_after: float | None) -> float:
    """Publish from, pull to, or pull into the cache ``place``; seconds from the start of the transfer to its end.

    With ``kill_after`` the process gets SIGKILL so many seconds after its start, if it is still there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = context.Process(target=_run, args=(verb, reference, place, settings, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60)
    assert ours.recv() == "go"
    begin = time.monotonic()
    # Ends early where the transfer does, and where the process dies: its end of the pipe is closed then.
    ours.poll(120 if kill_after is None else kill_after)
    took = time.monotonic() - begin
    if kill_after is None:
        assert ours.recv() == "done"
        process.join(60)
        assert process.exitcode == 0
    process.kill()
    process.join(60)
    ours.close()
    process.close()
    return took


def side_by_side(*jobs: tuple[str, str, Path, float | None]) -> None:
    """Several transfers at once: verb, reference, place, and when to kill it."""

    def run(job: tuple[str, str, Path, float | None]) -> None:
        verb, reference, place, kill_after = job
        transfer(verb, reference, place, kill_after=kill_after)

    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(run, jobs))


def _run(verb: str, text: str, place: Path, settings: dict[str, str], told: Connection) -> None:
    os.environ.update(settings)
    documents.CHUNK_BYTES = CHUNK_BYTES
    manifest.PART_BYTES = PART_BYTES
    reference = Reference.parse(text)
    told.send("go")
    if verb == "publish":
        publish(place, reference, store=open_store(reference))
    elif verb == "cache":
        pull(reference, cache=Cache(place), store=open_store(reference))
    else:
        pull(reference, place, store=open_store(reference))
    told.send("done")


def kill_pulls(
    target: Path,
    references: Sequence[str],
    contents: Sequence[Any],
    kills: int,
    *,
    seed: int,
    check: Callable[[], bool] = lambda: True,
) -> int:
    """Pull two artifacts in turn into ``target``, each time killed and then repeated; how many were cut off.

    After a kill ``target`` is the old tree or the new one; after the repetition it is the new one, and ``check`` holds.
    """
    chance = random.Random(seed)
    usual = min(transfer("pull", reference, target, kill_after=None) for reference in [*references, references[0]])
    unfinished = 0
    for number in range(kills):
        old, new = contents[number % 2], contents[(number + 1) % 2]
        reference = references[(number + 1) % 2]

        took = transfer("pull", reference, target, kill_after=chance.uniform(0, usual))

        found = contents_of(target)
        assert found in (old, new), f"seed {seed}, kill {number}: the target is neither the old tree nor the new one"
        unfinished += found == old
        usual = usual if found == old else min(usual, took)
        transfer("pull", reference, target, kill_after=None)
        assert contents_of(target) == new, f"seed {seed}, kill {number}"
        assert check(), f"seed {seed}, kill {number}"
        left = [path.name for path in target.parent.iterdir() if path.is_dir()]
        assert left == [target.name], f"seed {seed}, kill {number}"
    return unfinished
