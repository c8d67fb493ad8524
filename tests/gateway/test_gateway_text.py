"""Exact text across token borders: the token source answers each prompt with itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from gateway_process import GatewayProcess, post
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

pytestmark = pytest.mark.local

HARD = [
    "Grüße, 世界! 👩‍👩‍👧‍👦 and 🏳️‍🌈, e\u0301 is not é",
    "line\nline\r\nline\u2028line\x85line\x0bline",
    'quotes " and \\ and </script> and \x00\x01\x7f',
    "אבג \u200f العربية 123",
    "👍🏽" * 20,
    " leading and trailing  ",
]


def ask(source: GatewayProcess, prompt: str, **fields: Any) -> tuple[str, str]:
    """Text and finish reason, the same streamed and whole."""
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1000, **fields}
    status, answer, _ = post(f"{source.url}/v1/completions", body)
    assert status == 200, answer
    (whole,) = json.loads(answer)["choices"]
    status, events, headers = post(f"{source.url}/v1/completions", body | {"stream": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *chunks, done, rest = events.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    choices = [json.loads(chunk.removeprefix("data: "))["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    return whole["text"], whole["finish_reason"]


@pytest.mark.parametrize("text", HARD)
def test_text_arrives_as_it_is(source: GatewayProcess, text: str) -> None:
    assert ask(source, text) == (text, "stop")


@pytest.mark.parametrize("text", HARD)
def test_text_ends_before_a_stop_word_wherever_tokens_end(source: GatewayProcess, text: str) -> None:
    middle = len(text) // 2
    stop = text[middle : middle + 3]

    assert ask(source, text, stop=["never there", stop]) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize("text", HARD)
def test_log_probabilities_are_those_of_the_tokens_that_make_the_text(
    source: GatewayProcess, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    body = {"model": "smollm2", "prompt": text, "max_tokens": 1000, "logprobs": 2}

    (whole,) = json.loads(post(f"{source.url}/v1/completions", body)[1])["choices"]
    events = post(f"{source.url}/v1/completions", body | {"stream": True})[1].split("\n\n")[:-2]
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0]["logprobs"] for event in events]

    found = whole["logprobs"]
    assert b"".join(_bytes(token) for token in found["tokens"]) == whole["text"].encode() == text.encode()
    assert found["token_logprobs"] == [-place / 8 for place in range(len(ids))]
    starts = [len(b"".join(map(_bytes, found["tokens"][:n])).decode("utf-8", "ignore")) for n in range(len(ids))]
    # A token that goes on with a character begins behind it.
    assert all(0 <= offset - start <= 1 for offset, start in zip(found["text_offset"], starts, strict=True))
    for place, (token, best) in enumerate(zip(found["tokens"], found["top_logprobs"], strict=True)):
        assert next(iter(best.items())) == (token, -place / 8)
        assert sorted(best.values(), reverse=True) == [-place / 8, -place / 8 - 1]
    for name, values in found.items():
        assert [value for chunk in chunks if chunk for value in chunk[name]] == values


def _bytes(token: str) -> bytes:
    """Of a token in the older form of log probabilities."""
    return (
        bytes.fromhex(token.removeprefix("bytes:").replace("\\x", "")) if token.startswith("bytes:") else token.encode()
    )


@pytest.fixture(scope="module")
def tokenizer(source_tree: Path) -> Tokenizer:
    return Tokenizer.from_file(str(source_tree / "tokenizer" / "tokenizer.json"))


@settings(max_examples=15)
@given(st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=40), st.data())
def test_any_text_and_any_stop_word(
    source: GatewayProcess, tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    # The model's vocabulary lacks some control characters.
    text = tokenizer.decode(tokenizer.encode(text).ids)
    assume(text)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 5))]

    assert ask(source, text) == (text, "stop")
    assert ask(source, text, stop=stop)[0] == text[: text.index(stop)]


def test_an_answer_that_used_up_its_tokens_was_cut(source: GatewayProcess) -> None:
    text, finish = ask(source, "one two three four five six", max_tokens=3)

    assert (text, finish) == ("one two three", "length")


def test_a_stop_text_that_the_last_token_completes_is_the_reason(source: GatewayProcess) -> None:
    assert ask(source, "one two three four five six", max_tokens=3, stop=" three") == ("one two", "stop")
    assert ask(source, "one two three four five six", max_tokens=3, stop=" three four") == ("one two three", "length")


def test_ignore_eos_goes_on_to_the_largest_length(source: GatewayProcess) -> None:
    assert ask(source, "a b", max_tokens=6, ignore_eos=True) == ("a ba ba b", "length")
