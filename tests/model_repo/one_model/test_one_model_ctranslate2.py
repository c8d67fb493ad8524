"""The demo model on CTranslate2 behind the one model, in a real Triton."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its types are a package that is not needed otherwise
import pytest
from one_model_client import Client, Heard, ask, events, eventually, gauges, post, run

from engineroom.errors import ServerError
from engineroom.serving.environment import Environment
from engineroom.serving.server import TritonServer

pytestmark = pytest.mark.local

#: As the fixture's recipe and configuration have them.
SLOTS, QUEUE, MAX_INPUT, MAX_SEQ, KV_TOKENS = 8, 4, 64, 4064, 10_000

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
FRANCE = CHAT.format("What is the capital of France?")
ANSWER = "The capital of France is Paris."
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Hi",
    "Write one sentence about the sea, and let it be a long one with many words in it, please.",
]

#: CTranslate2 without a server: one prompt at a time, threads and compute type as the model has them.
RAW = """
import ctranslate2, json, os, sys, tokenizers
job = json.load(sys.stdin)
tokenizer = tokenizers.Tokenizer.from_file(job["tokenizer"])
generator = ctranslate2.Generator(job["engine"], device="cpu", compute_type="default", inter_threads=1, intra_threads=1)
for prompt in job["prompts"]:
    tokens = tokenizer.encode(prompt, add_special_tokens=False).tokens
    steps = []
    result = generator.generate_batch(
        [tokens], max_length=job["max_tokens"], include_prompt_in_result=False, return_scores=True,
        callback=lambda step: bool(steps.append(step.log_prob)),
    )[0]
    ids = result.sequences_ids[0]
    print(json.dumps([len(tokens), ids, tokenizer.decode(ids), steps[: len(ids)]]), flush=True)
