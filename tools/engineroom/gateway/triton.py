"""A Triton server as upstream, over gRPC.

The bare messages of the protocol are used and not tritonclient's ``InferenceServerClient``: that one makes numpy arrays
of every input and output, which cost more than all the rest of a token here.
"""

import asyncio
import struct
import time
from collections.abc import AsyncGenerator
from typing import Any

from engineroom.gateway.refusals import Refusal, bad_request
from engineroom.gateway.schema import parameter_of
from engineroom.gateway.upstream import Reply, Scored
from engineroom.serving.answer import Prompt
from engineroom.serving.client import split_status

#: Between two questions whether the model is ready.
POLL_SECONDS = 0.5
#: Without a good answer for so long it counts as away.
STALE_SECONDS = 5.0

_TENSORS = {"seed", "temperature", "top_k", "top_p", "min_tokens", "max_tokens", "stop_words", "repetition_penalty"}


class TritonUpstream:
    """See :class:`engineroom.gateway.upstream.Upstream`."""

    def __init__(self, address: str, model: str) -> None:
        """``address`` is HOST:PORT of Triton's gRPC. To be made inside the event loop that uses it."""
        import grpc.aio

        from engineroom.protocol import calls, messages

        self._address, self._model = address, model
        self._messages = messages
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                # A proxy from the environment would be asked for loopback addresses too.
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # gRPC waits up to 2 minutes before it tries again; a restarted server is back within seconds.
                ("grpc.initial_reconnect_backoff_ms", 100),
                # In truth how long one attempt may take, 20 s by default; a busy server needs some of them.
                ("grpc.min_reconnect_backoff_ms", 5000),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self._stub = calls(self._channel)
        self._inputs: frozenset[str] = frozenset()
        self._batched = False
        self._trouble: str | None = "it has not answered yet"
        self._answered = time.monotonic()

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the model's input tensors."""
        return self._inputs

    @property
    def trouble(self) -> str | None:
        """Why it would not answer now."""
        silent = time.monotonic() - self._answered
        if self._trouble is None and silent > STALE_SECONDS:
            return f"it has not answered for {silent:.0f} s"
        return self._trouble

    async def watch(self) -> None:
        """Ask again and again."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Ask whether the model is ready; learn its inputs anew after every time that it was not."""
        import grpc

        try:
            ready = await self._stub.ModelReady(
                self._messages.ModelReadyRequest(name=self._model), timeout=STALE_SECONDS
            )
            if not ready.ready:
                self._trouble = f"the model {self._model} is not ready"
                return
            if self._trouble is not None:
                await self._learn()
            self._trouble, self._answered = None, time.monotonic()
        except grpc.RpcError as error:
            self._trouble = f"{self._address} does not answer ({_status(error)[0]})"

    async def _learn(self) -> None:
        answer = await self._stub.ModelConfig(
            self._messages.ModelConfigRequest(name=self._model), timeout=STALE_SECONDS
        )
        self._inputs = frozenset(tensor.name for tensor in answer.config.input)
        self._batched = answer.config.max_batch_size > 0

    async def generate(self, prompt: Prompt, request_id: str) -> AsyncGenerator[Reply]:
        """The answer to ``prompt``."""
        import grpc

        # Never with the header `triton_grpc_error`: docs/decisions/0005.
        call = self._stub.ModelStreamInfer()
        refused, ended = "", not (prompt.finish_reason and "return_finish_reason" in self._inputs)
        try:
            await call.write(self._request(prompt, request_id))
            await call.done_writing()
            # To its end, also after an error: a cancelled stream is one more thing for the server to get wrong.
            async for message in call:
                if message.error_message:
                    refused = refused or message.error_message
                else:
                    reply = _reply(message.infer_response)
                    ended = ended or reply.finish is not None
                    yield reply
        except grpc.RpcError as error:
            raise _refusal(*_status_of_stream(*_status(error))) from None
        except asyncio.InvalidStateError:
            # What `write` raises where the call has ended already; how, the call knows.
            status = (await call.code()).name, await call.details() or ""
            raise _refusal(*_status_of_stream(*status)) from None
        except grpc.aio.InternalError:
            # What `done_writing` raises where the connection is lost just before it (gRPC 1.85).
            raise _refusal(*_LOST) from None
        finally:
            call.cancel()
        if refused:
            raise _refusal(*split_status(refused))
        if not ended:
            raise _refusal(*_LOST)

    def _request(self, prompt: Prompt, request_id: str) -> Any:
        from engineroom.protocol import packed

        request = self._messages.ModelInferRequest(model_name=self._model, id=request_id)
        for name, datatype, values in prompt.tensors():
            if name not in self._inputs:
                continue
            tensor = request.inputs.add(name=name, datatype=datatype)
            tensor.shape.extend([1, len(values)] if self._batched else [len(values)])
            request.raw_input_contents.append(packed(datatype, values))
        # The end of a decoupled answer is a response of its own where the model sends none with its last text.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        return request

    async def close(self) -> None:
        """Cancel what runs, and hang up."""
        await self._channel.close()


