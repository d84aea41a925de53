"""The sender: what our users do reaches the other servers of their rooms. Spec: server-server-api/#transactions

Theory of operation
- The sender is a tail of the stream. It hands what it finds to the destinations concerned, in memory, and stores up to
  where everybody has everything, so that the rest is found again after a crash.
- Two deliveries (`homeserver/process/delivery.py`) decide what a destination is sent, and when: one in the durable
  lane, of EDUs that must arrive, and one in the ordinary lane, of events and all other EDUs. `Lanes`
  (`homeserver/process/lanes.py`) decides which of them is served. All exist as long as the destination lacks something.
- This file performs what they ask for: requests, reads and writes. Hence an event has no queue on disk and costs no row
  for each destination, and an idle destination costs nothing.
- One task works for each destination, for both lanes. It ends when the destination has everything, or is to be left
  alone; `_retry` begins another one when the back-off is over. No more than CATCH_UPS_AT_ONCE_MAX destinations catch up
  at once.
- What the features keep for a destination in an `EduQueue` is deleted once the destination has acknowledged it: with
  the row of a destination that lags, with the common position otherwise.
- Deliveries and all other requests to a server share its back-off (`homeserver/process/peers.py`): a delivery spares a
  server that others have found away, and tries again soon once the server has shown itself in any way.

One bad item stops neither the others nor another destination:
- An event or EDU that cannot be read or encoded is parked where it is found (see `homeserver/database/lane.py`).
- A damaged page of the database costs the events that need it. What can be read of other rooms, and for other
  destinations, is sent. A destination whose own row cannot be stored is caught up nevertheless.
- What a destination refuses or fails of is the machine's concern, and never stops the other lane.
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
from homeserver.process.back_off import BackOff
from homeserver.process.delivery import Delivery, Forget, Now, Read, Rest, Send, Store, Wait
from homeserver.process.delivery_states import Outcome, State
from homeserver.process.lanes import Lanes
from homeserver.process.outages import is_outage
from homeserver.process.peers import DELIVERY
from homeserver.remote.destinations import (
    Edus,
    Failed,
    Item,
    News,
    collect,
    delete_destination,
    list_destinations,
    list_due,
    list_due_durable,
    note_acknowledged,
    store_destination,
)
from homeserver.remote.requests import Unreachable, note_unreachable, path_to, send_signed
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.federation")

TAIL = "federation"
TRANSACTIONS_COUNTER = "homeserver_federation_transactions_sent_total"
DROPPED_COUNTER = "homeserver_federation_items_dropped_total"
REST = 2  # the sender rests so many times as long as it read, so that it reads what is committed meanwhile together

Ts = TypeVarTuple("Ts")

# A peer that answers so does not take what is in this very transaction, and will not take it next time. Other answers
# say more about the peer, or a proxy before it, than about the transaction.
_REFUSALS = frozenset({400, 413, 422})


async def send(hs: Resources, edus: Edus) -> None:
    """Sends, for ever. If several nodes share the database, one of them does."""
    while hs.config.federation.enabled:
        async with hs.database.hold(f"tail {TAIL}"):
            try:
                await Sender(hs, edus).run()
            except Exception as error:  # the rest of the server can do without the sender for a while
                if is_outage(error):
                    raise  # the caller logs it once for the whole server, and waits until it is over
                _log.exception("sending to other servers is interrupted")
                await trio.sleep(limits.peers.SENDER_PAUSE_S)


class Sender:
    """One for as long as this node is the one that sends."""

    _nursery: trio.Nursery

    def __init__(self, hs: Resources, edus: Edus) -> None:
        self._hs = hs
        self._edus = edus
        # The lanes of the destinations that lack something.
        self._destinations: dict[ServerName, Lanes[Item]] = {}
        self._busy: set[ServerName] = set()  # destinations that a task is sending to
        self._acknowledged: dict[ServerName, int] = {}  # durable EDUs for these may be deleted up to this position
        self._position = 0
        self._progress = trio.Event()
        self._due = trio.Event()
        self._lane = Lane("federation", hs.database, hs.metrics)
        self._catch_ups = trio.CapacityLimiter(limits.peers.CATCH_UPS_AT_ONCE_MAX)

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
        for server, rows in destinations.items():
            self._destinations[server] = Lanes(*(self._resume(server, rows.get(lane)) for lane in (True, False)))
            for _, back_off in rows.values():
                if back_off is not None:
                    hs.peers.set_back_off(server, back_off)
            hs.peers.await_contact(server)
        hs.metrics.describe(DROPPED_COUNTER, "Events and EDUs that their destination does not take.")
        hs.metrics.describe(TRANSACTIONS_COUNTER, "Transactions to other servers, and what became of them.")
        hs.metrics.gauge(
            "homeserver_federation_destinations_lagging",
            lambda: sum(lanes.is_lagging for lanes in self._destinations.values()),
            "Servers that have not got everything.",
        )
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._store_positions)
            self._nursery.start_soon(self._hear)
            self._nursery.start_soon(self._retry)
            await self._follow()

    def _resume(self, server: ServerName, row: tuple[int, BackOff | None] | None) -> Delivery[Item]:
        """A lane of a destination, as its row says."""
        if row is None:
            return Delivery(self._hs.server_name, server, _count_first)
        return Delivery.resume(self._hs.server_name, server, _count_first, *row)

    def _now(self) -> Now:
        return Now(self._hs.now_ms(), trio.current_time())

    # Following the stream

    async def _follow(self) -> None:
        async with self._hs.stream.subscribe(rest=REST) as subscription:
            while True:
                committed = await subscription.wait(self._position)
                while self._position < committed:
                    upto = min(committed, self._position + limits.TAIL_SPAN_MAX)
                    found, failed = await self._hs.database.read(
                        collect, self._hs.server_name, self._edus, self._position, upto
                    )
                    await self._park(failed)
                    for server, news in found.items():
                        self._hand_over(server, news)
                    self._position = upto
                    self._progress.set()

    async def _park(self, failed: Failed) -> None:
        for position, error in failed:
            await self._lane.park(str(position), error)

    def _hand_over(self, server: ServerName, news: News) -> None:
        lanes = self._destinations.get(server)
        if lanes is None:
            lanes = self._destinations[server] = Lanes(self._resume(server, None), self._resume(server, None))
        lanes.hand_over(news.durable, news.ordinary)
        if server not in self._busy and not isinstance(lanes.next()[1], Wait):
            self._busy.add(server)
            self._nursery.start_soon(self._work, server, lanes)

    async def _store_positions(self) -> None:
        """Stores up to where everybody has everything, except for those whose rows say otherwise."""
        stored = self._position
        while True:
            await self._progress.wait()
            self._progress = trio.Event()
            held = (position for lanes in self._destinations.values() for position in lanes.holds)
            delivered = min([self._position, *held])
            acknowledged, self._acknowledged = self._acknowledged, {}
            if delivered > stored or acknowledged:
                if acknowledged:  # before the position, beyond which nobody would think of it again
                    await self._write(None, note_acknowledged, self._edus, acknowledged)
                await self._hs.database.write(store_position, TAIL, delivered)
                stored = delivered
                await trio.sleep(limits.peers.SENT_INTERVAL_S)

    # Waiting until destinations may be tried again

    async def _hear(self) -> None:
        """Destinations that show themselves are tried soon."""
        while True:
            for server in await self._hs.peers.wait_heard():
                lanes = self._destinations.get(server)
                if lanes is not None:
                    lanes.heard()
                    self._due.set()

    async def _retry(self) -> None:
        while True:
            self._due = trio.Event()
            now, next_s = self._now(), math.inf
            for server, lanes in self._destinations.items():
                lanes.spare(self._hs.peers.find_back_off(server))
                wait_s = lanes.wake(now)
                next_s = min(next_s, wait_s or math.inf)
                if not wait_s and server not in self._busy:
                    self._busy.add(server)
                    self._nursery.start_soon(self._catch_up, server, lanes)
            with trio.move_on_after(next_s):
                await self._due.wait()

    async def _catch_up(self, server: ServerName, lanes: Lanes[Item]) -> None:
        async with self._catch_ups:
            await self._work(server, lanes)

    # Doing what the lanes ask for

    async def _work(self, server: ServerName, lanes: Lanes[Item]) -> None:
        """Works for one destination until it has everything, or is to be left alone."""
        is_done = False
        while not is_done:
            try:
                is_done = await self._perform(server, lanes)
            except Exception as error:  # whatever is wrong with one destination, the others get their events
                if is_outage(error):
                    raise
                _log.exception("sending to a server is interrupted", extra={"destination": server})
                note_unreachable(self._hs, server)
                lanes.broke(self._now())
                self._leave_alone(server, lanes)
        self._busy.discard(server)
        if server in self._destinations:
            self._due.set()

    async def _perform(self, server: ServerName, lanes: Lanes[Item]) -> bool:
        """Does one thing. Returns whether nothing more is to be done now."""
        hs = self._hs
        delivery, ask = lanes.next()
        is_durable = delivery is lanes.durable
        match ask:
            case Send(items):
                await self._send(server, lanes, delivery, items)
                self._progress.set()
            case Read(since) if since == self._position:
                delivery.up_to_date()
            case Read(since):
                read = list_due_durable if is_durable else list_due
                batch = await hs.database.read(read, hs.server_name, self._edus, server, since, self._position)
                await self._park(batch.failed)
                delivery.found(batch.items, batch.upto)
            case Store(acked, back_off):
                is_stored = await self._write(
                    server, store_destination, self._edus, server, is_durable, acked, back_off
                )
                delivery.stored(is_durable=is_stored)
                self._progress.set()
            case Forget():
                await self._write(server, delete_destination, server, is_durable)
                delivery.forgotten()
            case Wait():
                return True
            case Rest():
                del self._destinations[server]
                return True
        return False

    async def _write(
        self, server: ServerName | None, fn: Callable[[Transaction, Unpack[Ts]], None], *args: *Ts
    ) -> bool:
        """Writes the row of a destination; returns False if just that is not possible: delivery does not need it."""
        try:
            await self._hs.database.write(fn, *args)
        except Exception as error:  # whatever is wrong with the row, the destination gets its events without it
            if is_outage(error):
                raise
            _log.exception("how far a server has got cannot be stored", extra={"destination": server})
            return False
        return True

    async def _send(
        self, server: ServerName, lanes: Lanes[Item], delivery: Delivery[Item], items: Sequence[Item]
    ) -> None:
        outcome = await self._transact(server, items)
        self._hs.metrics.count(TRANSACTIONS_COUNTER, (("outcome", outcome),))
        dropped = lanes.answered(delivery, outcome, self._now())
        if dropped is not None:
            self._hs.metrics.count(DROPPED_COUNTER, (("outcome", outcome),))
            about = {"destination": server, "item": dropped.name, "outcome": outcome}
            _log.warning("item not delivered: its destination does not take it", extra=about)
        if delivery is lanes.durable and delivery.acked >= items[0].position:
            self._acknowledged[server] = delivery.acked
        if delivery.state is State.WAITING:
            self._leave_alone(server, lanes)

    def _leave_alone(self, server: ServerName, lanes: Lanes[Item]) -> None:
        lanes.spare(self._hs.peers.find_back_off(server))
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
                hs, server, "PUT", uri, body, cause=DELIVERY, timeout_s=limits.peers.TRANSACTION_TIMEOUT_S
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
    """Returns how many of the first items fit into one transaction."""
    count = pdus = edus = size_bytes = 0
    for item in items:
        pdus += not item.is_edu
        edus += item.is_edu
        size_bytes += len(item.data)
        if count and (pdus > PDUS_MAX or edus > EDUS_MAX or size_bytes > limits.peers.TRANSACTION_BYTES):
            break
        count += 1
    return count


def _txn_id(generation: str, items: Sequence[Item]) -> str:
    """Returns the transaction ID: the same for the same items, so that the peer recognises a repetition.

    It depends on the stream's generation, because positions are used again after a restore from a backup.
    """
    digest = blake2b(generation.encode(), digest_size=9)
    for item in items:
        digest.update(b"%d %d %d " % (item.position, item.is_edu, len(item.data)))
        digest.update(item.data)
    return f"{items[0].position}-{items[-1].position}-{digest.hexdigest()}"
