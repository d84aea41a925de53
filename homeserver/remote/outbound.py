"""The sender: what our users do reaches the other servers of their rooms. Spec: server-server-api/#transactions

Theory of operation
- The sender is a tail of the stream. It hands what it finds to the destinations concerned, in memory, and stores up to
  where everybody has everything, so that the rest is found again after a crash.
- A `Delivery` (`homeserver/process/delivery.py`) decides what a destination is sent, and when. It exists as long as the
  destination lacks something. This file performs what it asks for: requests, reads and writes. Hence there is no queue
  on disk, a message costs no row for each destination, and an idle destination costs nothing.
- One task works for each destination. It ends when the destination has everything, or is to be left alone; `_retry`
  begins another one when the back-off is over. No more than CATCH_UPS_AT_ONCE_MAX destinations catch up at once.
- Deliveries and all other requests to a server share its back-off (`homeserver/process/peers.py`): a delivery spares a
  server that others have found away, and tries again soon once the server has shown itself in any way.

One bad item stops neither the others nor another destination:
- An event or EDU that cannot be read or encoded is parked where it is found (see `homeserver/database/lane.py`).
- A damaged page of the database costs the events that need it. What can be read of other rooms, and for other
  destinations, is sent. A destination whose own row cannot be stored is caught up nevertheless.
- What a destination refuses or fails of is the machine's concern.
- An unexpected failure in the work for one destination puts that destination into back-off. Only a failure of the
  storage ends the sender as a whole, which begins again after a pause.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import TypeVarTuple, Unpack

import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.database.tail import find_position, store_position
from homeserver.federation.identifiers import ServerName
from homeserver.federation.transaction import EDUS_MAX, PDUS_MAX, encode_transaction
from homeserver.process.delivery import Delivery, Forget, Now, Outcome, Read, Rest, Send, State, Store, Wait
from homeserver.process.outages import is_outage
from homeserver.process.peers import DELIVERY
from homeserver.remote.destinations import (
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

Ts = TypeVarTuple("Ts")

# A peer that answers so does not take what is in this very transaction, and will not take it next time. Other answers
# say more about the peer, or a proxy before it, than about the transaction.
_REFUSALS = frozenset({400, 413, 422})


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
        # Of the destinations that lack something.
        self._deliveries: dict[ServerName, Delivery[Item]] = {}
        self._position = 0
        self._progress = trio.Event()
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
            self._deliveries[server] = Delivery.resume(hs.server_name, server, _count_first, acked, back_off)
            if back_off is not None:
                hs.peers.set_back_off(server, back_off)
            hs.peers.await_contact(server)
        hs.metrics.describe(DROPPED_COUNTER, "Events and EDUs that their destination does not take.")
        hs.metrics.describe(TRANSACTIONS_COUNTER, "Transactions to other servers, and what became of them.")
        hs.metrics.gauge(
            "homeserver_federation_destinations_lagging",
            lambda: sum(delivery.is_lagging for delivery in self._deliveries.values()),
            "Servers that have not got everything.",
        )
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._store_positions)
            self._nursery.start_soon(self._hear)
            self._nursery.start_soon(self._retry)
            await self._follow()

    def _now(self) -> Now:
        return Now(self._hs.now_ms(), trio.current_time())

    # Following the stream

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
                    self._progress.set()

    async def _park(self, failed: Failed) -> None:
        for position, error in failed:
            await self._lane.park(str(position), error)

    def _hand_over(self, server: ServerName, items: Sequence[Item]) -> None:
        delivery = self._deliveries.get(server)
        if delivery is not None:
            delivery.hand_over(items)
            return
        delivery = self._deliveries[server] = Delivery(self._hs.server_name, server, _count_first)
        delivery.hand_over(items)
        self._nursery.start_soon(self._work, server, delivery)

    async def _store_positions(self) -> None:
        """Stores up to where everybody has everything, except for those whose row says otherwise."""
        stored = self._position
        while True:
            await self._progress.wait()
            self._progress = trio.Event()
            held = (delivery.holds for delivery in self._deliveries.values())
            delivered = min([self._position, *(position for position in held if position is not None)])
            if delivered > stored:
                await self._hs.database.write(store_position, TAIL, delivered)
                stored = delivered
                await trio.sleep(limits.SENT_INTERVAL_S)

    # Waiting until destinations may be tried again

    async def _hear(self) -> None:
        """Destinations that show themselves are tried soon."""
        while True:
            for server in await self._hs.peers.wait_heard():
                delivery = self._deliveries.get(server)
                if delivery is not None:
                    delivery.heard()
                    self._due.set()

    async def _retry(self) -> None:
        while True:
            self._due = trio.Event()
            now, next_s = self._now(), math.inf
            for server, delivery in self._deliveries.items():
                if delivery.state is not State.WAITING:
                    continue
                delivery.spare(self._hs.peers.find_back_off(server))
                wait_s = delivery.wake(now)
                if wait_s:
                    next_s = min(next_s, wait_s)
                else:
                    self._nursery.start_soon(self._catch_up, server, delivery)
            with trio.move_on_after(next_s):
                await self._due.wait()

    async def _catch_up(self, server: ServerName, delivery: Delivery[Item]) -> None:
        async with self._catch_ups:
            await self._work(server, delivery)

    # Doing what a delivery asks for

    async def _work(self, server: ServerName, delivery: Delivery[Item]) -> None:
        """Works for one destination until it has everything, or is to be left alone."""
        try:
            await self._perform(server, delivery)
        except Exception as error:
            if is_outage(error):
                raise
            _log.exception("sending to a server is interrupted", extra={"destination": server})
            note_unreachable(self._hs, server)
            delivery.broke(self._now())
            self._leave_alone(server, delivery)
        if delivery.state is State.WAITING:
            self._due.set()

    async def _perform(self, server: ServerName, delivery: Delivery[Item]) -> None:
        hs = self._hs
        while True:
            ask = delivery.next()
            match ask:
                case Send(items):
                    await self._send(server, delivery, items)
                    self._progress.set()
                case Read(since) if since == self._position:
                    delivery.up_to_date()
                case Read(since):
                    batch = await hs.database.read(list_due, hs.server_name, self._edus, server, since, self._position)
                    await self._park(batch.failed)
                    delivery.found(batch.items, batch.upto)
                case Store(acked, back_off):
                    is_durable = await self._write(server, store_destination, server, acked, back_off)
                    delivery.stored(is_durable=is_durable)
                    self._progress.set()
                case Forget():
                    await self._write(server, delete_destination, server)
                    delivery.forgotten()
                case Wait():
                    return
                case Rest():
                    del self._deliveries[server]
                    return

    async def _write(self, server: ServerName, fn: Callable[[Transaction, Unpack[Ts]], None], *args: *Ts) -> bool:
        """Writes the row of a destination; returns False if just that is not possible: delivery does not need it."""
        try:
            await self._hs.database.write(fn, *args)
        except Exception as error:
            if is_outage(error):
                raise
            _log.exception("how far a server has got cannot be stored", extra={"destination": server})
            return False
        return True

    async def _send(self, server: ServerName, delivery: Delivery[Item], items: Sequence[Item]) -> None:
        outcome = await self._transact(server, items)
        self._hs.metrics.count(TRANSACTIONS_COUNTER, (("outcome", outcome),))
        dropped = delivery.answered(outcome, self._now())
        if dropped is not None:
            self._hs.metrics.count(DROPPED_COUNTER, (("outcome", outcome),))
            about = {"destination": server, "item": dropped.name, "outcome": outcome}
            _log.warning("item not delivered: its destination does not take it", extra=about)
        if delivery.state is State.WAITING:
            self._leave_alone(server, delivery)

    def _leave_alone(self, server: ServerName, delivery: Delivery[Item]) -> None:
        delivery.spare(self._hs.peers.find_back_off(server))
        self._hs.peers.await_contact(server)

    async def _transact(self, server: ServerName, items: Sequence[Item]) -> Outcome:
        """Sends one transaction, and returns what became of it."""
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
            return "unreachable"
        if answer.status == 200 or answer.status in _REFUSALS:
            hs.peers.note_contact(server)
        else:
            note_unreachable(hs, server)  # it is there, but does not take what it is sent
        if answer.status == 200:
            return "taken"
        about = {"destination": server, "status": answer.status, "errcode": answer.errcode}
        _log.warning("transaction refused", extra=about)
        if answer.status in _REFUSALS:
            return "refused"
        return "failed" if answer.status == 500 else "unreachable"


def _count_first(items: Iterable[Item]) -> int:
    """How many of the first items fit into one transaction."""
    count = pdus = edus = size_bytes = 0
    for item in items:
        pdus += not item.is_edu
        edus += item.is_edu
        size_bytes += len(item.data)
        if count and (pdus > PDUS_MAX or edus > EDUS_MAX or size_bytes > limits.TRANSACTION_BYTES):
            break
        count += 1
    return count


def _txn_id(generation: str, items: Sequence[Item]) -> str:
    """The same for the same items, so that a peer which has them already knows it; different for all others.

    The stream's generation is in it: after a restore from a backup the same may happen at the same position.
    """
    digest = blake2b(generation.encode(), digest_size=9)
    for item in items:
        digest.update(b"%d %d %d " % (item.position, item.is_edu, len(item.data)))
        digest.update(item.data)
    return f"{items[0].position}-{items[-1].position}-{digest.hexdigest()}"
