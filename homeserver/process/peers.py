"""Peers: what this process knows about other servers: their keys, and which of them do not answer.

None of it needs to outlive the process. Whatever does is in the tables of `homeserver/remote/`.

Theory of operation: back-off and shares
- After a failed request a server is in back-off until `BackOff.retry_after_ms`, see `back_off.py`. Any sign of life
  (`note_contact`) ends the back-off.
- Background requests are not sent to a server in back-off. A request that a person waits for is tried anyway, once
  every EARLY_ATTEMPT_MS. If it fails, the back-off does not get longer.
- Every outgoing request has a `Cause`. Requests caused by other servers, and by strangers who have not proved who they
  are, get a fixed share of the connections (`Shares`). So no cause can use up the connections of the others, and
  requests that people wait for never queue behind those that other servers trigger.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import msgspec
import trio
from msgspec.structs import replace

from homeserver import limits
from homeserver.federation.identifiers import RoomID, ServerName
from homeserver.federation.server_keys import VerifyKey
from homeserver.process.back_off import BackOff, after_failure


class KnownKeys(msgspec.Struct, frozen=True):
    """A server's keys by key ID. `current`: the keys of its newest statement, which may sign requests."""

    current: Mapping[str, VerifyKey]
    every: Mapping[str, VerifyKey]


Kind = Literal["person", "action", "delivery", "peer", "stranger"]


class Cause(msgspec.Struct, frozen=True):
    """Why we send a request to another server.

    kind: a "person" waits for the answer; "action" of a person, such as a join; "delivery" of our users' events; a
    "peer" sent us something that we need more data for; a "stranger" claims to be a server but has not proved it.
    who: the peer, or the stranger's address.
    """

    kind: Kind
    who: str = ""

    @property
    def is_exempt(self) -> bool:
        """Whether back-off does not apply: actions are rare, and deliveries have their own schedule."""
        return self.kind in ("action", "delivery")


PERSON = Cause("person")
ACTION = Cause("action")
DELIVERY = Cause("delivery")


def peer(origin: ServerName) -> Cause:
    """Returns the cause of a request that is needed to use something sent by `origin`."""
    return Cause("peer", origin)


def stranger(address: str) -> Cause:
    """Returns the cause of a request that an unidentified client at this address makes us send."""
    return Cause("stranger", address)


class Shares:
    """Limits on outgoing connections: for each cause, and for all causes of a kind together."""

    __slots__ = ("_kinds", "_members", "_users")

    def __init__(self) -> None:
        self._kinds: dict[str, trio.Semaphore] = {
            kind: trio.Semaphore(share.total) for kind, share in limits.peers.CONNECTION_SHARES.items()
        }
        self._members: dict[Cause, trio.Semaphore] = {}
        self._users: Counter[Cause] = Counter()

    @asynccontextmanager
    async def take(self, cause: Cause) -> AsyncIterator[None]:
        """Waits until the cause may use another connection, and holds it."""
        share = limits.peers.CONNECTION_SHARES.get(cause.kind)
        if share is None:
            yield
            return
        member = self._members.setdefault(cause, trio.Semaphore(share.each))
        self._users[cause] += 1
        try:
            async with member, self._kinds[cause.kind]:
                yield
        finally:
            self._users[cause] -= 1
            if not self._users[cause]:
                del self._users[cause], self._members[cause]

    def using(self, cause: Cause) -> int:
        """Returns how many requests of the cause are running or waiting."""
        return self._users[cause]


class Locks:
    """Locks by name. A lock exists as long as someone holds it or waits for it."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[Hashable, trio.Lock] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Holds the lock `key`. Waiters get it in order."""
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
        """Returns whether someone holds the lock."""
        return key in self._locks

    def waiting(self, key: Hashable) -> int:
        """Returns how many tasks wait for the lock."""
        lock = self._locks.get(key)
        return 0 if lock is None else lock.statistics().tasks_waiting


