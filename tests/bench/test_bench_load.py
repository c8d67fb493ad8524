"""The load generator against a server that this test controls: what it sends, when, and what it says of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from engineroom.bench.arrivals import Arrival, closed
from engineroom.bench.load import Run, generate
from engineroom.bench.report import Objective, Report
from engineroom.bench.targets import OpenAITarget, Sent, Shape
from engineroom.errors import ServerError

Handler = Callable[[web.Request, int], Any]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI endpoint whose n-th answer is ``handler(request, n)``; and the bodies that came."""
    bodies: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> Any:
        bodies.append(await request.json())
        return await handler(request, len(bodies) - 1)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "a-model"}]})

    application = web.Application()
    application.add_routes(
        [web.get("/v1/models", models), web.post("/v1/chat/completions", answer), web.post("/v1/completions", answer)]
    )
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", bodies
    finally:
        await runner.cleanup()


async def stream(request: web.Request, *events: Any, done: bool = True) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b": still here\n\ndata: " + json.dumps(event).encode() + b"\n\n")
    if done:
        await response.write(b"data: [DONE]\n\n")
    return response


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


COUNTS = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}


def run(handler: Handler, arrivals: Any, **options: Any) -> tuple[Run, list[dict[str, Any]]]:
    async def work() -> tuple[Run, list[dict[str, Any]]]:
        async with server(handler) as (url, bodies):
            shape = options.pop("shape", Shape(timeout=options.pop("timeout", 10)))
            return await generate(OpenAITarget(url, shape), iter(arrivals), **options), bodies

    return asyncio.run(work())


async def good(request: web.Request, _: int) -> web.StreamResponse:
    return await stream(request, chunk("a"), chunk("b"), COUNTS)


def test_answers_are_counted_with_the_servers_own_numbers_of_tokens() -> None:
    made, bodies = run(good, closed(5, 2, 6), concurrency=2, warmup=1)

    report = Report.of(made)
    assert (report.sent, report.whole, report.input_tokens, report.output_tokens) == (6, 6, 42, 12)
    assert len(bodies) == 7
    assert all(len(sent.tokens_at) == 2 for sent in made.requests)
    assert len({body["messages"][0]["content"] for body in bodies}) == 7  # no two prompts are the same
    body = bodies[0]
    assert (body["model"], body["max_tokens"], body["ignore_eos"], body["stream"]) == ("a-model", 2, True, True)


def test_completions_are_asked_as_completions() -> None:
    async def handler(request: web.Request, _: int) -> web.StreamResponse:
        assert request.path == "/v1/completions"
        return await stream(request, {"choices": [{"index": 0, "text": "a"}]})

    made, bodies = run(
        handler, closed(5, 2, 1), concurrency=1, shape=Shape(endpoint="completions", model="m", ignore_eos=False)
    )

    assert made.requests[0].error is None
    assert bodies[0]["model"] == "m"
    assert "ignore_eos" not in bodies[0]
    assert len(bodies[0]["prompt"].split()) == 5


def test_a_stalled_server_delays_no_request_and_shows_in_the_latencies_of_all() -> None:
    """Coordinated omission: a generator that waited would have sent one request into the stall, and missed it."""
    stall = 0.6
    free: list[float] = []

    async def handler(request: web.Request, _: int) -> web.StreamResponse:
        free.append(time.perf_counter())
        # One stall at the beginning, for everybody who comes during it.
        await asyncio.sleep(max(0.0, free[0] + stall - time.perf_counter()))
        return await stream(request, chunk("a"), COUNTS)

    dues = [0.05 * number for number in range(10)]
    made, _ = run(handler, [Arrival(due, 1, 1) for due in dues], concurrency=None)

    assert [sent.due - made.began for sent in made.requests] == pytest.approx(dues)
    # All were under way before the first was answered.
    first_answer = min(sent.tokens_at[0] for sent in made.requests)
    assert all(sent.sent < first_answer for sent in made.requests)
    for sent, due in zip(made.requests, dues, strict=True):
        assert sent.tokens_at[0] - sent.due >= stall - due - 0.01
    assert Report.of(made).spreads["ttft"].at(0) is not None


def test_every_way_to_fail_is_counted_under_its_name() -> None:
    async def handler(request: web.Request, number: int) -> Any:
        if number == 0:
            return web.json_response({"error": {"code": "queue_full"}}, status=429)
        if number == 1:
            return await stream(request, chunk("a"), {"error": {"code": "lost"}}, done=False)
        if number == 2:
            return await stream(request, chunk("a"), done=False)
        if number == 3:
            await asyncio.sleep(5)
        if number == 4:
            assert request.transport is not None
            request.transport.close()
        return await good(request, number)

    made, _ = run(handler, closed(1, 2, 6), concurrency=1, timeout=0.5)

    report = Report.of(made)
    assert dict(report.errors) == {
        "HTTP 429 queue_full": 1,
        "stream lost": 1,
        "broken off": 1,
        "timeout": 1,
        "ServerDisconnectedError": 1,
    }
    assert report.whole == 1


def test_a_closed_loop_has_as_many_requests_open_as_clients() -> None:
    now = [0, 0]

    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        now[0] += 1
        now[1] = max(now)
        await asyncio.sleep(0.01)
        now[0] -= 1
        return await good(request, number)

    run(handler, closed(1, 1, 30), concurrency=3)

    assert now[1] == 3


def test_nothing_is_sent_after_the_time_is_over() -> None:
    made, _ = run(good, closed(1, 1, None), concurrency=1, seconds=0.2)

    assert made.requests
    assert all(sent.due - made.began <= 0.2 for sent in made.requests)


def test_objectives_are_met_or_missed_at_their_percentile() -> None:
    made = Run(began=0.0, ended=1.0)
    made.requests = []
    for number in range(100):
        made.requests.append(Sent(number, 0.0, 0.0, [0.1 + number / 1000, 0.2 + number / 1000], 0.5, 1, 2))
    report = Report.of(made)

    met, missed, errors = report.verdicts([Objective("ttft", 150, 50), Objective("ttft", 150, 99)], 0)
    assert (met.met, missed.met, errors.met) == (True, False, True)
    assert missed.objective == "ttft p99 ≤ 150 ms"
    made.requests[0].error = "timeout"
    assert [verdict.met for verdict in Report.of(made).verdicts([Objective("itl", 101)], 0.0)] == [True, False]
    assert [verdict.met for verdict in Report.of(made).verdicts([Objective("itl", 101)], 0.01)] == [True, True]
    # What nobody measured is not met.
    assert not Report.of(Run(ended=1.0)).verdicts([Objective("e2e", 1e9)], 1)[0].met


def test_a_place_where_nothing_answers_is_named() -> None:
    async def work() -> None:
        await generate(OpenAITarget("http://127.0.0.1:9", Shape()), closed(1, 1, 1), concurrency=1)

    with pytest.raises(ServerError, match="no OpenAI endpoint answers there"):
        asyncio.run(work())
