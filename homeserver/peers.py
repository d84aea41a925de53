"""Peers: what this process knows of other servers at the moment: their keys, and which of them do not answer.

Nothing of it need outlive the process; what does is in the tables of `homeserver/remote/`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from homeserver.federation.identifiers import ServerName
from homeserver.federation.server_keys import VerifyKey
from homeserver.limits import KEYS_CACHED_SERVERS_MAX, STANDINGS_MAX


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """A server's keys by key ID. `current`: those of its newest statement, by which it may sign requests."""

    current: Mapping[str, VerifyKey]
    every: Mapping[str, VerifyKey]


@dataclass(frozen=True, slots=True)
class Standing:
    """A server that does not answer: failures in a row, when they began, and until when it is left alone."""

    failures: int
    since_ms: int
    retry_after_ms: int


class Locks:
    """Locks by name; one exists as long as someone holds it or waits for it."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[Hashable, trio.Lock] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Holds the lock `key`, which is given to those who wait in their order."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = trio.Lock()
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(key, None)

    def is_held(self, key: Hashable) -> bool:
        """Whether someone holds the lock now."""
        return key in self._locks

    def waiting(self, key: Hashable) -> int:
        """How many wait for the lock."""
        lock = self._locks.get(key)
        return 0 if lock is None else lock.statistics().tasks_waiting


@dataclass(slots=True)
class Peers:
    """Used on the trio thread only."""

    locks: Locks = field(default_factory=Locks)
    standings: OrderedDict[ServerName, Standing] = field(default_factory=OrderedDict)
    key_standings: OrderedDict[ServerName, Standing] = field(default_factory=OrderedDict)
    _keys: OrderedDict[ServerName, KnownKeys] = field(default_factory=OrderedDict)
    _awaited: set[ServerName] = field(default_factory=set)
    _heard: set[ServerName] = field(default_factory=set)
    _news: trio.Event = field(default_factory=trio.Event)

    def find_keys(self, server: ServerName) -> KnownKeys | None:
        """The keys that are remembered."""
        known = self._keys.get(server)
        if known is not None:
            self._keys.move_to_end(server)
        return known

    def remember_keys(self, server: ServerName, known: KnownKeys) -> None:
        """Remembers keys; those least recently used are forgotten."""
        self._keys[server] = known
        self._keys.move_to_end(server)
        while len(self._keys) > KEYS_CACHED_SERVERS_MAX:
            self._keys.popitem(last=False)

    def is_left_alone(self, server: ServerName, now_ms: int) -> bool:
        """Whether the server has failed so lately that nothing should be asked of it."""
        standing = self.standings.get(server)
        return standing is not None and now_ms < standing.retry_after_ms

    def note_contact(self, server: ServerName) -> None:
        """The server has shown that it is there: who awaits it is told, and it is no longer left alone."""
        self.standings.pop(server, None)
        if server in self._awaited:
            self._awaited.discard(server)
            self._heard.add(server)
            self._news.set()

    def await_contact(self, server: ServerName) -> None:
        """Asks that `wait_heard` names the server once it shows itself."""
        self._awaited.add(server)

    async def wait_heard(self) -> set[ServerName]:
        """Waits until some of the awaited servers have shown themselves; answers which."""
        await self._news.wait()
        self._news = trio.Event()
        heard, self._heard = self._heard, set()
        return heard


def note_failure(
    standings: OrderedDict[ServerName, Standing], server: ServerName, now_ms: int, delay_ms: int
) -> Standing:
    """Notes one failure more in `standings`: the server is left alone for `delay_ms`."""
    before = standings.pop(server, None)
    failures = 1 if before is None else before.failures + 1
    since_ms = now_ms if before is None else before.since_ms
    standing = standings[server] = Standing(failures, since_ms, now_ms + delay_ms)
    while len(standings) > STANDINGS_MAX:
        standings.popitem(last=False)
    return standing
