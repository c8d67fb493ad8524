"""Sends requests when they are due and notes what comes.

Open loop: a request is sent at its time however late the answers before it are, and its latency counts from that
time. A generator that waits for answers would leave out just the requests that a slow server delays ("coordinated
omission").
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engineroom.bench.arrivals import Arrival
from engineroom.bench.targets import Sent, Target


@dataclass
class Run:
    """All requests of a run, in the order in which they were due."""

    requests: list[Sent] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0


async def generate(
    target: Target,
    arrivals: Iterator[Arrival],
    *,
    concurrency: int | None,
    seconds: float | None = None,
    warmup: int = 0,
    done: Callable[[], None] = lambda: None,
) -> Run:
    """Put ``target`` under load until all answers are there.

    With ``concurrency`` so many clients take one arrival after the other (closed loop), for ``seconds`` at most;
    without it each is sent at its time. ``warmup`` requests are sent before and not counted. ``done`` is called
    for each request that is over.
    """
    try:
        await target.open()
        first = next(arrivals, None)
        run = Run()
        if first is None:
            return run
        arrivals = itertools.chain([first], arrivals)
        # Their numbers, and so their prompts, are none of the run's.
        early = [Sent(-1 - number, time.perf_counter()) for number in range(warmup)]
        await asyncio.gather(*(target.ask(first, sent) for sent in early))
        run.began = time.perf_counter()
        if concurrency is None:
            await _open_loop(target, arrivals, run, done)
        else:
            await _closed_loop(target, arrivals, run, concurrency, seconds, done)
        run.ended = time.perf_counter()
        return run
    finally:
        await target.close()


async def _open_loop(target: Target, arrivals: Iterator[Arrival], run: Run, done: Callable[[], None]) -> None:
    async def send(arrival: Arrival, sent: Sent) -> None:
        await target.ask(arrival, sent)
        done()

    async with asyncio.TaskGroup() as tasks:
        for number, arrival in enumerate(arrivals):
            sent = Sent(number, run.began + (arrival.at or 0.0))
            await asyncio.sleep(max(0.0, sent.due - time.perf_counter()))
            run.requests.append(sent)
            tasks.create_task(send(arrival, sent))


async def _closed_loop(
    target: Target,
    arrivals: Iterator[Arrival],
    run: Run,
    concurrency: int,
    seconds: float | None,
    done: Callable[[], None],
) -> None:
    async def client() -> None:
        for arrival in arrivals:
            now = time.perf_counter()
            if seconds is not None and now - run.began > seconds:
                return
            sent = Sent(len(run.requests), now)
            run.requests.append(sent)
            await target.ask(arrival, sent)
            done()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(client())
