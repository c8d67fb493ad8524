"""Transfers side by side: hashlib and obstore leave the interpreter lock, so threads are enough."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from engineroom.errors import ArtifactNotFoundError, StoreError

#: Memory is per stream: four stay under 300 MiB, whatever the size of the files (there is a test).
WORKERS = 4
#: Up to this size a blob costs its round trips rather than its bytes: more of them travel at once.
SMALL_BYTES = 1 << 20
SMALL_WORKERS = 16

#: How often a transfer is tried again, and the first pause before it (s); each next one is twice as long.
RETRIES, PATIENCE = 4, 0.25

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stop:
    """Tells running transfers that another one failed, or that the user wants out."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Let every transfer end at its next piece."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the work is off."""
        return self._event.is_set()

    def check(self) -> None:
        """Called between pieces. Raises :class:`StoppedError` where the work is off."""
        if self._event.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """A pause that ends early where the work is off. Raises :class:`StoppedError` then."""
        self._event.wait(seconds)
        self.check()


class StoppedError(Exception):
    """Ends a thread whose work nobody waits for any more; never leaves the outermost :func:`run_all`."""


def again(step: Callable[[], Result], stop: Stop, *, retries: int = RETRIES) -> Result:
    """``step``, repeated where the store failed: a connection that broke may hold the next time."""
    for attempt in range(retries):
        try:
            return step()
        except ArtifactNotFoundError:
            raise
        except StoreError:
            stop.wait(PATIENCE * 2**attempt)
    return step()


def run_beside(*works: Callable[[Stop], Result]) -> list[Result]:
    """Several kinds of work at once, their results in this order. The first failure, or Ctrl-C, stops the others.

    A work of many items gives the stop that it is called with to its own :func:`run_all`.
    """
    return run_all(lambda work, stop: work(stop), works, workers=len(works))


def run_all(
    function: Callable[[Item, Stop], Result],
    items: Iterable[Item],
    *,
    workers: int = WORKERS,
    stop: Stop | None = None,
) -> list[Result]:
    """``function`` of every item, in order of the items. The first failure, or Ctrl-C, stops the others.

    ``stop``: of the work that this is a part of (see :func:`run_beside`).
    """
    work, stop = list(items), stop or Stop()
    found: dict[int, Result] = {}
    failures: dict[int, BaseException] = {}
    # One iterator for all: a future for each of thousands of small files would cost as much as a request.
    queue, turn = iter(enumerate(work)), threading.Lock()

    def take() -> tuple[int, Item] | None:
        with turn:
            return None if stop.is_set else next(queue, None)

    def drain() -> None:
        while taken := take():
            number, item = taken
            try:
                found[number] = function(item, stop)
            except BaseException as error:
                failures[number] = error
                stop.set()

    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            wait([pool.submit(drain) for _ in range(min(workers, len(work)))])
        except BaseException:
            stop.set()
            raise
    for _, error in sorted(failures.items()):
        if not isinstance(error, StoppedError):
            raise error
    if len(found) < len(work):
        raise StoppedError  # by what runs beside this
    return [found[number] for number in range(len(work))]


def run_by_size(
    function: Callable[[Item, Stop], Result], items: Sequence[Item], *, size: Callable[[Item], int]
) -> list[Result]:
    """As :func:`run_all`, of blobs of ``size`` bytes, the longest first: few long ones at once, many short ones."""
    short = next((number for number, item in enumerate(items) if size(item) <= SMALL_BYTES), len(items))
    return run_all(function, items[:short]) + run_all(function, items[short:], workers=SMALL_WORKERS)
