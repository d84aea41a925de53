"""Stream: every change that someone may wait for has a position; this wakes who waits.

The database calls `notify` after each commit. A waiter names keys (user ids, room ids …) and the position it has read
up to; whatever was notified after that position wakes it at once, so nothing can fall between reading and waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

import trio

from homeserver.limits import STREAM_KEYS_REMEMBERED_MAX


class _Waiter:
    __slots__ = ("after", "event")

    def __init__(self, after: int) -> None:
        self.after = after
        self.event = trio.Event()


class Stream:
    """Used on the trio thread only."""

    def __init__(self, position: int = 0) -> None:
        self._position = position
        # The last position of each key that was notified lately. Two generations: when the younger is full the older is
        # forgotten, and `_floor` is the position up to which a key's changes may have been forgotten.
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._floor = position
        self._young_since = position
        self._waiters: dict[str, set[_Waiter]] = {}
        self._followers: set[_Waiter] = set()
        self._waiting = 0

    @property
    def position(self) -> int:
        """The position of the last change that is committed."""
        return self._position

    @property
    def waiting(self) -> int:
        """How many wait for news of their keys."""
        return self._waiting

    def notify(self, position: int, keys: Iterable[str]) -> None:
        """Tells that changes up to `position` are committed, of which `keys` have news. Never blocks."""
        if position > self._position:
            self._position = position
        for key in keys:
            self._young[key] = max(position, self._young.get(key, 0))
            for waiter in self._waiters.get(key, ()):
                if position > waiter.after:
                    waiter.event.set()
        for follower in self._followers:
            follower.event.set()
        if len(self._young) > STREAM_KEYS_REMEMBERED_MAX:
            self._old, self._young = self._young, {}
            self._floor, self._young_since = self._young_since, self._position

    def notify_all(self, position: int) -> None:
        """Wakes everyone: it is not known which keys have news up to `position`."""
        self._position = max(position, self._position)
        self._young, self._old = {}, {}
        self._floor = self._young_since = self._position
        for waiters in self._waiters.values():
            for waiter in waiters:
                if position > waiter.after:
                    waiter.event.set()
        for follower in self._followers:
            follower.event.set()

    def has_news(self, keys: Iterable[str], after: int) -> bool:
        """Whether something may have happened to one of `keys` after the position `after`."""
        if after >= self._position:
            return False
        if after < self._floor:
            return True
        return any(self._young.get(key, 0) > after or self._old.get(key, 0) > after for key in keys)

    async def wait(self, keys: Collection[str], after: int, deadline: float) -> int:
        """Waits for news of one of `keys` after position `after`, until the trio time `deadline`.

        Answers the stream's position, > `after`; or `after` if there was no news. Pass as `after` the position that you
        have read up to, not the one you began from. News may turn out to be nothing: read, and wait again.
        """
        await trio.lowlevel.checkpoint()
        if self.has_news(keys, after):
            return self._position
        waiter = _Waiter(after)
        for key in keys:
            self._waiters.setdefault(key, set()).add(waiter)
        self._waiting += 1
        try:
            with trio.move_on_at(deadline):
                await waiter.event.wait()
        finally:
            self._waiting -= 1
            for key in keys:
                waiters = self._waiters.get(key)
                if waiters is not None:
                    waiters.discard(waiter)
                    if not waiters:
                        del self._waiters[key]
        return self._position if self.has_news(keys, after) else after

    @asynccontextmanager
    async def subscribe_all(self) -> AsyncIterator[Subscription]:
        """Gives a Subscription that is told of every change, whatever its keys."""
        waiter = _Waiter(0)
        self._followers.add(waiter)
        try:
            yield Subscription(self, waiter)
        finally:
            self._followers.discard(waiter)


class Subscription:
    """Follows the whole stream. Several changes may be told as one."""

    __slots__ = ("_stream", "_waiter")

    def __init__(self, stream: Stream, waiter: _Waiter) -> None:
        self._stream = stream
        self._waiter = waiter

    async def wait(self, after: int) -> int:
        """Waits until the stream is past `after`; answers its position."""
        await trio.lowlevel.checkpoint()
        while self._stream.position <= after:
            self._waiter.event = trio.Event()
            await self._waiter.event.wait()
        return self._stream.position
