"""The five models of the runtime tensorrt in a real Triton, with a stand-in for the C++ backend's model alone.

Preprocessing, postprocessing, ensemble and BLS run as they are assembled, with their own configurations; the core's
configuration is the assembled one too, but for the word ``python`` where the C++ backend's name stands.
"""

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from engineroom.checkpoint.record import record_checkpoint
from engineroom.documents import record_file
from engineroom.engines.engine import Engine, EngineInputs, Requires
from engineroom.errors import ServerError
from engineroom.planning.plan import Plan
from engineroom.progress import QUIET
from engineroom.recipe import Recipe
from engineroom.repository import pbtxt
from engineroom.repository.assemble import assemble
from engineroom.repository.record import MODEL_REPOSITORY
from engineroom.serving.client import split_status
from engineroom.serving.environment import ensure_environment
from engineroom.serving.server import TritonServer
from engineroom.serving.tree import server_tree

pytestmark = pytest.mark.local

STAND_IN = Path(__file__).with_name("cpp_backend_stand_in")
EOS, TURN_END = 0, 1

#: Prompt → what the engine would say.
ANSWERS = {
    "family": "👨‍👩‍👧‍👦 and 🏴󠁧󠁢󠁥󠁮󠁧󠁿 and 👍🏽.",
    "chinese": "日本語の文章と中文，还有한국어。",
    "arabic": "مرحبا بالعالم é o\u0308 ก็ नमस्ते",
    "plain": "Paris is the capital of France.",
    "stop": "first line\nUser: second line",
    "long": "word " * 400,
}
#: All but the long one, which is only there to be cancelled.
PROMPTS = [*(prompt for prompt in ANSWERS if prompt != "long"), "broken"]
#: Bytes that are no UTF-8, among others that are.
BROKEN = b"ok \xf0\x9f\x98 \xff\x80 \xe6\x97\xa5 \xe6\x97"


@dataclass
class Coder:
    """The tests' own tokenizer, used without any code of ours: what the server says is compared with it."""

    tokenizer: tokenizers.Tokenizer

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def byte_ids(self, data: bytes) -> list[int]:
        return [id for byte in data for id in [self.tokenizer.token_to_id(_character(byte))] if id is not None]

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def coder() -> Coder:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("ð", "Ł"), ("ðŁ", "ĳ"), ("e", "r"), ("\u010a", "U"), ("s", "e")]
    vocabulary = ["</s>", "<|im_end|>", *alphabet, *(left + right for left, right in merges)]
    made = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<|im_end|>")])
    return Coder(made)


@pytest.fixture(scope="module")
def recorded(coder: Coder) -> dict[str, list[int]]:
    answers = {prompt: [*coder.ids(text), EOS] for prompt, text in ANSWERS.items()}
    # A special token in the middle, and an end that only the list of end ids knows.
    answers["plain"] = [*coder.ids("Paris is the capital of France."), TURN_END, *coder.ids(" never seen")]
    answers["broken"] = [*coder.byte_ids(BROKEN), EOS]
    return answers


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, coder: Coder, recorded: dict[str, list[int]]) -> Path:
    work = tmp_path_factory.mktemp("five")
    checkpoint, engine_folder = work / "checkpoint", work / "engine"
    checkpoint.mkdir()
    engine_folder.mkdir()
    coder.tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, TURN_END]}))
    (engine_folder / "rank0.engine").write_bytes(b"no engine: the stand-in replays ids")
    recipe = Recipe.model_validate(
        {
            "model": {"source": str(checkpoint)},
            "gpu": "h100",
            "runtime": "tensorrt",
            "precision": "bfloat16",
            "limits": {"max_batch_size": 32, "max_input_len": 40, "max_output_len": 3000},
        }
    )
    inputs = EngineInputs(
        checkpoint="0" * 64, runtime="tensorrt", versions={}, precision="bfloat16", kv="bfloat16", tp=1, pp=1, limits={}
    )
    engine = Engine(
        key=inputs.key, inputs=inputs, requires=Requires(), files=[record_file(engine_folder, "rank0.engine")]
    )
    record = record_checkpoint(checkpoint, source=str(checkpoint), revision="local", architecture="LlamaForCausalLM")
    output = work / "repository"
    assemble(recipe, _plan(recipe), engine, engine_folder, record, checkpoint, output, QUIET)

    core = output / MODEL_REPOSITORY / "tensorrt_llm"
    config = pbtxt.from_text((core / "config.pbtxt").read_text())
    config.backend = "python"
    (core / "config.pbtxt").write_text(pbtxt.to_text(config))
    shutil.copyfile(STAND_IN / "1" / "model.py", core / "1" / "model.py")
    errors = {",".join(map(str, coder.ids("full"))): "Exceeds maximum queue size"}
    answers = [
        {"prompt": coder.ids(prompt), "answer": ids, "own_log_probs": prompt == "chinese"}
        for prompt, ids in recorded.items()
    ]
    (core / "1" / "recorded.json").write_text(json.dumps({"step_seconds": 0.002, "answers": answers, "errors": errors}))
    return output