def _reply(response: Any) -> Reply:
    text, output_tokens, input_tokens, finish = "", None, None, None
    scored: tuple[Scored, ...] = ()
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        name = output.name
        if name == "text_output":
            text = _string(raw)
        elif name == "num_output_tokens":
            output_tokens = int.from_bytes(raw[:4], "little", signed=True)
        elif name == "num_input_tokens":
            input_tokens = int.from_bytes(raw[:4], "little", signed=True)
        elif name == "finish_reason":
            finish = _string(raw)
        elif name == "output_log_probs":
            scored = _scored(response)
    return Reply(text, output_tokens, input_tokens, scored, finish)


def _string(raw: bytes) -> str:
    """The one element of a tensor of strings: its length and its bytes."""
    return raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode("utf-8", "replace")


def _scored(response: Any) -> tuple[Scored, ...]:
    """Tokens and their log probabilities. The chosen are [1, tokens], the most probable [tokens, how many]."""
    found = {
        output.name: struct.unpack(f"<{len(raw) // 4}{'f' if output.datatype == 'FP32' else 'i'}", raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=False)
        if output.name in ("output_ids", "output_log_probs", "top_ids", "top_log_probs")
    }
    ids, log_probs = found["output_ids"], found["output_log_probs"]
    if "top_ids" not in found:
        return tuple(map(Scored, ids, log_probs))
    pairs = tuple(zip(found["top_ids"], found["top_log_probs"], strict=True))
    each = len(pairs) // len(ids)
    return tuple(
        Scored(id, log_prob, pairs[place * each : (place + 1) * each])
        for place, (id, log_prob) in enumerate(zip(ids, log_probs, strict=True))
    )


def _status(error: Any) -> tuple[str, str]:
    return error.code().name, error.details() or ""


#: A status that Triton would have, had it been there to say so.
_LOST = "UNAVAILABLE", "the connection was lost"


def _status_of_stream(status: str, words: str) -> tuple[str, str]:
    """What the status of a stream means. Triton's errors are messages within it, so these are gRPC's own."""
    # gRPC 1.85 says INTERNAL ("Internal error from Core"), and sometimes CANCELLED, where the connection is lost while
    # it writes; seen with a server that was killed, and with connections that were reset, 1 time in 100.
    return _LOST if status in ("INTERNAL", "CANCELLED", "UNKNOWN") else (status, words)


def _refusal(status: str, words: str) -> Refusal:
    """What a client hears of a gRPC status."""
    if status == "INVALID_ARGUMENT":
        # Models name the tensor first: "seed is not supported: …".
        tensor = words.partition(" ")[0]
        code = "unsupported_parameter" if "not supported" in words else "invalid_value"
        return bad_request(words, param=parameter_of(tensor) if tensor in _TENSORS else None, code=code)
    connection = any(sign in words for sign in ("onnect", "Socket closed", "closed", "GOAWAY", "not ready"))
    if status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and not connection:
        return Refusal(503, words, reason="upstream_busy", code="overloaded", retry_after=1)
    if status in ("UNAVAILABLE", "NOT_FOUND"):
        return Refusal(
            503,
            "the model server cannot be reached, or was lost while it answered; try again",
            reason="upstream_unavailable",
            code="upstream_unavailable",
            retry_after=2,
        )
    return Refusal(502, f"the model server failed: {words or status}", reason="upstream_error", code="upstream_error")
