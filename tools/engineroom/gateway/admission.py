"""The waiting room: at most the engine's slots are forwarded, everything else waits here, up to a bound.

The engine takes requests at once and queues inside, where nobody sees or bounds it (design: Signals); so nothing
waits there. First come, first served: a long prompt is not overtaken.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from engineroom.gateway.refusals import Refusal, bad_request

#: The drain rate is that of the last so many seconds.
RATE_SECONDS = 30.0
#: Bounds of Retry-After. Nobody should come back sooner, or be sent away for longer than an incident lasts.
LEAST_RETRY, MOST_RETRY = 1.0, 120.0


class Ticket:
    """One answer's place: waiting, then holding a slot, then done."""

    def __init__(self, room: "WaitingRoom", tokens: int) -> None:
        self.tokens = tokens
        self._room = room
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """Wait for a slot."""
        # A cancelled waiter must not cancel the future that the room may set: `leave` looks at it.
        await asyncio.shield(self._turn)

    def leave(self) -> None:
        """Give the slot, or the place in the queue, to the next. Called twice, it does nothing more."""
        self._room._leave(self)


class WaitingRoom:
    """Slots and the queue before them. For one event loop."""

    def __init__(
        self, slots: int, max_requests: int, max_tokens: int, *, changed: Callable[[], None] = lambda: None
    ) -> None:
        """``changed`` is called after every change of the numbers below."""
        self.slots = slots
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.running = 0
        self.queued_tokens = 0
        self._queue: deque[Ticket] = deque()
        self._holding: set[Ticket] = set()
        self._left: deque[tuple[float, int]] = deque()
        """When tickets left the queue for a slot, and their tokens."""
        self._changed = changed

    @property
    def waiting(self) -> int:
        """Tickets without a slot."""
        return len(self._queue)

    def enter(self, tokens: list[int]) -> list[Ticket]:
        """A ticket for each answer, with its prompt's tokens: all, or a :class:`Refusal` for all."""
        free = max(0, self.slots - self.running - self.waiting)
        late = tokens[free:]
        if len(tokens) > self.slots + self.max_requests:
            raise bad_request(
                f"{len(tokens)} answers at once are more than this server can ever hold "
                f"({self.slots} slots, {self.max_requests} waiting)",
                param="n",
            )
        if late and self.waiting + len(late) > self.max_requests:
            raise self._full(f"{self.waiting} requests wait already")
        # A prompt longer than the whole bound could never come in, so it may where nobody waits.
        if late and self.waiting and self.queued_tokens + sum(late) > self.max_tokens:
            raise self._full(f"prompts of {self.queued_tokens:,} tokens wait already")
        tickets = [Ticket(self, count) for count in tokens]
        self._queue.extend(tickets)
        self.queued_tokens += sum(tokens)
        self._advance()
        return tickets

    def retry_after(self) -> float:
        """Seconds until what waits now has left the queue, at the rate at which it lately did."""
        now = time.monotonic()
        self._forget(now)
        if not self._left:
            return LEAST_RETRY if not self._queue else RATE_SECONDS
        span = max(1.0, now - self._left[0][0])
        by_requests = self.waiting / (len(self._left) / span)
        by_tokens = self.queued_tokens / (max(1, sum(tokens for _, tokens in self._left)) / span)
        return min(MOST_RETRY, max(LEAST_RETRY, by_requests, by_tokens))

    def _full(self, words: str) -> Refusal:
        return Refusal(
            429, f"the queue is full: {words}; try again later", reason="queue_full", code="queue_full",
            retry_after=self.retry_after(),
        )  # fmt: skip

    def _advance(self) -> None:
        now = time.monotonic()
        while self._queue and self.running < self.slots:
            ticket = self._queue.popleft()
            self.queued_tokens -= ticket.tokens
            self.running += 1
            self._holding.add(ticket)
            self._left.append((now, ticket.tokens))
            ticket._turn.set_result(None)
        self._forget(now)
        self._changed()

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._holding:
            self._holding.remove(ticket)
            self.running -= 1
        elif ticket in self._queue:
            self._queue.remove(ticket)
            self.queued_tokens -= ticket.tokens
        else:
            return
        self._advance()

    def _forget(self, now: float) -> None:
        while self._left and self._left[0][0] < now - RATE_SECONDS:
            self._left.popleft()
