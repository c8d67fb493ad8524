"""`ask` against a real Triton, over both protocols."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from engineroom.errors import EngineroomError, InputError, ServerError
from engineroom.protocol import SERVICE, messages
from engineroom.serving.answer import Prompt
from engineroom.serving.client import Protocol, ask, split_status
from engineroom.serving.server import Address, TritonServer
from engineroom.serving.tree import Program

EVERYTHING = Prompt(
    "facts",
    max_tokens=7,
    temperature=0.5,
    seed=2**64 - 1,
    stop_words=("é", "end"),
    add_special_tokens=False,
)


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return "grpc" if request.param == "grpc" else "http"


@pytest.fixture(scope="module")
def batched(program: Program, make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    """The same model with a batch dimension, as the models of runtime tensorrt have."""
    server = TritonServer(make_repository({"max_batch_size: 0": "max_batch_size: 4"}), "echo", program)
    server.start(load_seconds=60)
    yield server
    server.kill()


def refusal_of(server: TritonServer, prompt: Prompt, protocol: Protocol) -> EngineroomError:
    with pytest.raises(EngineroomError) as refusal:
        list(ask(server.address, "echo", prompt, protocol=protocol))
    return refusal.value


@pytest.mark.local
def test_pieces_arrive_while_the_model_makes_them(echo: TritonServer, protocol: Protocol) -> None:
    words = [str(number) for number in range(100)]
    answer = ask(echo.address, "echo", Prompt(" ".join(words)), protocol=protocol)
    asked = time.perf_counter()

    arrived = [(piece, time.perf_counter() - asked) for piece in answer]

    assert answer.text == " ".join(words) + " "
    # The model waits 20 ms before each word, 2 s in all: had they come together, the first would have been as late.
    assert arrived[0][1] < arrived[-1][1] / 2
    summary = answer.summary
    assert summary.tokens == 100
    assert summary.ttft_seconds is not None
    assert summary.itl_p50_seconds is not None
    assert summary.tokens_per_second is not None
    assert 0.02 <= summary.ttft_seconds < summary.total_seconds / 2
    assert summary.total_seconds >= 2
    assert 0 < summary.itl_p50_seconds < 2 * summary.total_seconds / 99
    assert 99 / summary.total_seconds <= summary.tokens_per_second < 200 / summary.total_seconds


@pytest.mark.local
@pytest.mark.parametrize("shape", ["echo", "batched"])
def test_every_input_arrives_as_it_was_given_with_and_without_a_batch_dimension(
    shape: str, protocol: Protocol, request: pytest.FixtureRequest
) -> None:
    server: TritonServer = request.getfixturevalue(shape)
    answer = ask(server.address, "echo", EVERYTHING, protocol=protocol)
    list(answer)

    facts = json.loads(answer.text)

    # Nothing of the tool is visible to a served model.
    assert facts.pop("engineroom_importable") is False
    assert facts == {
        "text_input": ["facts"],
        "max_tokens": [7],
        "stream": [True],
        "temperature": [0.5],
        "seed": [2**64 - 1],
        "stop_words": ["é", "end"],
        "add_special_tokens": [False],
    }


@pytest.mark.local
def test_a_prompt_that_the_model_refuses_is_bad_input_in_the_models_words(
    echo: TritonServer, protocol: Protocol
) -> None:
    refusal = refusal_of(echo, Prompt("x " * 1000), protocol)

    assert isinstance(refusal, InputError)
    assert refusal.found == "the prompt has 1001 tokens, the model takes 1000"
    assert list(ask(echo.address, "echo", Prompt("x " * 999, max_tokens=1), protocol=protocol))


@pytest.mark.parametrize(
    ("message", "status", "words"),
    [
        ("UNAVAILABLE: the queue is full", "UNAVAILABLE", "the queue is full"),
        ("[request id: 7] INVALID_ARGUMENT: no: two", "INVALID_ARGUMENT", "no: two"),
        ("[request id: <id_unknown>] in ensemble 'ensemble', NOT_FOUND: it", "NOT_FOUND", "it"),
        ("the C++ backend: its own words", "", "the C++ backend: its own words"),
        ("UNAVAILABLE", "", "UNAVAILABLE"),
    ],
)
def test_the_status_of_an_error_in_a_stream_is_read_from_its_words(message: str, status: str, words: str) -> None:
    assert split_status(message) == (status, words)


class Scripted(grpc.GenericRpcHandler):
    """A server of Triton's protocol that answers every prompt with ``script``, for what the real one does rarely."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.metadata: list[str] = []
        """Names of the headers that came with a stream."""
        self.read_to_the_end = threading.Event()

    def service(self, call: Any) -> Any:
        if call.method == f"/{SERVICE}/ModelConfig":
            tensors = [{"name": name} for name in ("text_input", "max_tokens", "stream")]
            answer = messages.ModelConfigResponse(config={"name": "m", "input": tensors})
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer.SerializeToString())
        return grpc.stream_stream_rpc_method_handler(
            self.stream, response_serializer=messages.ModelStreamInferResponse.SerializeToString
        )

    def stream(self, requests: Iterator[bytes], context: Any) -> Iterator[Any]:
        self.metadata = [name for name, _ in context.invocation_metadata()]
        list(requests)
        for message in self.script:
            yield message
            if message.error_message:
                # Time for a client that leaves to have left.
                time.sleep(0.2)
        if context.is_active():
            self.read_to_the_end.set()

    def ask(self) -> str:
        server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            answer = ask(Address("127.0.0.1", 1, port), "m", Prompt("x"), deadline_seconds=20)
            list(answer)
            return answer.text
        finally:
            server.stop(None)


