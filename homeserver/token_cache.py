"""TokenCache: access tokens that were looked up lately, so that a request need not read the database for its token."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from homeserver import limits

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Seen:
    """The last request of a device."""

    ts_ms: int
    ip: str
    user_agent: str


@dataclass(slots=True)
class TokenCache(Generic[Value]):
    """Used on the trio thread only. Bounded in entries and in age.

    `generation` changes with every deletion: what was read before one must not be stored after it.
    """

    generation: int = 0
    _entries: OrderedDict[bytes, tuple[int, str, Value]] = field(default_factory=OrderedDict)
    _of_user: dict[str, set[bytes]] = field(default_factory=dict)
    _seen: dict[tuple[str, str], Seen] = field(default_factory=dict)

    def get(self, token_hash: bytes, now_ms: int) -> Value | None:
        """What was stored for the token, unless that is too long ago."""
        entry = self._entries.get(token_hash)
        if entry is None or now_ms - entry[0] > limits.TOKEN_CACHE_AGE_MS_MAX:
            return None
        return entry[2]

    def put(self, token_hash: bytes, user_id: str, value: Value, *, now_ms: int, generation: int) -> None:
        """Remembers a lookup that began at `generation`."""
        if generation != self.generation:
            return
        self._entries[token_hash] = (now_ms, user_id, value)
        self._of_user.setdefault(user_id, set()).add(token_hash)
        while len(self._entries) > limits.TOKEN_CACHE_ENTRIES_MAX:
            self._drop(next(iter(self._entries)))

    def forget_user(self, user_id: str) -> None:
        """Drops every token of the user."""
        self.generation += 1
        for token_hash in tuple(self._of_user.get(user_id, ())):
            self._drop(token_hash)

    def note_seen(self, user_id: str, device_id: str, seen: Seen) -> None:
        """Remembers the last request of a device until `take_seen`."""
        if len(self._seen) < limits.TOKEN_CACHE_ENTRIES_MAX or (user_id, device_id) in self._seen:
            self._seen[user_id, device_id] = seen

    def last_seen(self, user_id: str, device_id: str) -> Seen | None:
        """The last request of a device, None where there was none since the last `take_seen`."""
        return self._seen.get((user_id, device_id))

    def take_seen(self) -> dict[tuple[str, str], Seen]:
        """The last request of each device since the last call; for whoever stores devices."""
        seen, self._seen = self._seen, {}
        return seen

    def _drop(self, token_hash: bytes) -> None:
        entry = self._entries.pop(token_hash, None)
        if entry is not None:
            hashes = self._of_user[entry[1]]
            hashes.discard(token_hash)
            if not hashes:
                del self._of_user[entry[1]]
