"""Heartbeats: when each person last showed a sign of life, and at which node. The distributed cache of user status.

Theory of operation. Every request with an access token is a heartbeat of its user, a sync and a frame of a socket
included. That happens too often for a database: `note` is two assignments in memory. Once a minute a background task
takes what has changed (`list_unstored`), stores all of it in a few writes, and says so (`note_stored`); only then does
an entry leave the memory. So a status is computed from memory if there is an entry, and from the database otherwise. A
crash loses the last minute.

`Heartbeats` is what the rest of the server knows. `LocalHeartbeats` keeps the entries of one process. Several nodes
need an implementation that shares them; the node of an entry says where a person's connections are.

`note` and `find` are called on the trio thread and on the threads of the database. Each is a single step of a dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec

from homeserver.federation.identifiers import UserID


class Heartbeat(NamedTuple):
    """The last sign of life of a user: the node that noticed it, and when."""

    node: str
    ts_ms: int


class Heartbeats(Protocol):
    """The last heartbeat of each user, as far as it is not in the database yet."""

    def note(self, user_id: UserID, ts_ms: int) -> None:
        """Notes a heartbeat at this node. It must not block."""

    def find(self, user_id: UserID) -> Heartbeat | None:
        """Returns the last heartbeat, None if the database has it, or if there was none."""

    def list_unstored(self, limit: int) -> dict[UserID, int]:
        """Returns the times of up to `limit` users' last heartbeats at this node, for the task that stores them."""

    def note_stored(self, stored: Mapping[UserID, int]) -> None:
        """Drops the entries that are stored, unless they are newer than what was stored."""

    def forget(self, user_id: UserID) -> None:
        """Drops the entry of a user whose account ends."""


class LocalHeartbeats(msgspec.Struct):
    """The heartbeats of one process. It holds the users of the last minute, some 100 bytes for each."""

    node: str = "local"
    _last: dict[UserID, int] = msgspec.field(default_factory=dict)

    def note(self, user_id: UserID, ts_ms: int) -> None:
        """Notes a heartbeat."""
        self._last[user_id] = ts_ms

    def find(self, user_id: UserID) -> Heartbeat | None:
        """Returns the last heartbeat that is not stored yet."""
        ts_ms = self._last.get(user_id)
        return None if ts_ms is None else Heartbeat(self.node, ts_ms)

    def list_unstored(self, limit: int) -> dict[UserID, int]:
        """Returns the times of up to `limit` users' last heartbeats."""
        return dict(islice(self._last.copy().items(), limit))

    def note_stored(self, stored: Mapping[UserID, int]) -> None:
        """Drops the entries that are stored, unless there was another heartbeat meanwhile."""
        for user_id, ts_ms in stored.items():
            if self._last.get(user_id) == ts_ms:
                del self._last[user_id]

    def forget(self, user_id: UserID) -> None:
        """Drops the entry of a user."""
        self._last.pop(user_id, None)
