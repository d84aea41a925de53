"""Lanes: work on many parties' items, such as a tail or the sender, that one bad item must not stop.

Theory of operation
- `Lane.work` passes a batch of items to a function. If the function fails, it gets each half of the batch, and so on
  down to single items. So all other items are done as if the bad one did not exist. The function must be repeatable,
  which it has to be after a crash anyway.
- An item that fails on its own is tried again after a pause, LANE_TRIES times in all. Then it is parked: counted in
  `homeserver_parked_items_total`, logged with its traceback, and noted in the table `parked_items` so that it can be
  found later. The lane goes on. This process does not try the item again. After a restart it gets another chance,
  because the program may have been fixed.
- Code that only reads, and cannot wait inside a transaction, uses `try_each`: it tries once and returns the failures.
- If the storage fails, no item is to blame. The exception is raised at once and nothing is parked. The caller starts
  the work again later.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import trio

from homeserver import limits
from homeserver.database import Database, DatabaseDamaged, Transaction
from homeserver.process.metrics import Metrics
from homeserver.process.outages import is_outage

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger(__name__)

PARKED_COUNTER = "homeserver_parked_items_total"


class Lane:
    """One kind of work on items, as done by this process. Used on the trio thread only."""

    __slots__ = ("_database", "_metrics", "_parked", "name")

    def __init__(self, name: str, database: Database, metrics: Metrics) -> None:
        self.name = name
        self._database = database
        self._metrics = metrics
        self._parked: OrderedDict[str, None] = OrderedDict()
        metrics.describe(PARKED_COUNTER, "Items that were given up after repeated failures, by lane.")

    async def work(
        self, items: Sequence[T], fn: Callable[[Sequence[T]], Awaitable[object]], name_of: Callable[[T], object] = str
    ) -> None:
        """Passes all items to fn, in order, except those on which it fails. `name_of` names an item in the log.

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
        """Returns the items that are not parked."""
        return [item for item in items if str(name_of(item)) not in self._parked]

    async def park(self, item: str, error: Exception) -> None:
        """Notes that an item is left out from now on. Raises if this cannot be stored: then the storage has failed."""
        if item in self._parked:
            return
        await self._database.write(store_parked, self.name, item, f"{type(error).__name__}: {error}")
        self._parked[item] = None
        while len(self._parked) > limits.PARKED_ITEMS_MAX:
            self._parked.popitem(last=False)
        self._metrics.count(PARKED_COUNTER, (("lane", self.name),))
        about = {"lane": self.name, "item": item}
        if isinstance(error, DatabaseDamaged):  # a read that met it may have gone on around it, and told nobody
            self._database.outages.damaged(str(error))
            _log.error("an item cannot be read and is left out from now on", extra={**about, "reason": str(error)})
        else:
            _log.error("an item failed repeatedly and is left out from now on", exc_info=error, extra=about)

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
    """Returns fn's results for the items in order, and the items on which it fails.

    If fn fails, it gets each half of the items, down to single items. The failed part of the transaction is rolled back
    each time, so that the rest can still be read. Raises only if the storage cannot be reached.
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
    """Stores a parked item. Keeps the newest PARKED_ITEMS_MAX items of each lane."""
    tx.run(
        "INSERT INTO parked_items (lane, item, reason, parked_ms) VALUES (?, ?, ?, ?) ON CONFLICT (lane, item)"
        " DO UPDATE SET reason = excluded.reason, parked_ms = excluded.parked_ms",
        lane, item, reason.replace("\0", "")[: limits.PARKED_REASON_CHARACTERS_MAX], tx.now_ms,
    )  # fmt: skip
    rows = tx.all("SELECT item FROM parked_items WHERE lane = ? ORDER BY parked_ms DESC, item", lane)
    for (old,) in rows[limits.PARKED_ITEMS_MAX :]:
        tx.run("DELETE FROM parked_items WHERE lane = ? AND item = ?", lane, old)
