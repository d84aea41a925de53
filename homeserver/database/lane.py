"""Lanes: work on many parties' items, such as a tail or the sender, that one bad item must not stop.

Theory of operation
- `Lane.work` passes a batch of items to a function. If the function fails, it gets each half of the batch, and so on
  down to single items. So all other items are done as if the bad one did not exist. The function must be repeatable,
  which it has to be after a crash anyway.
- An item that fails on its own is tried again after a pause, LANE_TRIES times in all. Then it is parked: counted in
  `homeserver_parked_items_total`, logged with its traceback, and noted in the table `parked_items`. The lane goes on
  without it. After a restart it gets another chance, because the program may have been fixed.
- An administrator may have parked items tried again (`homeserver parked retry`). The lane checks for that whenever it
  works, as long as it has anything in the table. A tail never meets an item twice, so it asks for them with
  `list_retried`. An item that succeeds is removed from the table. One that fails is parked again.
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
from homeserver.database.parked import delete_parked, list_parked_of, store_parked
from homeserver.process.metrics import Metrics
from homeserver.process.outages import is_outage

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger(__name__)

PARKED_COUNTER = "homeserver_parked_items_total"


class Lane:
    """One kind of work on items, as done by this process. Used on the trio thread only."""

    __slots__ = ("_database", "_left_out", "_metrics", "_noted", "name")

    def __init__(self, name: str, database: Database, metrics: Metrics) -> None:
        self.name = name
        self._database = database
        self._metrics = metrics
        self._left_out: OrderedDict[str, None] = OrderedDict()
        self._noted: set[str] | None = None  # this lane's items in the table; None: not read yet
        metrics.describe(PARKED_COUNTER, "Items that were given up after repeated failures, by lane.")

    async def work(
        self, items: Sequence[T], fn: Callable[[Sequence[T]], Awaitable[object]], name_of: Callable[[T], object] = str
    ) -> None:
        """Passes all items to fn, in order, except those on which it fails. `name_of` names an item in the log.

        Raises only if the storage fails.
        """
        waiting = [await self.without_parked(items, name_of)]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            try:
                await fn(part)
            except Exception as error:  # whatever is wrong with one item, the others must get their turn
                if is_outage(error):
                    raise
                if len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                    continue
                if not await self._try_again(part, fn, str(name_of(part[0]))):
                    continue
            await self.forget([str(name_of(item)) for item in part] if self._noted else ())

    async def without_parked(self, items: Sequence[T], name_of: Callable[[T], object] = str) -> list[T]:
        """The items that are still tried, or that are to be tried again."""
        if items:
            await self._read_noted()
        return [item for item in items if str(name_of(item)) not in self._left_out]

    async def list_retried(self) -> list[str]:
        """The names of the parked items that are to be tried again."""
        return [item for item, is_due in (await self._read_noted()).items() if is_due]

    async def park(self, item: str, error: Exception) -> None:
        """Notes that an item is left out from now on. Raises if that cannot be stored: then the storage is to blame."""
        if item in self._left_out:
            return
        await self._database.write(store_parked, self.name, item, f"{type(error).__name__}: {error}")
        if self._noted is not None:
            self._noted.add(item)
        self._left_out[item] = None
        while len(self._left_out) > limits.PARKED_ITEMS_MAX:
            self._left_out.popitem(last=False)
        self._metrics.count(PARKED_COUNTER, (("lane", self.name),))
        about = {"lane": self.name, "item": item}
        advice = "see `homeserver parked list`"
        if isinstance(error, DatabaseDamaged):  # a read that met it may have gone on around it, and told nobody
            self._database.outages.damaged(str(error))
            about["reason"] = str(error)
            _log.error("an item cannot be read and is left out from now on; %s", advice, extra=about)
        else:
            _log.error("an item failed repeatedly and is left out from now on; %s", advice, exc_info=error, extra=about)

    async def forget(self, items: Iterable[str]) -> None:
        """These items have succeeded: those that were parked once leave the table."""
        done = [item for item in items if item in (self._noted or ())]
        if done:
            await self._database.write(delete_parked, self.name, done)
            self._noted = (self._noted or set()).difference(done)

    async def _read_noted(self) -> dict[str, bool]:
        """The items in the table, and whether they are to be tried again. Reads nothing if there are none."""
        if self._noted is not None and not self._noted:
            return {}
        found = await self._database.read(list_parked_of, self.name)
        self._noted = set(found)
        for item, is_due in found.items():
            if is_due:
                self._left_out.pop(item, None)
        return found

    async def _try_again(self, part: Sequence[T], fn: Callable[[Sequence[T]], Awaitable[object]], item: str) -> bool:
        """Returns True if the item succeeds after all. Parks it otherwise."""
        for attempt in range(1, limits.LANE_TRIES):
            await trio.sleep(limits.LANE_PAUSE_S * attempt)
            try:
                await fn(part)
                return True
            except Exception as error:  # the item itself is bad: park it, whatever is wrong with it
                if is_outage(error):
                    raise
                if attempt == limits.LANE_TRIES - 1:
                    await self.park(item, error)
        return False


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
    except Exception as error:  # the caller gets it with its item
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
