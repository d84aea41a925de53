"""Acknowledged: how far devices have said that they have everything, until a background task has made receipts of it.

Theory of operation. The token of a sync, and an ack of a socket, says that a device has everything up to a position.
`note` keeps the highest position of each user. That is one comparison in memory, so it costs the same with a message as
without, and a user with many acks within a moment is one entry. The task that stores receipts waits until there is an
entry, lets others come together, and takes all of them at once. Up to which position it has looked is remembered, so
the next ack of the user reads only what came since. That is known of nobody after a restart.

Used on the trio thread only. What is lost in a crash is said again by the next sync.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import trio

from homeserver.federation.identifiers import UserID

USERS_REMEMBERED_MAX = 100_000


class Ack(NamedTuple):
    """A device of a user has everything up to a position of the stream, as it said at ts_ms."""

    position: int
    ts_ms: int


class Acknowledged(msgspec.Struct):
    """The acks of this process that are not receipts yet."""

    _acks: dict[UserID, Ack] = msgspec.field(default_factory=dict)
    _done: OrderedDict[UserID, int] = msgspec.field(default_factory=OrderedDict)
    _noted: trio.Event = msgspec.field(default_factory=trio.Event)

    def note(self, user_id: UserID, position: int, ts_ms: int) -> None:
        """Notes an ack, unless one of the user's devices was already that far."""
        if position <= self._done.get(user_id, 0):
            return
        waiting = self._acks.get(user_id)
        if waiting is None or position > waiting.position:
            self._acks[user_id] = Ack(position, ts_ms)
            self._noted.set()

    async def wait(self) -> None:
        """Returns as soon as there is an ack."""
        await self._noted.wait()

    def take(self) -> dict[UserID, Ack]:
        """Returns and drops all acks."""
        acks, self._acks, self._noted = self._acks, {}, trio.Event()
        return acks

    def find_done(self, user_ids: Iterable[UserID]) -> dict[UserID, int]:
        """Returns up to which position the users' acks have become receipts, if it is known."""
        return {user_id: self._done[user_id] for user_id in user_ids if user_id in self._done}

    def note_done(self, user_id: UserID, position: int) -> None:
        """Notes that the user's acks up to a position have become receipts."""
        self._done[user_id] = max(position, self._done.pop(user_id, 0))
        if len(self._done) > USERS_REMEMBERED_MAX:
            self._done.popitem(last=False)
