"""Waiters are woken by news of their keys, and never miss any."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.database.stream import Stream
from homeserver.limits import STREAM_CONFIRMED_SECONDS_MAX, STREAM_KEYS_REMEMBERED_MAX
from tests.support.examples import share_of_examples


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Under a virtual clock, a waiter without news is woken by its deadline at once."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_notifications_wake_their_waiters(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream(5)
    woken: list[tuple[str, int]] = []

    async def wait(name: str, *keys: str) -> None:
        woken.append((name, await stream.wait(keys, 5, math.inf)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "alice", "@alice:x", "!room:x")
        nursery.start_soon(wait, "bob", "@bob:x", "!room:x")
        nursery.start_soon(wait, "carol", "@carol:x")
        await trio.testing.wait_all_tasks_blocked()
        stream.notify(6, ["@bob:x"])
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [("bob", 6)]
        stream.notify(7, ["!room:x", "!other:x"])
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [("bob", 6), ("alice", 7)]
        stream.notify_all(9)
    assert woken == [("bob", 6), ("alice", 7), ("carol", 9)]
    assert stream.position == 9


async def test_a_wait_ends_at_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream(5)
    start = trio.current_time()
    assert await stream.wait(["a"], 5, start + 30) == 5
    assert trio.current_time() == start + 30
    stream.notify(6, ["b"])
    assert await stream.wait(["a"], 5, start + 60) == 5
    assert await stream.wait([], 5, start + 70) == 5
    assert await stream.wait(["a"], 6, start) == 6  # long past


async def test_notifications_before_the_wait_are_not_missed(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream(5)
    stream.notify(6, ["a"])
    stream.notify(7, ["b"])
    start = trio.current_time()
    assert await stream.wait(["a"], 5, start + 30) == 7
    assert await stream.wait(["a", "b"], 6, start + 30) == 7
    assert trio.current_time() == start
    assert await stream.wait(["a"], 6, start + 30) == 6


async def test_notifications_of_another_node_may_arrive_late(autojump_clock: trio.testing.MockClock) -> None:
    """A node has committed 7 itself before it hears that another has committed 6."""
    stream = Stream(5)
    stream.notify(7, ["mine"])
    results: list[int] = []

    async def wait(after: int) -> None:
        results.append(await stream.wait(["theirs"], after, trio.current_time() + 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 5)
        nursery.start_soon(wait, 7)
        await trio.testing.wait_all_tasks_blocked()
        stream.notify(6, ["theirs"])
    assert sorted(results) == [7, 7]
    assert trio.current_time() >= 10  # who had read up to 7 was not disturbed
    assert stream.position == 7


async def test_a_stream_remembers_a_bounded_number_of_keys(autojump_clock: trio.testing.MockClock) -> None:
    """A waiter whose keys have been forgotten is woken, so that it reads again."""
    stream = Stream(0)
    stream.notify(1, ["first"])
    for position in range(2, 3 * STREAM_KEYS_REMEMBERED_MAX):
        stream.notify(position, [f"key {position}"])
    assert len(stream._young) + len(stream._old) <= 2 * STREAM_KEYS_REMEMBERED_MAX + 2
    assert stream.has_news(["first"], 0)
    assert stream.has_news(["nothing"], 0)
    assert not stream.has_news(["nothing"], stream.position - 1)
    assert stream.has_news([f"key {stream.position}"], stream.position - 1)


async def test_waiting_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream(0)
    await stream.wait(["a", "b"], 0, trio.current_time() + 1)
    with trio.move_on_after(1):
        await stream.wait(["a", "b"], 0, math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.wait, ["a", "c"], 0, math.inf)
        await trio.testing.wait_all_tasks_blocked()
        stream.notify(1, ["c"])
    assert stream._waiters == {}


async def test_a_follower_sees_every_change(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream(3)
    seen: list[int] = []

    async def follow() -> None:
        async with stream.subscribe() as subscription:
            while not seen or seen[-1] < 8:
                seen.append(await subscription.wait(seen[-1] if seen else 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        stream.notify(4, [])
        stream.notify(5, ["a"])
        await trio.testing.wait_all_tasks_blocked()
        stream.notify_all(8)
    assert seen == [3, 5, 8]
    assert not stream._subscriptions


async def test_a_follower_of_keys_is_woken_by_these_and_by_many_other_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(0)
    seen: list[int] = []

    async def follow() -> None:
        async with stream.subscribe(("a", "b"), lag_max=5) as subscription:
            while True:
                seen.append(await subscription.wait(seen[-1] if seen else 0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for position, names in enumerate([["c"], ["c"], ["b"], [], ["c"], [], [], ["c"], ["d"], ["a", "d"]], 1):
            await trio.testing.wait_all_tasks_blocked()
            stream.notify(position, names)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [3, 9, 10]
        stream.notify_all(11)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [3, 9, 10, 11]
        nursery.cancel_scope.cancel()
    assert stream._waiters == {}


async def test_a_follower_that_rests_gets_what_comes_meanwhile_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(0)
    seen: list[tuple[float, int]] = []

    async def follow() -> None:
        async with stream.subscribe(rest=4) as subscription:
            position = 0
            while True:
                position = await subscription.wait(position)
                seen.append((round(trio.current_time() - began, 2), position))
                await trio.sleep(0.0213)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for position in range(1, 31):
            await trio.sleep_until(began + position * 0.01)
            stream.notify(position, ["a"])
        await trio.sleep(10)
        stream.notify(31, [])
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [position for _, position in seen] == [1, 11, 22, 30, 31]
    assert [at for at, _ in seen] == [0.01, 0.12, 0.22, 0.33, 10.3]


@given(
    st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=2), st.booleans()), min_size=1, max_size=12),
    st.sets(st.sampled_from("abcd"), min_size=1),
    st.integers(0, 6),
)
def test_a_waiter_learns_up_to_where_its_keys_had_no_news(
    changes: list[tuple[list[str], bool]], names: set[str], after: int
) -> None:
    """However many changes come before it runs, whether or not they are its own."""

    async def main() -> None:
        stream = Stream(0)
        answers: list[tuple[int, int]] = []

        async def wait() -> None:
            answers.append(await stream.wait_longer(names, after, trio.current_time() + 1, trio.sleep_forever))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for position, (changed, lets_run) in enumerate(changes, 1):
                if lets_run:
                    await trio.testing.wait_all_tasks_blocked()
                stream.notify(position, changed)
        ((position, quiet_upto),) = answers
        own = [at for at, (changed, _) in enumerate(changes, 1) if at > after and names.intersection(changed)]
        if not own:
            assert (position, quiet_upto) == (after, after)
        else:
            assert after <= quiet_upto < own[0] <= position

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


keys = st.sampled_from("abcd")
changes = st.lists(st.tuples(st.lists(keys, max_size=2), st.integers(0, 3)), min_size=1, max_size=25)


@given(
    changes, st.lists(st.lists(keys, min_size=1, max_size=2), min_size=1, max_size=4), st.random_module(), st.randoms()
)
@settings(max_examples=share_of_examples(2))
def test_no_change_is_missed_while_waiting(
    changes: list[tuple[list[str], int]],
    readers: list[list[str]],
    schedule: object,
    choice: random.Random,
) -> None:
    """Readers read what is committed, then wait: however the tasks interleave, each has read every change of their keys
    before a deadline passes. A commit may be visible before it is notified, and be notified late and out of order.
    """

    async def main() -> None:
        stream = Stream(0)
        committed: list[tuple[int, list[str]]] = []
        last = len(changes)

        async def commit() -> None:
            async with trio.open_nursery() as nursery:
                for position, (names, pause) in enumerate(changes, 1):
                    committed.append((position, names))
                    if pause == 3:
                        nursery.start_soon(notify_late, position, names)
                    else:
                        for _ in range(pause):
                            await trio.lowlevel.checkpoint()
                        stream.notify(position, names)

        async def notify_late(position: int, names: list[str]) -> None:
            for _ in range(choice.randrange(6)):
                await trio.lowlevel.checkpoint()
            stream.notify(position, names)

        async def read(names: list[str]) -> None:
            wanted = [position for position, (changed, _) in enumerate(changes, 1) if set(changed) & set(names)]
            found: list[int] = []
            since = 0
            while found != wanted:
                upto = committed[-1][0] if committed else 0
                await trio.lowlevel.checkpoint()  # the read takes a while
                found += [
                    position
                    for position, changed in committed
                    if since < position <= upto and set(changed) & set(names)
                ]
                if found == wanted:
                    return
                since = upto
                await stream.wait(names, since, trio.current_time() + 1)
            assert since <= last

        async with trio.open_nursery() as nursery:
            for names in readers:
                nursery.start_soon(read, names)
            nursery.start_soon(commit)
        assert trio.current_time() == 0.0, "someone slept until their deadline"

    async def on_virtual_time() -> None:
        start = trio.current_time()
        assert start == 0.0
        await main()

    run(on_virtual_time)


# --- several nodes ---


def test_unannounced_commits_of_another_node_count_as_news_of_every_key() -> None:
    stream = Stream(5)
    stream.notify(9, ["mine"], 7)  # 6 and 7 are another node's
    assert stream.position == 9
    assert stream.has_news(["anything"], 5) and stream.has_news(["anything"], 6)
    assert not stream.has_news(["anything"], 7)
    stream.notify(7, ["theirs"], 5)
    assert not stream.has_news(["anything"], 5)
    assert stream.has_news(["theirs"], 5) and stream.has_news(["mine"], 5)


def test_a_gap_is_closed_piece_by_piece() -> None:
    stream = Stream(5)
    stream.notify(20, [], 15)
    stream.notify(30, [], 25)
    for upto, since in ((9, 7), (15, 9), (25, 20)):
        stream.notify(upto, [], since)
        assert stream.has_news(["anything"], 6)
    stream.notify(7, [], 5)
    assert not stream.has_news(["anything"], 5)


async def test_a_late_announcement_wakes_the_waiters_of_its_keys() -> None:
    stream = Stream(5)
    woken: list[int] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            woken.append(await stream.wait(["theirs"], 5, math.inf))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        stream.notify(9, ["mine"], 7)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken
        stream.notify(7, ["theirs"], 5)
    assert woken == [9]


async def test_waiters_are_woken_when_an_announcement_is_lost() -> None:
    stream = Stream(5)
    woken: list[int] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            woken.append(await stream.wait(["theirs"], 5, math.inf))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        stream.notify(9, ["mine"], 7)
        stream.confirm(6, trio.current_time())  # what came after that may be announced in a moment
        await trio.testing.wait_all_tasks_blocked()
        assert not woken
        stream.confirm(9, trio.current_time())
    assert woken == [9]
    assert stream.has_news(["anything"], 8) and not stream.has_news(["anything"], 9)


async def test_reads_are_not_trusted_while_the_position_is_not_confirmed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = Stream(5)
    await trio.sleep(1000)
    assert not stream.may_have_changed(["key"], 5)  # no other node can commit
    stream.confirm(5, trio.current_time())
    assert not stream.may_have_changed(["key"], 5)
    await trio.sleep(STREAM_CONFIRMED_SECONDS_MAX + 0.1)
    assert stream.may_have_changed(["key"], 5)
    assert not stream.has_news(["key"], 5)
    stream.confirm(5, trio.current_time())
    assert not stream.may_have_changed(["key"], 5)
