"""Budgets: memory that bodies may take at a time, so that many large ones cannot take all of it.

Theory of operation
- A body takes from its budget as it comes, so somebody who only announces a large one takes nothing.
- One key (an address, a user, a peer) may have a part of the budget. Beyond its part, or if the budget is used up, the
  body is not read on: the sender is slowed down by TCP. After BUDGET_WAIT_SECONDS it is refused, and the sender is told
  to come back later. Bodies that wait for one another are resolved in the same way.
- What was read becomes objects, which take more than the text. `Hold.become` notes that without waiting, since the
  text is there already; whoever comes next waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from homeserver.errors import MatrixError
from homeserver.limits_http import (
    BUDGET_WAIT_SECONDS,
    CLIENT_BODIES_BYTES_EACH,
    CLIENT_BODIES_BYTES_MAX,
    PEER_BODIES_BYTES_EACH,
    PEER_BODIES_BYTES_MAX,
)


class Budget:
    """Bytes that may be held at a time. Used on the trio thread only."""

    __slots__ = ("_by_key", "_each", "_held", "_total", "_waiting")

    def __init__(self, total: int, each: int) -> None:
        """total: of all together. each: of one key."""
        self._total = total
        self._each = each
        self._held = 0
        self._by_key: Counter[str] = Counter()
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @contextmanager
    def hold(self, key: str) -> Iterator[Hold]:
        """What is taken for `key` meanwhile, and given back at the end."""
        hold = Hold(self, key)
        try:
            yield hold
        finally:
            hold.become(0)

    def has_room(self, key: str, amount: int) -> bool:
        """Whether so much more may be taken for the key at once."""
        return self._held + amount <= self._total and self._by_key[key] + amount <= self._each

    async def wait_for_room(self, key: str, amount: int) -> None:
        """Raises 429 M_LIMIT_EXCEEDED if there is none in time."""
        with trio.move_on_after(BUDGET_WAIT_SECONDS):
            while not self.has_room(key, amount):
                await self._waiting.park()
            return
        wait_ms = BUDGET_WAIT_SECONDS * 1000
        raise MatrixError(
            429, "M_LIMIT_EXCEEDED", "Too many large requests are being answered.", retry_after_ms=wait_ms
        )

    def _add(self, key: str, amount: int) -> None:
        self._held += amount
        self._by_key[key] += amount
        if not self._by_key[key]:
            del self._by_key[key]
        if amount < 0:
            self._waiting.unpark_all()


class Hold:
    """What one body takes."""

    __slots__ = ("_amount", "_budget", "_key")

    def __init__(self, budget: Budget, key: str) -> None:
        self._amount = 0
        self._budget = budget
        self._key = key

    async def take(self, amount: int) -> None:
        """Takes so much more; waits for it if need be. Raises 429 M_LIMIT_EXCEEDED."""
        if not self._budget.has_room(self._key, amount):
            await self._budget.wait_for_room(self._key, amount)
        self._amount += amount
        self._budget._add(self._key, amount)

    def become(self, amount: int) -> None:
        """From now on it is so much in all, whether there is room or not."""
        self._budget._add(self._key, amount - self._amount)
        self._amount = amount


@dataclass(slots=True)
class Budgets:
    """The budgets of a server. heavy: what holds more memory than its text says; one at a time."""

    peers: Budget = field(default_factory=lambda: Budget(PEER_BODIES_BYTES_MAX, PEER_BODIES_BYTES_EACH))
    clients: Budget = field(default_factory=lambda: Budget(CLIENT_BODIES_BYTES_MAX, CLIENT_BODIES_BYTES_EACH))
    heavy: Budget = field(default_factory=lambda: Budget(1, 1))
