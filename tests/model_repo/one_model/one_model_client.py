"""Clients of the one model: many streams over one gRPC connection, JSON over HTTP, and the gauges."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from engineroom.serving.client import split_status
from engineroom.serving.server import TritonServer

MODEL = "tensorrt_llm"

T = TypeVar("T")

KINDS: dict[str, tuple[str, Any]] = {
    "text_input": ("BYTES", np.object_),
    "stop_words": ("BYTES", np.object_),
    "max_tokens": ("INT32", np.int32),
    "min_tokens": ("INT32", np.int32),
    "end_id": ("INT32", np.int32),
    "top_k": ("INT32", np.int32),
    "top_p": ("FP32", np.float32),
    "temperature": ("FP32", np.float32),
    "repetition_penalty": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
    "stream": ("BOOL", np.bool_),
    "add_special_tokens": ("BOOL", np.bool_),
    "exclude_input_in_output": ("BOOL", np.bool_),
    "return_num_input_tokens": ("BOOL", np.bool_),
    "return_num_output_tokens": ("BOOL", np.bool_),
    "return_log_probs": ("BOOL", np.bool_),
    "top_log_probs": ("INT32", np.int32),
}


@dataclass
class Heard:
    """One answer: its pieces, and how it ended."""

    pieces: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    """Of each token the most probable ones in its place: ids and log probabilities."""
    status: str = ""
    """Name of the gRPC status; empty where the answer is whole."""
    message: str = ""
    errors: int = 0
    begun: float = 0.0
    ended: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Client:
    """Asks the one model of ``server`` over one gRPC connection."""

    def __init__(self, server: TritonServer) -> None:
        from tritonclient.grpc.aio import InferenceServerClient

        self._client = InferenceServerClient(
            f"127.0.0.1:{server.ports.grpc}", channel_args=[("grpc.enable_http_proxy", 0)]
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, text: str, *, heard: Heard | None = None, **options: Any) -> Heard:
        """The answer. Cancelling this coroutine cancels the request; ``heard`` is filled while the answer grows."""
        from tritonclient.grpc import InferInput

        heard = heard or Heard()
        inputs = []
        for name, value in {"text_input": text, "max_tokens": 100, "stream": True, **options}.items():
            datatype, kind = KINDS[name]
            values = value if isinstance(value, list) else [value]
            array: Any = np.array([[each.encode() if isinstance(each, str) else each for each in values]], dtype=kind)
            inputs.append(InferInput(name, list(array.shape), datatype).set_data_from_numpy(array))

        async def requests() -> Any:
            yield {"model_name": MODEL, "inputs": inputs, "enable_empty_final_response": True}

        answers = self._client.stream_infer(requests())
        try:
            async for result, error in answers:
                # After an error the stream is read to its end: Triton 2.51 may keep a request for ever whose client
                # leaves in that moment, and then does not end before its exit timeout.
                if error is not None:
                    heard.errors += 1
                    heard.status, heard.message = split_status(error.message())
                else:
                    self._take(heard, result)
        except asyncio.CancelledError:
            answers.cancel()
            raise
        heard.ended = time.monotonic()
        return heard

    @staticmethod
    def _take(heard: Heard, result: Any) -> None:
        heard.begun = heard.begun or time.monotonic()
        output = result.as_numpy("text_output")
        if output is not None:
            assert output.shape == (1, 1)
            # Strictly: bytes that are not UTF-8 fail here.
            heard.pieces.append(output[0, 0].decode("utf-8"))
        for name in ("num_input_tokens", "num_output_tokens"):
            if result.as_numpy(name) is not None:
                heard.counts[name] = int(result.as_numpy(name).item())
        ids, log_probs = result.as_numpy("output_ids"), result.as_numpy("output_log_probs")
        if ids is not None:
            assert ids.shape == log_probs.shape == (1, 1, ids.size)
            heard.ids += ids[0, 0].tolist()
            heard.log_probs += log_probs[0, 0].tolist()
        top_ids, top_log_probs = result.as_numpy("top_ids"), result.as_numpy("top_log_probs")
        if top_ids is not None:
            assert top_ids.shape == top_log_probs.shape == (1, ids.size, top_ids.shape[-1])
            rows = zip(top_ids[0].tolist(), top_log_probs[0].tolist(), strict=True)
            heard.top += [list(zip(*row, strict=True)) for row in rows]


def run(server: TritonServer, work: Callable[[Client], Coroutine[Any, Any, T]], seconds: float = 60) -> T:
    """Do ``work`` with a client, bounded in time."""

    async def bounded() -> T:
        async with Client(server) as client:
            return await asyncio.wait_for(work(client), seconds)

    return asyncio.run(bounded())


def ask(server: TritonServer, text: str, **options: Any) -> Heard:
    """One answer."""
    return run(server, lambda client: client.ask(text, **options))


async def eventually(holds: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
    """Wait until ``holds``; fails with ``what`` after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def gauges(server: TritonServer) -> dict[str, float]:
    """The model's own gauges on /metrics, by name without their prefix."""
    with _open(f"http://127.0.0.1:{server.ports.metrics}/metrics") as response:
        lines = response.read().decode().splitlines()
    label = f'{{model="{MODEL}"}}'
    found = [line.split(" ") for line in lines if line.startswith("engineroom_")]
    return {
        name.removeprefix("engineroom_").removesuffix(label): float(value) for name, value in found if label in name
    }


def post(server: TritonServer, verb: str, **fields: Any) -> bytes:
    """The body of an answer to ``/generate`` or ``/generate_stream``."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.ports.http}/v2/models/{MODEL}/{verb}",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    with _open(request) as response:
        body: bytes = response.read()
    return body


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a ``/generate_stream``."""
    return [json.loads(block.removeprefix(b"data: ")) for block in body.split(b"\n\n") if block]


def _open(request: str | urllib.request.Request) -> Any:
    # A proxy from the environment would be asked for loopback addresses too.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)
