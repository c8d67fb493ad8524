"""The HTTP surface: routes, keys, limits, and one line of log for each request."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engineroom.gateway.admission import WaitingRoom
from engineroom.gateway.answering import Answer, Answering, Exchange
from engineroom.gateway.keys import ApiKeys
from engineroom.gateway.logprobs import Logprobs
from engineroom.gateway.metrics import Metrics
from engineroom.gateway.prepare import Preparer
from engineroom.gateway.refusals import Refusal, bad_request
from engineroom.gateway.respond import AnswerResponse, Outcome
from engineroom.gateway.schema import ChatBody, TextBody, read_body
from engineroom.gateway.settings import Served, Settings
from engineroom.gateway.upstream import Upstream
from engineroom.gateway.wire import Endpoint, Writer

LOG = logging.getLogger("engineroom.gateway")

#: For the body of a request to arrive.
BODY_SECONDS = 30.0
#: A body that is too large is read up to here and thrown away, so that its sender can read the refusal.
LINGER_BYTES = 64 << 20

#: A body up to here is prepared at once: that takes less than handing it to a thread and back, which also spreads
#: requests that came together over more time than an engine waits to batch them.
INLINE_BYTES = 16 << 10

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_BODIES: dict[Endpoint, type[ChatBody | TextBody]] = {"chat": ChatBody, "text": TextBody}


@dataclass
class State:
    """Where this process is in its life."""

    draining: bool = False
    """SIGTERM has come: not ready any more."""
    refusing: bool = False
    """Nothing new is taken."""
    in_flight: int = 0
    """Requests that were taken and are not over."""
    finished: int = 0
    """Requests that were taken and are over."""
    live: set[AnswerResponse] = field(default_factory=set)
    """What is being answered."""


class Gateway:
    """Everything that one request needs, put together."""

    def __init__(
        self, settings: Settings, served: Served, preparer: Preparer, upstream: Upstream, metrics: Metrics,
        keys: ApiKeys | None,
    ) -> None:  # fmt: skip
        self.settings, self.served, self.upstream, self.metrics = settings, served, upstream, metrics
        self.state = State()
        self.room = WaitingRoom(
            served.slots, served.max_queued_requests, served.max_queued_tokens, changed=self._show_load
        )
        metrics.slots.set(served.slots)
        self._keys = keys
        self._preparer = preparer
        # Two: a template or a prompt that takes long must not hold up the short ones.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._answering = Answering(upstream, self.room, metrics)
        self._created = int(time.time())
        self._fingerprint = f"fp_{served.record.key[:12]}"

    def _show_load(self) -> None:
        self.metrics.waiting.set(self.room.waiting)
        self.metrics.running.set(self.room.running)
        self.metrics.queued_tokens.set(self.room.queued_tokens)

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health/live", self._live),
                Route("/health/ready", self._ready),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/v1/chat/completions", self._answer_to("chat"), methods=["POST"]),
                Route("/v1/completions", self._answer_to("text"), methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            ],
            exception_handlers={Refusal: self._refuse, HTTPException: self._not_here, ClientDisconnect: _to_nobody},
        )

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def _ready(self, _: Request) -> Response:
        trouble = "draining" if self.state.draining else self.upstream.trouble
        return JSONResponse({"status": trouble or "ready"}, 503 if trouble else 200)

    async def _models(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._authorize(request)
        self._check_name(request.path_params["model"])
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        return {
            "id": self.served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "engineroom",
            # Not OpenAI's; the name that vLLM gave it, which clients look for.
            "max_model_len": self.served.record.model.max_seq_len,
        }

    async def _embeddings(self, request: Request) -> Response:
        self._authorize(request)
        raise bad_request(f"{self.served.name} generates text; it makes no embeddings", code="unsupported_endpoint")

    def _answer_to(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            self._authorize(request)
            if self.state.refusing:
                raise Refusal(503, "this server is shutting down", reason="draining", code="draining", retry_after=1)
            self.state.in_flight += 1
            outcome = Outcome(endpoint, _request_id(request), self._over)
            try:
                return await self._exchange(request, endpoint, started, outcome)
            except BaseException as error:
                if isinstance(error, Refusal):
                    outcome.end(error.status, error)
                else:
                    outcome.end(499, abandoned=isinstance(error, ClientDisconnect))
                raise

        return answer

    async def _exchange(self, request: Request, endpoint: Endpoint, started: float, outcome: Outcome) -> Response:
        data = await self._read(request)
        body = read_body(_BODIES[endpoint], data)
        outcome.user, outcome.stream = body.user, body.stream
        self._check_name(body.model)
        inputs = self.upstream.inputs
        if not inputs:
            raise Refusal(
                503, f"the model server is not there: {self.upstream.trouble}", reason="upstream_unavailable",
                code="upstream_unavailable", retry_after=2,
            )  # fmt: skip
        if len(data) <= INLINE_BYTES and self._preparer.is_quick:
            questions = self._preparer.questions(body, inputs)
        else:
            questions = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._preparer.questions, body, inputs
            )
        if LOG.isEnabledFor(logging.DEBUG):
            for question in questions:
                LOG.debug("prompt", extra={"facts": {"request_id": outcome.request_id, "text": question.prompt.text}})
        exchange = outcome.exchange = Exchange(
            outcome.request_id, started, [Answer(question) for question in questions], per_prompt=body.n
        )
        writer = Writer(
            endpoint,
            f"{'chatcmpl' if endpoint == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
            self.served.name,
            self._fingerprint,
            with_usage=body.wants_usage,
            logprobs=None
            if body.alternatives is None
            else Logprobs(self._preparer.texts, chat=endpoint == "chat", top=body.alternatives),
        )
        return AnswerResponse(
            self._answering.run(exchange),
            exchange,
            writer,
            outcome,
            headers=self._headers(outcome.request_id),
            deadline=started + self._patience(request) - time.perf_counter(),
            send_seconds=self.settings.send_seconds,
            live=self.state.live,
        )

    async def _read(self, request: Request) -> bytes:
        """The body. Raises :class:`Refusal` for one that is too large or does not come."""
        most, body, size = self.settings.max_body_bytes, bytearray(), 0
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > LINGER_BYTES:
            raise self._too_large(most)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= most:
                        body += chunk
                    elif size > LINGER_BYTES:
                        break
        except TimeoutError:
            raise Refusal(
                408, f"the body had not arrived after {BODY_SECONDS:.0f} s", reason="slow_client", code="timeout"
            ) from None
        if size > most:
            raise self._too_large(most)
        return bytes(body)

    @staticmethod
    def _too_large(most: int) -> Refusal:
        return Refusal(413, f"the body is larger than {most:,} bytes", reason="too_large", code="body_too_large")

    def _patience(self, request: Request) -> float:
        """Seconds for the whole answer: the server's, or fewer where the client says so."""
        most, asked = self.settings.deadline_seconds, request.headers.get("x-request-timeout")
        if asked is None:
            return most
        try:
            seconds = float(asked)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise bad_request(f"the header X-Request-Timeout is {asked[:40]!r}, not a number of seconds")
        return min(most, seconds)

    def _authorize(self, request: Request) -> None:
        if self._keys and not self._keys.allow(request.headers.get("authorization")):
            raise Refusal(
                401, "give a valid API key in the header Authorization: Bearer KEY", reason="unauthorized",
                code="invalid_api_key",
            )  # fmt: skip

    def _check_name(self, model: str) -> None:
        if model != self.served.name:
            raise Refusal(
                404, f"the model {model[:200]!r} is not here; this server has {self.served.name!r}",
                reason="unknown_model", param="model", code="model_not_found",
            )  # fmt: skip

    def _headers(self, request_id: str) -> dict[str, str]:
        # Connections that stay open would bring requests to a server that is about to go.
        return {"x-request-id": request_id} | ({"connection": "close"} if self.state.draining else {})

    async def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        self.metrics.rejected.labels(error.reason).inc()
        headers = error.headers | self._headers(_request_id(request))
        if error.status in (408, 413):
            headers["connection"] = "close"
        return JSONResponse(error.body, error.status, headers=headers)

    async def _not_here(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = f"{request.method} {request.url.path[:200]} is not served here"
        refusal = Refusal(error.status_code, words, reason="not_found", code="unknown_url")
        response = await self._refuse(request, refusal)
        response.headers.update(error.headers or {})
        return response

    def _over(self, outcome: Outcome) -> None:
        """A request that was taken is over."""
        self.state.in_flight -= 1
        self.state.finished += 1
        self.metrics.requests.labels(outcome.endpoint, str(outcome.status)).inc()
        if outcome.abandoned:
            self.metrics.abandoned.inc()
        elif outcome.refusal and outcome.status in (200, 499):
            # One that came after the answer had begun; others are counted where they are answered.
            self.metrics.rejected.labels(outcome.refusal.reason).inc()
        facts = outcome.facts()
        if outcome.whole and "e2e_ms" in facts:
            self.metrics.e2e.observe(facts["e2e_ms"] / 1000)
        LOG.info("request", extra={"facts": facts})


def _request_id(request: Request) -> str:
    """The client's own, where it is one that can stand in logs and headers; else a new one."""
    # Kept: a refusal and a log line of the same request name the same id.
    known = getattr(request.state, "request_id", None)
    if known is None:
        given = request.headers.get("x-request-id", "")
        known = request.state.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    return str(known)


async def _to_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
