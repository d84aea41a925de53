"""Budgets: memory that bodies may take at a time, so that many large ones cannot take all of it.

Theory of operation
- A body takes from its budget as it comes, so somebody who only announces a large one takes nothing.
- One key (an address, a user, a peer) may have a part of the budget. Beyond its part, or if the budget is used up, the
  body is not read on: the sender is slowed down by TCP. After BUDGET_WAIT_SECONDS it is refused, and the sender is told
  to come back later.
- Many that have begun could wait for one another, and all be refused. So one of them may go ahead, beyond what there is
  in all, until it has been read; then its room is for the others, and another goes ahead.
- Answers that are fetched from peers take from the budget of the bodies of peers. A body may be held until an answer
  has come, so answers have shares that bodies cannot take: one for what people wait for, one for everything else.
  Nothing is waited for while an answer is held; hence there is always room again, and small answers need none at all.
- What was read becomes objects, which take more than the text. `Hold.become` notes that without waiting, since the
  text is there already; whoever comes next waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from homeserver.errors import MatrixError
from homeserver.limits.http import (
    BUDGET_WAIT_SECONDS,
    CLIENT_BODIES_BYTES_EACH,
    CLIENT_BODIES_BYTES_MAX,
    LARGE_ANSWERS_BYTES_EACH,
    LARGE_ANSWERS_BYTES_MAX,
    PEER_ANSWERS_BYTES,
    PEER_BODIES_BYTES_EACH,
    PEER_BODIES_BYTES_MAX,
)


class Budget:
    """Bytes that may be held at a time. Used on the trio thread only."""

    __slots__ = ("_ahead", "_by_key", "_by_share", "_each", "_held", "_shares", "_total", "_waiting")

    def __init__(self, total: int, each: int, shares: Mapping[str, int] | None = None) -> None:
        """total: of all together. each: of one key. shares: by name, what only its holders have beside the total."""
        self._total = total
        self._each = each
        self._shares = shares or {}
        self._held = 0
        self._ahead: Hold | None = None
        self._by_key: Counter[str] = Counter()
        self._by_share: Counter[str] = Counter()
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @contextmanager
    def hold(self, key: str, share: str = "") -> Iterator[Hold]:
        """What is taken for `key` meanwhile, and given back at the end. share: the one that it may use, if any."""
        hold = Hold(self, key, share)
        try:
            yield hold
        finally:
            hold.become(0)

    def has_room(self, key: str, amount: int, share: str = "") -> bool:
        """Whether so much more may be taken for the key at once."""
        if self._by_key[key] + amount > self._each:
            return False
        if self._held + amount <= self._total:
            return True
        return self._by_share[share] + amount <= self._shares.get(share, 0)

    def has_room_for_one(self, key: str, amount: int) -> bool:
        """As `has_room`, but whoever holds nothing may always take something, however large it is."""
        return not self._by_key[key] or self.has_room(key, amount)

    async def wait_for_room(self, hold: Hold, amount: int) -> None:
        """Raises 429 M_LIMIT_EXCEEDED if there is none in time."""
        with trio.move_on_after(BUDGET_WAIT_SECONDS):
            while not (self.has_room(hold.key, amount, hold.share) or self._goes_ahead(hold, amount)):
                await self._waiting.park()
            return
        wait_ms = BUDGET_WAIT_SECONDS * 1000
        raise MatrixError(
            429, "M_LIMIT_EXCEEDED", "Too many large requests are being answered.", retry_after_ms=wait_ms
        )

    def _goes_ahead(self, hold: Hold, amount: int) -> bool:
        """Whether it is the one that may go beyond the total. The part of its key is its limit also then."""
        if self._ahead is None and hold.amount:
            self._ahead = hold
        return self._ahead is hold and self._by_key[hold.key] + amount <= self._each

    def _add(self, key: str, amount: int, share: str) -> None:
        self._held += amount
        self._by_share[share] += amount
        self._by_key[key] += amount
        if not self._by_key[key]:
            del self._by_key[key]
        if amount < 0:
            self._waiting.unpark_all()

    def _end_reading(self, hold: Hold) -> None:
        if self._ahead is hold:
            self._ahead = None
            self._waiting.unpark_all()


class Hold:
    """What one body takes."""

    __slots__ = ("_budget", "amount", "key", "share")

    def __init__(self, budget: Budget, key: str, share: str) -> None:
        self.amount = 0
        self.key = key
        self.share = share
        self._budget = budget

    async def take(self, amount: int) -> None:
        """Takes so much more; waits for it if need be. Raises 429 M_LIMIT_EXCEEDED."""
        if not self._budget.has_room(self.key, amount, self.share):
            await self._budget.wait_for_room(self, amount)
        self.amount += amount
        self._budget._add(self.key, amount, self.share)

    def become(self, amount: int) -> None:
        """It has been read, and from now on it is so much in all, whether there is room or not."""
        self._budget._add(self.key, amount - self.amount, self.share)
        self.amount = amount
        self._budget._end_reading(self)


@dataclass(slots=True)
class Budgets:
    """The budgets of a server.

    answers: large ones that clients and peers have not taken yet. heavy: what holds more memory than its text says; one
    at a time.
    """

    peers: Budget = field(
        default_factory=lambda: Budget(PEER_BODIES_BYTES_MAX, PEER_BODIES_BYTES_EACH, PEER_ANSWERS_BYTES)
    )
    clients: Budget = field(default_factory=lambda: Budget(CLIENT_BODIES_BYTES_MAX, CLIENT_BODIES_BYTES_EACH))
    answers: Budget = field(default_factory=lambda: Budget(LARGE_ANSWERS_BYTES_MAX, LARGE_ANSWERS_BYTES_EACH))
    heavy: Budget = field(default_factory=lambda: Budget(1, 1))
