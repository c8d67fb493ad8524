"""How long work tells that it goes on. Stages report; the CLI draws, and a library user may ignore it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One piece of long work: bytes or items done so far."""

    def advance(self, amount: int) -> None:
        """``amount`` more bytes or items are done. Safe from any thread."""


class Progress(Protocol):
    """Where a stage says what it does."""

    def say(self, text: str) -> None:
        """One line for a person: a decision taken, a cache hit and why."""

    def task(self, title: str, total: int | None, *, unit: str = "B") -> AbstractContextManager[Task]:
        """Begin work of ``total`` units (None: unknown), ended by leaving the context."""


class _Quiet:
    def say(self, text: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def task(self, title: str, total: int | None, *, unit: str = "B") -> AbstractContextManager[Task]:
        return nullcontext(self)


#: Says nothing: the default for library users and tests.
QUIET: Progress = _Quiet()
