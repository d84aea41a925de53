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


class Caches:
    """The caches of one database by name. Each is created when it is first asked for."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Cache] = {}

    def named(self, name: str, limit: int) -> Cache:
        """Returns the cache `name`, which holds at most `limit` entries."""
        cache = self._by_name.get(name)
        return cache if cache is not None else self._by_name.setdefault(name, Cache(limit))
