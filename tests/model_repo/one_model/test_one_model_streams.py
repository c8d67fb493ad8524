"""Recorded ids through a real Triton and the one model: what clients hear is the one-shot text, byte for byte."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import tokenizers
from one_model_client import Client, Heard, ask, events, eventually, gauges, post, run
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from engineroom.serving.server import TritonServer

pytestmark = pytest.mark.local

EOS, BOS = 0, 1
STREAMS = 128

#: Text that is cut badly where it is cut between bytes, code points or tokens.
PIECES = [
    "👨‍👩‍👧‍👦 family",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿🇯🇵🇧🇷🏳️‍🌈",
    "👍🏽👩🏿‍🚀❤️‍🔥",
    "日本語の文章",
    "中文，还有𠀀𪚥",
    "한국어 \u1112\u1161\u11ab",
    "مرحبا بِالْعَالَمِ",
    "שָׁלוֹם",
    "e\u0301 o\u0308 Z\u0351\u036b\u0343\u036a",
    "ก็ที่ नमस्ते க்ஷ",
    "plain text, ",
    "\n\n\ttabs  and  spaces ",
    "½ µ € \U0010fffd",
]
#: A replacement character that the model means, and bytes that are no UTF-8.
STRANGE: list[str | bytes] = ["meant: \ufffd!", b"broken \xf0\x9f\x98 \xff\x80 \xe6\x97\xa5 \xe6\x97"]


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it: every byte is a token, and some are merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("ð", "Ł"), ("ðŁ", "ĳ"), ("ã", "ģ"), ("s", "p"), ("Ù", "ħ"), ("Ã", "©")]
    vocabulary = ["</s>", "<s>", *alphabet, *(left + right for left, right in merges)]
    made = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return made


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral have it: SentencePiece, with tokens for the bytes of what it does not know."""
    vocabulary = [
        "</s>", "<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz,", "日", "本", "م", "👍", "\u0301", "▁▁",
    ]  # fmt: skip
    made = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<s>", "<unk>")])
    return made


CODERS = {"byte-level": byte_level, "byte-fallback": byte_fallback}


def ids_of(coder: tokenizers.Tokenizer, part: str | bytes) -> list[int]:
    if isinstance(part, str):
        return list(coder.encode(part, add_special_tokens=False).ids)
    known = coder.get_vocab()
    return [known[f"<0x{byte:02X}>" if "<0x00>" in known else _byte_level_character(byte)] for byte in part]


def recorded_ids(coder: tokenizers.Tokenizer, number: int) -> list[int]:
    """An answer of its own for each number; every third is cut wherever its last token happens to end."""
    chance = random.Random(number)
    parts: list[str | bytes] = [chance.choice(PIECES) for _ in range(6)]
    if number % 8 == 0:
        parts.insert(chance.randrange(6), chance.choice(STRANGE))
    ids = [id for part in parts for id in ids_of(coder, part)]
    return ids[: -chance.randint(1, 5)] if number % 3 == 0 else ids


def one_shot(coder: tokenizers.Tokenizer, ids: list[int]) -> str:
    """Without any code of ours."""
    return str(coder.decode(ids, skip_special_tokens=True))


FAMILY = "👨‍👩‍👧‍👦 日本語 مرحبا e\u0301"


@pytest.fixture(scope="module")
def coder() -> tokenizers.Tokenizer:
    return byte_level()


@pytest.fixture(scope="module")
def server(
    coder: tokenizers.Tokenizer,
    make_replay_tree: Callable[..., Path],
    serve: Callable[..., AbstractContextManager[TritonServer]],
) -> Iterator[TritonServer]:
    def says(text: str) -> list[int]:
        return [*ids_of(coder, text), EOS]

    with serve(
        make_replay_tree(
            coder,
            [
                *(
                    {"prompt": f"n{n}", "ids": [*recorded_ids(coder, n), EOS], "together": STREAMS}
                    for n in range(STREAMS)
                ),
                {"prompt": "family", "ids": says(FAMILY)},
                {"prompt": "short", "ids": says("日")},
                {"prompt": "empty", "ids": says("")},
                {"prompt": "endless", "ids": says("日" * 3000)},
                {"prompt": "never admitted", "ids": says("x"), "together": STREAMS + 1},
                {"prompt": "x" * 99, "ids": says("ninety-nine and one")},
                {"prompt": "fails", "ids": says("and then"), "fails_after": 5},
                {"prompt": "fails at once", "ids": says("and then"), "fails_after": 0},
                {"prompt": "impossible id", "ids": [*ids_of(coder, "good"), -1, *says("bad")]},
                {"prompt": "refused", "refused": "this engine does not like the prompt"},
                {"prompt": "raises", "raises": "a mistake in the engine"},
                {"prompt": ids_of(coder, "template"), "ids": says("no BOS was added")},
                {"prompt": [BOS, *ids_of(coder, "template")], "ids": says("BOS was added")},
            ],
            # Slow enough for a busy machine: a model that falls behind joins pieces.
            step_seconds=0.01,
        )
    ) as running:
        yield running


