"""Transfers side by side: hashlib and obstore leave the interpreter lock, so threads are enough."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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

    def check(self) -> None:
        """Called between pieces. Raises :class:`StoppedError` where the work is off."""
        if self._event.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """A pause that ends early where the work is off. Raises :class:`StoppedError` then."""
        self._event.wait(seconds)
        self.check()


class StoppedError(Exception):
    """Ends a thread whose work nobody waits for any more; never leaves :func:`run_all`."""


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


def run_all(function: Callable[[Item, Stop], Result], items: Iterable[Item], *, workers: int = WORKERS) -> list[Result]:
    """``function`` of every item, in order of the items. The first failure, or Ctrl-C, stops the others."""
    stop = Stop()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(function, item, stop) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future in done and (error := future.exception()) and not isinstance(error, StoppedError):
                    raise error
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]
