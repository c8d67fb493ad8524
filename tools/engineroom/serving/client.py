"""Asks a served model: one prompt, its answer streamed, over gRPC or HTTP (/generate_stream)."""

import http.client
import json
import re
import time
from collections.abc import Iterator
from typing import Any, Literal

from engineroom.errors import EngineroomError, InputError, ServerError
from engineroom.serving.answer import Answer, Prompt
from engineroom.serving.server import Address

Protocol = Literal["grpc", "http"]

#: Triton 2.51 has died (SIGSEGV) of JSON bodies of 6 MB and more; gRPC took 32 MB.
MAX_JSON_BYTES = 4_000_000

#: What our models begin the words of an error with: names of gRPC statuses.
STATUSES = frozenset({"INVALID_ARGUMENT", "UNAVAILABLE", "CANCELLED", "NOT_FOUND", "INTERNAL"})

_RANGES: dict[str, tuple[float, float]] = {
    "INT32": (0, 2**31 - 1),
    "UINT64": (0, 2**64 - 1),
    "FP32": (0.0, 3.4e38),
}


def ask(
    address: Address,
    model: str,
    prompt: Prompt,
    *,
    protocol: Protocol = "grpc",
    deadline_seconds: float = 600,
) -> Answer:
    """Send ``prompt`` to the client model ``model`` and return the answer, whose pieces arrive while it is iterated.

    The clock starts when the request is sent, after connecting and asking the server for the model's
    configuration. Raises :class:`InputError` for what the model refuses (a prompt that is too long), and
    :class:`ServerError` where no server answers, the model is not ready, or the answer is not complete
    after ``deadline_seconds``; while it is iterated as well.
    """
    send = {"grpc": _over_grpc, "http": _over_http}[protocol]
    # The generator runs up to its first yield, which gives no text: the request is on its way.
    texts = send(address, model, prompt, time.monotonic() + deadline_seconds)
    next(texts)
    return Answer(texts, time.perf_counter())