def told(*texts: str, final: bool = False) -> Any:
    """One response with these elements of text."""
    raw = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
    response = messages.ModelInferResponse(parameters={"triton_final_response": {"bool_param": final}})
    if texts:
        response.outputs.add(name="counts", datatype="INT32")
        response.raw_output_contents.append(b"\x07\0\0\0")
        response.outputs.add(name="text_output", datatype="BYTES")
        response.raw_output_contents.append(raw)
    return messages.ModelStreamInferResponse(infer_response=response)


def test_a_stream_that_ends_before_its_last_response_is_no_answer() -> None:
    with pytest.raises(ServerError, match="broke the answer off"):
        Scripted(told("one "), told("two")).ask()

    assert Scripted(told("one "), told("two", "é"), told(final=True)).ask() == "one twoé"
    assert Scripted(told("one ", final=True)).ask() == "one "


def test_after_an_error_the_stream_is_read_to_its_end_and_its_first_words_count() -> None:
    refusal = messages.ModelStreamInferResponse(error_message="INVALID_ARGUMENT: too long")
    server = Scripted(refusal, messages.ModelStreamInferResponse(error_message="INTERNAL: later"), told(final=True))

    with pytest.raises(InputError, match="too long"):
        server.ask()

    assert server.read_to_the_end.wait(10)
    # Triton 2.51 dies of it: docs/decisions/0005.
    assert server.metadata
    assert "triton_grpc_error" not in server.metadata


@pytest.mark.local
def test_many_refused_prompts_leave_the_server_alive(echo: TritonServer) -> None:
    # Triton 2.51 died of a dozen where the client asked for errors as gRPC statuses (docs/decisions/0005).
    for _ in range(50):
        refusal_of(echo, Prompt("x " * 1000), "grpc")

    assert list(ask(echo.address, "echo", Prompt("x", max_tokens=1)))


@pytest.mark.local
@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        (Prompt("x", top_k=3), "takes no top_k"),
        (Prompt("x", max_tokens=2**31), "max_tokens of 2147483648 is not between"),
        (Prompt("x", seed=-1), "seed of -1 is not between"),
        (Prompt("x", temperature=float("nan")), "temperature of nan is not between"),
    ],
)
def test_a_parameter_that_would_not_be_honoured_is_refused(
    echo: TritonServer, protocol: Protocol, prompt: Prompt, found: str
) -> None:
    refusal = refusal_of(echo, prompt, protocol)

    assert isinstance(refusal, InputError)
    assert found in refusal.found


@pytest.mark.local
def test_leaving_an_answer_cancels_it_in_triton(echo: TritonServer, protocol: Protocol) -> None:
    before = sum("cancelled" in line for line in echo.log_lines)
    for piece in ask(echo.address, "echo", Prompt("x " * 400, max_tokens=400), protocol=protocol):
        if piece.seconds > 0.2:
            break

    until = time.monotonic() + 5
    while sum("cancelled" in line for line in echo.log_lines) == before:
        assert time.monotonic() < until, "the model never heard of it"
        time.sleep(0.05)


@pytest.mark.local
def test_ctrl_c_cancels_the_stream_in_triton(echo: TritonServer, protocol: Protocol) -> None:
    before = sum("cancelled" in line for line in echo.log_lines)
    main = threading.get_ident()
    threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        list(ask(echo.address, "echo", Prompt("x " * 400, max_tokens=400), protocol=protocol))

    until = time.monotonic() + 5
    while sum("cancelled" in line for line in echo.log_lines) == before:
        assert time.monotonic() < until, "the model never heard of it"
        time.sleep(0.05)


@pytest.mark.local
def test_an_answer_past_its_deadline_is_broken_off(echo: TritonServer, protocol: Protocol) -> None:
    began = time.monotonic()
    with pytest.raises(ServerError, match="time allowed"):
        list(ask(echo.address, "echo", Prompt("x " * 400, max_tokens=400), protocol=protocol, deadline_seconds=0.3))

    assert time.monotonic() - began < 2


@pytest.mark.local
def test_a_model_that_is_not_there_is_named(echo: TritonServer, protocol: Protocol) -> None:
    with pytest.raises(ServerError, match="the model ech is not ready"):
        ask(echo.address, "ech", Prompt("x"), protocol=protocol)


@pytest.mark.local
def test_json_that_is_too_long_for_the_server_is_sent_by_grpc_only(echo: TritonServer) -> None:
    long = Prompt("x" * 5_000_000, max_tokens=1)

    refusal = refusal_of(echo, long, "http")
    assert refusal.fix == "use --protocol grpc"

    answer = ask(echo.address, "echo", long)
    list(answer)
    assert len(answer.text) == 5_000_001


def test_without_a_server_the_error_says_how_to_start_one(protocol: Protocol) -> None:
    # Port 1 is privileged and unused on any machine that runs tests.
    with pytest.raises(ServerError) as refusal:
        ask(Address("127.0.0.1", 1, 1), "echo", Prompt("x"), protocol=protocol, deadline_seconds=5)

    assert refusal.value.found == "no Triton server answers there"
    assert "engineroom serve" in refusal.value.fix