@pytest.fixture(scope="module")
def server(tree: Path) -> Iterator[TritonServer]:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    environment = ensure_environment(Path(os.environ.get("ENGINEROOM_CACHE") or Path(home, "engineroom")))
    python = environment.bin / "python"
    found = subprocess.run([python, "-c", "import engineroom"], capture_output=True, check=False, cwd="/")
    assert b"ModuleNotFoundError" in found.stderr, "the models must run where engineroom is not installed"
    model_repository = tree / MODEL_REPOSITORY
    with TritonServer(model_repository, "tensorrt_llm_bls", server_tree(environment), drain_seconds=10) as running:
        try:
            running.start(load_seconds=60)
        except ServerError:
            print(*running.log_lines, sep="\n")
            raise
        yield running
        assert running.stop() == 0, "the server did not end cleanly"


@dataclass
class Heard:
    """One answer over gRPC: its pieces, and how it ended."""

    pieces: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    error: Any = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def ask(
    server: TritonServer, prompt: str, *, model: str = "tensorrt_llm_bls", max_tokens: int = 3000, **options: Any
) -> Heard:
    from tritonclient.grpc import InferenceServerClient, InferInput

    kinds = {
        str: ("BYTES", np.object_),
        bool: ("BOOL", np.bool_),
        int: ("INT32", np.int32),
        float: ("FP32", np.float32),
    }
    inputs = []
    for name, value in {"text_input": prompt, "max_tokens": max_tokens, **options}.items():
        values = value if isinstance(value, list) else [value]
        datatype, kind = kinds[type(values[0])]
        encoded = [each.encode() if isinstance(each, str) else each for each in values]
        array: Any = np.array([encoded], dtype=kind)
        inputs.append(InferInput(name, list(array.shape), datatype).set_data_from_numpy(array))
    heard, done = Heard(), threading.Event()

    def hear(result: Any, error: Any) -> None:
        if error is not None:
            heard.error = error
            done.set()
            return
        text = result.as_numpy("text_output")
        if text is not None:
            assert text.shape == (1, 1)
            heard.pieces.append(text[0, 0].decode("utf-8"))
        for name in ("num_input_tokens", "num_output_tokens"):
            if result.as_numpy(name) is not None:
                heard.counts[name] = int(result.as_numpy(name).item())
        if result.as_numpy("finish_reason") is not None:
            heard.reason = result.as_numpy("finish_reason").item().decode()
        ids, log_probs = result.as_numpy("output_ids"), result.as_numpy("output_log_probs")
        if ids is not None:
            assert ids.shape == log_probs.shape == (1, 1, ids.size)
            heard.ids += ids[0, 0].tolist()
            heard.log_probs += log_probs[0, 0].tolist()
        if result.get_response().parameters["triton_final_response"].bool_param:
            done.set()

    with InferenceServerClient(
        f"127.0.0.1:{server.ports.grpc}", channel_args=[("grpc.enable_http_proxy", 0)]
    ) as client:
        client.start_stream(hear)
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        assert done.wait(60), f"no end of the answer to {prompt!r} from {model}: {heard}"
        client.stop_stream()
    return heard