# A worker that still holds a callback when the interpreter goes aborts the process (4.8.5).
os._exit(0)
"""


def chat(server: TritonServer, text: str = FRANCE, **options: Any) -> Heard:
    return ask(
        server,
        text,
        **{"add_special_tokens": False, "return_num_output_tokens": True, "max_tokens": 24} | options,
    )


def load(server: TritonServer) -> tuple[float, float]:
    """Requests that run, and that wait."""
    shown = gauges(server)
    return shown["requests_running"], shown["requests_waiting"]


def test_the_streamed_greedy_answer_is_that_of_ctranslate2(
    demo: TritonServer, demo_tree: Path, environment: Environment
) -> None:
    prompts = [CHAT.format(question) for question in QUESTIONS]
    job = {
        "tokenizer": str(demo_tree / "tokenizer" / "tokenizer.json"),
        "engine": str(demo_tree / "engine"),
        "prompts": prompts,
        "max_tokens": 24,
    }
    done = subprocess.run(
        [environment.bin / "python", "-I", "-c", RAW],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    for prompt, line in zip(prompts, done.stdout.splitlines(), strict=True):
        tokens, ids, text, log_probs = json.loads(line)
        heard = chat(demo, prompt, return_num_input_tokens=True, return_log_probs=True)
        assert heard.text == text
        assert heard.counts == {"num_input_tokens": tokens, "num_output_tokens": len(ids)}
        assert len(heard.pieces) > len(ids) // 2
        assert heard.ids == ids
        assert heard.log_probs == pytest.approx(log_probs, abs=1e-4)
    assert chat(demo).text == ANSWER


def test_concurrent_different_prompts_all_get_exactly_the_tokens_they_asked_for(demo: TritonServer) -> None:
    wanted = [3, 24, 7, 16, 1, 20, 11, 5]

    async def work(client: Client) -> list[Heard]:
        return await asyncio.gather(
            *(
                client.ask(
                    CHAT.format(QUESTIONS[number % 4]),
                    max_tokens=count,
                    # Nothing ends it before.
                    end_id=-1,
                    stream=number % 2 == 0,
                    add_special_tokens=False,
                    return_num_output_tokens=True,
                )
                for number, count in enumerate(wanted)
            )
        )

    heard = run(demo, work)

    assert [answer.status for answer in heard] == [""] * len(wanted)
    assert [answer.counts["num_output_tokens"] for answer in heard] == wanted
    assert heard[0].text == "The capital of"


def test_concurrent_equal_prompts_all_get_the_whole_answer(demo: TritonServer) -> None:
    async def work(client: Client) -> list[Heard]:
        return await asyncio.gather(
            *(client.ask(FRANCE, max_tokens=24, add_special_tokens=False, stream=n < 4) for n in range(SLOTS + QUEUE))
        )

    assert {answer.text for answer in run(demo, work)} == {ANSWER}


@pytest.mark.parametrize("word", ["ital of Fr", " Paris.", "T", "France"])
def test_the_text_ends_before_a_stop_word_that_crosses_tokens(demo: TritonServer, word: str) -> None:
    for stream in (True, False):
        assert chat(demo, stop_words=["never", word], stream=stream).text == ANSWER.split(word, maxsplit=1)[0]


def test_min_tokens_holds_back_the_end_until_then(demo: TritonServer) -> None:
    free, held = chat(demo, max_tokens=20), chat(demo, max_tokens=20, min_tokens=20)

    assert free.counts["num_output_tokens"] < 20
    assert held.counts["num_output_tokens"] == 20
    assert held.text.startswith(ANSWER)


def test_a_negative_end_id_means_no_end_and_one_of_the_clients_replaces_the_models(demo: TritonServer) -> None:
    endless = chat(demo, max_tokens=16, end_id=-1, return_num_output_tokens=True)
    unknown = chat(demo, max_tokens=16, end_id=2**31 - 1, min_tokens=2)
    of = 282  # " of"

    assert endless.counts["num_output_tokens"] == unknown.counts["num_output_tokens"] == 16
    assert chat(demo, end_id=of).text == "The capital"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, but it should be at least 1"),
        ({"max_tokens": -(2**31)}, "should be at least 1"),
        ({"min_tokens": -1}, "min_tokens is -1, but it should be from 0 to max_tokens, 24"),
        ({"min_tokens": 25}, "min_tokens is 25, but it should be from 0 to max_tokens, 24"),
        ({"seed": 7}, "seed is not supported: CTranslate2 has one random state for all requests"),
        ({"temperature": -0.1}, "temperature is"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": -0.5}, "top_p is -0.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"text": ""}, "text_input has no tokens"),
        (
            {"text": " the" * (MAX_INPUT + 1)},
            f"the prompt has {MAX_INPUT + 1} tokens, but max_input_len is {MAX_INPUT}",
        ),
    ],
)
def test_what_cannot_be_served_is_an_invalid_argument_in_one_sentence(
    demo: TritonServer, options: dict[str, Any], words: str
) -> None:
    heard = chat(demo, **options)

    assert (heard.status, heard.errors, heard.pieces) == ("INVALID_ARGUMENT", 1, [])
    assert words in heard.message
    assert "\n" not in heard.message


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 1},
        {"min_tokens": 4},
        {"temperature": 100.0},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 40},
        {"top_p": 1.0},
        {"top_k": 0},
        # More than the vocabulary has.
        {"top_k": 2**31 - 1},
        {"repetition_penalty": 1.2},
        {"text": " the" * MAX_INPUT},
    ],
)
def test_its_nearest_legal_neighbour_is_answered(demo: TritonServer, options: dict[str, Any]) -> None:
    count = options.get("max_tokens", 4)

    heard = chat(demo, **{"max_tokens": count, "end_id": -1} | options)

    assert (heard.status, heard.counts) == ("", {"num_output_tokens": count})


@pytest.mark.parametrize("temperature", [0.0, 1e-38, 1e-5])
def test_almost_no_temperature_is_greedy(demo: TritonServer, temperature: float) -> None:
    assert chat(demo, temperature=temperature).text == ANSWER


def test_over_http_generate_and_generate_stream_answer(demo: TritonServer) -> None:
    fields = {"text_input": FRANCE, "max_tokens": 24, "add_special_tokens": False}

    assert json.loads(post(demo, "generate", **fields))["text_output"] == ANSWER
    pieces = [event["text_output"] for event in events(post(demo, "generate_stream", stream=True, **fields))]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 4


def test_slots_and_queue_fill_are_shown_refuse_and_empty_when_clients_go_away(demo: TritonServer) -> None:
    async def work(client: Client) -> None:
        async def long() -> Heard:
            return await client.ask(FRANCE, max_tokens=1200, min_tokens=1200, add_special_tokens=False)

        everyone = SLOTS + QUEUE
        # Several more than fit: as many as do are taken, though they come at once.
        jobs = [asyncio.create_task(long()) for _ in range(everyone + 3)]
        await eventually(lambda: sum(job.done() for job in jobs) == 3, "three are refused", 10)
        refused = [job.result() for job in jobs if job.done()]
        assert {answer.status for answer in refused} == {"UNAVAILABLE"}
        assert all(answer.message.startswith("the queue is full (") for answer in refused)

        await eventually(lambda: load(demo)[0] > 0, "some run", 10)
        # Answers have begun: running requests fill more of the cache than their prompts do.
        await eventually(lambda: gauges(demo)["kv_used_ratio"] * KV_TOKENS > 16 * SLOTS, "tokens fill the KV cache", 30)
        shown = gauges(demo)
        assert set(shown) == {
            "requests_waiting",
            "requests_running",
            "requests_slots",
            "queued_prompt_tokens",
            "kv_used_ratio",
        }
        running, waiting = shown["requests_running"], shown["requests_waiting"]
        assert running + waiting == everyone
        assert 1 <= running <= SLOTS == shown["requests_slots"]
        assert shown["queued_prompt_tokens"] == 16 * waiting
        assert 16 * running / KV_TOKENS < shown["kv_used_ratio"] <= (16 + 1200) * running / KV_TOKENS

        # One goes away, wherever it was: the next is let in.
        here = [job for job in jobs if not job.done()]
        here.pop().cancel()
        await eventually(lambda: sum(load(demo)) == everyone - 1, "one less", 5)
        here.append(asyncio.create_task(long()))
        await eventually(lambda: sum(load(demo)) == everyone, "the queue is full again", 5)
        assert (await long()).status == "UNAVAILABLE"

        for job in here:
            job.cancel()
        await eventually(lambda: load(demo) == (0, 0), "nothing runs or waits", 5)
        assert gauges(demo) == dict.fromkeys(shown, 0.0) | {"requests_slots": SLOTS}
        await asyncio.gather(*jobs, *here, return_exceptions=True)

    run(demo, work)
    assert chat(demo).text == ANSWER


def test_an_engine_without_clients_computes_nothing(demo: TritonServer) -> None:
    async def work(client: Client) -> None:
        heard = Heard()
        job = asyncio.create_task(client.ask(FRANCE, heard=heard, max_tokens=4000, min_tokens=4000))
        await eventually(lambda: len(heard.pieces) > 3, "it generates", 20)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        await eventually(lambda: load(demo) == (0, 0), "it is noticed", 2)

    run(demo, work)
    # The process that the model runs in.
    (stub,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if Path(process.cmdline()[0]).name == "triton_python_backend_stub"
        and demo.shared_memory in " ".join(process.cmdline())
    ]
    before = sum(stub.cpu_times()[:2])
    time.sleep(1)

    # Generating takes a core; watching takes a hundredth of one.
    assert sum(stub.cpu_times()[:2]) - before < 0.2


def test_a_request_waits_while_the_kv_cache_has_no_room_for_it(demo: TritonServer) -> None:
    longest = MAX_SEQ - 16  # two need 8,128 of 10,000 tokens

    async def work(client: Client) -> None:
        jobs = [
            asyncio.create_task(client.ask(FRANCE, max_tokens=longest, min_tokens=longest, add_special_tokens=False))
            for _ in range(3)
        ]
        await eventually(lambda: load(demo) == (2, 1), "two run, one waits", 10)
        await asyncio.sleep(0.5)
        assert load(demo) == (2, 1)
        for job in jobs:
            job.cancel()
        await eventually(lambda: load(demo) == (0, 0), "nothing runs or waits", 5)
        await asyncio.gather(*jobs, return_exceptions=True)

    run(demo, work)


def test_sigterm_delivers_every_token_of_the_streams_in_flight(
    demo_tree: Path, serve: Callable[..., AbstractContextManager[TritonServer]]
) -> None:
    async def work(client: Client, server: TritonServer) -> list[Heard]:
        heard = [Heard() for _ in range(4)]
        jobs = [
            asyncio.create_task(
                client.ask(
                    CHAT.format(QUESTIONS[number]),
                    heard=answer,
                    max_tokens=40,
                    min_tokens=40,
                    add_special_tokens=False,
                    return_num_output_tokens=True,
                )
            )
            for number, answer in enumerate(heard)
        ]
        await eventually(lambda: any(answer.pieces for answer in heard), "one flows", 20)
        server.request_stop()
        assert not all(answer.ended for answer in heard)
        return await asyncio.gather(*jobs)

    with serve(demo_tree) as server:
        heard = run(server, lambda client: work(client, server))
        # The fixture sees the exit code.

    assert [(answer.status, answer.counts["num_output_tokens"]) for answer in heard] == [("", 40)] * 4


def test_an_engine_that_cannot_be_loaded_is_named_by_the_server(
    demo_tree: Path, serve: Callable[..., AbstractContextManager[TritonServer]], tmp_path: Path
) -> None:
    shutil.copytree(demo_tree, tmp_path / "tree", ignore=shutil.ignore_patterns("model.bin"))
    (tmp_path / "tree" / "engine" / "model.bin").write_bytes(b"no model")

    with pytest.raises(ServerError) as failure, serve(tmp_path / "tree"):
        pass

    assert "tensorrt_llm" in str(failure.value)
