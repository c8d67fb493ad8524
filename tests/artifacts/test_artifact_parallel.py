"""Work side by side: what fails stops all of it, and says why."""

import pytest

from engineroom.artifacts.parallel import Stop, run_all, run_beside
from engineroom.errors import StoreError


def test_results_come_in_order_of_the_works() -> None:
    assert run_beside(lambda stop: run_all(lambda item, stop: item * 2, range(40), stop=stop), lambda stop: [1]) == [
        list(range(0, 80, 2)),
        [1],
    ]


def test_a_failure_ends_what_runs_beside_it_and_is_the_one_that_is_told() -> None:
    begun = []

    def long(item: int, stop: Stop) -> int:
        begun.append(item)
        stop.wait(60)  # raises as soon as the other has failed
        return item

    def broken(stop: Stop) -> list[int]:
        raise StoreError("the disk is full", where="here")

    with pytest.raises(StoreError, match="the disk is full"):
        run_beside(lambda stop: run_all(long, range(100), workers=2, stop=stop), broken)
    assert len(begun) <= 2, "nothing is begun after the failure"
