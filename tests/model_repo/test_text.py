"""Streaming text is the one-shot text, whatever the ids are and however they arrive."""

import sys
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

sys.path.insert(0, str(Path(__file__).parents[2] / "model-repo"))

from text import TextStream, Tokenizer

TEXTS = [
    "family 👨‍👩‍👧‍👦, flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿, thumb 👍🏽!",
    "日本語の文章と中文，还有한국어.",
    "مرحبا بالعالم، كيف الحال؟",
    "é as e + ◌́: e\u0301 o\u0308 ก็ नमस्ते",
    "  two leading spaces,\n\nempty lines\tand tabs  ",
    "a genuine replacement character: \ufffd, and another \ufffd\ufffd",
    "plain English text, nothing else.",
]
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
KINDS = ["byte-level", "byte-fallback", "metaspace", "wordpiece"]


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3, Qwen: every byte is a character of the vocabulary, merges on top."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("e", "r"), ("ð", "Ł"), ("ðŁ", "ĳ"), ("ã", "ģ"), ("Ġt", "h")]
    vocabulary = [*SPECIAL, *alphabet, *(left + right for left, right in merges)]
    made = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken("<tool 工具>", special=False, normalized=False)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2, Mistral: SentencePiece with byte tokens, one leading space added and stripped."""
    pieces = ["▁", "▁▁", "a", "▁a", "e", "▁the", "th", "語", "日", "▁日", "👍", ".", ",", "\n", "\ufffd", "م", "\u0301"]
    vocabulary = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(vocabulary)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ["<unk>", *SPECIAL]])
    return made


def metaspace() -> tokenizers.Tokenizer:
    """As T5 or Gemma-like exports with the Metaspace decoder."""
    pieces = ["▁", "▁a", "a", "b", "▁日", "語", "👍", "\ufffd", "▁▁"]
    made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in pieces)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def wordpiece() -> tokenizers.Tokenizer:
    """A decoder that puts spaces between words and takes some away again."""
    pieces = ["[UNK]", "a", "##b", "##c", ".", "'", "s", "do", "not", "n't", "日"]
    made = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(pieces)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


MAKERS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "metaspace": metaspace, "wordpiece": wordpiece}


@cache
def tokenizer(kind: str) -> Tokenizer:
    folder = Path(mkdtemp(prefix="engineroom-text-"))
    try:
        MAKERS[kind]().save(str(folder / "tokenizer.json"))
        return Tokenizer(str(folder))
    finally:
        (folder / "tokenizer.json").unlink()
        folder.rmdir()


def size(kind: str) -> int:
    return int(MAKERS[kind]().get_vocab_size())


def streamed(stream: TextStream, ids: list[int], cuts: list[int]) -> str:
    pieces, at = [], 0
    for cut in [*cuts, len(ids)]:
        pieces.append(stream.push(ids[at : at + cut]))
        at += cut
    return "".join(pieces) + stream.finish()


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_streamed_one_id_at_a_time_is_the_text(kind: str, text: str) -> None:
    coder = tokenizer(kind)
    ids = coder.encode(text, add_special_tokens=False)
    stream = coder.stream()

    pieces = [stream.push([id]) for id in ids]

    assert all(text.isprintable() or text for text in pieces)
    assert "".join(pieces) + stream.finish() == coder.decode(ids)
    assert coder.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_ids_add_up_to_the_one_shot_text(kind: str) -> None:
    coder, ids = tokenizer(kind), st.integers(0, size(kind) - 1)
    some = st.lists(ids, max_size=60) | st.lists(
        st.lists(ids, min_size=1, max_size=3).map(lambda x: x * 9), max_size=4
    ).map(lambda lists: [id for inner in lists for id in inner])

    @given(ids=some, cuts=st.lists(st.integers(0, 9), max_size=60), skip=st.booleans())
    @settings(max_examples=150, deadline=None)
    def check(ids: list[int], cuts: list[int], skip: bool) -> None:
        assert streamed(coder.stream(skip_special_tokens=skip), ids, cuts) == coder.decode(ids, skip)
        assert streamed(coder.stream(skip_special_tokens=skip), ids, [1] * len(ids)) == coder.decode(ids, skip)

    check()


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_pieces_of_broken_utf8_add_up_to_the_one_shot_text(kind: str) -> None:
    coder = tokenizer(kind)
    if kind == "byte-level":
        # The alphabet's order is not the order of bytes: take the map from the encoder itself.
        alphabet = _byte_level_characters()
        of_byte = [coder.token_id(alphabet[byte]) for byte in range(256)]
    else:
        of_byte = [coder.token_id(f"<0x{byte:02X}>") for byte in range(256)]
    lead = st.sampled_from(
        [0x80, 0xA0, 0xBF, 0xC2, 0xC0, 0xE0, 0xED, 0xEF, 0xBD, 0xF0, 0x9F, 0x90, 0xF4, 0xF5, 0xFF, 0x20, 0x41]
    )
    cut_text = (
        st.text(max_size=6)
        .map(lambda text: list(text.encode()))
        .flatmap(lambda data: st.integers(0, 3).map(lambda drop: data[drop:]))
    )
    broken = st.lists(lead, max_size=40) | st.lists(cut_text, max_size=6).map(
        lambda parts: [b for part in parts for b in part]
    )

    @given(data=broken, cuts=st.lists(st.integers(0, 5), max_size=40))
    @settings(max_examples=200, deadline=None)
    def check(data: list[int], cuts: list[int]) -> None:
        ids = [id for byte in data if (id := of_byte[byte]) is not None]
        assert streamed(coder.stream(), ids, cuts) == coder.decode(ids)
        assert streamed(coder.stream(), ids, [1] * len(ids)) == coder.decode(ids)
        if kind == "byte-level":
            assert coder.decode(ids) == bytes(data).decode(errors="replace")

    check()


def test_no_piece_ever_ends_in_half_a_character() -> None:
    coder = tokenizer("byte-level")
    text = "👨‍👩‍👧‍👦日本語é"
    stream = coder.stream()

    pieces = [stream.push([id]) for id in coder.encode(text, add_special_tokens=False)]

    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_special_token_in_the_middle_is_left_out_or_shown_as_asked() -> None:
    coder = tokenizer("byte-fallback")
    end = coder.token_id("<|im_end|>")
    assert end is not None
    ids = [*coder.encode("a 日", add_special_tokens=False), end, *coder.encode("a", add_special_tokens=False)]

    assert streamed(coder.stream(), ids, [1] * len(ids)) == "a 日 a"
    assert streamed(coder.stream(skip_special_tokens=False), ids, [1] * len(ids)) == "a 日<|im_end|> a"


def test_ids_outside_the_vocabulary_are_ignored_like_in_one_shot_decoding() -> None:
    coder = tokenizer("byte-level")
    ids = [*coder.encode("日", add_special_tokens=False), 999_999, *coder.encode("本", add_special_tokens=False)]

    assert streamed(coder.stream(), ids, [1] * len(ids)) == coder.decode(ids) == "日本"


@pytest.mark.parametrize("cuts", [[1] * 100, [100], [3] * 40])
def test_the_text_ends_before_a_stop_word_that_spans_tokens(cuts: list[int]) -> None:
    coder = tokenizer("byte-level")
    stream = coder.stream(["\nUser:", "zzz"])

    text = streamed(stream, coder.encode("so\nUse it. 👍\nUser: hi zzz", add_special_tokens=False), cuts)

    assert text == "so\nUse it. 👍"
    assert stream.stopped
    assert stream.push([1, 2, 3]) + stream.finish() == ""


def test_a_stop_word_that_only_begins_is_given_in_the_end() -> None:
    coder = tokenizer("byte-level")
    stream = coder.stream(["\nUser:"])

    pieces = stream.push(coder.encode("bye\nUse", add_special_tokens=False))

    assert pieces == "bye"
    assert stream.finish() == "\nUse"
    assert not stream.stopped


def test_a_stop_word_completed_by_the_held_back_end_still_stops() -> None:
    coder = tokenizer("byte-fallback")
    stream = coder.stream(["é"])

    assert stream.push(coder.encode("aé", add_special_tokens=False)) == "a"
    assert stream.finish() == ""
    assert stream.stopped


@given(
    text=st.text("abc", max_size=40),
    words=st.lists(st.text("abc", max_size=4), max_size=4),
    cuts=st.lists(st.integers(1, 4), max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_stop_words_cut_where_a_character_by_character_search_cuts(
    text: str, words: list[str], cuts: list[int]
) -> None:
    coder = tokenizer("byte-level")
    expected = text
    for end in range(1, len(text) + 1):
        if longest := max((len(word) for word in words if word and text[:end].endswith(word)), default=0):
            expected = text[: end - longest]
            break

    stream = coder.stream(words)

    assert streamed(stream, coder.encode(text, add_special_tokens=False), cuts) == expected
    assert stream.stopped == (expected != text)


def test_nothing_that_could_be_sent_is_held_back() -> None:
    coder = tokenizer("byte-level")
    stream = coder.stream(["aab"])

    assert [stream.push([coder.token_id(c) or 0]) for c in "aaaxaab"] == ["", "", "a", "aax", "", "", ""]


def test_encoding_adds_special_tokens_only_when_asked() -> None:
    coder = tokenizer("byte-level")

    assert coder.encode("<s>a") == [0, 0, coder.token_id("a")]
    assert coder.encode("<s>a", add_special_tokens=False) == [0, coder.token_id("a")]


def test_saved_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=16)
    made.save(str(tmp_path / "tokenizer.json"))

    assert len(Tokenizer(str(tmp_path)).encode("abcdefghi", add_special_tokens=False)) == 9


def test_word_lists_are_flattened_ids_and_padded_ends() -> None:
    coder = tokenizer("byte-level")
    a, b, c = (coder.token_id(letter) for letter in "abc")

    assert coder.word_ids(["ab", "", "c"]) == ([a, b, c], [2, 3, -1])
    assert coder.word_ids([]) == ([], [])


def test_a_folder_without_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_does_not_grow_with_the_answer(kind: str) -> None:
    coder = tokenizer(kind)
    ids = [5 + index % (size(kind) - 5) for index in range(4_000)]

    def seconds(count: int) -> float:
        stream, start = coder.stream(["\nUser:"]), time.process_time()
        for id in ids[:count]:
            stream.push([id])
        return time.process_time() - start

    short, long = min(seconds(500) for _ in range(3)), min(seconds(4_000) for _ in range(2))

    # Quadratic work would make it 64 times.
    assert long < 24 * short + 0.02


def _byte_level_characters() -> dict[int, str]:
    """GPT-2's map from bytes to printable characters."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    made: dict[int, Any] = {byte: chr(byte) for byte in plain}
    return made | {byte: chr(256 + index) for index, byte in enumerate(others)}
