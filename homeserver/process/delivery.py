"""Delivery: the state machine of what one destination is sent, in order and at least once.

Rule 1: all decisions about what to send, retry, put off or drop are made in this file and its tables.
Rule 2: this file does not know what a destination is. It is a name, items with ascending positions, each of which it
recognises if it comes again, and one of four outcomes for each transaction. This file does no input or output, and
uses neither clock nor chance: a driver performs what it asks for, and reports the result.

Theory of operation
===================

Everything to be sent is in a table, at a position of one stream. A driver follows the stream and hands over new items.
A destination that accepts them at once needs neither a queue nor a row. One that fails, or is too slow, *lags*: a row
has the position up to which it has everything (`acked`), and the rest is read from the table later.

    delivery = Delivery(own, destination, take)      or Delivery.resume(...), for each row that was stored
    delivery.hand_over(items)                        then perform what `next()` asks for, one step at a time:

    Send(items)     send one transaction, then `answered(outcome, now)`, which may return an item that was dropped
    Read(since)     read what comes after `since`, then `found(items, upto)`; if nothing does, `up_to_date()`
    Store(…)        store the row, then `stored()`
    Forget()        delete the row, then `forgotten()`
    Wait()          stop, and begin again once `wake(now)` returns 0
    Rest()          stop: the destination has everything, and the machine may be thrown away

If performing fails unexpectedly, the driver calls `broke(now)`, and begins again once `wake(now)` returns 0.
The position that is stored for all destinations together must not pass what any of them `holds`.

The destination and the transaction under way are two machines. Their states and transitions are the tables of
`homeserver/process/delivery_states.py`. A destination with two lanes has a machine for each, and
`homeserver/process/lanes.py` decides which one is served.

Invariants, for any sequence of outcomes (`tests/process/test_delivery.py`):

- Every item is sent until it is taken or dropped, or until a newer one replaces it while it waits for its turn
  (`homeserver/process/coalescing.py`). `acked` never passes one that still has to be sent, and never goes back.
- Items are sent in order, except for a probe, which may overtake those before it.
- An item is dropped only if it was sent alone, and was refused, or failed right after another item was taken. Hence a
  destination that fails on as many items in a row as fit into one transaction makes no progress.
- Within an outage, the back-off does not shrink (`homeserver/process/back_off.py`).
- As long as something is not delivered, a row exists or `holds` is not passed. So it is found again after a crash.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import msgspec

from homeserver import limits
from homeserver.process.back_off import BackOff, after_failure
from homeserver.process.coalescing import Positioned, without_replaced
from homeserver.process.delivery_states import (
    LAGGING,
    SENDING,
    TRANSITIONS,
    VERDICTS,
    Attempt,
    Input,
    Outcome,
    State,
    Verdict,
)

T = TypeVar("T", bound=Positioned)


class Now(NamedTuple):
    """The time. wall_ms: by the wall clock, for what is stored; steady_s: by one that never jumps, for all else."""

    wall_ms: int
    steady_s: float


class Unexpected(RuntimeError):
    """The driver told the machine something that cannot happen in its state."""


# What the machine asks for


class Send(msgspec.Struct, Generic[T], frozen=True):
    """Send these items in one transaction."""

    items: Sequence[T]


class Read(msgspec.Struct, frozen=True):
    """Read what the destination lacks from after this position, as much as is convenient."""

    since: int


class Store(msgspec.Struct, frozen=True):
    """Store that the destination lacks what lies after `acked`, and its back-off if it is in one."""

    acked: int
    back_off: BackOff | None


class Forget(msgspec.Struct, frozen=True):
    """Delete what was stored."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing is to be done until it is time to try again."""


class Rest(msgspec.Struct, frozen=True):
    """Nothing is to be done until something new is handed over."""


FORGET, WAIT, REST = Forget(), Wait(), Rest()
Ask = Send[T] | Read | Store | Forget | Wait | Rest


