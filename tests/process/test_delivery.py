"""The machine that decides what a destination is sent: its two tables, and what holds whatever the outcomes are."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from homeserver import limits
from homeserver.process import delivery_states
from homeserver.process.back_off import BackOff
from homeserver.process.delivery import Delivery, Forget, Now, Read, Rest, Send, Store, Unexpected, Wait
from homeserver.process.delivery_states import (
    LAGGING,
    TRANSITIONS,
    VERDICTS,
    Attempt,
    Input,
    Outcome,
    State,
    Verdict,
)

PER_TRANSACTION = 6
OUTCOMES: tuple[Outcome, ...] = ("taken", "refused", "failed", "unreachable")


@dataclass(frozen=True)
class Parcel:
    position: int
    number: int = 0
    subjects: frozenset[Hashable] = frozenset()


def take(items: Iterable[Parcel]) -> int:
    return sum(1 for _ in itertools.islice(items, PER_TRANSACTION))


def parcels(*positions: int) -> list[Parcel]:
    return [Parcel(position) for position in positions]


def at(seconds: float) -> Now:
    return Now(int(seconds * 1000), seconds)


def new() -> Delivery[Parcel]:
    return Delivery("a.example", "b.example", take)


def sent(delivery: Delivery[Parcel]) -> list[int]:
    """Returns what the machine asks its driver to send."""
    ask = delivery.next()
    assert isinstance(ask, Send)
    return [item.position for item in ask.items]


def answer(delivery: Delivery[Parcel], outcome: Outcome, now_s: float = 0) -> int | None:
    """Sends what the machine asks for; returns the position of what is dropped."""
    sent(delivery)
    dropped = delivery.answered(outcome, at(now_s))
    return dropped.position if dropped else None


def catching_up(*positions: int, now_s: float = 0) -> Delivery[Parcel]:
    delivery = Delivery.resume("a.example", "b.example", take, 0, None)
    assert delivery.wake(at(now_s)) == 0
    assert delivery.next() == Read(0)
    delivery.found(parcels(*positions), positions[-1])
    return delivery


# The tables


def test_every_state_and_input_is_used_and_explained() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(State)
    assert {happened for row in TRANSITIONS.values() for happened in row} == set(Input)
    page = delivery_states.__doc__ or ""
    assert all(f"\n    {name.name} " in page for name in (*State, *Attempt))
    assert all(name.name in (Input.__doc__ or "") for name in Input)
    assert all(name.name in (Verdict.__doc__ or "") for name in Verdict)


def test_every_state_can_become_idle_and_can_stop() -> None:
    for state in State:
        assert Input.STOPPED in TRANSITIONS[state] and TRANSITIONS[state][Input.STOPPED] is State.WAITING
        seen, frontier = {state}, [state]
        while frontier:
            frontier = [each for each in TRANSITIONS[frontier.pop()].values() if each not in seen] + frontier
            seen.update(frontier)
        assert State.IDLE in seen


def test_every_attempt_has_a_verdict_for_every_outcome() -> None:
    assert {attempt: set(row) for attempt, row in VERDICTS.items()} == {attempt: set(OUTCOMES) for attempt in Attempt}


def test_nothing_is_dropped_without_evidence_that_it_is_poison() -> None:
    assert {row["unreachable"] for row in VERDICTS.values()} == {Verdict.STOP}
    dropping = {
        (attempt, outcome) for attempt, row in VERDICTS.items() for outcome in row if row[outcome] is Verdict.DROP
    }
    assert dropping == {
        (Attempt.SINGLE, "refused"),
        (Attempt.CONFIRM, "refused"),
        (Attempt.CONFIRM, "failed"),
    }


def test_an_impossible_input_is_an_error_of_the_driver() -> None:
    delivery = new()
    for wrong in (
        lambda: delivery.answered("taken", at(0)),
        lambda: delivery.found([], 7),
        lambda: delivery.up_to_date(),
        lambda: delivery.wake(at(0)),
    ):
        with pytest.raises(Unexpected):
            wrong()


# The usual course


def test_a_destination_that_accepts_everything_needs_no_row() -> None:
    delivery = new()
    assert delivery.next() == Rest()
    delivery.hand_over(parcels(3, 4))
    assert delivery.holds == 2
    assert sent(delivery) == [3, 4]
    delivery.hand_over(parcels(7))
    assert sent(delivery) == [3, 4]  # a transaction that is under way does not change
    answer(delivery, "taken", 0)
    assert (sent(delivery), delivery.holds) == ([7], 6)
    answer(delivery, "taken", 0)
    assert (delivery.next(), delivery.holds) == (Rest(), None)


def test_a_failing_destination_lags_until_it_has_caught_up() -> None:
    delivery = new()
    delivery.hand_over(parcels(3, 4))
    answer(delivery, "unreachable", 0)
    store = delivery.next()
    assert isinstance(store, Store) and store.acked == 2 and store.back_off is not None
    assert delivery.holds == 2  # as long as that is not durable
    delivery.stored()
    assert (delivery.next(), delivery.holds) == (Wait(), None)
    delivery.hand_over(parcels(5))
    assert delivery.wake(at(0.5)) > 0
    assert delivery.wake(at(4)) == 0
    assert delivery.next() == Read(2)
    delivery.found(parcels(3, 4, 5), 5)
    assert sent(delivery) == [3, 4, 5]
    answer(delivery, "taken", 5)
    assert delivery.next() == Store(5, None)
    delivery.stored()
    assert delivery.next() == Read(5)
    delivery.up_to_date()
    assert delivery.next() == Forget()
    delivery.hand_over(parcels(6))
    assert delivery.next() == Forget()
    delivery.forgotten()
    assert sent(delivery) == [6]


def test_a_span_without_items_for_the_destination_needs_no_row() -> None:
    delivery = catching_up(1)
    answer(delivery, "taken", 0)
    delivery.stored()
    delivery.found([], 900)
    assert delivery.next() == Read(900)


def test_items_beyond_the_memory_limit_are_left_to_the_table() -> None:
    delivery = new()
    delivery.hand_over(parcels(*range(1, limits.peers.OUTBOX_MAX + 1)))
    delivery.hand_over(parcels(900, 901))
    delivery.hand_over(parcels(902))
    assert delivery.state is State.FULL
    while isinstance(delivery.next(), Send):
        answer(delivery, "taken", 0)
    assert delivery.next() == Store(899, None)
    delivery.stored()
    assert delivery.wake(at(0)) == 0
    assert delivery.next() == Read(899)


def test_an_overflowing_hand_over_is_left_to_the_table_at_once() -> None:
    delivery = new()
    delivery.hand_over(parcels(*range(5, limits.peers.OUTBOX_MAX + 6)))
    assert delivery.next() == Store(4, None)


# Waiting


def test_a_destination_that_contacts_us_is_retried_soon_but_not_at_once() -> None:
    delivery = catching_up(1)
    answer(delivery, "unreachable", 0)
    delivery.spare(BackOff(12, 0, 3_000_000))
    delivery.heard()
    assert delivery.wake(at(1)) == limits.peers.EARLY_RETRY_MS / 1000 - 1
    assert delivery.wake(at(limits.peers.EARLY_RETRY_MS / 1000)) == 0


def test_a_destination_is_not_tried_while_others_back_off() -> None:
    delivery = catching_up(1)
    answer(delivery, "unreachable", 0)
    delivery.spare(BackOff(7, 0, 600_000))
    delivery.spare(BackOff(1, 0, 500))
    delivery.spare(None)
    assert delivery.wake(at(100)) == 500
    assert delivery.wake(at(600)) == 0


def test_a_failing_driver_counts_as_an_outage_and_must_store_again() -> None:
    delivery = catching_up(3, 4)
    delivery.broke(at(0))
    assert isinstance(delivery.next(), Store)
    delivery.broke(at(0))
    assert delivery.wake(at(0.1)) > 0
    assert delivery.wake(at(3)) == 0
    assert isinstance(delivery.next(), Store)


def test_a_destination_whose_row_cannot_be_stored_still_catches_up() -> None:
    delivery = new()
    delivery.hand_over(parcels(3))
    answer(delivery, "unreachable")
    assert isinstance(delivery.next(), Store)
    delivery.stored(is_durable=False)
    assert (delivery.next(), delivery.holds) == (Wait(), 2)
    assert delivery.wake(at(3)) == 0
    assert delivery.next() == Read(2)
    delivery.found(parcels(3), 3)
    answer(delivery, "taken", 3)
    delivery.stored(is_durable=False)
    assert (delivery.next(), delivery.holds) == (Read(3), 3)
    delivery.up_to_date()
    assert (delivery.next(), delivery.holds) == (Rest(), None)


# Poison


def _answers(
    delivery: Delivery[Parcel], outcomes: Iterable[Outcome], now_s: float
) -> tuple[list[list[int]], list[int]]:
    """Plays these outcomes. Returns what is sent, and what is dropped."""
    asked, dropped = [], []
    for outcome in outcomes:
        asked.append(sent(delivery))
        lost = answer(delivery, outcome, now_s)
        dropped += [lost] if lost else []
    return asked, dropped


def test_a_refused_item_is_found_by_halving() -> None:
    delivery = catching_up(1, 2, 3, 4)
    asked, dropped = _answers(delivery, ["refused", "taken", "refused", "refused", "taken"], 0)
    assert asked == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]
    assert (dropped, delivery.state, delivery.acked) == ([3], State.READING, 4)


def test_items_before_a_failing_one_are_delivered() -> None:
    delivery = catching_up(1, 2, 3, 4)
    asked, dropped = _answers(delivery, ["failed", "taken", "failed", "failed"], 0)
    assert asked == [[1, 2, 3, 4], [1, 2], [3, 4], [3]]
    assert (dropped, delivery.state, delivery.acked) == ([], State.WAITING, 2)


def _stuck(*positions: int) -> Delivery[Parcel]:
    """A destination that has failed for long, of a first item that may be poison."""
    delivery = catching_up(*positions)
    while delivery.state is not State.WAITING:
        answer(delivery, "failed", 0)
    delivery.stored()
    assert delivery.wake(at(limits.peers.POISON_SECONDS)) == 0
    delivery.found(parcels(*positions), positions[-1])
    return delivery


def test_poison_is_dropped_after_a_while_if_another_item_is_accepted() -> None:
    delivery = _stuck(1, 2, 3, 4)
    asked, dropped = _answers(delivery, ["failed", "taken", "failed", "taken"], limits.peers.POISON_SECONDS)
    assert asked == [[1, 2, 3, 4], [2], [1], [3, 4]]
    assert (dropped, delivery.state, delivery.acked) == ([1], State.READING, 4)


def test_several_poisonous_items_in_a_row_are_dropped_one_by_one() -> None:
    delivery = _stuck(1, 2, 3, 4, 5, 6)
    outcomes: list[Outcome] = ["failed", "failed", "failed", "taken", "failed", "failed", "taken", "failed", "taken"]
    asked, dropped = _answers(delivery, outcomes, limits.peers.POISON_SECONDS)
    assert asked == [[1, 2, 3, 4, 5, 6], [2], [3], [5], [1], [2], [3], [4], [6]]
    assert dropped == [1, 2, 4]


def test_a_destination_that_fails_on_everything_loses_nothing() -> None:
    delivery = _stuck(1, 2, 3, 4)
    asked, dropped = _answers(delivery, ["failed", "failed", "failed"], limits.peers.POISON_SECONDS)
    assert asked == [[1, 2, 3, 4], [2], [3]]
    assert (dropped, delivery.state, delivery.acked) == ([], State.WAITING, 0)


def test_a_destination_that_recovers_during_a_probe_loses_nothing() -> None:
    delivery = _stuck(1, 2, 3)
    asked, dropped = _answers(delivery, ["failed", "taken", "taken", "taken"], limits.peers.POISON_SECONDS)
    assert asked == [[1, 2, 3], [2], [1], [3]]
    assert dropped == []


# Whatever happens


@dataclass
class World:
    """A driver without input or output. Its destination answers what a test says; the table holds everything."""

    delivery: Delivery[Parcel] = field(default_factory=new)
    now_s: float = 0.0
    head: int = 0
    table: list[Parcel] = field(default_factory=list)
    row: int | None = None
    common: int = 0
    history: list[tuple[list[Parcel], Outcome]] = field(default_factory=list)
    unsettled: set[Parcel] = field(default_factory=set)
    acked: int = 0

    def happen(self, event: tuple[str, object]) -> None:
        what, argument = event
        if what == "new":
            assert isinstance(argument, int)
            items = [Parcel(self.head + 1 + number // 2, number) for number in range(argument)]
            self.head = items[-1].position
            self.table += items
            self.unsettled.update(items)
            self.delivery.hand_over(items)
        elif what == "pass":
            assert isinstance(argument, int)
            self.now_s += argument
        elif what == "hear":
            self.delivery.heard()
        elif what == "crash":
            self.crash()
        elif what == "break":
            if not isinstance(self.delivery.next(), Rest):
                self.delivery.broke(at(self.now_s))
        else:
            assert what in OUTCOMES
            self.step(what)  # type: ignore[arg-type]
        self.check()

    def step(self, outcome: Outcome) -> None:
        """Performs one thing."""
        delivery, now = self.delivery, at(self.now_s)
        match delivery.next():
            case Send(items):
                self.answer(items, outcome, now)
            case Read(since) if since == self.head:
                delivery.up_to_date()
            case Read(since):
                upto = min(since + 7, self.head)
                delivery.found([item for item in self.table if since < item.position <= upto], upto)
            case Store(acked, _):
                self.row = acked
                delivery.stored()
            case Forget():
                self.row = None
                delivery.forgotten()
            case Wait():
                delivery.wake(now)

    def answer(self, items: Sequence[Parcel], outcome: Outcome, now: Now) -> None:
        dropped = self.delivery.answered(outcome, now)
        if outcome == "taken":
            self.unsettled.difference_update(items)
        if dropped is not None:
            assert list(items) == [dropped]
            assert outcome == "refused" or self.has_taken_another_lately()
            self.unsettled.discard(dropped)
        self.history.append((list(items), outcome))

    def has_taken_another_lately(self) -> bool:
        """Returns whether the destination has accepted an item since it failed on several."""
        for items, outcome in reversed(self.history):
            if outcome == "taken" or len(items) > 1:
                return outcome == "taken"
        return False

    def crash(self) -> None:
        """Only what was stored is left: the row, or the position of all destinations together."""
        holds = self.delivery.holds
        self.common = max(self.common, self.head if holds is None else holds)
        if self.row is not None:
            self.delivery = Delivery.resume("a.example", "b.example", take, self.row, None)
            self.acked = self.row
        else:
            self.delivery = new()
            self.acked = 0
            rest = [item for item in self.table if item.position > self.common]
            if rest:
                self.delivery.hand_over(rest)

    def check(self) -> None:
        delivery = self.delivery
        upto = self.head if delivery.state is State.IDLE else delivery.acked
        assert all(item.position > upto for item in self.unsettled)
        if self.row is not None and delivery.state in LAGGING:
            assert self.row <= delivery.acked or delivery.holds is not None
        assert delivery.acked >= self.acked
        self.acked = delivery.acked


EVENTS = st.one_of(
    st.tuples(st.just("new"), st.integers(1, 9)),
    st.tuples(st.just("new"), st.just(limits.peers.OUTBOX_MAX // 3)),
    st.tuples(st.just("pass"), st.sampled_from([1, 60, 2_000, 10_000])),
    st.tuples(st.sampled_from(["hear", "crash", "break"]), st.none()),
    st.tuples(st.sampled_from(OUTCOMES), st.none()),
    st.tuples(st.sampled_from(OUTCOMES), st.none()),
)


@given(st.lists(EVENTS, max_size=50))
def test_nothing_is_lost_in_any_sequence_of_outcomes(events: list[tuple[str, object]]) -> None:
    world = World()
    for event in events:
        world.happen(event)
    for _ in range(5_000):  # it recovers: then everything arrives that was not dropped
        if isinstance(world.delivery.next(), Rest):
            break
        world.now_s += 4_000
        world.happen(("taken", None))
    else:
        raise AssertionError(f"it never comes to rest: {world.delivery.next()}")
    assert not world.unsettled
    assert world.row is None


@given(st.integers(1, 60), st.sets(st.integers(1, 60)), st.sampled_from(["refused", "failed"]))
def test_only_poison_is_dropped_and_the_rest_arrives_in_order(count: int, poison: set[int], how: Outcome) -> None:
    """A destination that takes any transaction without poison in it gets the others, each once, and in order."""
    assume(count not in poison)  # nothing that gets through would show that it is to blame
    rows = [all(number + more in poison for more in range(PER_TRANSACTION)) for number in range(count)]
    assume(not any(rows))  # nor here
    delivery, taken, dropped, now_s = new(), [], [], 0.0
    items = [Parcel(position) for position in range(1, count + 1)]
    delivery.hand_over(items)
    for _ in range(20_000):
        match delivery.next():
            case Send(sending):
                positions = [item.position for item in sending]
                is_bad = not poison.isdisjoint(positions)
                lost = delivery.answered(how if is_bad else "taken", at(now_s))
                taken += [] if is_bad else positions
                dropped += [lost.position] if lost else []
            case Read(since) if since == count:
                delivery.up_to_date()
            case Read(since):
                delivery.found(items[since:], count)
            case Store():
                delivery.stored()
            case Forget():
                delivery.forgotten()
            case Wait():
                now_s += delivery.wake(at(now_s))
            case Rest():
                break
    assert set(dropped) == poison & set(range(1, count + 1))
    firsts = list(dict.fromkeys(taken))
    assert sorted(firsts) == [position for position in range(1, count + 1) if position not in poison]
    if how == "refused":
        assert firsts == taken == sorted(taken)
