"""The sender: what our users do reaches the other servers of their rooms. Spec: server-server-api/#transactions

A tail of the stream. What it finds is handed to destinations in memory, and it is stored how far everything has been
delivered, so that after a crash the rest is found again. A destination that fails gets a row, which says up to where it
has everything: from then on it is left out, until it is tried again and reads what it lacks from the database. Hence
there is no queue, a message costs no row for each destination, and an idle destination costs nothing.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import trio

from homeserver import limits
from homeserver.encoding import to_json
from homeserver.feature import EduSource, JsonObject
from homeserver.federation.identifiers import ServerName
from homeserver.federation.transaction import EDUS_MAX, PDUS_MAX, build_transaction
from homeserver.peers import DELIVERY, BackOff
from homeserver.remote.destinations import (
    Batch,
    Item,
    collect,
    delete_destination,
    list_destinations,
    list_due,
    store_destination,
)
from homeserver.remote.requests import Unreachable, note_unreachable, path_to, send_signed
from homeserver.resources import Resources
from homeserver.tail import find_position, store_position

_log = logging.getLogger("homeserver.federation")

TAIL = "federation"
TRANSACTIONS_COUNTER = "homeserver_federation_transactions_sent_total"

# A peer that answers so does not want this very transaction, and will not want it next time.
_REFUSALS = frozenset({400, 405, 409, 410, 411, 413, 414, 415, 422})


@dataclass(slots=True)
class _Lag:
    """A destination that has not got everything. `acked`: up to where it has; `is_active`: it is catching up now.

    When it is tried next is a matter of its back-off (`homeserver.peers`); `tried_ms`: when it was tried last.
    """

    acked: int
    tried_ms: int = 0
    is_active: bool = False


@dataclass(slots=True)
class _Outbox:
    """What waits for a destination that gets everything as it comes. `overflowed_at`: from there on it was left out."""

    items: deque[Item] = field(default_factory=deque)
    overflowed_at: int | None = None


async def send(hs: Resources, sources: Sequence[EduSource]) -> None:
    """Sends, for ever. Where several nodes share the database, one of them does."""
    while hs.config.federation.enabled:
        async with hs.database.hold(f"tail {TAIL}"):
            try:
                await Sender(hs, sources).run()
            except Exception:  # whatever it is, the rest of the server can do without the sender for a while
                _log.exception("sending to other servers is interrupted")
                await trio.sleep(limits.SENDER_PAUSE_S)


class Sender:
    """One for as long as this node is the one that sends."""

    _nursery: trio.Nursery

    def __init__(self, hs: Resources, sources: Sequence[EduSource]) -> None:
        self._hs = hs
        self._sources = sources
        self._outboxes: dict[ServerName, _Outbox] = {}
        self._lags: dict[ServerName, _Lag] = {}
        # Destinations whose lag is not stored yet: up to where they have everything.
        self._unstored: dict[ServerName, int] = {}
        self._position = 0
        self._delivered = trio.Event()
        self._due = trio.Event()
        self._catch_ups = trio.CapacityLimiter(limits.CATCH_UPS_AT_ONCE_MAX)

    async def run(self) -> None:
        """Sends, for ever."""
        hs = self._hs
        position = await hs.database.read(find_position, TAIL)
        self._position = position or 0
        for server, (acked, back_off) in (await hs.database.read(list_destinations)).items():
            self._lags[server] = _Lag(acked)
            if back_off.failures:
                hs.peers.set_back_off(server, back_off)
            hs.peers.await_contact(server)
        hs.metrics.describe(TRANSACTIONS_COUNTER, "Transactions to other servers, and what became of them.")
        hs.metrics.gauge(
            "homeserver_federation_destinations_lagging",
            lambda: len(self._lags),
            "Servers that have not got everything.",
        )
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._store_positions)
            self._nursery.start_soon(self._hear)
            self._nursery.start_soon(self._retry)
            await self._follow()

    async def _follow(self) -> None:
        async with self._hs.stream.subscribe_all() as subscription:
            while True:
                committed = await subscription.wait(self._position)
                while self._position < committed:
                    upto = min(committed, self._position + limits.TAIL_SPAN_MAX)
                    found = await self._hs.database.read(
                        collect, self._hs.server_name, self._sources, self._position, upto
                    )
                    for server, items in found.items():
                        self._hand_over(server, items)
                    self._position = upto
                    self._delivered.set()

    def _hand_over(self, server: ServerName, items: Sequence[Item]) -> None:
        if server in self._lags:
            return  # it will read them when its turn comes
        outbox = self._outboxes.get(server)
        if outbox is None:
            outbox = self._outboxes[server] = _Outbox()
            self._nursery.start_soon(self._deliver, server, outbox)
        if outbox.overflowed_at is None and len(outbox.items) + len(items) > limits.OUTBOX_MAX:
            outbox.overflowed_at = items[0].position
        if outbox.overflowed_at is None:
            outbox.items.extend(items)

    async def _deliver(self, server: ServerName, outbox: _Outbox) -> None:
        """Sends what waits until nothing does; then the destination costs nothing."""
        while outbox.items:
            sending = _first_batch(outbox.items)
            if not await self._send(server, sending):
                self._lag_behind(server, outbox.items[0].position - 1)
                return
            for _ in sending:
                outbox.items.popleft()
            self._delivered.set()
        if outbox.overflowed_at is not None:
            self._lag_behind(server, outbox.overflowed_at - 1, after_failure=False)
            return
        del self._outboxes[server]

    def _lag_behind(self, server: ServerName, acked: int, *, after_failure: bool = True) -> None:
        """From now on the destination reads for itself what it lacks. No await in here: nothing may come between."""
        if after_failure:
            self._hs.peers.await_contact(server)
        del self._outboxes[server]
        self._unstored[server] = acked
        self._lags[server] = _Lag(acked, self._hs.now_ms() if after_failure else 0)
        self._nursery.start_soon(self._store_lag, server)
        self._due.set()

    async def _store_lag(self, server: ServerName) -> None:
        lag = self._lags.get(server)
        if lag is not None:
            await self._store(server, lag)
        self._unstored.pop(server, None)
        self._delivered.set()

    async def _store(self, server: ServerName, lag: _Lag) -> None:
        now_ms = self._hs.now_ms()
        back_off = self._hs.peers.find_back_off(server) or BackOff(0, now_ms, now_ms)
        await self._hs.database.write(store_destination, server, lag.acked, back_off)

    def _due_ms(self, server: ServerName, lag: _Lag) -> int:
        """When the destination is to be tried: after its back-off, or soon after it has shown itself."""
        back_off = self._hs.peers.find_back_off(server)
        if back_off is not None:
            return 0 if back_off.is_over(self._hs.now_ms()) else back_off.retry_after_ms
        return lag.tried_ms + limits.EARLY_RETRY_MS if lag.tried_ms else 0

    # Storing how far everything has been delivered

    async def _store_positions(self) -> None:
        stored = self._position
        while True:
            await self._delivered.wait()
            self._delivered = trio.Event()
            waiting = [outbox.items[0].position - 1 for outbox in self._outboxes.values() if outbox.items]
            delivered = min([self._position, *waiting, *self._unstored.values()])
            if delivered > stored:
                await self._hs.database.write(store_position, TAIL, delivered)
                stored = delivered
                await trio.sleep(limits.SENT_INTERVAL_S)

    # Catching up

    async def _hear(self) -> None:
        """Destinations that show themselves are tried at once."""
        while True:
            heard = await self._hs.peers.wait_heard()
            if any(server in self._lags for server in heard):
                self._due.set()

    async def _retry(self) -> None:
        while True:
            self._due = trio.Event()
            now_ms = self._hs.now_ms()
            next_ms = math.inf
            for server, lag in self._lags.items():
                if lag.is_active:
                    continue
                due_ms = self._due_ms(server, lag)
                if due_ms <= now_ms:
                    lag.is_active = True
                    self._nursery.start_soon(self._catch_up, server, lag)
                else:
                    next_ms = min(next_ms, due_ms)
            with trio.move_on_after((next_ms - now_ms) / 1000):
                await self._due.wait()

    async def _catch_up(self, server: ServerName, lag: _Lag) -> None:
        """Sends what the destination lacks, until it lacks nothing or fails again."""
        async with self._catch_ups:
            while True:
                upto = self._position
                batch = await self._hs.database.read(
                    list_due, self._hs.server_name, self._sources, server, lag.acked, upto
                )
                if not await self._send_batch(server, lag.acked, batch):
                    break
                lag.acked = batch.upto
                if lag.acked == self._position:
                    del self._lags[server]  # what comes from now on is handed over again
                    await self._hs.database.write(delete_destination, server)
                    return
                if batch.pdus or batch.edus:
                    await self._store(server, lag)
        self._hs.peers.await_contact(server)
        lag.tried_ms = self._hs.now_ms()
        await self._store(server, lag)
        lag.is_active = False
        self._due.set()

    async def _send_batch(self, server: ServerName, since: int, batch: Batch) -> bool:
        """In one transaction, or several where there are many EDUs. True also where there is nothing."""
        pdus, edus = batch.pdus, batch.edus
        while pdus or edus:
            items = [Item(since, pdu=pdu) for pdu in pdus] + [Item(batch.upto, edu=edu) for edu in edus[:EDUS_MAX]]
            if not await self._send(server, items):
                return False
            pdus, edus = [], edus[EDUS_MAX:]
        return True

    async def _send(self, server: ServerName, items: Sequence[Item]) -> bool:
        """One transaction; whether the destination has taken it, or will never."""
        hs = self._hs
        pdus: list[JsonObject] = [item.pdu for item in items if item.pdu is not None]
        edus: list[JsonObject] = [item.edu for item in items if item.edu is not None]
        body = build_transaction(hs.server_name, hs.now_ms(), pdus, edus)
        uri = path_to("v1", "send", _txn_id(items))
        try:
            answer = await send_signed(
                hs, server, "PUT", uri, body, cause=DELIVERY, timeout_s=limits.TRANSACTION_TIMEOUT_S
            )
        except Unreachable as error:
            _log.info("transaction not delivered", extra={"destination": server, "reason": str(error)})
            hs.metrics.count(TRANSACTIONS_COUNTER, (("outcome", "unreachable"),))
            return False
        hs.metrics.count(TRANSACTIONS_COUNTER, (("outcome", "taken" if answer.status == 200 else "refused"),))
        if answer.status == 200 or answer.status in _REFUSALS:
            hs.peers.note_contact(server)
        else:
            note_unreachable(hs, server)  # it is there, but does not take what it is sent
        if answer.status == 200:
            return True
        _log.warning(
            "transaction refused", extra={"destination": server, "status": answer.status, "errcode": answer.errcode}
        )
        return answer.status in _REFUSALS


def _first_batch(items: Sequence[Item]) -> list[Item]:
    """The first of the items, as many as fit into one transaction."""
    batch: list[Item] = []
    pdus = edus = 0
    for item in items:
        pdus += item.pdu is not None
        edus += item.edu is not None
        if pdus > PDUS_MAX or edus > EDUS_MAX:
            break
        batch.append(item)
    return batch


def _txn_id(items: Sequence[Item]) -> str:
    """The same for the same items, so that a peer which has them already knows it; different for all others."""
    digest = blake2b(digest_size=9)
    for item in items:
        digest.update(to_json([item.position, item.pdu, item.edu]))
    return f"{items[0].position}-{items[-1].position}-{digest.hexdigest()}"
