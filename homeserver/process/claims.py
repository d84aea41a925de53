"""Claims: things that one task at a time may change, and of which others want to know at once that they are taken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class Claimed(Exception):
    """Another task has the thing, and is busy with it."""


class Claim:
    """What the task that has a thing holds. It calls `moved` as it proceeds, so that others do not take it over."""

    __slots__ = ("_moved_at", "_released", "_scope")

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._released = trio.Event()
        self._moved_at = trio.current_time()

    def moved(self) -> None:
        """Notes that the task has proceeded."""
        self._moved_at = trio.current_time()


class Claims:
    """The things that are taken at the moment, by key. Used on the trio thread only."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[Hashable, Claim] = {}

    def __len__(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def hold(self, key: Hashable, patience_s: float) -> AsyncIterator[Claim]:
        """Takes a thing until the block ends. Raises Claimed if another task has it.

        A task that has not proceeded for `patience_s` is cancelled first, and raises Claimed out of its own block: the
        connection that it waits for may be dead, and its client may have come back on another one.
        """
        while (other := self._held.get(key)) is not None:
            if trio.current_time() - other._moved_at < patience_s:
                raise Claimed
            other._scope.cancel()
            await other._released.wait()
        claim = self._held[key] = Claim()
        try:
            with claim._scope:
                yield claim
            if claim._scope.cancelled_caught:
                raise Claimed
        finally:
            del self._held[key]
            claim._released.set()