def _over_grpc(address: Address, model: str, prompt: Prompt, until: float) -> Iterator[str]:
    import grpc

    from engineroom.protocol import calls, messages, texts

    where = f"{address.host}:{address.grpc}"
    # A proxy from the environment would be asked for loopback addresses too.
    channel = grpc.insecure_channel(
        where, options=[("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    )
    stub = calls(channel)
    refused, whole = "", False
    try:
        answer = stub.ModelConfig(messages.ModelConfigRequest(name=model), timeout=_left(until, where))
        request = _request(prompt, answer.config, model)
        # Never with the header `triton_grpc_error`, which would give errors their status: Triton 2.51 dies of it.
        stream = stub.ModelStreamInfer(iter([request]), timeout=_left(until, where))
        yield ""
        # To its end, also after an error: a cancelled stream is one more thing for the server to get wrong.
        for message in stream:
            refused = refused or message.error_message
            response = message.infer_response
            whole = whole or response.parameters["triton_final_response"].bool_param
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
                if output.name == "text_output":
                    yield "".join(texts(raw))
    except grpc.RpcError as error:
        if not refused:
            raise _translated(error.code().name, error.details() or "", f"grpc://{where}", model) from None
    finally:
        # Cancels what has not arrived yet.
        channel.close()
    if refused:
        raise _translated("", refused, f"grpc://{where}", model)
    if not whole:
        raise _broken_off(where)


def _request(prompt: Prompt, config: Any, model: str) -> Any:
    """The ``ModelInferRequest`` for ``model``, whose ``ModelConfig`` is ``config``."""
    from engineroom.protocol import messages, packed

    request = messages.ModelInferRequest(model_name=model)
    # The end of a decoupled answer is a response of its own where the model sends none with its last text.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, datatype, values in _honoured(prompt, {tensor.name for tensor in config.input}, model):
        shape = [1, len(values)] if config.max_batch_size > 0 else [len(values)]
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(packed(datatype, values))
    return request


def _over_http(address: Address, model: str, prompt: Prompt, until: float) -> Iterator[str]:
    where = f"http://{address.host}:{address.http}"
    connection = http.client.HTTPConnection(address.host, address.http, timeout=_left(until, where))
    began = False
    try:
        connection.request("GET", f"/v2/models/{model}/config")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise _translated(str(response.status), _error_of(body), where, model)
        names = {tensor["name"] for tensor in json.loads(body)["input"]}
        fields = {
            name: values if name == "stop_words" else values[0] for name, _, values in _honoured(prompt, names, model)
        }
        request = json.dumps(fields).encode()
        if len(request) > MAX_JSON_BYTES:
            raise InputError(
                f"the request has {len(request):,} bytes, and Triton dies of much larger JSON than {MAX_JSON_BYTES:,}",
                where=where,
                fix="use --protocol grpc",
            )
        # Kept here: the connection forgets its socket once an answer without a length begins.
        socket = connection.sock
        connection.request("POST", f"/v2/models/{model}/generate_stream", request, {"Content-Type": "application/json"})
        yield ""
        socket.settimeout(_left(until, where))
        response = connection.getresponse()
        if response.status != 200:
            raise _translated(str(response.status), _error_of(response.read()), where, model)
        began = True
        # Server-sent events: one line "data: {...}" for each response; the end of the body ends the answer.
        # read1 and not readline, which takes a body that breaks off for one that ends.
        buffer = b""
        while received := response.read1(65536):
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise _translated("", event["error"], where, model)
                    text = event.get("text_output", "")
                    yield text if isinstance(text, str) else "".join(text)
            socket.settimeout(_left(until, where))
    except TimeoutError:
        raise _too_late(where) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if began:
            raise _broken_off(where) from None
        raise _translated("connection", str(error) or type(error).__name__, where, model) from None
    finally:
        # Triton cancels a request whose connection is closed.
        connection.close()


def _honoured(prompt: Prompt, names: set[str], model: str) -> list[tuple[str, str, Any]]:
    """The prompt's inputs that ``model`` has. Raises :class:`InputError` for one that it would not honour."""
    kept = []
    for name, datatype, values in prompt.tensors():
        least, most = _RANGES.get(datatype, (None, None))
        if least is not None and most is not None and not all(least <= value <= most for value in values):
            # Over HTTP, Triton would take the low bits of a number that does not fit.
            raise InputError(f"{name} of {values[0]} is not between {least} and {most}", where="prompt")
        if name in names:
            kept.append((name, datatype, values))
        elif name != "stream" or not prompt.stream:
            # A model that has no input `stream` always streams.
            raise InputError(f"the model {model} takes no {name}", where="prompt", fix=f"leave out {name}")
    return kept


def split_status(message: str) -> tuple[str, str]:
    """The name of the gRPC status that our models write before the words of an error ("" for none), and the words.

    In a stream Triton gives a client the words of an error and no status: docs/decisions/0005.
    """
    message = re.sub(r"^(\[request id: [^\]]*\] )?(in ensemble '[^']*', )?", "", message).strip()
    name, colon, words = message.partition(": ")
    return (name, words) if colon and name in STATUSES else ("", message)


def _translated(status: str, message: str, where: str, model: str) -> EngineroomError:
    """What went wrong, from a gRPC status or an HTTP status and the server's words."""
    named, words = split_status(message)
    # HTTP has fewer: a full queue and a failure are the same 500 there.
    status = named or status
    if status in ("INVALID_ARGUMENT", "400"):
        return InputError(words, where=f"model {model}", fix="change the prompt or its parameters")
    if status == "connection" or "failed to connect" in words or "Connection refused" in words:
        return ServerError(
            "no Triton server answers there", where=where, fix="start one with `engineroom serve`, or name its address"
        )
    if status in ("NOT_FOUND", "404") or "unknown model" in words or "is not ready" in words:
        return ServerError(
            f"the model {model} is not ready ({words})", where=where, fix="name a model that is, or wait until it is"
        )
    if status == "DEADLINE_EXCEEDED":
        return _too_late(where)
    if status in ("CANCELLED", "499"):
        return ServerError(f"the answer was broken off ({words})", where=where)
    if "Socket closed" in words or "Connection reset" in words:
        return _broken_off(where)
    if status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "503", "429"):
        return ServerError(words, where=f"model {model} at {where}", fix="ask again later")
    return ServerError(words or f"status {status}", where=f"model {model} at {where}")


def _left(until: float, where: str) -> float:
    """Seconds until the deadline. Raises :class:`ServerError` where it is over."""
    left = until - time.monotonic()
    if left <= 0:
        raise _too_late(where)
    return left


def _broken_off(where: str) -> ServerError:
    return ServerError("the server broke the answer off", where=where)


def _too_late(where: str) -> ServerError:
    return ServerError(
        "the answer was not complete within the time allowed for it", where=where, fix="allow more, or fewer tokens"
    )


def _error_of(body: bytes) -> str:
    """The ``error`` of a JSON body, or of one sent as an event."""
    try:
        return str(json.loads(body.removeprefix(b"data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
