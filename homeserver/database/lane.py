"""Lanes: shared work on items of many, such as a tail or the sender, that one bad item must not stop.

Theory of operation
- `Lane.work` gives a batch of items to a function. If the function fails, it is given the halves of the batch, and so
  on, down to single items: the others are done as if the bad one were not there. So the function must be one that may
  be repeated, as it is after a crash.
- An item that fails by itself is tried again after a pause, LANE_TRIES times in all. Then it is parked: counted in
  `homeserver_parked_items_total`, logged with its traceback, and noted in the table `parked_items`, so that it can be
  found later. The lane goes on. This process does not try the item again; after a restart it gets another chance, for
  the program may be a mended one.
- What only reads, and inside of a transaction cannot wait, uses `try_each`, which tries once and answers which failed.
- If the storage fails, no item is to blame: the exception is raised at once, nothing is parked, and whoever runs the
  lane begins again later.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import trio

from homeserver import limits
from homeserver.database import Database, Transaction
from homeserver.process.metrics import Metrics
from homeserver.process.outages import is_outage

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger(__name__)

PARKED_COUNTER = "homeserver_parked_items_total"


class Lane:
    """One kind of work on items, for as long as this process does it. Used on the trio thread only."""

    __slots__ = ("_database", "_metrics", "_parked", "name")

    def __init__(self, name: str, database: Database, metrics: Metrics) -> None:
        self.name = name
        self._database = database
        self._metrics = metrics
        self._parked: OrderedDict[str, None] = OrderedDict()
        metrics.describe(PARKED_COUNTER, "Items that were left out because they failed again and again, by lane.")

    async def work(
        self, items: Sequence[T], fn: Callable[[Sequence[T]], Awaitable[object]], name_of: Callable[[T], object] = str
    ) -> None:
        """Gives fn all of the items, in their order, except those that it fails of. `name_of` names an item in the log.

        Raises only if the storage fails.
        """
        waiting = [self.without_parked(items, name_of)]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            try:
                await fn(part)
            except Exception as error:
                if is_outage(error):
                    raise
                if len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                else:
                    await self._try_again(part, fn, str(name_of(part[0])))

    def without_parked(self, items: Sequence[T], name_of: Callable[[T], object] = str) -> list[T]:
        """The items that are still tried."""
        return [item for item in items if str(name_of(item)) not in self._parked]

    async def park(self, item: str, error: Exception) -> None:
        """Notes that an item is left out from now on. Raises if that cannot be stored: then the storage is to blame."""
        if item in self._parked:
            return
        await self._database.write(store_parked, self.name, item, f"{type(error).__name__}: {error}")
        self._parked[item] = None
        while len(self._parked) > limits.PARKED_ITEMS_MAX:
            self._parked.popitem(last=False)
        self._metrics.count(PARKED_COUNTER, (("lane", self.name),))
        about = {"lane": self.name, "item": item}
        _log.error("item parked: it failed again and again, and is left out", exc_info=error, extra=about)

    async def _try_again(self, part: Sequence[T], fn: Callable[[Sequence[T]], Awaitable[object]], item: str) -> None:
        for attempt in range(1, limits.LANE_TRIES):
            await trio.sleep(limits.LANE_PAUSE_S * attempt)
            try:
                await fn(part)
                return
            except Exception as error:
                if is_outage(error):
                    raise
                if attempt == limits.LANE_TRIES - 1:
                    await self.park(item, error)


def try_each(
    tx: Transaction, items: Sequence[T], fn: Callable[[Sequence[T]], Iterable[R]]
) -> tuple[list[R], list[tuple[T, Exception]]]:
    """What fn makes of all items, in order, and the items that it fails of.

    If fn fails, it is given halves, down to single items. Each time what has failed in the transaction is rolled back,
    so that the rest can still be read. Raises only if the storage is out of reach.
    """
    if not items:
        return [], []
    try:
        return tx.attempt(_list, fn, items), []
    except Exception as error:
        if is_outage(error):
            raise
        if len(items) == 1:
            return [], [(items[0], error)]
    half = len(items) // 2
    first, first_failed = try_each(tx, items[:half], fn)
    second, second_failed = try_each(tx, items[half:], fn)
    return first + second, first_failed + second_failed


def _list(fn: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R]:
    return list(fn(items))


# Storage


def store_parked(tx: Transaction, lane: str, item: str, reason: str) -> None:
    """Notes a parked item; of each lane the newest PARKED_ITEMS_MAX are kept."""
    tx.run(
        "INSERT INTO parked_items (lane, item, reason, parked_ms) VALUES (?, ?, ?, ?) ON CONFLICT (lane, item)"
        " DO UPDATE SET reason = excluded.reason, parked_ms = excluded.parked_ms",
        lane, item, reason.replace("\0", "")[: limits.PARKED_REASON_CHARACTERS_MAX], tx.now_ms,
    )  # fmt: skip
    rows = tx.all("SELECT item FROM parked_items WHERE lane = ? ORDER BY parked_ms DESC, item", lane)
    for (old,) in rows[limits.PARKED_ITEMS_MAX :]:
        tx.run("DELETE FROM parked_items WHERE lane = ? AND item = ?", lane, old)
