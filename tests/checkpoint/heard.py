"""A Progress for tests that ask what was reported."""

import threading
from contextlib import AbstractContextManager, nullcontext


class Heard:
    """A Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tasks: dict[str, int | None] = {}
        self.advanced = 0
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, title: str, total: int | None, *, unit: str = "B") -> AbstractContextManager["Heard"]:
        self.tasks[title] = total
        return nullcontext(self)

    def advance(self, amount: int) -> None:
        assert amount >= 0
        with self._lock:
            self.advanced += amount
