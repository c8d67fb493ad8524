"""Triton is never asked about a client's absence while or after the last response is sent: 2.51 dies of it."""

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODEL = Path(__file__).resolve().parents[3] / "model-repo" / "tensorrt_llm" / "1"


class Sender:
    """Triton's side of an answer: slow to say whether the client is there, and it notes what it was asked."""

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.events: list[str] = []

    def is_cancelled(self) -> bool:
        self.asked.set()
        self.may_answer.wait(10)
        self.events.append("asked")
        return False

    def send(self, response: str, flags: int) -> None:
        self.events.append(f"{response} {flags}")


@pytest.fixture
def answer_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``Answer`` of model.py, which takes one constant from Triton's module when it is imported."""
    triton = ModuleType("triton_python_backend_utils")
    triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    monkeypatch.syspath_prepend(str(MODEL.parents[1]))
    monkeypatch.syspath_prepend(str(MODEL))
    yield importlib.import_module("model").Answer
    # Other models are called `model`, too.
    del sys.modules["model"]


def answer_to(answer_class: Any, sender: Sender) -> Any:
    return answer_class(sender, None, streamed=True, prefix="", counts={}, reason=False)


def test_the_last_response_waits_until_triton_has_said_whether_the_client_is_there(answer_class: Any) -> None:
    sender = Sender()
    answer = answer_to(answer_class, sender)
    watcher = threading.Thread(target=answer.is_abandoned)
    watcher.start()
    assert sender.asked.wait(10)

    sending = threading.Thread(target=answer.send, args=("last",), kwargs={"last": True})
    sending.start()
    sending.join(0.1)
    before = list(sender.events)
    sender.may_answer.set()
    sending.join(10)
    watcher.join(10)

    assert before == []
    assert sender.events == ["asked", "last 1"]


def test_after_the_last_response_triton_is_not_asked_any_more_and_before_it_is(answer_class: Any) -> None:
    sender = Sender()
    sender.may_answer.set()
    answer = answer_to(answer_class, sender)

    answer.send("piece", last=False)
    assert not answer.is_abandoned()
    answer.send("last", last=True)
    assert not answer.is_abandoned()

    assert sender.events == ["piece 0", "asked", "last 1"]
