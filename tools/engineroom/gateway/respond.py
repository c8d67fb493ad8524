"""Sends an answer to its client: whole or as a stream, until it is complete, refused, or nobody reads it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engineroom.gateway.answering import Event, Exchange
from engineroom.gateway.refusals import Refusal
from engineroom.gateway.wire import DONE, STILL_HERE, Endpoint, Writer, event

LOG = logging.getLogger("engineroom.gateway")

_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx and ingress-nginx would collect a stream's pieces.
    "x-accel-buffering": "no",
}


@dataclass
class Outcome:
    """How a request ended, for log and metrics. Ended once; ``over`` is called then."""

    endpoint: Endpoint
    request_id: str
    over: Callable[["Outcome"], None]
    user: str | None = None
    stream: bool = False
    exchange: Exchange | None = None
    status: int = 0
    refusal: Refusal | None = None
    abandoned: bool = False
    whole: bool = False

    def end(self, status: int, refusal: Refusal | None = None, *, whole: bool = False, abandoned: bool = False) -> None:
        """The request is over."""
        if not self.status:
            self.status, self.refusal, self.whole, self.abandoned = status, refusal, whole, abandoned
            self.over(self)

    def facts(self) -> dict[str, Any]:
        """For the log. Neither prompts nor answers."""
        made: dict[str, Any] = {
            "request_id": self.request_id,
            "endpoint": self.endpoint,
            "status": self.status,
            "stream": self.stream,
        }
        if self.user is not None:
            made["user"] = self.user[:200]
        if self.abandoned:
            made["abandoned"] = True
        if self.refusal is not None:
            made |= {"reason": self.refusal.reason, "error": self.refusal.message[:500]}
        if exchange := self.exchange:
            first = exchange.first_token
            made |= {
                "prompt_tokens": exchange.prompt_tokens,
                "completion_tokens": exchange.completion_tokens,
                "finish": [answer.finish for answer in exchange.answers],
                "queue_ms": _milliseconds(exchange.queued),
                "ttft_ms": None if first is None else _milliseconds(first - exchange.started),
                "e2e_ms": _milliseconds(time.perf_counter() - exchange.started),
            }
        return made


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


class AnswerResponse(Response):
    """The response to a request that was taken."""

    def __init__(
        self,
        events: AsyncGenerator[list[Event]],
        exchange: Exchange,
        writer: Writer,
        outcome: Outcome,
        *,
        headers: dict[str, str],
        deadline: float,
        send_seconds: float,
        live: set["AnswerResponse"],
    ) -> None:
        """``deadline`` and ``send_seconds`` in seconds from now; it is in ``live`` while it is being sent."""
        self._events, self._exchange, self._writer, self._outcome = events, exchange, writer, outcome
        self._common_headers, self._send_seconds, self._live = headers, send_seconds, live
        self._timeout = asyncio.timeout(deadline)
        self._late = Refusal(
            504, "the answer was not complete within its time", reason="deadline", code="deadline_exceeded"
        )
        self._begun = False
        self._complete = False
        self._sending_since: float | None = None
        self._is_slow = False

    def cut(self) -> None:
        """End it now: the server goes."""
        self._late = Refusal(
            503, "the server had to stop before the answer was complete", reason="draining", code="draining"
        )
        with contextlib.suppress(RuntimeError):  # it has not begun, or is over
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and stop as soon as the client is gone."""
        task = asyncio.create_task(self._answer(send))
        gone = asyncio.create_task(_disconnected(receive))
        self._live.add(self)
        watching = asyncio.create_task(self._watch(task))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            # The last bytes of an answer end `receive` too.
            if not task.done() and not self._complete:
                task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
            elif self._is_slow:
                self._outcome.end(
                    499, Refusal(408, "the client did not read its answer", reason="slow_client", code="slow_client")
                )
                # Closed gently, the connection would wait for the client to read what is left.
                scope["state"]["transport"].abort()
            else:
                self._outcome.end(499, abandoned=True)
        finally:
            self._live.discard(self)
            for each in (task, gone, watching):
                each.cancel()

    async def _answer(self, send: Send) -> None:
        # aclosing: the events end, and with them the work upstream, before this request counts as over.
        async with aclosing(self._events) as events:
            try:
                async with self._timeout:
                    await (self._stream(events, send) if self._outcome.stream else self._whole(events, send))
                return
            except Refusal as error:
                refusal = error
            except TimeoutError:
                refusal = self._late
            except Exception:
                LOG.exception("an answer broke", extra={"facts": {"request_id": self._outcome.request_id}})
                refusal = Refusal(500, "the gateway failed; this is a bug", reason="internal", code="internal_error")
        if not self._begun:
            self._outcome.end(refusal.status, refusal)
            raise refusal from None
        self._outcome.end(200, refusal)
        self._complete = True
        await self._send(send, event(refusal.body), last=True)

    async def _whole(self, events: AsyncGenerator[list[Event]], send: Send) -> None:
        answers = self._exchange.answers
        async for news in events:
            for index, text, scored in news:
                if text is not None:
                    answers[index].pieces.append(text)
                    answers[index].scored += scored
        body = self._writer.whole(
            [("".join(answer.pieces), answer.finish or "stop", answer.scored) for answer in answers],
            self._exchange.prompt_tokens,
            self._exchange.completion_tokens,
        )
        await self._begin(send, {"content-type": "application/json", "content-length": str(len(body))})
        self._complete = True
        await self._send(send, body, last=True)
        self._outcome.end(200, whole=True)

    async def _stream(self, events: AsyncGenerator[list[Event]], send: Send) -> None:
        writer, begun = self._writer, set()
        async for news in events:
            chunks = [] if news else [STILL_HERE]
            for index, text, scored in news:
                if index not in begun:
                    begun.add(index)
                    chunks.append(writer.begin(index))
                if text is None:
                    chunks.append(writer.end(index, self._exchange.answers[index].finish or "stop"))
                else:
                    chunks.append(writer.piece(index, text, scored))
            if not self._begun:
                # Not before the first token: until then a refusal has a status of its own.
                await self._begin(send, _STREAM_HEADERS)
            await self._send(send, b"".join(chunks))
        closing = b""
        if writer.with_usage:
            closing = writer.usage(self._exchange.prompt_tokens, self._exchange.completion_tokens)
        self._complete = True
        await self._send(send, closing + DONE, last=True)
        self._outcome.end(200, whole=True)

    async def _begin(self, send: Send, headers: dict[str, str]) -> None:
        self._begun = True
        pairs = [(name.encode(), value.encode()) for name, value in (headers | self._common_headers).items()]
        await send({"type": "http.response.start", "status": 200, "headers": pairs})

    async def _send(self, send: Send, body: bytes, *, last: bool = False) -> None:
        """Send, as soon as the client has taken most of what was sent before."""
        self._sending_since = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": not last})
        self._sending_since = None

    async def _watch(self, task: "asyncio.Task[None]") -> None:
        """Cancel ``task`` when the client has taken nothing for too long."""
        # Beside it, because a timeout of each token's own costs more than wording the token.
        while not self._is_slow:
            since = self._sending_since
            waited = 0.0 if since is None else time.monotonic() - since
            if waited >= self._send_seconds:
                self._is_slow = True
                task.cancel()
            else:
                await asyncio.sleep(self._send_seconds - waited)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
