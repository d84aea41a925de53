"""Two lanes to one destination: the durable one first, one back-off for both, poison in one leaves the other alone."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given

from homeserver import limits
from homeserver.process.back_off import BackOff
from homeserver.process.delivery import Delivery, Forget, Now, Read, Rest, Send, Store, Wait
from homeserver.process.delivery_states import Outcome, State
from homeserver.process.lanes import Lanes

PER_TRANSACTION = 6


@dataclass(frozen=True)
class Parcel:
    position: int
    is_durable: bool = False
    subjects: frozenset[Hashable] = frozenset()


def take(items: Iterable[Parcel]) -> int:
    return sum(1 for _ in itertools.islice(items, PER_TRANSACTION))


def at(seconds: float) -> Now:
    return Now(int(seconds * 1000), seconds)


def lane(row: tuple[int, BackOff | None] | None = None) -> Delivery[Parcel]:
    if row is None:
        return Delivery("a.example", "b.example", take)
    return Delivery.resume("a.example", "b.example", take, *row)


def new() -> Lanes[Parcel]:
    return Lanes(lane(), lane())


def keys(*positions: int) -> list[Parcel]:
    return [Parcel(position, True) for position in positions]


def events(*positions: int) -> list[Parcel]:
    return [Parcel(position) for position in positions]


def sent(lanes: Lanes[Parcel]) -> list[Parcel]:
    _, ask = lanes.next()
    assert isinstance(ask, Send), ask
    return list(ask.items)


def answer(lanes: Lanes[Parcel], outcome: Outcome, now_s: float = 0) -> Parcel | None:
    delivery, _ = lanes.next()
    return lanes.answered(delivery, outcome, at(now_s))


def store(lanes: Lanes[Parcel]) -> set[bool]:
    """Stores the rows that are asked for; returns in which lanes."""
    found = set()
    while isinstance((asked := lanes.next())[1], Store):
        found.add(asked[0] is lanes.durable)
        asked[0].stored()
    return found


def test_a_key_waits_only_for_the_transaction_under_way() -> None:
    lanes = new()
    lanes.hand_over([], events(*range(1, 300)))
    under_way, _ = lanes.next()
    lanes.hand_over(keys(300), [])
    lanes.answered(under_way, "taken", at(0))
    assert sent(lanes) == keys(300)


def test_with_both_lanes_empty_the_destination_rests() -> None:
    lanes = new()
    lanes.hand_over(keys(1), events(2))
    assert (answer(lanes, "taken"), answer(lanes, "taken")) == (None, None)
    assert (lanes.next()[1], lanes.holds) == (Rest(), [])


def test_an_unreachable_destination_is_away_for_both_lanes() -> None:
    lanes = new()
    lanes.hand_over(keys(1), events(2))
    answer(lanes, "unreachable")
    assert store(lanes) == {True, False}
    assert (lanes.next()[1], lanes.holds) == (Wait(), [])
    lanes.hand_over(keys(3), events(4))
    assert lanes.next()[1] == Wait()
    assert lanes.wake(at(0.1)) > 0
    assert lanes.wake(at(4)) == 0
    assert lanes.next() == (lanes.durable, Read(0))
    assert lanes.ordinary.state is State.WAITING


def test_new_items_of_one_lane_respect_the_back_off_of_the_other() -> None:
    lanes = new()
    lanes.hand_over([], events(1))
    answer(lanes, "unreachable")
    lanes.hand_over(keys(2), [])
    assert store(lanes) == {True, False}
    assert lanes.next()[1] == Wait()


def test_events_wait_until_all_keys_have_caught_up() -> None:
    lanes = Lanes(lane((0, None)), lane((0, None)))
    assert lanes.wake(at(0)) == 0
    for upto in (5, 9):
        assert lanes.next()[1] == Read(upto - 5 if upto == 5 else 5)
        lanes.durable.found(keys(upto), upto)
        answer(lanes, "taken")
        store(lanes)
        assert lanes.ordinary.state is State.WAITING
    lanes.durable.up_to_date()
    assert lanes.next() == (lanes.durable, Forget())
    lanes.durable.forgotten()
    assert lanes.next()[1] == Wait()
    assert lanes.wake(at(0)) == 0
    assert lanes.next() == (lanes.ordinary, Read(0))


@pytest.mark.parametrize("poisoned", [True, False])
def test_poison_in_one_lane_does_not_stop_the_other(poisoned: bool) -> None:
    lanes = new()
    lanes.hand_over(keys(1), events(2))
    if poisoned:
        answer(lanes, "failed")
        assert store(lanes) == {True}
        assert sent(lanes) == events(2)
    else:
        answer(lanes, "taken")
        answer(lanes, "failed")
        assert store(lanes) == {False}
        lanes.hand_over(keys(3), [])
        assert sent(lanes) == keys(3)
    answer(lanes, "taken")
    assert lanes.next()[1] == Wait()


def test_keys_that_overflow_memory_still_precede_events() -> None:
    lanes = new()
    lanes.hand_over(keys(*range(1, limits.peers.OUTBOX_MAX + 2)), events(limits.peers.OUTBOX_MAX + 2))
    assert store(lanes) == {True, False}
    assert lanes.next()[1] == Wait()
    assert lanes.wake(at(0)) == 0
    assert lanes.next() == (lanes.durable, Read(0))


def test_a_failure_in_one_lane_does_not_stop_the_other() -> None:
    lanes = new()
    lanes.hand_over(keys(1), events(2))
    lanes.next()
    lanes.broke(at(0))
    store(lanes)
    assert sent(lanes) == events(2)


@dataclass
class World:
    """A driver without input or output. The table holds everything, and the rows survive a crash."""

    lanes: Lanes[Parcel] = field(default_factory=new)
    now_s: float = 0.0
    head: int = 0
    table: list[Parcel] = field(default_factory=list)
    rows: dict[bool, int] = field(default_factory=dict)
    common: int = 0
    arrived: dict[Parcel, None] = field(default_factory=dict)
    dropped: set[Parcel] = field(default_factory=set)
    has_failed: bool = False

    def add(self, kinds: Iterable[bool]) -> None:
        items = [Parcel(self.head + 1 + number, is_durable) for number, is_durable in enumerate(kinds)]
        self.head += len(items)
        self.table += items
        self.lanes.hand_over(
            [each for each in items if each.is_durable], [each for each in items if not each.is_durable]
        )

    def step(self, outcome: Outcome) -> None:
        lanes, now = self.lanes, at(self.now_s)
        delivery, ask = lanes.next()
        is_durable = delivery is lanes.durable
        match ask:
            case Send(items):
                if not is_durable and not self.has_failed:
                    self.check_keys_came_before(items[-1].position)
                dropped = lanes.answered(delivery, outcome, now)
                self.arrived.update(dict.fromkeys(items) if outcome == "taken" else {})
                self.dropped.update([dropped] if dropped else [])
                self.has_failed = self.has_failed or outcome == "failed"
            case Read(since) if since == self.head:
                delivery.up_to_date()
            case Read(since):
                upto = min(since + 7, self.head)
                delivery.found([each for each in self.table if since < each.position <= upto
                                and each.is_durable == is_durable], upto)  # fmt: skip
            case Store(acked, _):
                self.rows[is_durable] = acked
                delivery.stored()
            case Forget():
                self.rows.pop(is_durable, None)
                delivery.forgotten()
            case Wait():
                lanes.wake(now)

    def check_keys_came_before(self, position: int) -> None:
        lacking = [each for each in self.table if each.is_durable and each.position <= position]
        assert all(each in self.arrived or each in self.dropped for each in lacking)

    def crash(self) -> None:
        self.common = max(self.common, min([self.head, *self.lanes.holds]))
        rows = {is_durable: (self.rows[is_durable], None) for is_durable in self.rows}
        self.lanes = Lanes(lane(rows.get(True)), lane(rows.get(False)))
        rest = [each for each in self.table if each.position > self.common]
        if rest:
            self.lanes.hand_over(
                [each for each in rest if each.is_durable], [each for each in rest if not each.is_durable]
            )


HAPPENINGS = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=9),
    st.just([False] * (limits.peers.OUTBOX_MAX // 2)),
    st.sampled_from([1, 60, 2_000, 10_000]),
    st.sampled_from(["crash", "hear", "break", "taken", "refused", "failed", "unreachable"]),
    st.sampled_from(["taken", "unreachable"]),
)


@given(st.lists(HAPPENINGS, max_size=50))
def test_everything_arrives_and_keys_precede_events_in_any_sequence(happenings: list[list[bool] | int | str]) -> None:
    world = World()
    for happening in happenings:
        if isinstance(happening, list):
            world.add(happening)
        elif isinstance(happening, int):
            world.now_s += happening
        elif happening == "crash":
            world.crash()
        elif happening == "hear":
            world.lanes.heard()
        elif happening == "break":
            if not isinstance(world.lanes.next()[1], Rest):
                world.lanes.broke(at(world.now_s))
                world.has_failed = True  # it is the only other way in which events may overtake keys
        else:
            world.step(happening)  # type: ignore[arg-type]
    for _ in range(5_000):
        if isinstance(world.lanes.next()[1], Rest):
            break
        world.now_s += 4_000
        world.step("taken")
    else:
        raise AssertionError(f"it never comes to rest: {world.lanes.next()}")
    assert set(world.table) == world.arrived.keys() | world.dropped
    assert not world.rows