class Delivery(Generic[T]):
    """The delivery to one destination.

    own: the name by which this server asks it. take(items): how many of the first items make a transaction, at least 1.
    """

    __slots__ = (
        "_confirming", "_failing_since_s", "_found_upto", "_is_stale", "_is_stored", "_left_out_at", "_own", "_probe",
        "_probed", "_queue", "_sizes", "_take", "_tried_s", "acked", "back_off", "destination", "state",
    )  # fmt: skip

    def __init__(self, own: str, destination: str, take: Callable[[Iterable[T]], int]) -> None:
        self._own = own
        self.destination = destination
        self.state = State.IDLE
        self.acked = 0
        self.back_off: BackOff | None = None
        self._take = take
        # What waits in memory. Its first items are divided into transactions, whose sizes these are, the next one last.
        self._queue: deque[T] = deque()
        self._sizes: list[int] = []
        # How the next transaction differs: the item to be probed instead; how many single items are to be confirmed.
        self._probe = self._confirming = 0
        # How many retries have probed in vain.
        self._probed = 0
        # While FULL: the first position that was left out. While CATCHING_UP: up to where was read.
        self._left_out_at = self._found_upto = 0
        # Whether there is a row; whether it has to be stored, or stored again.
        self._is_stored = self._is_stale = False
        self._tried_s = -math.inf
        self._failing_since_s: float | None = None

    @classmethod
    def resume(
        cls, own: str, destination: str, take: Callable[[Iterable[T]], int], acked: int, back_off: BackOff | None
    ) -> Delivery[T]:
        """Returns the delivery to a destination that lagged when the process ended, as `Store` had it stored."""
        delivery = cls(own, destination, take)
        delivery.state, delivery.acked, delivery.back_off = State.WAITING, acked, back_off
        delivery._is_stored = True
        return delivery

    @property
    def is_lagging(self) -> bool:
        """True if the destination lacks something that must be read from the table."""
        return self.state in LAGGING

    @property
    def holds(self) -> int | None:
        """Up to where the destination has everything, if nothing but this object knows; None otherwise."""
        return None if self.state is State.IDLE or (self.is_lagging and self._is_stored) else self.acked

    def next(self) -> Ask[T]:
        """Returns what is to be done now. Asking again without having done it returns the same."""
        if self.is_lagging and self._is_stale:
            return Store(self.acked, self.back_off)
        if self._is_stored and not self.is_lagging:
            return FORGET
        if self.state in SENDING:
            return Send(self._sending())
        if self.state is State.READING:
            return Read(self.acked)
        return WAIT if self.state is State.WAITING else REST

    # What the driver tells

    def hand_over(self, items: Sequence[T]) -> None:
        """Takes new items, whose positions are higher than all before."""
        if self.is_lagging or self.state is State.FULL:
            return  # it is read when its turn comes
        if self.state is State.IDLE:
            self.acked = max(self.acked, items[0].position - 1)
        under_way = sum(self._sizes)
        waiting = without_replaced(islice(self._queue, under_way, None), items)
        if under_way + len(waiting) + len(items) > limits.peers.OUTBOX_MAX:
            self._left_out_at = items[0].position
            self._fire(Input.OVERFLOWED)
        else:
            self._queue = deque((*islice(self._queue, under_way), *waiting, *items))
            self._fire(Input.HANDED_OVER)

    def answered(self, outcome: Outcome, now: Now) -> T | None:
        """Notes the outcome of what was sent. Returns the item that is dropped because of it, if any."""
        if not self._sizes:
            raise Unexpected(f"answered in state {self.state.name}")
        self._note(outcome, now)
        verdict = VERDICTS[self._attempt(now)][outcome]
        if verdict is Verdict.PROBE:
            verdict = self._probe_further()
        if verdict is Verdict.STOP:
            self._stop(now)
        elif verdict is Verdict.HALVE:
            size = self._sizes.pop()
            self._sizes += [size - size // 2, size // 2]
        elif verdict is Verdict.CONFIRM:
            self._begin_to_confirm()
        elif verdict in (Verdict.DONE, Verdict.DROP):
            first = self._queue[0]
            self._pop()
            return first if verdict is Verdict.DROP else None
        return None

    def found(self, items: Iterable[T], upto: int) -> None:
        """Takes what was read: all items up to `upto` that the destination lacks and should still get."""
        self._queue.extend(items)
        self._fire(Input.FOUND if self._queue else Input.FOUND_NOTHING)
        self._found_upto = upto
        self.acked = max(self.acked, self._queue[0].position - 1 if self._queue else upto)

    def up_to_date(self) -> None:
        """Notes that there is nothing after `acked`. From now on new items are handed over."""
        self._fire(Input.UP_TO_DATE)
        self._is_stale = False
        self._tried_s = -math.inf

    def stored(self, *, is_durable: bool = True) -> None:
        """Notes that the row is stored. If it cannot be (not `is_durable`), `holds` keeps protecting the items."""
        self._is_stored, self._is_stale = self._is_stored or is_durable, False

    def forgotten(self) -> None:
        """Notes that the row is deleted. If it cannot be, the destination gets some items twice after a restart."""
        self._is_stored = False

    def broke(self, now: Now) -> None:
        """Notes that the driver failed unexpectedly. This counts as an outage."""
        self._note("unreachable", now)
        self._stop(now)

    def heard(self) -> None:
        """Notes that the destination was seen by other means, so it is tried again soon."""
        self.back_off = None

    def spare(self, back_off: BackOff | None) -> None:
        """Notes the back-off of other requests to the destination. Its retry is put off at least as long."""
        if back_off is not None and (self.back_off is None or self.back_off.retry_after_ms < back_off.retry_after_ms):
            self.back_off = back_off

    def put_off(self) -> None:
        """Stops sending, for a reason outside this delivery."""
        if self.state not in (State.IDLE, State.WAITING):
            self._halt()

    def due_in(self, now: Now) -> float:
        """Returns the number of seconds until the destination may be tried again."""
        if self.back_off is None:  # it is reachable again, but must not be pestered
            return max(0.0, self._tried_s + limits.peers.EARLY_RETRY_MS / 1000 - now.steady_s)
        if self.back_off.is_over(now.wall_ms):
            return 0.0
        return (self.back_off.retry_after_ms - now.wall_ms) / 1000

    def wake(self, now: Now) -> float:
        """Returns the same as `due_in`; if it is 0, `next` has something to do."""
        wait_s = self.due_in(now)
        if not wait_s:
            self._fire(Input.DUE)
        return wait_s

    # What follows from it

    def _fire(self, happened: Input) -> None:
        after = TRANSITIONS[self.state].get(happened)
        if after is None:
            raise Unexpected(f"{happened.name} in state {self.state.name}")
        if after in LAGGING and self.state not in LAGGING:
            self._is_stale = True
        if happened is Input.OVERFLOWED and after is State.WAITING:
            self.acked = self._left_out_at - 1
        self.state = after

    def _sending(self) -> list[T]:
        """Returns the items of the next transaction."""
        if not self._sizes:
            self._sizes = [self._take(self._queue)]
        if self._probe:
            return [self._queue[self._probe]]
        return list(islice(self._queue, self._sizes[-1]))

    def _attempt(self, now: Now) -> Attempt:
        """Returns what kind of transaction the last one was."""
        if self._probe:
            return Attempt.PROBE
        if self._confirming:
            return Attempt.CONFIRM
        if self._sizes[-1] == 1:
            return Attempt.SINGLE
        since_s = self._failing_since_s
        is_stuck = since_s is not None and now.steady_s - since_s >= limits.peers.POISON_SECONDS
        return Attempt.STUCK if is_stuck else Attempt.SEVERAL

    def _probe_further(self) -> Verdict:
        """Chooses the next item to be probed. Each retry begins one item later, until all have had their turn."""
        self._probe = 2 * (self._probe - self._probed) + self._probed if self._probe else 1 + self._probed
        if self._probe < self._sizes[-1]:
            return Verdict.PROBE
        self._probed = self._probed + 1 if self._probed + 2 < self._sizes[-1] else 0
        return Verdict.STOP

    def _begin_to_confirm(self) -> None:
        """The probe is delivered. Those before it are sent one by one, then those after it."""
        del self._queue[self._probe]
        after = self._sizes.pop() - self._probe - 1
        self._sizes += [after] if after else []
        self._sizes += [1] * self._probe
        self._confirming, self._probe = self._probe, 0

    def _pop(self) -> None:
        """Removes the items of the transaction, which is finished."""
        last = self._queue[0]
        for _ in range(self._sizes.pop()):
            last = self._queue.popleft()
        self._confirming = max(0, self._confirming - 1)
        if self._queue:
            self.acked = max(self.acked, self._queue[0].position - 1)
            return
        if self.state is State.CATCHING_UP:
            self.acked = max(self.acked, self._found_upto)
            self._is_stale = True
        else:
            self.acked = max(self.acked, self._left_out_at - 1 if self.state is State.FULL else last.position)
        self._fire(Input.EMPTIED)

    def _note(self, outcome: Outcome, now: Now) -> None:
        if outcome in ("taken", "refused"):
            self.back_off = self._failing_since_s = None
            self._probed = self._probed if outcome == "refused" else 0
            return
        self.back_off = after_failure(self.back_off, self._own, self.destination, now.wall_ms)
        if outcome == "failed" and self._failing_since_s is None:
            self._failing_since_s = now.steady_s

    def _stop(self, now: Now) -> None:
        self._halt()
        self._tried_s = now.steady_s

    def _halt(self) -> None:
        """Forgets what waits in memory. The destination lags, and it is read again."""
        self._fire(Input.STOPPED)
        self._is_stale = True
        self._queue.clear()
        self._sizes.clear()
        self._probe = self._confirming = 0
