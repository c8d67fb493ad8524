"""What is put under load: an OpenAI endpoint over HTTP, or the client model of a Triton over gRPC."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from engineroom.bench.arrivals import Arrival, prompt_text
from engineroom.errors import InputError, ServerError
from engineroom.gateway.refusals import Refusal
from engineroom.gateway.triton import TritonUpstream
from engineroom.serving.answer import Prompt


@dataclass(frozen=True)
class Shape:
    """How requests look, but for their lengths."""

    model: str = ""
    endpoint: Literal["chat", "completions"] = "chat"
    ignore_eos: bool = True
    """Answers then have exactly the length that is asked for."""
    temperature: float = 0.0
    timeout: float = 600.0


@dataclass
class Sent:
    """One request and what its client saw. Times are ``time.perf_counter`` seconds."""

    number: int
    due: float
    """When it had to be sent. Waiting for a late generator counts against the server's times, not for them."""
    sent: float = 0.0
    tokens_at: list[float] = field(default_factory=list)
    """When each piece of text came: one for each token, unless the server sent several together."""
    ended: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    """A short name of what went wrong; None where the answer is whole."""


class Target(Protocol):
    """Takes requests. Used in one event loop."""

    async def open(self) -> None:
        """Connect. Raises ServerError where nothing answers."""

    async def ask(self, arrival: Arrival, sent: Sent) -> None:
        """Send one request, and note in ``sent`` what comes. Never raises for what the server does."""

    async def close(self) -> None:
        """Disconnect."""


class OpenAITarget:
    """``/v1/chat/completions`` or ``/v1/completions``, streamed."""

    def __init__(self, url: str, shape: Shape, *, api_key: str | None = None) -> None:
        """``url`` is the server's, with or without ``/v1``."""
        self._url = url.rstrip("/").removesuffix("/v1")
        self._shape = shape
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: Any = None

    async def open(self) -> None:
        """Connect, and take the first model where none is named."""
        import aiohttp

        self._session = aiohttp.ClientSession(
            # As many connections as requests: a pool would be a queue that nobody sees.
            connector=aiohttp.TCPConnector(limit=0),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._shape.timeout),
        )
        try:
            async with self._session.get(f"{self._url}/v1/models") as response:
                body = await response.read()
                if response.status != 200:
                    raise ServerError(f"it answers {response.status}: {_words(body)}", where=f"{self._url}/v1/models")
                models = [model["id"] for model in json.loads(body)["data"]]
        except aiohttp.InvalidURL:
            raise InputError(f"{self._url} is no address", where="bench") from None
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            words = str(error) or type(error).__name__
            raise ServerError(f"no OpenAI endpoint answers there ({words})", where=self._url) from None
        if not self._shape.model and not models:
            raise ServerError("it lists no model", where=f"{self._url}/v1/models")
        self.model = self._shape.model or models[0]

    async def ask(self, arrival: Arrival, sent: Sent) -> None:
        """One streamed answer."""
        import aiohttp

        body = json.dumps(self._body(arrival, sent.number))
        sent.sent = time.perf_counter()
        try:
            async with self._session.post(
                f"{self._url}/v1/{'chat/' if self._shape.endpoint == 'chat' else ''}completions",
                data=body,
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status != 200:
                    sent.error = f"HTTP {response.status} {_code(await response.read())}".strip()
                    return
                await self._read(response.content.iter_any(), sent)
        except TimeoutError:
            sent.error = "timeout"
        except aiohttp.ClientError as error:
            sent.error = type(error).__name__
        finally:
            sent.ended = time.perf_counter()

    async def _read(self, chunks: Any, sent: Sent) -> None:
        buffer, whole = b"", False
        async for chunk in chunks:
            now = time.perf_counter()
            *events, buffer = (buffer + chunk).split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: "):
                    continue  # a comment that keeps the connection alive
                if event == b"data: [DONE]":
                    whole = True
                    continue
                data = json.loads(event[6:])
                if "error" in data:
                    sent.error = f"stream {data['error'].get('code')}"
                    return
                for choice in data["choices"]:
                    if choice.get("text") or choice.get("delta", {}).get("content"):
                        sent.tokens_at.append(now)
                if data.get("usage"):
                    sent.input_tokens = data["usage"]["prompt_tokens"]
                    sent.output_tokens = data["usage"]["completion_tokens"]
        if not whole:
            sent.error = "broken off"

    def _body(self, arrival: Arrival, number: int) -> dict[str, Any]:
        shape, text = self._shape, prompt_text(arrival.input_tokens, number)
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": text}]} if shape.endpoint == "chat" else {"prompt": text}
        )
        asked |= {"model": self.model, "max_tokens": arrival.output_tokens, "temperature": shape.temperature}
        if shape.ignore_eos:
            asked["ignore_eos"] = True
        return asked | {"stream": True, "stream_options": {"include_usage": True}}

    async def close(self) -> None:
        """Disconnect."""
        if self._session:
            await self._session.close()


class TritonTarget:
    """The client model of a Triton, over gRPC streams."""

    def __init__(self, address: str, shape: Shape) -> None:
        """``address`` is HOST:PORT; ``shape.model`` the client model, by default ``tensorrt_llm``."""
        self._address, self._shape = address, shape
        self.model = shape.model or "tensorrt_llm"

    async def open(self) -> None:
        """Connect."""
        self._upstream = TritonUpstream(self._address, self.model)
        await self._upstream.look()
        if self._upstream.trouble:
            raise ServerError(self._upstream.trouble, where=f"grpc://{self._address}")

    async def ask(self, arrival: Arrival, sent: Sent) -> None:
        """One streamed answer."""
        greedy = self._shape.temperature == 0
        prompt = Prompt(
            prompt_text(arrival.input_tokens, sent.number),
            max_tokens=arrival.output_tokens,
            temperature=None if greedy else self._shape.temperature,
            top_k=1 if greedy else None,
            end_id=-1 if self._shape.ignore_eos else None,
            count_tokens=True,
            count_prompt_tokens=True,
        )
        sent.sent = time.perf_counter()
        try:
            async with (
                asyncio.timeout(self._shape.timeout),
                aclosing(self._replies(prompt, sent.number)) as replies,
            ):
                async for reply in replies:
                    if reply.text:
                        sent.tokens_at.append(time.perf_counter())
                    sent.output_tokens = reply.output_tokens or sent.output_tokens
                    sent.input_tokens = reply.input_tokens or sent.input_tokens
        except TimeoutError:
            sent.error = "timeout"
        except Refusal as refusal:
            sent.error = refusal.code or refusal.reason
        finally:
            sent.ended = time.perf_counter()

    def _replies(self, prompt: Prompt, number: int) -> AsyncGenerator[Any]:
        return self._upstream.generate(prompt, f"bench-{number}")

    async def close(self) -> None:
        """Disconnect."""
        await self._upstream.close()


def _words(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:100].decode(errors="replace")


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"] or "")
    except (ValueError, KeyError, TypeError):
        return ""
