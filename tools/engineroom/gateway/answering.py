"""One request from admission to its last byte: its answers side by side, timed, cancelled when nobody reads them."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from engineroom.gateway.admission import Ticket, WaitingRoom
from engineroom.gateway.metrics import Metrics
from engineroom.gateway.prepare import Question
from engineroom.gateway.upstream import Scored, Upstream
from engineroom.gateway.wire import Finish


@dataclass
class Answer:
    """What has come of one answer so far."""

    question: Question
    pieces: list[str] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    tokens: int = 0
    finish: Finish | None = None
    """None until it is whole."""


@dataclass
class Exchange:
    """One request's answers, and its times (``time.perf_counter``)."""

    request_id: str
    started: float
    answers: list[Answer]
    per_prompt: int
    """Answers to each prompt, one after the other."""
    first_token: float | None = None
    queued: float = 0.0
    """Seconds that the last of its answers waited for a slot."""

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts; several answers to one prompt count it once, as at OpenAI."""
        return sum(answer.question.tokens for answer in self.answers[:: self.per_prompt])

    @property
    def completion_tokens(self) -> int:
        """Of all answers."""
        return sum(answer.tokens for answer in self.answers)


#: A stream on which nothing has moved for so long, or up to twice that, says so: proxies end idle connections, many
#: after 60 s.
IDLE_SECONDS = 15.0

#: Index of the answer, new text (None: it is whole), and the tokens that came where log probabilities are wanted.
Event = tuple[int, str | None, tuple[Scored, ...]]


class Answering:
    """Runs exchanges on an upstream, through the waiting room."""

    def __init__(self, upstream: Upstream, room: WaitingRoom, metrics: Metrics) -> None:
        self._upstream, self._room, self._metrics = upstream, room, metrics

    async def run(self, exchange: Exchange) -> AsyncGenerator[list[Event]]:
        """What came since the last time, until all answers are whole; nothing, when nothing came for a while.

        Closing the iterator cancels everything. An engine's slot is given back when the engine is done, however
        slowly the client reads. Raises Refusal for the first answer that fails; the others end with it.
        """
        entered = time.perf_counter()
        tickets = self._room.enter([answer.question.tokens for answer in exchange.answers])
        news: deque[Event | BaseException] = deque()
        came = asyncio.Event()
        tasks = [
            asyncio.create_task(self._produce(exchange, index, ticket, entered, news, came))
            for index, ticket in enumerate(tickets)
        ]
        left = len(tasks)
        reminding = asyncio.create_task(_remind(exchange, came))
        try:
            while left:
                await came.wait()
                came.clear()
                events: list[Event] = []
                while news:
                    event = news.popleft()
                    if isinstance(event, BaseException):
                        raise event
                    events.append(event)
                    left -= event[1] is None
                yield events
        finally:
            for task in (reminding, *tasks):
                task.cancel()
            await asyncio.gather(reminding, *tasks, return_exceptions=True)

    async def _produce(
        self,
        exchange: Exchange,
        index: int,
        ticket: Ticket,
        entered: float,
        news: "deque[Event | BaseException]",
        came: asyncio.Event,
    ) -> None:
        try:
            await self._answer(exchange, index, ticket, entered, news, came)
            news.append((index, None, ()))
        except Exception as error:
            news.append(error)
        finally:
            ticket.leave()
            came.set()

    async def _answer(
        self,
        exchange: Exchange,
        index: int,
        ticket: Ticket,
        entered: float,
        news: "deque[Event | BaseException]",
        came: asyncio.Event,
    ) -> None:
        answer, metrics = exchange.answers[index], self._metrics
        await ticket.turn()
        waited = time.perf_counter() - entered
        exchange.queued = max(exchange.queued, waited)
        metrics.queue.observe(waited)
        metrics.prompt_tokens.inc(answer.question.tokens)
        last, finish = 0.0, None
        replies = self._upstream.generate(answer.question.prompt, exchange.request_id)
        async with aclosing(replies):
            async for reply in replies:
                count = reply.output_tokens
                if count is None:
                    count = answer.tokens + bool(reply.text)
                fresh = count - answer.tokens
                if fresh > 0:
                    now = time.perf_counter()
                    if not last:
                        metrics.ttft.observe(now - exchange.started)
                        exchange.first_token = exchange.first_token or now
                    else:
                        # Tokens that came together: each has its share of the time.
                        for _ in range(fresh):
                            metrics.itl.observe((now - last) / fresh)
                    last = now
                    metrics.generated_tokens.inc(fresh)
                    answer.tokens = count
                finish = reply.finish or finish
                if reply.text or reply.scored:
                    news.append((index, reply.text, reply.scored))
                    came.set()
        # Models of older artifacts do not say why; of theirs, one that used up its tokens was cut.
        used_up = answer.tokens >= answer.question.prompt.max_tokens
        answer.finish = "length" if finish == "length" or (finish is None and used_up) else "stop"


async def _remind(exchange: Exchange, came: asyncio.Event) -> None:
    """Set ``came`` whenever no token has come for a while."""
    # Beside the answers: a timeout around each wait for a token costs as much as the token's words.
    while True:
        tokens = exchange.completion_tokens
        await asyncio.sleep(IDLE_SECONDS)
        if exchange.completion_tokens == tokens:
            came.set()