def expected(coder: Coder, recorded: dict[str, list[int]], prompt: str) -> str:
    ids = recorded[prompt]
    end = min(index for index, id in enumerate(ids) if id in (EOS, TURN_END))
    return coder.text(ids[:end])


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("way", ["streamed", "whole", "ensemble"])
def test_an_answer_is_the_one_shot_text(
    server: TritonServer, coder: Coder, recorded: dict[str, list[int]], prompt: str, way: str
) -> None:
    if way == "ensemble":
        heard = ask(server, prompt, model="ensemble")
    else:
        heard = ask(server, prompt, stream=way == "streamed")

    assert heard.error is None
    assert heard.text == expected(coder, recorded, prompt)
    assert (len(heard.pieces) == 1) == (way != "streamed")


def test_concurrent_answers_do_not_mix(server: TritonServer, coder: Coder, recorded: dict[str, list[int]]) -> None:
    jobs = [(prompt, way) for prompt in PROMPTS for way in ("streamed", "whole", "ensemble")] * 2
    heard: dict[int, Heard] = {}

    def work(index: int, prompt: str, way: str) -> None:
        options = {"model": "ensemble"} if way == "ensemble" else {"stream": way == "streamed"}
        heard[index] = ask(server, prompt, **options)

    threads = [threading.Thread(target=work, args=(index, *job)) for index, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)

    for index, (prompt, _) in enumerate(jobs):
        assert heard[index].error is None
        assert heard[index].text == expected(coder, recorded, prompt)


