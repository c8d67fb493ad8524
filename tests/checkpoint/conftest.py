"""Fixtures of the checkpoint stage: a Hub on this machine, and a progress that remembers."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from hub_server import FakeHub


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


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A running Hub that HF_ENDPOINT names, and nothing of the user's own settings."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        # The token file's place is read when the client is imported.
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield server