async def all_at_once(client: Client, stream: bool) -> list[Heard]:
    return await asyncio.gather(*(client.ask(f"n{n}", stream=stream, max_tokens=900) for n in range(STREAMS)))


def check(coder: tokenizers.Tokenizer, heard: list[Heard]) -> None:
    for number, answer in enumerate(heard):
        expected = one_shot(coder, recorded_ids(coder, number))
        assert answer.status == ""
        assert answer.text.encode() == expected.encode()
        # Equal sums could hide half a character only as a U+FFFD that the whole has elsewhere.
        assert sum(piece.count("\ufffd") for piece in answer.pieces) == expected.count("\ufffd")


def test_128_concurrent_streams_are_the_one_shot_texts(server: TritonServer, coder: tokenizers.Tokenizer) -> None:
    heard = run(server, lambda client: all_at_once(client, stream=True))

    check(coder, heard)
    # The engine began them together; so they were really streams, and really at the same time.
    assert max(answer.begun for answer in heard) < min(answer.ended for answer in heard)
    assert min(len(answer.pieces) for answer in heard) > 5


def test_128_concurrent_whole_answers_are_the_one_shot_texts(server: TritonServer, coder: tokenizers.Tokenizer) -> None:
    heard = run(server, lambda client: all_at_once(client, stream=False))

    check(coder, heard)
    assert {len(answer.pieces) for answer in heard} == {1}


def test_128_streams_with_byte_fallback_are_the_one_shot_texts(
    make_replay_tree: Callable[..., Path], serve: Callable[..., AbstractContextManager[TritonServer]]
) -> None:
    coder = byte_fallback()
    answers = [{"prompt": f"n{n}", "ids": [*recorded_ids(coder, n), EOS], "together": STREAMS} for n in range(STREAMS)]
    with serve(make_replay_tree(coder, answers)) as server:
        check(coder, run(server, lambda client: all_at_once(client, stream=True)))


def test_the_recorded_texts_are_hard_to_cut() -> None:
    for make in CODERS.values():
        coder = make()
        recorded = [recorded_ids(coder, number) for number in range(STREAMS)]
        assert sum("\ufffd" in one_shot(coder, ids) for ids in recorded) > 8
        assert sum("\ufffd" not in one_shot(coder, ids) for ids in recorded) > 64
        # Ids decoded one by one give something else nearly always: a model that did that would be found out.
        naive = ["".join(one_shot(coder, [id]) for id in ids) for ids in recorded]
        assert sum(text != one_shot(coder, ids) for text, ids in zip(naive, recorded, strict=True)) > 100


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_an_answer_cut_at_max_tokens_shows_what_is_there(
    server: TritonServer, coder: tokenizers.Tokenizer, max_tokens: int
) -> None:
    expected = one_shot(coder, ids_of(coder, FAMILY)[:max_tokens])
    for stream in (True, False):
        heard = ask(server, "family", max_tokens=max_tokens, stream=stream, return_num_output_tokens=True)
        assert (heard.text, heard.counts) == (expected, {"num_output_tokens": max_tokens})


