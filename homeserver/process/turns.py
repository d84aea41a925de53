"""Turns: how many tasks ask other servers at the same time, without those that get no answer holding up the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Turns:
    """A number of tasks at a time, in the order in which they came. One that takes longer no longer counts."""

    __slots__ = ("_free", "_patience_s")

    def __init__(self, number: int, patience_s: float) -> None:
        self._free = trio.CapacityLimiter(number)
        self._patience_s = patience_s

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Waits for a turn, which lasts until the block ends or patience does."""
        turn, over = object(), trio.Event()
        await self._free.acquire_on_behalf_of(turn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._release_after, turn, over)
            yield
            over.set()

    async def _release_after(self, turn: object, over: trio.Event) -> None:
        try:
            with trio.move_on_after(self._patience_s):
                await over.wait()
        finally:
            self._free.release_on_behalf_of(turn)
