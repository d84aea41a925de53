"""Delivery: sends each application service what concerns it, in order, each transaction until it is taken.

Spec: application-service-api/#pushing-events

Theory of operation
- Each application service has a task and a row of its own. One that is slow, away or wrong delays no other, and an
  unexpected failure of its delivery touches no other. Where several nodes share the database, one of them delivers.
- The row says up to which position of the stream the service has everything, and where the transaction under way ends.
  The latter is stored before anything is sent, so after a crash the same events are sent under the same ID.
- A service that cannot be reached, or fails, gets the same transaction again after a pause that doubles up to
  RETRY_S_MAX. The pause is in the row too, so a restart does not shorten it. `homeserver bridge retry` ends it,
  and so does a ping that arrives: bridges send one when they start.
- What it refuses (400, 413 and the like) it would refuse again. The span is cut in halves, with new IDs, until a single
  position is refused. That one is parked: noted for administrators, who can have it sent again, and left out. So no
  event can keep a bridge from all later ones. The same happens to what cannot be read, because the disk has damaged it.

Why this does not use the state machine of servers (`homeserver/process/delivery.py`). A service recognises a repetition
by the ID of the transaction, and by nothing else. So whatever may have arrived must be sent again whole, under the same
ID, also after a crash, until it is known to be taken. That machine divides a transaction after any failure, and probes
with later items, because servers recognise each event. And it stores a row only for destinations that lag, while here
every transaction needs one. What would remain of it is the doubling of a pause.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import trio

from homeserver import limits
from homeserver.background import keep_running
from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.database.lane import PARKED_COUNTER
from homeserver.database.parked import RETRY_KEY, delete_parked, list_parked_of, store_parked
from homeserver.database.stream import Subscription
from homeserver.encoding import to_json
from homeserver.features.application_services.encryption import delete_taken
from homeserver.features.application_services.storage import (
    Progress,
    create_progress,
    find_progress,
    lane_of,
    store_progress,
)
from homeserver.features.application_services.transactions import SPAN_MAX, EphemeralSource, Outgoing, read_outgoing
from homeserver.federation.wire import WireError
from homeserver.process.outages import is_outage
from homeserver.remote.application_services import describe, request
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.application_services")

SENT_COUNTER = "homeserver_application_service_transactions_total"
# Nothing but the position has changed: it is stored now and then, so that a restart has not much to read again.
STORE_SECONDS = 5.0
_REFUSALS = frozenset({400, 413, 422})

Verdict = Literal["taken", "refused"]


class Deliveries:
    """Delivers to all application services. sources: where ephemeral data comes from."""

    def __init__(self, sources: Sequence[EphemeralSource]) -> None:
        self._sources = sources

    async def run(self, hs: Resources) -> None:
        """Delivers, for ever. Another node takes over if this one loses the database, and gives it back likewise."""
        reachable = [service for service in hs.application_services if service.url is not None]
        if not reachable:
            return
        hs.metrics.describe(SENT_COUNTER, "Transactions sent to application services, and what became of them.")
        for service in reachable:  # at once: what happens while another node still delivers is for new services too
            await hs.database.write(create_progress, service.id)
        while True:
            async with hs.database.hold("application_services"), trio.open_nursery() as nursery:
                for service in reachable:
                    name = f"delivery to the application service {service.id}"
                    nursery.start_soon(keep_running, hs, partial(self._deliver, service), name)

    async def _deliver(self, service: ApplicationService, hs: Resources) -> None:
        await _Delivery(hs, service, self._sources).run()


class _Delivery:
    """The delivery to one application service, for as long as this node is the one that delivers."""

    _progress: Progress

    def __init__(self, hs: Resources, service: ApplicationService, sources: Sequence[EphemeralSource]) -> None:
        self._hs = hs
        self._service = service
        self._sources = sources
        self._lane = lane_of(service.id)
        self._suspect = 0  # something that the service refuses lies between `acked` and this position
        self._stored, self._stored_s = 0, -math.inf
        self._retried = 0  # what was to be sent again up to this position has been

    async def run(self) -> None:
        """Delivers, for ever."""
        hs = self._hs
        self._progress = await hs.database.write(create_progress, self._service.id)
        self._stored, self._stored_s = self._progress.acked, trio.current_time()
        async with hs.stream.subscribe() as subscription:
            while True:
                await self._pause()
                await self._retry_parked()
                position = await self._wait(subscription)
                await self._catch_up(self._progress.sending or position)

    async def _wait(self, subscription: Subscription) -> int:
        """Returns the position of the stream, once it has news or the progress is to be stored."""
        acked = self._progress.acked
        if acked > self._stored and trio.current_time() >= self._stored_s + STORE_SECONDS:
            await self._store(self._progress)
        late = math.inf if acked == self._stored else self._stored_s + STORE_SECONDS
        with trio.move_on_at(late):
            return await subscription.wait(acked)
        return acked

    async def _catch_up(self, upto: int) -> None:
        """Delivers everything up to a position."""
        while self._progress.acked < upto:
            acked, sending = self._progress.acked, self._progress.sending
            span_max = SPAN_MAX if acked >= self._suspect else max(1, (self._suspect - acked) // 2)
            outgoing = await self._read(acked, sending or min(upto, acked + span_max))
            if outgoing.is_empty and not sending:
                self._progress = self._progress._replace(acked=outgoing.upto)
                continue
            if not sending:
                await self._store(self._progress.begin(outgoing.upto, self._hs.database.generation))
            if await self._send(self._progress.transaction_id, outgoing) == "taken":
                await self._end(outgoing.upto)
            elif outgoing.upto > acked + 1:
                self._suspect = outgoing.upto
                await self._store(self._progress.end(acked))
            else:
                await self._park(outgoing.upto, f"the bridge refuses {outgoing.describe()}")
                await self._store(self._progress.end(outgoing.upto))

    async def _read(self, since: int, upto: int) -> Outgoing:
        """Returns what lies in since < position ≤ upto, or in the beginning of this span. Leaves out damage."""
        while True:
            try:
                return await self._hs.database.read(read_outgoing, self._sources, self._service, since, upto)
            except Exception as error:  # whatever is wrong with one position, the others must get their turn
                if is_outage(error):
                    raise
                if upto == since + 1:
                    await self._park(upto, f"it cannot be read: {type(error).__name__}: {error}", error)
                    return Outgoing(upto, was_left_out=True)
                upto = since + (upto - since) // 2

    async def _send(self, transaction_id: str, outgoing: Outgoing) -> Verdict:
        """Sends one transaction until it is taken or refused."""
        body = to_json(outgoing.body())
        while True:
            outcome, reason = await self._try(transaction_id, body)
            self._hs.metrics.count(SENT_COUNTER, (("service", self._service.id), ("outcome", outcome)))
            if outcome != "failed":
                return outcome
            await self._store(self._progress.fail(reason, self._hs.now_ms()))
            await self._pause()

    async def _try(self, transaction_id: str, body: bytes) -> tuple[Verdict | Literal["failed"], str]:
        """Sends a transaction once. Returns what became of it, and why it was not taken."""
        about = {"service": self._service.id, "transaction": transaction_id}
        try:
            response = await request(
                self._hs, self._service, "PUT", f"/transactions/{transaction_id}", body=body,
                timeout_s=limits.APPLICATION_SERVICE_TIMEOUT_S,
            )  # fmt: skip
        except WireError as error:
            _log.info("application service not reached", extra={**about, "reason": str(error)})
            return "failed", f"not reached: {error}"
        if 200 <= response.status < 300:
            return "taken", ""
        reason = describe(response)
        _log.warning("application service does not take a transaction", extra={**about, "reason": reason})
        return ("refused" if response.status in _REFUSALS else "failed"), reason

    async def _pause(self) -> None:
        """Waits until the service may be tried again, or an administrator says so."""
        hs = self._hs
        while self._progress.due_in_s(hs.now_ms()) > 0:
            position = hs.stream.position
            stored = await hs.database.read(find_progress, self._service.id)
            self._progress = self._progress if stored is None else stored
            wait_s = self._progress.due_in_s(hs.now_ms())
            await hs.stream.wait((RETRY_KEY,), position, trio.current_time() + wait_s)

    async def _retry_parked(self) -> None:
        """Sends again what an administrator has chosen, each position in a transaction of its own."""
        hs = self._hs
        if not hs.stream.has_news((RETRY_KEY,), self._retried):
            return
        position = hs.stream.position
        parked = await hs.database.read(list_parked_of, self._lane)
        for each in sorted(int(item) for item, is_due in parked.items() if is_due and item.isdecimal()):
            outgoing = await self._read(each - 1, each)
            if outgoing.was_left_out:
                continue
            if outgoing.is_empty or await self._send(f"retry_{each}", outgoing) == "taken":
                await hs.database.write(delete_parked, self._lane, [str(each)])
            else:
                await self._park(each, f"the bridge refuses {outgoing.describe()} again")
            await self._store(self._progress.recover())
        self._retried = position

    async def _park(self, position: int, reason: str, error: Exception | None = None) -> None:
        """Notes that a position is left out."""
        await self._hs.database.write(store_parked, self._lane, str(position), reason)
        self._hs.metrics.count(PARKED_COUNTER, (("lane", self._lane),))
        about = {"service": self._service.id, "position": position, "reason": reason}
        _log.error(
            "something is not sent to an application service; see `homeserver bridge show`", extra=about, exc_info=error
        )

    async def _end(self, acked: int) -> None:
        """Notes that the transaction under way is taken."""
        progress = self._progress.end(acked)
        await self._hs.database.write(_store_taken, self._service, self._progress.acked, progress)
        self._note_stored(progress)

    async def _store(self, progress: Progress) -> None:
        await self._hs.database.write(store_progress, self._service.id, progress)
        self._note_stored(progress)

    def _note_stored(self, progress: Progress) -> None:
        self._progress = progress
        self._stored, self._stored_s = progress.acked, trio.current_time()


def _store_taken(tx: Transaction, service: ApplicationService, since: int, progress: Progress) -> None:
    delete_taken(tx, service, since, progress.acked)
    store_progress(tx, service.id, progress)
