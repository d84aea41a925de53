"""Interning: identifiers are stored as small integers; this keeps both directions at hand for every thread.

Only what is committed enters the caches, so that a rolled-back write cannot leave a number behind that the engine
gives to another string later. Strings are never deleted, so what is in the caches stays true.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from homeserver.database.cache import Caches
from homeserver.errors import invalid_param
from homeserver.limits import INTERNED_STRING_MAX_BYTES, INTERNED_STRINGS_CACHED_MAX


def check_string(value: str) -> str:
    """`value` if every engine can store it; else MatrixError 400 M_INVALID_PARAM (NUL, lone surrogates, too long)."""
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
    """Bounded, shared by all threads of a database. Reads need no lock: a dict lookup is atomic."""

    __slots__ = ("_limit", "_lock", "caches", "names", "nids")

    def __init__(self, limit: int = INTERNED_STRINGS_CACHED_MAX) -> None:
        self.nids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.caches = Caches()  # of those who read the tables: see Transaction.cache
        self._lock = threading.Lock()
        self._limit = limit

    def add(self, committed: Mapping[str, int]) -> None:
        """Remembers pairs that are committed. The longest known are forgotten when there are too many."""
        with self._lock:
            for value, nid in committed.items():
                self.nids[value] = nid
                self.names[nid] = value
            while len(self.names) > self._limit:
                oldest = next(iter(self.names))
                self.nids.pop(self.names.pop(oldest), None)
