"""What the gateway makes of a server that breaks off: one that speaks Triton's protocol, and fails on purpose."""

import asyncio
import contextlib
import functools
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from engineroom.gateway.refusals import Refusal
from engineroom.gateway.triton import TritonUpstream
from engineroom.gateway.upstream import Reply
from engineroom.protocol import SERVICE, messages, packed
from engineroom.serving.answer import Prompt

Answer = Callable[[Any], AsyncIterator[Any]]


def response(text: str, **more: str) -> Any:
    made = messages.ModelStreamInferResponse()
    for name, value in {"text_output": text, **more}.items():
        made.infer_response.outputs.add(name=name, datatype="BYTES", shape=[1, 1])
        made.infer_response.raw_output_contents.append(packed("BYTES", [value]))
    return made


Told = tuple[str, Reply | None, Refusal | None]
"""The text of an answer, its last reply, and how it was refused."""


async def told(upstream: TritonUpstream, prompt: Prompt) -> Told:
    text, last = "", None
    try:
        async for last in upstream.generate(prompt, "id"):
            text += last.text
    except Refusal as error:
        return text, last, error
    return text, last, None


@asynccontextmanager
async def triton(answer: Answer, *inputs: str) -> AsyncIterator[int]:
    """The port of a server whose model ``m`` has ``inputs``."""

    async def config(_: Any, __: Any) -> Any:
        made = messages.ModelConfigResponse()
        for name in ("text_input", *inputs):
            made.config.input.add(name=name)
        return made

    async def ready(_: Any, __: Any) -> Any:
        return messages.ModelReadyResponse(ready=True)

    async def infer(requests: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            async for each in answer(request):
                yield each

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_handlers(config, ready, infer)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def upstream_at(port: int) -> AsyncIterator[TritonUpstream]:
    upstream = TritonUpstream(f"127.0.0.1:{port}", "m")
    try:
        await upstream.look()
        assert upstream.trouble is None
        yield upstream
    finally:
        await upstream.close()


def ask(answer: Answer, *inputs: str, reason: bool = True) -> Told:
    async def asked() -> Told:
        async with triton(answer, *inputs) as port, upstream_at(port) as upstream:
            return await told(upstream, Prompt("hello", finish_reason=reason or None))

    return asyncio.run(asyncio.wait_for(asked(), 30))


async def resetting(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes to ``port`` and back, and reset the connection after some time."""
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()

    pumps = [asyncio.create_task(pump(reader, there_writer)), asyncio.create_task(pump(there_reader, writer))]
    await asyncio.sleep(random.uniform(0.02, 0.03))
    for each in pumps:
        each.cancel()
    # Without lingering: a reset, as of a process that was killed.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    there_writer.transport.abort()


def test_a_connection_that_is_lost_at_any_moment_is_a_server_that_was_lost() -> None:
    async def never(_: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield

    async def asked() -> list[Told]:
        async with triton(never, "return_finish_reason") as port:
            relay = await asyncio.start_server(functools.partial(resetting, port), "127.0.0.1", 0)
            heard = []

            async def client(upstream: TritonUpstream) -> None:
                for _ in range(40):
                    await asyncio.sleep(random.uniform(0, 0.02))
                    heard.append(await told(upstream, Prompt("hello", finish_reason=True)))

            async with relay, upstream_at(relay.sockets[0].getsockname()[1]) as upstream:
                await asyncio.gather(*(client(upstream) for _ in range(32)))
        return heard

    heard = asyncio.run(asyncio.wait_for(asked(), 120))

    # Of so many some ten are lost between two operations of gRPC, which has other words for it.
    assert Counter((refusal.status, refusal.reason) for _, _, refusal in heard if refusal) == {
        (503, "upstream_unavailable"): len(heard)
    }


def _handlers(
    config: Callable[..., Awaitable[Any]], ready: Callable[..., Awaitable[Any]], infer: Callable[..., Any]
) -> grpc.GenericRpcHandler:
    def codec(request: str, answer: str) -> dict[str, Any]:
        return {
            "request_deserializer": getattr(messages, request).FromString,
            "response_serializer": getattr(messages, answer).SerializeToString,
        }

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "ModelConfig": grpc.unary_unary_rpc_method_handler(
                config, **codec("ModelConfigRequest", "ModelConfigResponse")
            ),
            "ModelReady": grpc.unary_unary_rpc_method_handler(
                ready, **codec("ModelReadyRequest", "ModelReadyResponse")
            ),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                infer, **codec("ModelInferRequest", "ModelStreamInferResponse")
            ),
        },
    )


async def half(_: Any) -> AsyncIterator[Any]:
    yield response("half an ans")


async def whole(_: Any) -> AsyncIterator[Any]:
    yield response("half an ans")
    yield response("wer", finish_reason="length")


def test_a_stream_that_ends_before_the_answer_does_is_a_server_that_was_lost() -> None:
    text, _, refusal = ask(half, "return_finish_reason")

    assert text == "half an ans"
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (503, "upstream_unavailable")


def test_a_stream_that_says_how_the_answer_ended_is_whole() -> None:
    text, last, refusal = ask(whole, "return_finish_reason")

    assert (text, refusal) == ("half an answer", None)
    assert last is not None
    assert last.finish == "length"


def test_who_does_not_ask_how_an_answer_ended_is_not_told() -> None:
    # As `engineroom bench grpc://` asks.
    assert ask(half, "return_finish_reason", reason=False)[::2] == ("half an ans", None)


def test_a_model_of_an_older_artifact_need_not_say_how_its_answers_end() -> None:
    assert ask(half)[::2] == ("half an ans", None)


@pytest.mark.parametrize("inputs", [(), ("return_finish_reason",)])
def test_the_reason_is_asked_for_where_the_model_knows_it(inputs: tuple[str, ...]) -> None:
    asked: list[str] = []

    async def answer(request: Any) -> AsyncIterator[Any]:
        asked.extend(tensor.name for tensor in request.inputs)
        yield response("all", finish_reason="stop")

    ask(answer, *inputs)

    assert asked == ["text_input", *inputs]