@pytest.mark.parametrize("word", ["👧‍👦 日", "語", "語 م", "\u0301"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_text_ends_before_a_stop_word_wherever_tokens_begin(server: TritonServer, word: str, stream: bool) -> None:
    heard = ask(server, "family", stop_words=["never said", word], stream=stream)

    assert heard.text == FAMILY.split(word, maxsplit=1)[0]


def test_a_stop_word_that_only_begins_is_part_of_the_text(server: TritonServer) -> None:
    assert ask(server, "family", stop_words=["e\u0301!", ""]).text == FAMILY


@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities_come_with_the_ids_they_belong_to(
    server: TritonServer, coder: tokenizers.Tokenizer, stream: bool
) -> None:
    ids = ids_of(coder, FAMILY)
    probabilities = [-place / 8 for place in range(len(ids))]

    chosen = ask(server, "family", stream=stream, return_log_probs=True)
    best = ask(server, "family", stream=stream, top_log_probs=2)

    assert (chosen.text, chosen.ids, chosen.log_probs, chosen.top) == (FAMILY, ids, probabilities, [])
    assert (best.ids, best.log_probs) == (ids, probabilities)
    assert best.top == [[(id, -place / 8), (id + 1, -place / 8 - 1)] for place, id in enumerate(ids)]
    assert ask(server, "family", stream=stream).ids == []


def test_log_probabilities_end_where_the_answer_ends(server: TritonServer, coder: tokenizers.Tokenizer) -> None:
    ids = ids_of(coder, FAMILY)

    cut = ask(server, "family", max_tokens=5, return_log_probs=True)
    stopped = ask(server, "family", stop_words=["日"], return_log_probs=True)
    empty = ask(server, "empty", return_log_probs=True)

    assert cut.ids == ids[:5]
    # Up to the token that completes the stop word; some that the engine made before it heard of it may follow.
    least = next(n for n in range(len(ids)) if "日" in one_shot(coder, ids[:n]))
    assert stopped.ids == ids[: len(stopped.ids)]
    assert len(stopped.ids) >= least
    assert (empty.text, empty.status, empty.ids) == ("", "", [])


def test_more_log_probabilities_than_openai_gives_are_an_invalid_argument(server: TritonServer) -> None:
    assert len(ask(server, "family", max_tokens=1, top_log_probs=20).top[0]) == 20
    refused = ask(server, "family", top_log_probs=21)
    assert (refused.status, refused.message) == (
        "INVALID_ARGUMENT",
        "top_log_probs is 21, but it should be from 0 to 20",
    )


def test_the_engine_stops_at_a_stop_word_in_the_text(server: TritonServer) -> None:
    async def work(client: Client) -> None:
        assert (await client.ask("endless", stop_words=["日日"], max_tokens=900)).text == ""
        await eventually(lambda: gauges(server)["requests_running"] == 0, "the engine is idle", 2)

    run(server, work)


def test_the_prompt_comes_first_when_asked_for(server: TritonServer) -> None:
    for stream in (True, False):
        assert ask(server, "family", stream=stream, exclude_input_in_output=False).text == "family" + FAMILY


def test_special_tokens_are_added_unless_the_client_says_that_they_are_there(server: TritonServer) -> None:
    plain = ask(server, "template", return_num_input_tokens=True)
    rendered = ask(server, "template", add_special_tokens=False, return_num_input_tokens=True)
    with_bos = ask(server, "<s>template", add_special_tokens=False, return_num_input_tokens=True)

    assert (plain.text, plain.counts) == ("BOS was added", {"num_input_tokens": 9})
    assert (rendered.text, rendered.counts) == ("no BOS was added", {"num_input_tokens": 8})
    assert (with_bos.text, with_bos.counts) == ("BOS was added", {"num_input_tokens": 9})


def test_a_prompt_longer_than_max_input_len_is_an_invalid_argument(server: TritonServer) -> None:
    refused = ask(server, "x" * 100)

    # 99 letters and BOS.
    assert ask(server, "x" * 99).text == "ninety-nine and one"
    assert refused.status == "INVALID_ARGUMENT"
    assert refused.message == "the prompt has 101 tokens, but max_input_len is 100"


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_fails_is_one_error_for_its_client(server: TritonServer, stream: bool) -> None:
    late, early = ask(server, "fails", stream=stream), ask(server, "fails at once", stream=stream)

    for heard in (late, early):
        assert (heard.errors, heard.status, heard.message) == (1, "INTERNAL", "the engine failed: on purpose")
    assert late.text == ("and t" if stream else "")[: len(late.text)]
    assert early.text == ""
    assert ask(server, "family", stream=stream).text == FAMILY


@pytest.mark.parametrize("stream", [True, False])
def test_an_id_that_cannot_be_decoded_is_an_error_for_its_client_only(server: TritonServer, stream: bool) -> None:
    async def work(client: Client) -> list[Heard]:
        return await asyncio.gather(*(client.ask(name, stream=stream) for name in ("impossible id", "family")))

    broken, whole = run(server, work)

    assert (broken.errors, broken.status) == (1, "INTERNAL")
    assert "good".startswith(broken.text)
    assert whole.text == FAMILY


def test_an_engine_that_refuses_says_so(server: TritonServer) -> None:
    heard = ask(server, "refused")

    assert (heard.status, heard.message) == ("INVALID_ARGUMENT", "this engine does not like the prompt")


def test_an_engine_that_breaks_on_a_request_is_an_error_and_no_silence(server: TritonServer) -> None:
    heard = ask(server, "raises")

    assert (heard.errors, heard.status) == (1, "INTERNAL")
    assert "a mistake in the engine" in heard.message


def test_generate_answers_whole_over_http(server: TritonServer) -> None:
    answer = json.loads(post(server, "generate", text_input="family", max_tokens=100))

    assert answer["text_output"] == FAMILY


def test_generate_stream_gives_pieces_over_http(server: TritonServer, coder: tokenizers.Tokenizer) -> None:
    pieces = events(post(server, "generate_stream", text_input="family", max_tokens=100, stream=True))

    assert "".join(piece["text_output"] for piece in pieces) == FAMILY
    assert len(pieces) > 5


def test_a_client_that_goes_away_ends_its_request_running_or_waiting(
    server: TritonServer, coder: tokenizers.Tokenizer
) -> None:
    async def work(client: Client) -> None:
        heard = Heard()
        running = asyncio.create_task(client.ask("endless", heard=heard, max_tokens=900))
        waiting = asyncio.create_task(client.ask("never admitted"))
        await eventually(lambda: len(heard.pieces) > 2, "the first stream flows", 5)
        await eventually(
            lambda: (gauges(server)["requests_running"], gauges(server)["requests_waiting"]) == (1, 1), "one each", 2
        )
        assert gauges(server) == {
            "requests_waiting": 1,
            "requests_running": 1,
            "requests_slots": STREAMS,
            "queued_prompt_tokens": len(coder.encode("never admitted").ids),
            "kv_used_ratio": 1 / STREAMS,
        }
        waiting.cancel()
        await eventually(lambda: gauges(server)["requests_waiting"] == 0, "the queue is empty", 1)
        assert gauges(server)["requests_running"] == 1
        running.cancel()
        await eventually(lambda: gauges(server)["requests_running"] == 0, "the engine is idle", 1)
        await asyncio.gather(running, waiting, return_exceptions=True)

    run(server, work)


def test_a_full_queue_is_unavailable_and_makes_room_again(server: TritonServer) -> None:
    """8 may wait beyond the 128 slots."""

    def total() -> float:
        shown = gauges(server)
        return shown["requests_running"] + shown["requests_waiting"]

    async def work(client: Client) -> None:
        jobs = [asyncio.create_task(client.ask("endless", max_tokens=900)) for _ in range(STREAMS)]
        jobs += [asyncio.create_task(client.ask("never admitted")) for _ in range(8)]
        await eventually(lambda: total() == STREAMS + 8, "all are there", 10)
        refused = await client.ask("short")
        assert (refused.status, refused.message) == (
            "UNAVAILABLE",
            "the queue is full (8 requests wait, 128 run); try again later",
        )
        jobs[0].cancel()
        await eventually(lambda: total() == STREAMS + 7, "one less", 2)
        assert (await client.ask("short")).text == "日"
        for job in jobs:
            job.cancel()
        await eventually(lambda: total() == 0, "all are gone", 3)
        await asyncio.gather(*jobs, return_exceptions=True)

    run(server, work)


def test_a_thousand_short_answers_to_64_clients_are_whole(server: TritonServer) -> None:
    async def work(client: Client) -> list[str]:
        async def one() -> list[str]:
            return [(await client.ask("short")).text for _ in range(1000 // 64 + 1)]

        return [text for texts in await asyncio.gather(*(one() for _ in range(64))) for text in texts]

    assert set(run(server, work)) == {"日"}
    assert server.is_ready()


def _byte_level_character(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [each for each in range(256) if each not in plain]
    return chr(byte) if byte in plain else chr(256 + others.index(byte))
