"""Tokens and their log probabilities in OpenAI's two forms, for the kinds of tokenizers that there are."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engineroom.gateway.logprobs import Logprobs, TokenTexts
from engineroom.gateway.upstream import Scored


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("ð", "Ł"), ("ðŁ", "ĳ"), ("Ã", "©")]
    words = ["<|end of text|>", *alphabet, *(left + right for left, right in merges)]
    made = Tokenizer(models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end of text|>", special=True, normalized=False)])
    return made


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral have it."""
    words = ["<|end of text|>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdé日👍", "▁▁"]
    made = Tokenizer(
        models.BPE(vocab={w: id for id, w in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("<|end of text|>", special=True, normalized=False)])
    return made


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@given(text=st.text(st.sampled_from("ab é日👍🏽\n\u200d<0x>ſ▀"), max_size=30))
def test_the_bytes_of_the_tokens_are_the_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = make()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(text).ids

    assert b"".join(texts[id] for id in ids) == text.encode()
    assert texts[0] == b"<|end of text|>"
    assert texts[10**6] == b""


def test_a_tokenizer_of_words_shows_each_as_it_decodes_it() -> None:
    made = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()

    assert [TokenTexts(made)[id] for id in made.encode("playing").ids] == [b"play", b"##ing"]


def test_parts_of_a_character_are_bytes_in_both_forms() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("é👍", add_special_tokens=False).ids
    scored = [Scored(id, -place / 2, ((id, -place / 2), (1, -9.0))) for place, id in enumerate(ids)]
    texts = TokenTexts(tokenizer)

    chat = Logprobs(texts, chat=True, top=2).of(0, scored)["content"]
    older = Logprobs(texts, chat=False, top=2).of(0, scored)

    assert [(each["token"], each["bytes"]) for each in chat] == [
        ("é", [0xC3, 0xA9]),
        ("\ufffd", [0xF0, 0x9F, 0x91]),
        ("\ufffd", [0x8D]),
    ]
    assert chat[1]["top_logprobs"] == [
        {"token": "\ufffd", "logprob": -0.5, "bytes": [0xF0, 0x9F, 0x91]},
        {"token": "!", "logprob": -9.0, "bytes": [0x21]},
    ]
    assert older == {
        "tokens": ["é", "bytes:\\xf0\\x9f\\x91", "bytes:\\x8d"],
        "token_logprobs": [0.0, -0.5, -1.0],
        "top_logprobs": [
            {"é": 0.0, "!": -9.0},
            {"bytes:\\xf0\\x9f\\x91": -0.5, "!": -9.0},
            {"bytes:\\x8d": -1.0, "!": -9.0},
        ],
        "text_offset": [0, 1, 2],
    }


def test_offsets_go_on_from_piece_to_piece_in_each_answer() -> None:
    tokenizer = byte_level()
    words = Logprobs(TokenTexts(tokenizer), chat=False, top=0)
    first, second = ([Scored(id, -1.0) for id in tokenizer.encode(text).ids] for text in ("ab", "b"))

    assert words.of(0, first)["text_offset"] == [0, 1]
    assert words.of(1, second)["text_offset"] == [0]
    assert words.of(0, second) == {
        "tokens": ["b"],
        "token_logprobs": [-1.0],
        "top_logprobs": None,
        "text_offset": [2],
    }


@pytest.mark.parametrize("impossible", [float("-inf"), float("nan"), -1e30])
def test_what_is_impossible_is_a_number_of_json(impossible: float) -> None:
    made = Logprobs(TokenTexts(byte_level()), chat=True, top=1).of(0, [Scored(5, impossible), Scored(6, -9998.0)])

    assert [each["logprob"] for each in json.loads(json.dumps(made, allow_nan=False))["content"]] == [-9999.0, -9998.0]
