import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.bench.arrivals import Arrival, closed, poisson, prompt_text, trace
from engineroom.errors import InputError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:49.0000000,0,1
"""


def test_poisson_arrivals_have_their_rate_and_are_the_same_for_a_seed() -> None:
    arrivals = list(poisson(20, 8, 4, 4000, None, seed=3))
    gaps = [late.at - early.at for early, late in itertools.pairwise(arrivals)]  # type: ignore[operator]

    assert arrivals == list(poisson(20, 8, 4, 4000, None, seed=3))
    assert arrivals != list(poisson(20, 8, 4, 4000, None, seed=4))
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.1)
    # Of exponential gaps the deviation is the mean; regular ones have none.
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.1)


@given(st.floats(0.1, 100), st.floats(0.1, 20), st.integers(1, 50))
def test_arrivals_end_with_their_time_or_their_count(rate: float, seconds: float, count: int) -> None:
    arrivals = list(poisson(rate, 1, 1, count, seconds, seed=0))

    assert len(arrivals) <= count
    times = [arrival.at or 0.0 for arrival in arrivals]
    assert times == sorted(times)
    assert all(at <= seconds for at in times)


def test_a_closed_loop_has_no_times() -> None:
    assert list(closed(3, 4, 2)) == [Arrival(None, 3, 4)] * 2
    assert next(closed(3, 4, None)) == Arrival(None, 3, 4)


def test_a_trace_is_played_in_the_order_of_its_times_and_as_fast_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)

    arrivals = list(trace(path, speed=2, count=None, seconds=None))

    assert [(arrival.input_tokens, arrival.output_tokens) for arrival in arrivals] == [(374, 44), (1, 1), (396, 109)]
    assert [arrival.at for arrival in arrivals] == [pytest.approx(at, abs=1e-4) for at in (0, 1.15971, 2.15729)]
    assert len(list(trace(path, speed=2, count=2, seconds=None))) == 2
    assert len(list(trace(path, speed=2, count=None, seconds=1))) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column for the time"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "no column for the output"),
        ("time,input_tokens,output_tokens\n", "it holds no requests"),
        ("time,input_tokens,output_tokens\n1,2,3\nsoon,2,3\n", "soon"),
        ("time,input_tokens,output_tokens\nnan,2,3\n", "nan"),
        ("time,input_tokens,output_tokens\n1,-2,3\n", "-2"),
        ("time,input_tokens,output_tokens\n1,2\n", "None"),
        (None, "cannot read it"),
    ],
)
def test_a_trace_that_cannot_be_played_is_refused_with_its_line(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)

    with pytest.raises(InputError) as refusal:
        list(trace(path, speed=1, count=None, seconds=None))

    assert words in refusal.value.found
    assert str(path) in refusal.value.where


def test_prompts_have_their_length_in_words_and_differ() -> None:
    assert len(prompt_text(50, 1).split()) == 50
    assert prompt_text(50, 1) == prompt_text(50, 1) != prompt_text(50, 2)
