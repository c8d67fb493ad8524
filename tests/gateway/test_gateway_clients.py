"""The official client against the demo model: its response models are strict."""

import asyncio
import json
import shutil
import subprocess
from typing import Any

import openai
import pytest
from gateway_process import GatewayProcess, get

pytestmark = pytest.mark.local

MODEL = "smollm2"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def client(demo: GatewayProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True)


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)  # type: ignore[arg-type]

    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (37, 7, 44)
    assert (answer.model, answer.object) == (MODEL, "chat.completion")
    assert answer.id.startswith("chatcmpl-")


def test_a_stream_has_a_piece_for_each_token_and_its_counts_when_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, temperature=0, stream=True, stream_options={"include_usage": True}  # type: ignore[arg-type]
    )  # fmt: skip
    chunks = list(stream)

    *answer, counts = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert answer[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in answer if chunk.choices[0].delta.content]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 3
    assert [chunk.choices[0].finish_reason for chunk in answer][-2:] == [None, "stop"]
    assert all(chunk.usage is None for chunk in answer)
    assert counts.choices == []
    assert counts.usage is not None
    assert counts.usage.completion_tokens == 7


def test_the_asynchronous_client_streams_too(demo: GatewayProcess) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{demo.url}/v1", api_key="none", _strict_response_validation=True
        ) as client:
            stream = await client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, stream=True)  # type: ignore[arg-type]
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == ANSWER


def test_several_prompts_and_several_answers_to_each_are_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The capital of France is", "One, two, three,"], n=2, max_tokens=3, temperature=0
    )

    first, second, third, fourth = (choice.text for choice in answer.choices)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert "Paris" in first
    assert "four" in third
    assert (first, third) == (second, fourth)  # greedy
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_answers_that_are_drawn_by_chance_differ(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", n=4, max_tokens=12, temperature=1.5)

    assert len({choice.text for choice in answer.choices}) > 1


def test_text_ends_before_a_stop_word(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, stop=["France", "no"])  # type: ignore[arg-type]

    assert answer.choices[0].message.content == "The capital of "
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_come_whole_and_streamed(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    answer = client.chat.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]

    assert answer.logprobs is not None
    tokens = answer.logprobs.content or []
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode() == answer.message.content == ANSWER
    assert "".join(token.token for token in tokens) == ANSWER
    assert all(-5 < token.logprob < 0 for token in tokens)
    # Greedy: the most probable token is the chosen one.
    assert [(best.token, best.logprob) for token in tokens for best in token.top_logprobs] == [
        (token.token, token.logprob) for token in tokens
    ]
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content or ()]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in tokens], abs=0.01)


def test_completions_have_log_probabilities_in_their_own_form(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 3, "n": 2, "temperature": 0}
    answer = client.completions.create(**options, logprobs=1)

    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or ()) == choice.text
        assert choice.logprobs.text_offset == [0, 6, 7]
        assert choice.logprobs.top_logprobs == [
            {token: found}
            for token, found in zip(choice.logprobs.tokens or (), choice.logprobs.token_logprobs or (), strict=True)
        ]
    assert client.completions.create(**options).choices[0].logprobs is None


def test_probabilities_that_the_runtime_does_not_know_are_refused_by_name(client: openai.OpenAI) -> None:
    for endpoint, name, options in (
        (client.chat.completions, "top_logprobs", {"messages": CAPITAL, "logprobs": True}),
        (client.completions, "logprobs", {"prompt": "Hi"}),
    ):
        ask: Any = endpoint.create
        for refused in ({name: 2, "temperature": 0}, {name: 1, "temperature": 1}):
            with pytest.raises(openai.BadRequestError) as refusal:
                ask(model=MODEL, max_tokens=1, **options, **refused)
            assert (refusal.value.param, refusal.value.code) == (name, "unsupported_parameter")
        for taken in ({name: 1, "temperature": 0}, {name: 0, "temperature": 1}):
            assert ask(model=MODEL, max_tokens=1, **options, **taken).choices[0].logprobs is not None


def test_the_model_is_listed_and_described(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "engineroom"
    with pytest.raises(openai.NotFoundError, match="'other' is not here"):
        client.models.retrieve("other")


def test_what_the_runtime_lacks_is_refused_by_name_also_where_only_the_engine_knows(client: openai.OpenAI) -> None:
    for parameter in ("seed", "presence_penalty"):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(model=MODEL, messages=CAPITAL, **{parameter: 1})  # type: ignore[call-overload]
        assert refusal.value.param == parameter
        assert refusal.value.code == "unsupported_parameter"


def test_embeddings_are_refused_clearly(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="generates text; it makes no embeddings"):
        client.embeddings.create(model=MODEL, input="text")


def test_curl_sees_server_sent_events(demo: GatewayProcess) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    body = json.dumps({"model": MODEL, "messages": CAPITAL, "temperature": 0, "stream": True})
    command = [curl, "-sN", f"{demo.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    events = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n\n")

    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER


def test_metrics_are_those_that_the_charts_rules_read(demo: GatewayProcess, client: openai.OpenAI) -> None:
    before = demo.metrics()
    client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)  # type: ignore[arg-type]
    demo.wait(lambda: demo.metrics()["e2e_seconds_count"] > before["e2e_seconds_count"], "counted")
    after = demo.metrics()

    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["ttft_seconds_count"] == grown["queue_seconds_count"] == grown["e2e_seconds_count"] == 1
    assert grown["itl_seconds_count"] == 6  # 7 tokens
    assert 0 < grown["ttft_seconds_sum"] < grown["e2e_seconds_sum"]
    assert grown["prompt_tokens_total"] == 37
    assert grown["generated_tokens_total"] == 7
    for bound in ("0.2", "0.5"):
        assert f'ttft_seconds_bucket{{le="{bound}"}}' in after
    assert 'itl_seconds_bucket{le="0.05"}' in after
    assert {"requests_waiting", "requests_running", "queued_prompt_tokens", 'rejected_total{reason="queue_full"}'} <= {
        *after
    }
    assert after["slots"] == 8  # the engine's


def test_logs_are_json_without_prompts(demo: GatewayProcess, client: openai.OpenAI) -> None:
    headers = {"X-Request-Id": "my-own-id"}
    client.chat.completions.create(model=MODEL, messages=CAPITAL, user="u1", max_tokens=2, extra_headers=headers)  # type: ignore[arg-type]
    demo.wait(lambda: any(line["request_id"] == "my-own-id" for line in demo.requests()), "logged")

    (line,) = [line for line in demo.requests() if line["request_id"] == "my-own-id"]
    assert (line["status"], line["user"], line["finish"], line["completion_tokens"]) == (200, "u1", ["length"], 2)
    assert "France" not in demo.log.read_text()


def test_a_request_id_is_kept_or_made(demo: GatewayProcess) -> None:
    kept = get(f"{demo.url}/v1/nothing", **{"X-Request-Id": "abc-1"})[2]["x-request-id"]
    made = get(f"{demo.url}/v1/nothing", **{"X-Request-Id": "not one word"})[2]["x-request-id"]

    assert kept == "abc-1"
    assert made != "not one word"
    assert len(made) == 32
