"""Budgets: limits on the memory of bodies, so that many large bodies at once cannot use up all memory.

Theory of operation
- A body takes from its budget as it arrives, so a sender that only announces a large body takes nothing.
- One key (an address, a user, a peer) may use only a part of the budget. When its part or the whole budget is used up,
  the body is not read any further, and TCP slows the sender down. After BUDGET_WAIT_SECONDS the body is refused, and
  the sender is told to come back later.
- Many half-read bodies could wait for one another until all are refused. So one of them may exceed the total until it
  has been read completely. Then its memory is free for the others, and another body may go ahead.
- Answers that we fetch from peers use the budget for the bodies of peers. A body may be held until such an answer has
  arrived, so answers have shares that bodies cannot take: one for answers that people wait for, one for all others.
  While an answer is held, nothing waits for another budget. So there will always be room again, and small answers need
  none at all.
- Decoded objects take more memory than their text. `Hold.become` records that without waiting, because the memory is
  already in use. The next body waits for it instead.
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
    """The number of bytes that may be held at a time. Used on the trio thread only."""

    __slots__ = ("_ahead", "_by_key", "_by_share", "_each", "_held", "_shares", "_total", "_waiting")

    def __init__(self, total: int, each: int, shares: Mapping[str, int] | None = None) -> None:
        """total: for all keys together. each: for one key. shares: by name, extra bytes for their holders only."""
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
        """The number of bytes that are held now."""
        return self._held

    @contextmanager
    def hold(self, key: str, share: str = "") -> Iterator[Hold]:
        """Yields a Hold for `key`, whose bytes are given back at the end. share: the share it may use, if any."""
        hold = Hold(self, key, share)
        try:
            yield hold
        finally:
            hold.become(0)

    def has_room(self, key: str, amount: int, share: str = "") -> bool:
        """Returns whether `amount` more bytes are available to the key at once."""
        if self._by_key[key] + amount > self._each:
            return False
        if self._held + amount <= self._total:
            return True
        return self._by_share[share] + amount <= self._shares.get(share, 0)

    def has_room_for_one(self, key: str, amount: int) -> bool:
        """Does the same as `has_room`, except that a key that holds nothing may always take any amount."""
        return not self._by_key[key] or self.has_room(key, amount)

    async def wait_for_room(self, hold: Hold, amount: int) -> None:
        """Waits until there is room for `amount`. Raises 429 M_LIMIT_EXCEEDED if there is none in time."""
        with trio.move_on_after(BUDGET_WAIT_SECONDS):
            while not (self.has_room(hold.key, amount, hold.share) or self._goes_ahead(hold, amount)):
                await self._waiting.park()
            return
        wait_ms = BUDGET_WAIT_SECONDS * 1000
        raise MatrixError(
            429, "M_LIMIT_EXCEEDED", "Too many large requests are being answered.", retry_after_ms=wait_ms
        )

    def _goes_ahead(self, hold: Hold, amount: int) -> bool:
        """Returns whether this hold may exceed the total. The limit of its key still applies."""
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
    """The memory held by one body."""

    __slots__ = ("_budget", "amount", "key", "share")

    def __init__(self, budget: Budget, key: str, share: str) -> None:
        self.amount = 0
        self.key = key
        self.share = share
        self._budget = budget

    async def take(self, amount: int) -> None:
        """Takes `amount` more bytes, waiting if necessary. Raises 429 M_LIMIT_EXCEEDED."""
        if not self._budget.has_room(self.key, amount, self.share):
            await self._budget.wait_for_room(self, amount)
        self.amount += amount
        self._budget._add(self.key, amount, self.share)

    def become(self, amount: int) -> None:
        """Marks the body as completely read, and sets its total to `amount`, whether there is room or not."""
        self._budget._add(self.key, amount - self.amount, self.share)
        self.amount = amount
        self._budget._end_reading(self)


@dataclass(slots=True)
class Budgets:
    """The budgets of a server.

    answers: for large answers that clients and peers have not received yet. heavy: for bodies that take much more
    memory than their text; one at a time.
    """

    peers: Budget = field(
        default_factory=lambda: Budget(PEER_BODIES_BYTES_MAX, PEER_BODIES_BYTES_EACH, PEER_ANSWERS_BYTES)
    )
    clients: Budget = field(default_factory=lambda: Budget(CLIENT_BODIES_BYTES_MAX, CLIENT_BODIES_BYTES_EACH))
    answers: Budget = field(default_factory=lambda: Budget(LARGE_ANSWERS_BYTES_MAX, LARGE_ANSWERS_BYTES_EACH))
    heavy: Budget = field(default_factory=lambda: Budget(1, 1))
