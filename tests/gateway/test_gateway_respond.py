import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from engineroom.gateway import answering
from engineroom.gateway.admission import WaitingRoom
from engineroom.gateway.answering import Answer, Answering, Exchange
from engineroom.gateway.metrics import Metrics
from engineroom.gateway.prepare import Question
from engineroom.gateway.respond import AnswerResponse, Outcome
from engineroom.gateway.upstream import Reply
from engineroom.gateway.wire import DONE, STILL_HERE, Writer
from engineroom.serving.answer import Prompt


class Upstream:
    """Three tokens, the last when it is told to."""

    inputs = frozenset({"text_input"})
    trouble = None

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.closed = False

    async def watch(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(self, prompt: Prompt, request_id: str) -> AsyncGenerator[Reply]:
        try:
            yield Reply("one ", 1, None)
            yield Reply("two ", 2, None)
            await self.go_on.wait()
            yield Reply("three", 3, None)
        finally:
            self.closed = True


class Sent:
    """What a client takes: everything, or nothing from the second chunk on."""

    def __init__(self, *, delay: float = 0.0) -> None:
        self.body = b""
        self._delay = delay
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    async def send(self, message: Message) -> None:
        if self.body:
            await asyncio.sleep(self._delay)
        self.body += message.get("body", b"")

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError


async def answered(upstream: Upstream, sent: Sent, send_seconds: float) -> Outcome:
    exchange = Exchange("a", 0.0, [Answer(Question(Prompt("hello", max_tokens=3), 1))], per_prompt=1)
    outcome = Outcome("text", "a", lambda _: None, stream=True, exchange=exchange)
    response = AnswerResponse(
        Answering(upstream, WaitingRoom(1, 1, 100), Metrics()).run(exchange),
        exchange,
        Writer("text", "a", "demo", "fp", with_usage=False),
        outcome,
        headers={},
        deadline=60,
        send_seconds=send_seconds,
        live=set(),
    )
    scope: Any = {"type": "http", "state": {"transport": sent}}
    await response(scope, sent.receive, sent.send)
    return outcome


def test_an_idle_stream_says_that_it_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "IDLE_SECONDS", 0.01)

    async def work() -> None:
        upstream, sent = Upstream(), Sent()
        answer = asyncio.create_task(answered(upstream, sent, 60))
        while sent.body.count(STILL_HERE) < 2:
            await asyncio.sleep(0.001)
        upstream.go_on.set()
        assert (await answer).whole
        assert sent.body.endswith(DONE)
        assert sent.body.index(b'"two "') < sent.body.index(STILL_HERE) < sent.body.index(b'"three"')

    asyncio.run(work())


def test_a_stream_with_tokens_has_no_comments() -> None:
    async def work() -> None:
        upstream, sent = Upstream(), Sent()
        upstream.go_on.set()
        assert (await answered(upstream, sent, 60)).whole
        assert STILL_HERE not in sent.body

    asyncio.run(work())


def test_a_client_that_takes_nothing_is_cut_and_its_request_ends_upstream() -> None:
    async def work() -> None:
        upstream, sent = Upstream(), Sent(delay=3600)
        outcome = await answered(upstream, sent, 0.05)
        assert outcome.status == 499
        assert outcome.refusal is not None
        assert outcome.refusal.reason == "slow_client"
        assert sent.aborted
        assert upstream.closed

    asyncio.run(work())


def test_a_client_that_takes_its_time_is_not() -> None:
    async def work() -> None:
        upstream, sent = Upstream(), Sent(delay=0.02)
        upstream.go_on.set()
        outcome = await answered(upstream, sent, 30)
        assert outcome.whole
        assert not sent.aborted

    asyncio.run(work())
