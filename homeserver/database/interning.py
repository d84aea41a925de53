"""Interning: identifiers are stored as small integers. This caches both directions for all threads.

Only committed pairs enter the caches. Otherwise a rolled-back write could leave a number behind that the engine later
gives to another string. Strings are never deleted, so cached pairs stay true.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from homeserver.database.cache import Caches
from homeserver.errors import invalid_param
from homeserver.limits import INTERNED_STRING_MAX_BYTES, INTERNED_STRINGS_CACHED_MAX


def check_string(value: str) -> str:
    """Returns `value` if every engine can store it. Raises MatrixError 400 M_INVALID_PARAM otherwise.

    It cannot be stored if it contains NUL or lone surrogates, or is too long.
    """
    if "\0" in value:
        raise invalid_param("A string contains a NUL character, which cannot be stored.")
    try:
        encoded_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise invalid_param("A string contains a lone surrogate, which is not a character.") from None
    if encoded_bytes > INTERNED_STRING_MAX_BYTES:
        raise invalid_param(f"An identifier is longer than {INTERNED_STRING_MAX_BYTES} bytes.")
    return value


class StringCache:
    """A bounded cache, shared by all threads of a database. Reads need no lock: a dict lookup is atomic."""

    __slots__ = ("_limit", "_lock", "caches", "names", "nids")

    def __init__(self, limit: int = INTERNED_STRINGS_CACHED_MAX) -> None:
        self.nids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.caches = Caches()  # caches for other modules: see Transaction.cache
        self._lock = threading.Lock()
        self._limit = limit

    def drop_caches(self) -> None:
        """Replaces the caches of other modules by empty ones."""
        self.caches = Caches()

    def add(self, committed: Mapping[str, int]) -> None:
        """Adds committed pairs. Forgets the oldest ones when there are too many."""
        with self._lock:
            for value, nid in committed.items():
                self.nids[value] = nid
                self.names[nid] = value
            while len(self.names) > self._limit:
                oldest = next(iter(self.names))
                self.nids.pop(self.names.pop(oldest), None)
