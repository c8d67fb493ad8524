import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.gateway.admission import LEAST_RETRY, MOST_RETRY, Ticket, WaitingRoom
from engineroom.gateway.refusals import Refusal


def in_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def has_slot(ticket: Ticket) -> bool:
    try:
        await asyncio.wait_for(ticket.turn(), 0.001)
    except TimeoutError:
        return False
    return True


def test_slots_are_given_in_the_order_of_arrival() -> None:
    async def work() -> None:
        room = WaitingRoom(2, 10, 1000)
        tickets = [room.enter([5])[0] for _ in range(4)]

        assert [await has_slot(ticket) for ticket in tickets] == [True, True, False, False]
        assert (room.running, room.waiting, room.queued_tokens) == (2, 2, 10)
        tickets[1].leave()
        assert [await has_slot(ticket) for ticket in tickets[2:]] == [True, False]
        assert (room.running, room.waiting, room.queued_tokens) == (2, 1, 5)

    in_a_loop(work)


def test_who_gives_up_waiting_frees_the_place() -> None:
    async def work() -> None:
        room = WaitingRoom(1, 2, 1000)
        first, second, third = (room.enter([5])[0] for _ in range(3))
        with pytest.raises(Refusal):
            room.enter([5])

        second.leave()
        second.leave()

        assert (room.running, room.waiting, room.queued_tokens) == (1, 1, 5)
        room.enter([5])
        first.leave()
        assert await has_slot(third)

    in_a_loop(work)


def test_a_full_queue_says_when_to_come_again_and_takes_as_many_as_it_promises() -> None:
    async def work() -> None:
        room = WaitingRoom(1, 2, 1000)
        for _ in range(3):
            room.enter([1])
        with pytest.raises(Refusal) as refusal:
            room.enter([1])

        assert (refusal.value.status, refusal.value.reason) == (429, "queue_full")
        assert refusal.value.retry_after is not None
        assert LEAST_RETRY <= refusal.value.retry_after <= MOST_RETRY
        assert int(refusal.value.headers["retry-after"]) >= 1

    in_a_loop(work)


def test_waiting_prompts_are_bounded_in_tokens_but_one_of_any_length_may_wait_alone() -> None:
    async def work() -> None:
        room = WaitingRoom(1, 100, 50)
        room.enter([40])
        room.enter([60])  # longer than the bound, and first in the queue
        with pytest.raises(Refusal, match="prompts of 60 tokens wait already"):
            room.enter([1])

    in_a_loop(work)


def test_several_answers_come_in_together_or_not_at_all() -> None:
    async def work() -> None:
        room = WaitingRoom(2, 2, 1000)
        assert len(room.enter([1, 1, 1, 1])) == 4
        with pytest.raises(Refusal) as now:
            room.enter([1, 1])
        with pytest.raises(Refusal) as ever:
            room.enter([1] * 5)

        assert (now.value.status, ever.value.status, ever.value.param) == (429, 400, "n")
        assert (room.running, room.waiting) == (2, 2)

    in_a_loop(work)


def test_the_time_to_come_again_follows_the_rate_at_which_the_queue_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        clock = 0.0
        monkeypatch.setattr("engineroom.gateway.admission.time.monotonic", lambda: clock)
        room = WaitingRoom(1, 100, 100_000)
        tickets = [room.enter([10])[0] for _ in range(41)]
        for ticket in tickets[:20]:
            clock += 0.5
            ticket.leave()

        # 21 left the queue within 10 s; 20 wait.
        assert room.waiting == 20
        assert room.retry_after() == pytest.approx(20 / (21 / 10))
        clock += 1000
        assert room.retry_after() == 30  # nothing has moved for long

    in_a_loop(work)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(0, 40)), max_size=60))
def test_the_room_never_holds_more_than_it_may_and_forgets_nobody(steps: list[tuple[int, int, int]]) -> None:
    async def work() -> None:
        room = WaitingRoom(3, 5, 100)
        inside: list[Ticket] = []
        for count, tokens, leaving in steps:
            try:
                inside += room.enter([tokens] * count)
            except Refusal:
                assert room.running == 3
            if inside and leaving < len(inside):
                inside.pop(leaving).leave()
            assert room.running <= 3
            assert room.waiting <= 5
            assert room.running + room.waiting == len(inside)
            assert room.running == 3 or not room.waiting
        for ticket in inside:
            ticket.leave()
        assert (room.running, room.waiting, room.queued_tokens) == (0, 0, 0)

    in_a_loop(work)
