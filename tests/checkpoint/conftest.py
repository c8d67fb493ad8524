"""Fixtures of the checkpoint stage: a Hub on this machine, and a progress that remembers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import Heard
from hub_server import FakeHub


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
