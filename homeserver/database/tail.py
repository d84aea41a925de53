"""Tail: follows the change stream from a stored position: at least once, across restarts, on one node at a time.

Theory of operation. A tail reads every span of the stream, and stores its position only after that. What wakes it is
only a matter of time:

- By default each commit does. A tail with `rest` rests so many times as long as its last span took: it takes what
  is committed meanwhile together, and has only a part of the server's time, however much there is to do.
- A tail with `wake_keys` sleeps until one of them has news, or TAIL_LAG_MAX positions have come. Then it reads the
  whole span, in which the other changes mean nothing to it. A missing wake makes it late, never makes it miss a change;
  and a restart, after which nobody remembers who was woken, makes it read a few positions more.

If a position cannot be processed, it is parked and the tail goes on with the next: see `lane`. If it is tried again
later, it comes after newer positions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from homeserver.database import Database, DatabaseError, Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.database.stream import Stream
from homeserver.limits import TAIL_LAG_MAX, TAIL_SPAN_MAX, TAIL_STORE_SECONDS
from homeserver.process.metrics import Metrics

_log = logging.getLogger(__name__)

Follow = Callable[[int, int], Awaitable[None]]


def find_position(tx: Transaction, name: str) -> int | None:
    """Returns the position up to which the tail `name` has come, None if it never ran."""
    row = tx.one("SELECT position FROM tails WHERE name = ?", name)
    return int(row[0]) if row else None


def store_position(tx: Transaction, name: str, position: int) -> None:
    """Stores that the tail `name` has processed everything up to `position`. Never goes back."""
    tx.run(
        "INSERT INTO tails (name, position) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET position = excluded.position"
        " WHERE excluded.position > tails.position",
        name,
        position,
    )


class Tail:
    """A follower of the stream. Its position is stored under its name."""

    def __init__(
        self,
        name: str,
        database: Database,
        stream: Stream,
        metrics: Metrics,
        *,
        wake_keys: Collection[str] = (),
        rest: float = 0.0,
        span_max: int = TAIL_SPAN_MAX,
        store_seconds: float = TAIL_STORE_SECONDS,
    ) -> None:
        """wake_keys, rest: see the theory of operation. span_max: how many positions fn gets at once.

        store_seconds: how late its position may be stored.
        """
        self._name = name
        self._database = database
        self._stream = stream
        self._wake_keys = (*wake_keys, RETRY_KEY) if wake_keys else ()
        self._rest = rest
        self._span_max = span_max
        self._store_seconds = store_seconds
        self._lane = Lane(f"tail {name}", database, metrics)
        self._since = self._stored = 0

    async def run(self, fn: Follow, *, from_now: bool = False) -> None:
        """Calls fn(since, upto) for everything that is committed, in order, forever: since < position ≤ upto.

        If the process ends before its position is stored, the span is repeated. fn may store the position itself with
        `store_position`, in the write that does the work. If fn fails, the span is repeated in smaller ones, and a
        single position at which it keeps failing is left out. If the storage fails, run raises. from_now: a tail that
        never ran begins with the next change instead of the first. Waits while another task or node runs the same tail.
        """

        async def follow(span: Sequence[int]) -> None:
            await fn(span[0] - 1, span[-1])

        while True:
            async with self._database.hold(f"tail {self._name}"):
                await self._begin(from_now)
                try:
                    await self._follow(follow)
                finally:
                    await self._store_at_the_end()

    async def _begin(self, from_now: bool) -> None:
        position = await self._database.read(find_position, self._name)
        if position is None:
            position = self._stream.position if from_now else 0
            await self._database.write(store_position, self._name, position)
        self._since = self._stored = position

    async def _follow(self, follow: Callable[[Sequence[int]], Awaitable[None]]) -> None:
        lag_max = TAIL_LAG_MAX if self._wake_keys else 0
        async with self._stream.subscribe(self._wake_keys, lag_max=lag_max, rest=self._rest) as subscription:
            last_stored = trio.current_time()
            while True:
                position = self._since
                with trio.move_on_at(last_stored + self._store_seconds if self._since > self._stored else math.inf):
                    position = await subscription.wait(self._since)
                for retried in await self._lane.list_retried():
                    await self._lane.work([int(retried)], follow)
                while self._since < position:
                    upto = min(position, self._since + self._span_max)
                    await self._lane.work(range(self._since + 1, upto + 1), follow)
                    self._since = upto
                if trio.current_time() >= last_stored + self._store_seconds:
                    await self._store()
                    last_stored = trio.current_time()

    async def _store_at_the_end(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._store()
            except DatabaseError as error:  # closed or unreachable: the last span will be repeated
                _log.info("the position of tail %s is not stored: %s", self._name, error)

    async def _store(self) -> None:
        if self._since > self._stored:
            await self._database.write(store_position, self._name, self._since)
            self._stored = self._since
