"""Lanes: the two deliveries to one destination, of which the durable one is served first.

Pure, like `homeserver/process/delivery.py`: the driver asks `next()` what to do for which of the two, and tells the
outcome of every transaction to `answered`.

Theory of operation
===================

What must arrive (encryption keys) and what others need them for (events) are delivered side by side, each by a machine
with a position and a row of its own. So a long queue in one of them does not delay the other, and a poisonous item in
one of them does not stop the other. Which of the two is served, and when, follows from three rules:

1. The durable lane goes first. As long as it asks for anything, the ordinary lane waits. Both get what is new at the
   same moment, so when an event is sent, the durable items of its position and of all earlier ones have arrived.
2. A destination that cannot be reached is away for both. Both lag, and there is one attempt for both when the longer
   of their back-offs is over. Until then, what is new is left to the table.
3. A destination that fails of the durable lane with an error of its own may have met poison there. The durable lane
   waits as its machine says, and the ordinary lane goes on: that is the only case in which it overtakes. If the
   destination is ill, the ordinary lane will fail as well, and wait.

A lane that is not served although it has something to send lags, so that its row, not this process, remembers it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

from homeserver.process.back_off import BackOff
from homeserver.process.coalescing import Positioned
from homeserver.process.delivery import Ask, Delivery, Now, Rest, Wait
from homeserver.process.delivery_states import Outcome, State

T = TypeVar("T", bound=Positioned)


class Lanes(Generic[T]):
    """What is delivered to one destination. `durable` and `ordinary` are new, or resumed from their rows."""

    __slots__ = ("_durable_failed", "_is_away", "_served", "durable", "ordinary")

    def __init__(self, durable: Delivery[T], ordinary: Delivery[T]) -> None:
        self.durable = durable
        self.ordinary = ordinary
        self._served = durable
        self._is_away = any(lane.back_off is not None for lane in self._both)
        self._durable_failed = False  # its last transaction: rule 3

    @property
    def _both(self) -> tuple[Delivery[T], Delivery[T]]:
        return self.durable, self.ordinary

    @property
    def is_lagging(self) -> bool:
        """Whether the destination lacks something that is to be read from the table."""
        return any(lane.is_lagging for lane in self._both)

    @property
    def holds(self) -> list[int]:
        """The positions that must not be passed, as in `Delivery.holds`: none, one or two."""
        return [position for lane in self._both if (position := lane.holds) is not None]

    def next(self) -> tuple[Delivery[T], Ask[T]]:
        """Returns what is to be done now, and for which lane. Wait and Rest are about both."""
        ask = self.durable.next()
        if not isinstance(ask, Wait | Rest):
            return self._serve(self.durable, ask)
        if isinstance(ask, Wait) and not self._durable_failed:
            self.ordinary.put_off()
        other = self.ordinary.next()
        return self._serve(self.durable, ask) if isinstance(other, Rest) else self._serve(self.ordinary, other)

    def _serve(self, lane: Delivery[T], ask: Ask[T]) -> tuple[Delivery[T], Ask[T]]:
        self._served = lane
        return lane, ask

    def hand_over(self, durable: Sequence[T], ordinary: Sequence[T]) -> None:
        """There is something new, of higher positions than everything before."""
        for lane, items in ((self.durable, durable), (self.ordinary, ordinary)):
            if items:
                lane.hand_over(items)
                if self._is_away:
                    lane.put_off()

    def answered(self, lane: Delivery[T], outcome: Outcome, now: Now) -> T | None:
        """Does the same as `Delivery.answered` for one lane, and draws the conclusions for the other one."""
        dropped = lane.answered(outcome, now)
        self._is_away = outcome == "unreachable"
        if lane is self.durable:
            self._durable_failed = outcome == "failed"
        if self._is_away:
            for each in self._both:
                each.put_off()
        return dropped

    def broke(self, now: Now) -> None:
        """The driver could not do what was asked last. This concerns that lane only, as if the destination failed."""
        self._served.broke(now)
        if self._served is self.durable:
            self._durable_failed = True

    def heard(self) -> None:
        """The destination has shown itself by other means: it is tried soon."""
        for lane in self._both:
            lane.heard()

    def spare(self, back_off: BackOff | None) -> None:
        """Others that send requests to the destination have found it away: see `Delivery.spare`."""
        for lane in self._both:
            if lane.state is State.WAITING:
                lane.spare(back_off)

    def wake(self, now: Now) -> float:
        """Returns for how many seconds nothing is to be tried; if 0, `next` has something to do.

        Infinite if nothing waits for time. A lane that waits for the other one is woken after that.
        """
        waiting = [lane for lane in self._both if lane.state is State.WAITING]
        if not waiting:
            return math.inf
        if self._is_away:
            wait_s = max(lane.due_in(now) for lane in waiting)
            if not wait_s:
                self._is_away = False
                waiting[0].wake(now)
            return wait_s
        if self.durable.state is State.IDLE:
            return self.ordinary.wake(now)
        if self.durable.state is not State.WAITING:
            return math.inf
        wait_s = self.durable.wake(now)
        if wait_s and self._durable_failed and self.ordinary.state is State.WAITING:
            return min(wait_s, self.ordinary.wake(now))
        return wait_s
