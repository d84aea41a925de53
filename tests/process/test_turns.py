"""Asking many servers at a time."""

from __future__ import annotations

import trio
import trio.testing

from homeserver.process.turns import Turns


async def run(seconds: list[float]) -> list[float]:
    """Returns when each of the tasks began, of which two run at a time, with a patience of ten seconds."""
    turns, began = Turns(2, 10), dict[int, float]()
    start = trio.current_time()

    async def work(number: int) -> None:
        async with turns.take():
            began[number] = trio.current_time() - start
            await trio.sleep(seconds[number])

    async with trio.open_nursery() as nursery:
        for number in range(len(seconds)):
            nursery.start_soon(work, number)
            await trio.testing.wait_all_tasks_blocked()
    return [began[number] for number in sorted(began)]


async def test_tasks_take_turns_in_the_order_in_which_they_came(autojump_clock: trio.testing.MockClock) -> None:
    assert await run([1, 3, 1, 5, 1]) == [0, 0, 1, 2, 3]


async def test_a_task_that_takes_too_long_does_not_hold_up_others(autojump_clock: trio.testing.MockClock) -> None:
    assert await run([100, 100, 100, 1, 1]) == [0, 0, 10, 10, 11]


async def test_a_turn_that_is_cancelled_or_fails_ends(autojump_clock: trio.testing.MockClock) -> None:
    turns, start = Turns(1, 10), trio.current_time()
    for _ in range(2):
        with trio.move_on_after(1):
            async with turns.take():
                await trio.sleep_forever()
        try:
            async with turns.take():
                raise ValueError
        except* ValueError:
            pass
    assert trio.current_time() - start < 3
