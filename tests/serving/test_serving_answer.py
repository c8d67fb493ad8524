from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.serving.answer import Answer, Piece, Prompt, percentile, summarise


def test_the_summary_counts_from_the_request_and_between_the_pieces() -> None:
    summary = summarise([Piece("a", 0.5), Piece("b", 0.6), Piece("c", 0.9)], 1.0)

    assert summary.tokens == 3
    assert summary.ttft_seconds == 0.5
    assert summary.itl_mean_seconds == pytest.approx(0.2)
    assert summary.itl_p50_seconds == pytest.approx(0.2)
    assert summary.itl_p99_seconds == pytest.approx(0.298)
    assert summary.tokens_per_second == pytest.approx(5.0)
    assert summary.total_seconds == 1.0


@pytest.mark.parametrize("pieces", [[], [Piece("a", 0.5)]])
def test_an_answer_too_short_to_have_a_rate_has_none(pieces: list[Piece]) -> None:
    summary = summarise(pieces, 1.0)

    assert summary.tokens == len(pieces)
    assert summary.itl_p99_seconds is None
    assert summary.tokens_per_second is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_among_the_values(values: list[float], percent: float) -> None:
    ordered = sorted(values)

    found = percentile(ordered, percent)

    assert found is not None
    assert ordered[0] - 1e-6 <= found <= ordered[-1] + 1e-6
    assert percentile(ordered, 0) == ordered[0]
    assert percentile(ordered, 100) == ordered[-1]


def test_only_what_is_set_is_sent() -> None:
    names = [name for name, _, _ in Prompt("a", add_special_tokens=False, temperature=0.0).tensors()]

    assert names == ["text_input", "max_tokens", "stream", "temperature", "add_special_tokens"]


def test_an_answer_that_is_left_early_ends_its_request() -> None:
    ended = []

    def texts() -> Iterator[str]:
        try:
            yield from ["a", "", "b", "c"]
        finally:
            ended.append(True)

    with Answer(texts(), 0.0) as answer:
        for piece in answer:
            if piece.text == "b":
                break

    assert ended == [True]
    assert answer.text == "ab"
    assert answer.summary.tokens == 2
