"""Cache: a bounded map, shared by all threads, for values that never change or whose key carries their version."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any


class Cache:
    """`get` needs no lock, because a dict lookup is atomic. When it is full, the oldest quarter is dropped."""

    __slots__ = ("_limit", "_lock", "_values", "get")

    def __init__(self, limit: int) -> None:
        self._values: dict[Hashable, Any] = {}
        self.get = self._values.get
        self._limit = limit
        self._lock = threading.Lock()

    def put(self, key: Hashable, value: Any) -> Any:
        """Remembers `value` and returns it."""
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._limit:
                for oldest in list(self._values)[: self._limit // 4]:
                    del self._values[oldest]
        return value

    def forget(self, key: Hashable) -> None:
        """Drops the key if it is present."""
        with self._lock:
            self._values.pop(key, None)


class SizedCache:
    """The same for values of very different sizes: limited by bytes, not by their number.

    New values go into the young half. When that is full, it becomes the old half, and the old half is dropped. A value
    found in the old half returns to the young one, so values in use stay.
    """

    __slots__ = ("_half", "_lock", "_old", "_young", "_young_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._half = limit_bytes // 2
        self._young: dict[Hashable, tuple[Any, int]] = {}
        self._old: dict[Hashable, tuple[Any, int]] = {}
        self._young_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """Returns the value, None if it is not here."""
        entry = self._young.get(key)
        if entry is None:
            entry = self._old.get(key)
            if entry is None:
                return None
            self.put(key, *entry)
        return entry[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Remembers `value`, which takes about `size` bytes."""
        with self._lock:
            replaced = self._young.get(key)
            self._young[key] = (value, size)
            self._young_bytes += size - (0 if replaced is None else replaced[1])
            if self._young_bytes > self._half:
                self._old, self._young, self._young_bytes = self._young, {}, 0


class Caches:
    """The caches of one database by name. Each is created when it is first asked for."""

    __slots__ = ("_by_name", "_sized")

    def __init__(self) -> None:
        self._by_name: dict[str, Cache] = {}
        self._sized: dict[str, SizedCache] = {}

    def named(self, name: str, limit: int) -> Cache:
        """Returns the cache `name`, which holds at most `limit` entries."""
        cache = self._by_name.get(name)
        return cache if cache is not None else self._by_name.setdefault(name, Cache(limit))

    def sized(self, name: str, limit_bytes: int) -> SizedCache:
        """Returns the cache `name`, whose values take at most `limit_bytes` together."""
        cache = self._sized.get(name)
        return cache if cache is not None else self._sized.setdefault(name, SizedCache(limit_bytes))