@pytest.mark.parametrize("word", ["\nUser:", "ine\nUs", "\n"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_text_ends_before_a_stop_word_wherever_tokens_begin(server: TritonServer, word: str, stream: bool) -> None:
    heard = ask(server, "stop", stop_words=["never", word], stream=stream)

    assert heard.text == ANSWERS["stop"].split(word)[0]


def test_the_ensemble_leaves_the_engines_stop_word_at_the_end(server: TritonServer) -> None:
    # Triton does not let it cut: postprocessing may see what the decoupled core says, and nothing else.
    assert ask(server, "stop", model="ensemble", stop_words=["\nUser:"]).text == "first line\nUser:"


def test_a_stop_word_ends_a_stream_and_its_tokens(server: TritonServer) -> None:
    heard = ask(server, "stop", stop_words=["e\nU"], stream=True)

    assert heard.text == "first lin"


def test_counts_and_the_prompt_come_when_asked_for(server: TritonServer, coder: Coder) -> None:
    heard = ask(
        server,
        "plain",
        stream=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
        exclude_input_in_output=False,
    )

    assert heard.counts == {
        "num_input_tokens": len(coder.ids("plain")),
        "num_output_tokens": len(coder.ids("Paris is the capital of France.")),
    }
    assert heard.text == "plainParis is the capital of France."


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["plain", "family", "chinese"])
def test_log_probabilities_come_with_the_ids_they_belong_to(
    server: TritonServer, recorded: dict[str, list[int]], prompt: str, stream: bool
) -> None:
    ids = recorded[prompt]
    ids = ids[: min(index for index, id in enumerate(ids) if id in (EOS, TURN_END))]

    heard = ask(server, prompt, stream=stream, return_log_probs=True)

    assert heard.ids == ids
    assert heard.log_probs == [-place / 8 for place in range(len(ids))]
    assert ask(server, prompt, stream=stream).ids == []


@pytest.mark.parametrize("stream", [True, False])
def test_the_reason_of_the_end_is_told_when_asked_for(server: TritonServer, coder: Coder, stream: bool) -> None:
    def reason(prompt: str, **options: Any) -> str:
        return ask(server, prompt, stream=stream, return_finish_reason=True, **options).reason

    whole = len(coder.ids(ANSWERS["stop"]))
    assert reason("stop") == "stop"
    assert reason("stop", max_tokens=whole) == "length"
    assert reason("stop", max_tokens=whole, stop_words=["line"]) == "stop"
    assert ask(server, "stop", stream=stream).reason == ""


def test_an_answer_ends_at_max_tokens_and_shows_what_is_there(server: TritonServer, coder: Coder) -> None:
    ids = coder.ids(ANSWERS["family"])[:6]

    for stream in (True, False):
        assert ask(server, "family", max_tokens=6, stream=stream).text == coder.text(ids)
    assert ask(server, "family", model="ensemble", max_tokens=6).text == coder.text(ids)


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_a_prompt_that_is_too_long_is_an_invalid_argument(server: TritonServer, model: str) -> None:
    heard = ask(server, "x" * 41, model=model)

    assert split_status(heard.error.message()) == (
        "INVALID_ARGUMENT",
        "the prompt has 41 tokens; this model takes at most 40",
    )


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_impossible_requests_are_invalid_arguments(server: TritonServer, model: str) -> None:
    for options in ({"prompt": ""}, {"prompt": "plain", "max_tokens": 0}):
        heard = ask(server, model=model, **options)
        assert split_status(heard.error.message())[0] == "INVALID_ARGUMENT"


def test_an_error_of_the_engine_reaches_the_client_in_its_words(server: TritonServer) -> None:
    heard = ask(server, "not recorded")

    assert heard.pieces == []
    assert "was not recorded" in heard.error.message()


def test_a_full_queue_of_the_engine_is_unavailable_for_now(server: TritonServer) -> None:
    assert split_status(ask(server, "full").error.message())[0] == "UNAVAILABLE"


def test_a_client_that_goes_away_stops_the_engine(server: TritonServer) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput

    before = sum("stand-in: request stopped" in line for line in server.log_lines)
    first = threading.Event()
    inputs = [
        InferInput("text_input", [1, 1], "BYTES").set_data_from_numpy(np.array([[b"long"]], np.object_)),
        InferInput("max_tokens", [1, 1], "INT32").set_data_from_numpy(np.array([[3000]], np.int32)),
        InferInput("stream", [1, 1], "BOOL").set_data_from_numpy(np.array([[True]], np.bool_)),
    ]
    with InferenceServerClient(
        f"127.0.0.1:{server.ports.grpc}", channel_args=[("grpc.enable_http_proxy", 0)]
    ) as client:
        client.start_stream(lambda result, error: first.set())
        client.async_stream_infer("tensorrt_llm_bls", inputs)
        assert first.wait(10)
        client.stop_stream(cancel_requests=True)

    # The recorded answer takes 4 s; the engine has to hear of it long before.
    until = time.monotonic() + 3
    while sum("stand-in: request stopped" in line for line in server.log_lines) == before:
        assert time.monotonic() < until, "the engine was not stopped"
        time.sleep(0.05)
    assert ask(server, "plain").text == ANSWERS["plain"]


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_generate_answers_whole_over_http(server: TritonServer, model: str) -> None:
    body = json.dumps({"text_input": "chinese", "max_tokens": 3000, "stop_words": "", "bad_words": ""}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.ports.http}/v2/models/{model}/generate", body, {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        assert json.load(response)["text_output"] == ANSWERS["chinese"]


def _character(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [each for each in range(256) if each not in plain]
    return chr(byte) if byte in plain else chr(256 + others.index(byte))


def _plan(recipe: Recipe) -> Plan:
    limits = recipe.limits
    return Plan.model_validate(
        {
            "model": {
                "architecture": "LlamaForCausalLM",
                "family": "llama",
                "vocab_size": 300,
                "hidden_size": 8,
                "intermediate_size": 16,
                "layers": 1,
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 4,
                "max_positions": 4096,
                "tie_embeddings": True,
                "dtype": "bfloat16",
                "norm_epsilon": 1e-5,
                "rope_theta": 10000.0,
            },
            "parameters": 1000,
            "gpu": recipe.gpu,
            "runtime": recipe.runtime,
            "precision": recipe.precision,
            "kv_dtype": "bfloat16",
            "kv_bytes_per_token": 16,
            "tp": 1,
            "pp": 1,
            "memory": {"weights": 1, "kv": 1, "activations": 1, "overhead": 1, "total": 4, "visible": 10},
            "kv_tokens": 100_000,
            "limits": limits.model_dump() | {"max_seq_len": limits.max_seq_len},
            "pod": {
                "cpu": 2,
                "memory_bytes": 1,
                "shm_bytes": 1,
                "ephemeral_bytes": 1,
                "load_seconds": 60,
                "drain_seconds": None,
            },
        }
    )
