"""Tail: following the change stream from a stored position: at least once, through restarts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from homeserver.database import Database, Transaction
from homeserver.limits import TAIL_SPAN_MAX


def get_position(tx: Transaction, name: str) -> int:
    """The position up to which the tail `name` has come; 0 at first."""
    row = tx.one("SELECT position FROM tails WHERE name = ?", name)
    return int(row[0]) if row else 0


def store_position(tx: Transaction, name: str, position: int) -> None:
    """Stores that the tail `name` has done everything up to `position`; never goes back."""
    tx.run(
        "INSERT INTO tails (name, position) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET position = excluded.position"
        " WHERE excluded.position > tails.position",
        name,
        position,
    )


class Tail:
    """One follower of the stream. At most one `run` per name at a time."""

    def __init__(self, name: str, database: Database) -> None:
        self._name = name
        self._database = database

    async def run(self, fn: Callable[[int, int], Awaitable[None]]) -> None:
        """Calls fn(since, upto) for everything that is committed, in order, for ever: since < position ≤ upto.

        The position is stored once fn has returned; a span is told again if the process ends before that. fn may store
        it earlier with `store_position`, in the write that does the work. An exception of fn ends run.
        """
        stream = self._database.stream
        done = await self._database.read(get_position, self._name)
        async with stream.subscribe_all() as subscription:
            while True:
                position = await subscription.wait(done)
                while done < position:
                    upto = min(position, done + TAIL_SPAN_MAX)
                    await fn(done, upto)
                    await self._database.write(store_position, self._name, upto)
                    done = upto
