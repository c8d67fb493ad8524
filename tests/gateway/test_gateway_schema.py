import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.gateway.refusals import Refusal
from engineroom.gateway.schema import UNSUPPORTED, ChatBody, TextBody, read_body

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "Hi"}


def chat(**fields: Any) -> ChatBody:
    return read_body(ChatBody, json.dumps(CHAT | fields).encode())


def text(**fields: Any) -> TextBody:
    return read_body(TextBody, json.dumps(TEXT | fields).encode())


def refusal_of(**fields: Any) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        chat(**fields)
    assert refusal.value.status == 400
    return refusal.value


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_parameter_that_nothing_honours_is_refused_by_name_and_its_harmless_values_are_taken(name: str) -> None:
    refused = refusal_of(**{name: "anything"})

    assert (refused.param, refused.code) == (name, "unsupported_parameter")
    assert refused.message.startswith(f"{name} is not supported: ")
    for harmless in (None, *UNSUPPORTED[name][1]):
        chat(**{name: harmless})


def test_zero_is_not_false_and_true_is_not_one() -> None:
    assert refusal_of(logprobs=0).param == "logprobs"
    assert refusal_of(n=True).param == "n"
    assert refusal_of(stream=1).param == "stream"


def test_an_unknown_parameter_is_named() -> None:
    refused = refusal_of(temprature=0.5)

    assert (refused.param, refused.code) == ("temprature", "unknown_parameter")
    assert chat(temperature=0.5).temperature == 0.5


def test_null_means_unset() -> None:
    assert chat(temperature=None, stop=None, n=None, stream_options=None).n == 1


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("temperature", 2.1, 2),
        ("temperature", -0.1, 0),
        ("top_p", 1.01, 1),
        ("top_k", -2, -1),
        ("n", 0, 1),
        ("n", 129, 128),
        ("max_tokens", 0, 1),
        ("max_tokens", 2**31, 2**31 - 1),
        ("max_tokens", 1.5, 2),
        ("max_completion_tokens", 0, 1),
        ("presence_penalty", 2.5, 2),
        ("frequency_penalty", -2.5, -2),
        ("repetition_penalty", 0, 0.1),
        ("seed", 2**63, 2**63 - 1),
        ("stop", ["a"] * 17, ["a"] * 16),
        ("stop", [1], ["1"]),
        ("stop", {"a": 1}, "a"),
        ("stream", "true", True),
        ("user", 7, "7"),
        ("logprobs", 0, True),
        ("logprobs", "true", False),
        ("top_logprobs", -1, 0),
    ],
)
def test_a_value_outside_its_range_is_named_and_the_nearest_inside_is_taken(name: str, bad: Any, good: Any) -> None:
    refused = refusal_of(**{name: bad})

    assert refused.param is not None
    assert refused.param.split(".")[0] == name
    assert refused.code == "invalid_value"
    chat(**{name: good})


def test_messages_are_text_in_parts_or_whole() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "developer", "content": "D"}, {"role": "user", "content": parts}])

    assert [message.as_dict() for message in body.messages] == [
        {"role": "system", "content": "D"},
        {"role": "user", "content": "ab"},
    ]
    refused = refusal_of(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    assert "'image_url' is not supported: this server reads text only" in refused.message
    assert refused.param == "messages.0.content"


def test_an_assistants_message_is_taken_as_clients_send_it_back_but_not_with_calls_of_tools() -> None:
    back = {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "tool_calls": None, "audio": None}
    chat(messages=[*CHAT["messages"], back, *CHAT["messages"]])

    refused = refusal_of(messages=[back | {"tool_calls": [{"id": "1"}]}])
    assert refused.param == "messages.0.tool_calls"
    assert refusal_of(messages=[{"role": "tool", "content": "x"}]).param == "messages.0.role"
    assert refusal_of(messages=[]).param == "messages"


def test_prompts_are_texts_and_not_ids() -> None:
    assert text(prompt=["a", "b"]).prompt == ("a", "b")
    for ids in ([1, 2], [[1, 2]]):
        with pytest.raises(Refusal, match="token ids are not supported: send text"):
            text(prompt=ids)
    with pytest.raises(Refusal, match="prompt: missing"):
        read_body(TextBody, b'{"model": "m"}')


def test_lengths_default_as_they_do_at_openai() -> None:
    assert text().length == 16
    assert chat().length is None
    assert chat(max_tokens=5).length == 5
    assert chat(max_tokens=5, max_completion_tokens=6).length == 6


def test_top_logprobs_need_logprobs() -> None:
    assert "set logprobs to true" in refusal_of(top_logprobs=1).message
    assert chat(logprobs=True, top_logprobs=20).alternatives == 20
    assert refusal_of(logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert chat(logprobs=True).alternatives == 0
    assert chat(top_logprobs=0).alternatives is None


def test_completions_count_their_log_probabilities() -> None:
    assert (text(logprobs=0).alternatives, text(logprobs=20).alternatives, text().alternatives) == (0, 20, None)
    for bad in (True, -1, 21):
        with pytest.raises(Refusal) as refusal:
            text(logprobs=bad)
        assert refusal.value.param == "logprobs"


def test_stream_options_need_a_stream() -> None:
    assert "stream_options is for streams" in refusal_of(stream_options={"include_usage": True}).message
    assert chat(stream=True, stream_options={"include_usage": True}).wants_usage
    assert not chat(stream=True).wants_usage


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"model": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"1" * 5000,
    ],
)
def test_what_is_no_json_object_of_text_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        read_body(ChatBody, data)

    assert refusal.value.status == 400
    assert len(refusal.value.message) < 300


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([*ChatBody.model_fields, *TextBody.model_fields, *UNSUPPORTED, "other"]),
)
def test_any_json_in_any_place_is_taken_or_refused(value: Any, name: str) -> None:
    for kind, fields in ((ChatBody, CHAT), (TextBody, TEXT)):
        try:
            read_body(kind, json.dumps(fields | {name: value}).encode())
        except Refusal as refusal:
            assert refusal.status == 400
            json.dumps(refusal.body).encode()