class Peers(msgspec.Struct):
    """Used on the trio thread only."""

    locks: Locks = msgspec.field(default_factory=Locks)
    shares: Shares = msgspec.field(default_factory=Shares)
    _back_offs: OrderedDict[ServerName, BackOff] = msgspec.field(default_factory=OrderedDict)
    _keyless: OrderedDict[ServerName, int] = msgspec.field(default_factory=OrderedDict)
    _keys: OrderedDict[ServerName, KnownKeys] = msgspec.field(default_factory=OrderedDict)
    _awaited: set[ServerName] = msgspec.field(default_factory=set)
    _heard: set[ServerName] = msgspec.field(default_factory=set)
    _news: trio.Event = msgspec.field(default_factory=trio.Event)
    _seen: set[ServerName] | None = None  # None as long as nobody asks (`wait_seen`)
    _seen_news: trio.Event = msgspec.field(default_factory=trio.Event)
    _expecting: OrderedDict[ServerName, set[RoomID]] = msgspec.field(default_factory=OrderedDict)
    _rooms_heard: set[RoomID] = msgspec.field(default_factory=set)
    _room_news: trio.Event = msgspec.field(default_factory=trio.Event)

    def find_keys(self, server: ServerName) -> KnownKeys | None:
        """Returns the remembered keys of a server, or None."""
        known = self._keys.get(server)
        if known is not None:
            self._keys.move_to_end(server)
        return known

    def remember_keys(self, server: ServerName, known: KnownKeys) -> None:
        """Remembers a server's keys. The least recently used ones are forgotten."""
        self._keys[server] = known
        self._keys.move_to_end(server)
        while len(self._keys) > limits.peers.KEYS_CACHED_SERVERS_MAX:
            self._keys.popitem(last=False)

    def note_keyless(self, server: ServerName, now_ms: int) -> None:
        """Notes that the server answered but lacked a key that we wanted."""
        self._keyless.pop(server, None)
        self._keyless[server] = now_ms
        while len(self._keyless) > limits.peers.BACK_OFFS_MAX:
            self._keyless.popitem(last=False)

    def is_keyless(self, server: ServerName, now_ms: int) -> bool:
        """Returns whether the server was asked for keys so recently that asking again would be useless."""
        at_ms = self._keyless.get(server)
        return at_ms is not None and 0 <= now_ms - at_ms < limits.peers.KEY_RETRY_MS

    # Back-off

    def find_back_off(self, server: ServerName) -> BackOff | None:
        """Returns the back-off state of a server, or None if it has not failed."""
        return self._back_offs.get(server)

    def count_back_offs(self, now_ms: int) -> int:
        """Returns how many servers are in back-off."""
        return sum(not back_off.is_over(now_ms) for back_off in self._back_offs.values())

    def set_back_off(self, server: ServerName, back_off: BackOff) -> None:
        """Sets the back-off state of a server. The oldest ones are forgotten when there are too many."""
        self._back_offs.pop(server, None)
        self._back_offs[server] = back_off
        while len(self._back_offs) > limits.peers.BACK_OFFS_MAX:
            self._back_offs.popitem(last=False)

    def is_backing_off(self, server: ServerName, now_ms: int) -> bool:
        """Returns whether no background requests should be sent to the server."""
        back_off = self._back_offs.get(server)
        return back_off is not None and not back_off.is_over(now_ms)

    def admit(self, server: ServerName, now_ms: int, cause: Cause) -> bool:
        """Returns whether a request may be sent now. Notes an early attempt, so that the next one has to wait."""
        back_off = self._back_offs.get(server)
        if back_off is None or back_off.is_over(now_ms) or cause.is_exempt:
            return True
        interval_ms = limits.peers.EARLY_ATTEMPT_MS.get(cause.kind)
        if interval_ms is None or 0 <= now_ms - back_off.tried_ms < interval_ms:
            return False
        self._back_offs[server] = replace(back_off, tried_ms=now_ms)
        return True

    def note_failure(self, own: ServerName, server: ServerName, now_ms: int) -> BackOff:
        """Notes that the server did not answer. A failure during its back-off does not extend it."""
        after = after_failure(self._back_offs.get(server), own, server, now_ms)
        self.set_back_off(server, after)
        return after

    def note_contact(self, server: ServerName) -> None:
        """Notes that the server has shown a sign of life. Its back-off ends, and its waiters are told."""
        self._back_offs.pop(server, None)
        if self._seen is not None:
            self._seen.add(server)
            self._seen_news.set()
        if server in self._awaited:
            self._awaited.discard(server)
            self._heard.add(server)
            self._news.set()
        rooms = self._expecting.pop(server, None)
        if rooms:
            self._rooms_heard |= rooms
            self._room_news.set()

    def await_contact(self, server: ServerName) -> None:
        """Makes `wait_heard` return the server once it shows a sign of life."""
        self._awaited.add(server)

    async def wait_seen(self) -> set[ServerName]:
        """Waits until some servers, whichever, have shown a sign of life since the last call. Returns these."""
        if self._seen is None:
            self._seen = set()
        await self._seen_news.wait()
        self._seen_news = trio.Event()
        seen, self._seen = self._seen, set()
        return seen

    def expect(self, room_id: RoomID, servers: Iterable[ServerName], now_ms: int) -> None:
        """Makes `wait_rooms` return the room once one of these servers that is in back-off shows a sign of life."""
        for server in servers:
            if self.is_backing_off(server, now_ms):
                self._expecting.setdefault(server, set()).add(room_id)
        while len(self._expecting) > limits.peers.SERVERS_EXPECTED_MAX:
            self._expecting.popitem(last=False)

    def note_parked(self) -> None:
        """Ends a `wait_rooms`: events have been parked and must be retried from time to time."""
        self._room_news.set()

    async def wait_rooms(self, timeout_s: float) -> set[RoomID]:
        """Waits until an expected server shows a sign of life, or for `timeout_s`. Returns the rooms that expect it."""
        with trio.move_on_after(timeout_s):
            await self._room_news.wait()
        self._room_news = trio.Event()
        heard, self._rooms_heard = self._rooms_heard, set()
        return heard

    async def wait_heard(self) -> set[ServerName]:
        """Waits until some of the awaited servers have shown a sign of life. Returns these."""
        await self._news.wait()
        self._news = trio.Event()
        heard, self._heard = self._heard, set()
        return heard
