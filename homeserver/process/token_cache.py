"""TokenCache: recently used access tokens, so that requests need not read the database for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, TypeVar

import msgspec

from homeserver import limits

Value = TypeVar("Value")
MayHaveChanged = Callable[[Collection[str], int], bool]
"""`Stream.may_have_changed`: whether one of these keys may have changed after a position."""


class Seen(msgspec.Struct, frozen=True):
    """The last request of a device."""

    ts_ms: int
    ip: str
    user_agent: str


def tokens_key(user_id: str) -> str:
    """Returns the stream key that is woken when one of the user's tokens ends or the account's flags change."""
    return f"tokens/{user_id}"


class _Entry(NamedTuple, Generic[Value]):
    stored_ms: int
    user_id: str
    position: int
    value: Value


class TokenCache(msgspec.Struct, Generic[Value]):
    """Used on the trio thread only. Limited in size, and entries expire.

    An entry carries the stream position before it was read. A transaction that ends tokens or changes an account, on
    any node, wakes the user's `tokens_key`. Entries from before that are not used any more. None is used while the
    stream may lack what other nodes have committed some seconds ago.
    """

    _entries: OrderedDict[bytes, _Entry[Value]] = msgspec.field(default_factory=OrderedDict)
    _of_user: dict[str, set[bytes]] = msgspec.field(default_factory=dict)
    _seen: dict[tuple[str, str], Seen] = msgspec.field(default_factory=dict)

    def get(self, token_hash: bytes, now_ms: int, may_have_changed: MayHaveChanged) -> Value | None:
        """Returns the entry of the token, or None if it is too old or may have changed."""
        entry = self._entries.get(token_hash)
        if entry is None or not 0 <= now_ms - entry.stored_ms <= limits.TOKEN_CACHE_AGE_MS_MAX:
            return None
        return None if may_have_changed((tokens_key(entry.user_id),), entry.position) else entry.value

    def put(self, token_hash: bytes, user_id: str, value: Value, *, now_ms: int, position: int) -> None:
        """Stores a lookup. position: the stream position before the database was read."""
        self._entries[token_hash] = _Entry(now_ms, user_id, position, value)
        self._of_user.setdefault(user_id, set()).add(token_hash)
        while len(self._entries) > limits.TOKEN_CACHE_ENTRIES_MAX:
            self._drop(next(iter(self._entries)))

    def forget_user(self, user_id: str) -> None:
        """Drops all tokens of the user."""
        for token_hash in tuple(self._of_user.get(user_id, ())):
            self._drop(token_hash)

    def note_seen(self, user_id: str, device_id: str, seen: Seen) -> None:
        """Remembers the last request of a device until `take_seen`."""
        if len(self._seen) < limits.TOKEN_CACHE_ENTRIES_MAX or (user_id, device_id) in self._seen:
            self._seen[user_id, device_id] = seen

    def last_seen(self, user_id: str, device_id: str) -> Seen | None:
        """Returns the last request of a device, None if there was none since the last `take_seen`."""
        return self._seen.get((user_id, device_id))

    def forget_seen(self, user_id: str) -> None:
        """Drops the last requests of the user's devices."""
        for key in [key for key in self._seen if key[0] == user_id]:
            del self._seen[key]

    def take_seen(self) -> dict[tuple[str, str], Seen]:
        """Returns and drops the last request of each device since the last call. For the task that stores them."""
        seen, self._seen = self._seen, {}
        return seen

    def _drop(self, token_hash: bytes) -> None:
        entry = self._entries.pop(token_hash, None)
        if entry is not None:
            hashes = self._of_user[entry.user_id]
            hashes.discard(token_hash)
            if not hashes:
                del self._of_user[entry.user_id]
