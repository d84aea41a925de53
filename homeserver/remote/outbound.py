"""The sender: what our users do reaches the other servers of their rooms. Spec: server-server-api/#transactions

A tail of the stream. What it finds is handed to destinations in memory, and it is stored how far everything has been
delivered, so that after a crash the rest is found again. A destination that fails gets a row, which says up to where it
has everything: from then on it is left out, until it is tried again and reads what it lacks from the database. Hence
there is no queue, a message costs no row for each destination, and an idle destination costs nothing.

One bad item stops neither the others nor another destination:
- An event or EDU that cannot be read or encoded is parked where it is found (see `homeserver/database/lane.py`).
- A damaged page of the database costs the events that need it. What can be read of other rooms, and for other
  destinations, is sent; a destination whose own row cannot be stored is caught up from memory.
- A transaction that its destination refuses, or fails of, is sent again in halves. A single item that is refused is
  dropped. One that the destination fails of (500) is tried again and again; after POISON_SECONDS it is dropped if the
  destination takes the next one.
- What fails unexpectedly in the work for one destination puts that destination into back-off. Only a failure of the
  storage ends the sender as a whole, which begins again after a pause.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, TypeVarTuple

import trio

from homeserver import limits
from homeserver.database.lane import Lane
from homeserver.database.tail import find_position, store_position
from homeserver.federation.identifiers import ServerName
from homeserver.federation.transaction import EDUS_MAX, PDUS_MAX, encode_transaction
from homeserver.moments import passed
from homeserver.process.outages import is_outage
from homeserver.process.peers import DELIVERY, BackOff
from homeserver.remote.destinations import (
    Batch,
    Edus,
    Failed,
    Item,
    collect,
    delete_destination,
    list_destinations,
    list_due,
    store_destination,
)
from homeserver.remote.requests import Unreachable, note_unreachable, path_to, send_signed
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.federation")

TAIL = "federation"
TRANSACTIONS_COUNTER = "homeserver_federation_transactions_sent_total"
DROPPED_COUNTER = "homeserver_federation_items_dropped_total"

Outcome = Literal["taken", "refused", "failed", "unreachable"]
Ts = TypeVarTuple("Ts")

# A peer that answers so does not take what is in this very transaction, and will not take it next time. Other answers
# say more about the peer, or a proxy before it, than about the transaction.
_REFUSALS = frozenset({400, 413, 422})


@dataclass(slots=True)
class _Lag:
    """A destination that has not got everything. `acked`: up to where it has; `is_active`: it is catching up now.

    When it is tried next is a matter of its back-off (`homeserver.process.peers`); `tried_ms`: when it was tried last.
    """

    acked: int
    tried_ms: int = 0
    is_active: bool = False


@dataclass(slots=True)
class _Outbox:
    """What waits for a destination that gets everything as it comes. `overflowed_at`: from there on it was left out."""

    items: deque[Item] = field(default_factory=deque)
    overflowed_at: int | None = None


async def send(hs: Resources, edus: Edus) -> None:
    """Sends, for ever. Where several nodes share the database, one of them does."""
    while hs.config.federation.enabled:
        async with hs.database.hold(f"tail {TAIL}"):
            try:
                await Sender(hs, edus).run()
            except Exception as error:  # whatever it is, the rest of the server can do without the sender for a while
                if is_outage(error):
                    raise  # it is logged once for all, and whoever runs this waits until it is over
                _log.exception("sending to other servers is interrupted")
                await trio.sleep(limits.SENDER_PAUSE_S)


class Sender:
    """One for as long as this node is the one that sends."""

    _nursery: trio.Nursery

    def __init__(self, hs: Resources, edus: Edus) -> None:
        self._hs = hs
        self._edus = edus
        self._outboxes: dict[ServerName, _Outbox] = {}
        self._lags: dict[ServerName, _Lag] = {}
        # Destinations whose lag is not stored yet: up to where they have everything.
        self._unstored: dict[ServerName, int] = {}
        # Since when (trio's time) destinations have answered with an error of their own.
        self._failing: dict[ServerName, float] = {}
        self._position = 0
        self._delivered = trio.Event()
        self._due = trio.Event()
        self._lane = Lane("federation", hs.database, hs.metrics)
        self._catch_ups = trio.CapacityLimiter(limits.CATCH_UPS_AT_ONCE_MAX)

    async def run(self) -> None:
        """Sends, for ever."""
        hs = self._hs
        position = await hs.database.read(find_position, TAIL)
        self._position = position or 0
        destinations, failed = await hs.database.read(list_destinations)
        for nid, error in failed:
            _log.error(
                "a server that lacks something is left out: its name cannot be read",
                extra={"destination": nid, "reason": str(error)},
            )
        for server, (acked, back_off) in destinations.items():
            self._lags[server] = _Lag(acked)
            if back_off.failures:
                hs.peers.set_back_off(server, back_off)
            hs.peers.await_contact(server)
        hs.metrics.describe(DROPPED_COUNTER, "Events and EDUs that their destination does not take.")
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
                    found, failed = await self._hs.database.read(
                        collect, self._hs.server_name, self._edus, self._position, upto
                    )
                    await self._park(failed)
                    for server, items in found.items():
                        self._hand_over(server, items)
                    self._position = upto
                    self._delivered.set()

    async def _park(self, failed: Failed) -> None:
        for position, error in failed:
            await self._lane.park(str(position), error)

    def _hand_over(self, server: ServerName, items: Sequence[Item]) -> None:
        if server in self._lags:
            return  # it will read them when its turn comes
        outbox = self._outboxes.get(server)
        if outbox is None:
            outbox = self._outboxes[server] = _Outbox()
            self._nursery.start_soon(self._guarded, server, self._deliver, server, outbox)
        if outbox.overflowed_at is None and len(outbox.items) + len(items) > limits.OUTBOX_MAX:
            outbox.overflowed_at = items[0].position
        if outbox.overflowed_at is None:
            outbox.items.extend(items)

    async def _deliver(self, server: ServerName, outbox: _Outbox) -> None:
        """Sends what waits until nothing does; then the destination costs nothing."""
        while outbox.items:
            sending = _first_batch(outbox.items)
            done = await self._send(server, sending)
            for _ in range(done):
                outbox.items.popleft()
            self._delivered.set()
            if done < len(sending):
                self._lag_behind(server, outbox.items[0].position - 1)
                return
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
        self._nursery.start_soon(self._guarded, server, self._store_lag, server)
        self._due.set()

    async def _store_lag(self, server: ServerName) -> None:
        lag = self._lags.get(server)
        if lag is not None:
            await self._store(server, lag)

    async def _store(self, server: ServerName, lag: _Lag) -> None:
        now_ms = self._hs.now_ms()
        back_off = self._hs.peers.find_back_off(server) or BackOff(0, now_ms, now_ms)
        await self._hs.database.write(store_destination, server, lag.acked, back_off)
        self._note_stored(server)

    def _note_stored(self, server: ServerName) -> None:
        self._unstored.pop(server, None)
        self._delivered.set()

    def _due_ms(self, server: ServerName, lag: _Lag) -> int:
        """When the destination is to be tried: after its back-off, or soon after it has shown itself."""
        back_off = self._hs.peers.find_back_off(server)
        if back_off is not None:
            return 0 if back_off.is_over(self._hs.now_ms()) else back_off.retry_after_ms
        return lag.tried_ms + limits.EARLY_RETRY_MS if passed(lag.tried_ms, self._hs.now_ms()) else 0

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
                    self._nursery.start_soon(self._guarded, server, self._catch_up, server, lag)
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
                    list_due, self._hs.server_name, self._edus, server, lag.acked, upto
                )
                await self._park(batch.failed)
                unsent = await self._send_batch(server, batch)
                if unsent is not None:
                    lag.acked = max(lag.acked, unsent.position - 1)
                    break
                lag.acked = batch.upto
                if lag.acked == self._position:
                    del self._lags[server]  # what comes from now on is handed over again
                    await self._hs.database.write(delete_destination, server)
                    self._note_stored(server)
                    return
                if batch.items:
                    await self._store(server, lag)
        self._hs.peers.await_contact(server)
        await self._store(server, lag)
        self._wait_for_turn(lag)

    def _wait_for_turn(self, lag: _Lag) -> None:
        lag.tried_ms = self._hs.now_ms()
        lag.is_active = False
        self._due.set()

    async def _guarded(self, server: ServerName, fn: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Does the work for one destination. If it fails, that is the end of this attempt only."""
        try:
            await fn(*args)
        except Exception as error:
            if is_outage(error):
                raise
            _log.exception("sending to a server is interrupted", extra={"destination": server})
            note_unreachable(self._hs, server)
            outbox, lag = self._outboxes.get(server), self._lags.get(server)
            if outbox is not None:
                self._lag_behind(server, outbox.items[0].position - 1 if outbox.items else self._position)
            elif lag is not None:
                self._wait_for_turn(lag)

    async def _send_batch(self, server: ServerName, batch: Batch) -> Item | None:
        """Sends a batch in as many transactions as it takes; answers the first item that was not delivered."""
        rest = batch.items
        while rest:
            sending = _first_batch(rest)
            done = await self._send(server, sending)
            if done < len(sending):
                return sending[done]
            rest = rest[done:]
        return None

    async def _send(self, server: ServerName, items: Sequence[Item]) -> int:
        """Sends the items, in one transaction if all goes well. Answers how many of the first of them are dealt with:
        delivered, or dropped because the destination will never take them.
        """
        outcome = await self._transact(server, items)
        if outcome == "taken":
            return len(items)
        if outcome == "unreachable":
            return 0
        if len(items) == 1:
            if outcome == "refused":
                self._drop(server, items[0], outcome)
                return 1
            return 0
        if outcome == "failed" and self._is_stuck(server) and await self._transact(server, items[1:2]) == "taken":
            self._drop(server, items[0], outcome)
            return 2 + (await self._send(server, items[2:]) if len(items) > 2 else 0)
        half = len(items) // 2
        done = await self._send(server, items[:half])
        return done + (await self._send(server, items[half:]) if done == half else 0)

    def _is_stuck(self, server: ServerName) -> bool:
        """Whether the destination has failed for so long that its first item may be what it fails of."""
        since = self._failing.get(server)
        return since is not None and trio.current_time() - since >= limits.POISON_SECONDS

    def _drop(self, server: ServerName, item: Item, outcome: Outcome) -> None:
        self._hs.metrics.count(DROPPED_COUNTER, (("outcome", outcome),))
        about = {"destination": server, "item": item.name, "outcome": outcome}
        _log.warning("item not delivered: its destination does not take it", extra=about)

    async def _transact(self, server: ServerName, items: Sequence[Item]) -> Outcome:
        """One transaction, and what became of it."""
        hs = self._hs
        body = encode_transaction(
            hs.server_name,
            hs.now_ms(),
            [item.data for item in items if not item.is_edu],
            [item.data for item in items if item.is_edu],
        )
        uri = path_to("v1", "send", _txn_id(hs.database.generation, items))
        try:
            answer = await send_signed(
                hs, server, "PUT", uri, body, cause=DELIVERY, timeout_s=limits.TRANSACTION_TIMEOUT_S
            )
        except Unreachable as error:
            _log.info("transaction not delivered", extra={"destination": server, "reason": str(error)})
            return self._note(server, "unreachable")
        if answer.status == 200 or answer.status in _REFUSALS:
            hs.peers.note_contact(server)
        else:
            note_unreachable(hs, server)  # it is there, but does not take what it is sent
        if answer.status == 200:
            return self._note(server, "taken")
        about = {"destination": server, "status": answer.status, "errcode": answer.errcode}
        _log.warning("transaction refused", extra=about)
        if answer.status in _REFUSALS:
            return self._note(server, "refused")
        return self._note(server, "failed" if answer.status == 500 else "unreachable")

    def _note(self, server: ServerName, outcome: Outcome) -> Outcome:
        if outcome == "failed":
            self._failing.setdefault(server, trio.current_time())
        elif outcome != "unreachable":
            self._failing.pop(server, None)
        self._hs.metrics.count(TRANSACTIONS_COUNTER, (("outcome", outcome),))
        return outcome


def _first_batch(items: Iterable[Item]) -> list[Item]:
    """The first of the items, as many as fit into one transaction."""
    batch: list[Item] = []
    pdus = edus = size_bytes = 0
    for item in items:
        pdus += not item.is_edu
        edus += item.is_edu
        size_bytes += len(item.data)
        if batch and (pdus > PDUS_MAX or edus > EDUS_MAX or size_bytes > limits.TRANSACTION_BYTES):
            break
        batch.append(item)
    return batch


def _txn_id(generation: str, items: Sequence[Item]) -> str:
    """The same for the same items, so that a peer which has them already knows it; different for all others.

    The stream's generation is in it: after a restore from a backup the same may happen at the same position.
    """
    digest = blake2b(generation.encode(), digest_size=9)
    for item in items:
        digest.update(b"%d %d %d " % (item.position, item.is_edu, len(item.data)))
        digest.update(item.data)
    return f"{items[0].position}-{items[-1].position}-{digest.hexdigest()}"
