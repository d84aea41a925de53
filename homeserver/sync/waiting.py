"""What both shapes of sync do around an answer: let features write first, and wait for news."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from homeserver.database.cache import Cache
from homeserver.feature import PresenceState, SyncStart
from homeserver.resources import Resources
from homeserver.sync.sections import Sections, look_ahead, write_before

USERS_REMEMBERED_MAX = 10_000


class Answer(Protocol):
    """An answer, the position that it covers, and the keys to wait for if it has no news."""

    @property
    def upto(self) -> int: ...

    @property
    def has_news(self) -> bool: ...

    @property
    def keys(self) -> frozenset[str]: ...


A = TypeVar("A", bound=Answer)


async def wait_for_news(
    hs: Resources,
    answer: A,
    read: Callable[[], Awaitable[A]],
    deadline: float,
    wait_ended: Callable[[], Awaitable[None]],
) -> A:
    """Returns the answer if it has news, otherwise the first one with news, or at the trio time `deadline` the last.

    read: reads the answer again. wait_ended: raises when nobody waits for the answer any more.
    """
    while not answer.has_news and trio.current_time() < deadline:
        position = await hs.stream.wait(answer.keys, answer.upto, deadline, wait_ended)
        if position <= answer.upto:
            break
        answer = await read()
    return answer


class Preparation:
    """What features do when a sync starts. It remembers for how long there will be nothing to write."""

    def __init__(self, sections: Sections) -> None:
        self.before = sections.before
        self._acknowledged = sections.acknowledged
        # (user ID, device ID) → (set_presence, the position at which nothing was due, how long it stays so)
        self._idle = Cache(USERS_REMEMBERED_MAX)

    def acknowledge(self, hs: Resources, start: SyncStart) -> None:
        """Tells features that the device has everything up to `start.since`."""
        if start.since > 0:
            for acknowledged in self._acknowledged:
                acknowledged(hs, start)

    async def is_due(self, hs: Resources, start: SyncStart) -> bool:
        """Returns whether a feature has something to write first, usually without a read. It also acknowledges."""
        self.acknowledge(hs, start)
        if not self.before:
            return False
        device = (start.user_id, start.device_id)
        idle: tuple[PresenceState, int, float] | None = self._idle.get(device)
        if idle is not None and idle[0] == start.set_presence and trio.current_time() < idle[2]:
            if not hs.stream.has_news((start.user_id,), idle[1]):
                return False
        position = hs.stream.position
        due, idle_ms = await hs.database.read(look_ahead, self.before, start)
        if idle_ms > 0:
            self._idle.put(device, (start.set_presence, position, trio.current_time() + idle_ms / 1000))
        return due

    async def write(self, hs: Resources, start: SyncStart) -> None:
        """Writes what is due. While the database takes no writes, it does nothing."""
        await hs.database.note(write_before, self.before, start)
