"""Presence that came too early: of people with whom no user of this server shares a room yet.

Theory of operation. A server that has accepted a join tells the presence of the room's members at once, often before
we have read its answer to the join. Dropped, it would not be told again before it changes. So it is kept for a moment,
and stored if the people share a room with ours by then. It is bounded, and lost with the process: presence is repeated.

Used on the trio thread only.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec
import trio

from homeserver.federation.identifiers import UserID

# 5 MB, if all updates have the longest status messages.
UPDATES_MAX = 1_000
KEPT_MS = 120 * 1000  # a join of a large room takes a minute

T = TypeVar("T")


class EarlyPresence(msgspec.Struct, Generic[T]):
    """The latest update of each person, with the time when it came."""

    _updates: dict[UserID, tuple[int, T]] = msgspec.field(default_factory=dict)
    _noted: trio.Event = msgspec.field(default_factory=trio.Event)

    def note(self, user_id: UserID, update: T, now_ms: int) -> None:
        """Keeps an update for a moment, instead of the oldest one if there are too many."""
        self._updates.pop(user_id, None)
        if len(self._updates) >= UPDATES_MAX:
            del self._updates[next(iter(self._updates))]
        self._updates[user_id] = (now_ms, update)
        self._noted.set()

    async def wait(self) -> None:
        """Returns as soon as there is an update."""
        if not self._updates:
            self._noted = trio.Event()
            await self._noted.wait()

    def list_kept(self, now_ms: int) -> list[UserID]:
        """Returns whose updates are kept. Drops those that are too old, also if the clock was set back."""
        self._updates = {
            user_id: (at_ms, update)
            for user_id, (at_ms, update) in self._updates.items()
            if at_ms <= now_ms < at_ms + KEPT_MS
        }
        return list(self._updates)

    def take(self, user_id: UserID, now_ms: int) -> tuple[T, int] | None:
        """Returns an update and its age in ms, and drops it; None if there is none any more."""
        at_ms, update = self._updates.pop(user_id, (0, None))
        return None if update is None else (update, max(0, now_ms - at_ms))
