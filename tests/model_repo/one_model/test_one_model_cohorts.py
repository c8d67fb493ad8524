"""How waiting requests are divided among CTranslate2's workers: nothing is lost, and nobody is passed over."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "model-repo" / "tensorrt_llm" / "1"))

from ctranslate2_engine import COHORT, SPREAD, _Cohort, make_cohorts
from engine import Generation, Sampling

GREEDY = Sampling()
OPTIONS = [
    (GREEDY, 0, frozenset({2})),
    (GREEDY, 8, frozenset({2})),
    (GREEDY, 0, frozenset({2, 5})),
    (Sampling(temperature=0.7, top_k=40, top_p=0.9), 0, frozenset({2})),
    (Sampling(repetition_penalty=1.1), 0, frozenset()),
]


def generation(length: int, kind: int = 0, max_tokens: int = 10) -> Generation:
    sampling, min_tokens, end_ids = OPTIONS[kind]
    return Generation(
        prompt=[7] * length,
        max_tokens=max_tokens,
        sampling=sampling,
        end_ids=end_ids,
        emit=lambda *_: None,
        min_tokens=min_tokens,
    )


def options_of(one: Generation) -> tuple[object, ...]:
    return one.sampling, one.min_tokens, one.end_ids


requests = st.lists(
    st.builds(
        generation,
        st.integers(1, 60) | st.integers(1, 3000),
        st.integers(0, len(OPTIONS) - 1) | st.just(0),
        st.integers(1, 50),
    ),
    max_size=70,
)


@given(waiting=requests, free=st.integers(1, 6))
def test_cohorts_of_any_requests(waiting: list[Generation], free: int) -> None:
    cohorts = make_cohorts(waiting, free=free)

    taken = [each for cohort in cohorts for each in cohort]
    assert len({id(each) for each in taken}) == len(taken)
    assert {id(each) for each in taken} <= {id(each) for each in waiting}
    assert len(cohorts) <= free
    assert all(cohorts)
    assert all(len({options_of(each) for each in cohort}) == 1 for cohort in cohorts)
    if waiting:
        assert cohorts[0].count(waiting[0]) == 1
    if len({options_of(each) for each in waiting}) <= free:
        assert len(taken) == len(waiting)
    else:
        assert len(cohorts) == free


@given(waiting=requests)
def test_with_workers_enough_cohorts_are_small_and_even(waiting: list[Generation]) -> None:
    for cohort in make_cohorts(waiting, free=len(waiting) + 1):
        lengths = [len(each.prompt) for each in cohort]
        assert max(lengths) - min(lengths) <= SPREAD
        assert len(cohort) <= COHORT


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=70), free=st.integers(1, 4))
def test_requests_of_equal_options_all_find_a_worker(lengths: list[int], free: int) -> None:
    cohorts = make_cohorts([generation(length) for length in lengths], free=free)

    assert sorted(len(each.prompt) for cohort in cohorts for each in cohort) == sorted(lengths)


class Failing:
    """CTranslate2 as it fails: at once, for arguments that it does not take, or when a result is asked for."""

    def __init__(self, late: bool) -> None:
        self._late = late

    def generate_batch(self, *_: object, callback: Callable[[Any], bool], **__: object) -> list["Failing"]:
        if not self._late:
            raise TypeError("incompatible arguments")
        callback(SimpleNamespace(batch_id=0, token_id=9, is_last=False))
        return [self, self]

    def result(self) -> None:
        raise RuntimeError("out of memory")


@pytest.mark.parametrize(("late", "words"), [(False, "incompatible arguments"), (True, "out of memory")])
def test_every_request_of_a_cohort_hears_of_a_failure_and_the_worker_is_free_again(late: bool, words: str) -> None:
    emitted: list[tuple[Generation, list[int], bool]] = []
    two = [replace(generation(3), emit=lambda *what: emitted.append((what[0], list(what[1]), what[2]))) for _ in "ab"]
    ended: list[_Cohort] = []
    cohort = _Cohort(two, ended.append)

    cohort.start(Failing(late), ["token"] * 10)
    cohort.wait()

    assert emitted == [*([(two[0], [9], False)] if late else []), (two[0], [], True), (two[1], [], True)]
    assert [each.error for each in two] == [f"the engine failed: {words}"] * 2
    assert ended == [cohort]
    assert cohort.alive() == []


def test_no_requests_make_no_cohorts() -> None:
    assert make_cohorts([], free=4) == []


def test_near_lengths_share_a_cohort_and_far_ones_do_not() -> None:
    near, far = [generation(30), generation(30 + SPREAD)], generation(31 + SPREAD)

    assert make_cohorts([*near, far], free=4) == [near, [far]]
    assert make_cohorts([*near, far], free=1) == [[*near, far]]


def test_kinds_that_find_no_worker_are_those_that_came_last() -> None:
    waiting = [generation(10, kind) for kind in (3, 1, 3, 0, 2)]

    assert make_cohorts(waiting, free=2) == [[waiting[0], waiting[2]], [waiting[1]]]
