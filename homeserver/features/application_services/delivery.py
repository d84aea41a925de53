"""Delivery: sends each application service what concerns it, in order, each transaction until it is taken.

Spec: application-service-api/#pushing-events

Theory of operation
- Each application service has a task and a row of its own, so one that is slow, away or wrong delays no other. Where
  several nodes share the database, one of them delivers.
- The row says up to which position of the stream the service has everything, and where the transaction under way ends.
  The latter is stored before anything is sent, so after a crash the same events are sent under the same ID.
- A service that cannot be reached, or fails, is tried again after a pause that doubles up to RETRY_S_MAX.
- What the disk has damaged is left out, position by position, and the log says so.
- What it refuses (400, 413 and the like) it would refuse again. The transaction is cut in halves, with new IDs, until a
  single event is refused. That one is left out, and the log says so. So no event can keep a bridge from all later ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import trio

from homeserver import limits
from homeserver.config import ApplicationService
from homeserver.database import DatabaseDamaged
from homeserver.encoding import to_json
from homeserver.features.application_services.interest import Interests
from homeserver.features.application_services.storage import Progress, create_progress, store_progress
from homeserver.features.application_services.transactions import (
    EVENTS_MAX,
    SPAN_MAX,
    EphemeralSource,
    Outgoing,
    read_outgoing,
)
from homeserver.federation.wire import WireError
from homeserver.remote.application_services import request
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.application_services")

SENT_COUNTER = "homeserver_application_service_transactions_total"
RETRY_S_MAX = 60.0
# Nothing but the position has changed: it is stored now and then, so that a restart has not much to read again.
STORE_SECONDS = 5.0
_REFUSALS = frozenset({400, 413, 422})


class Deliveries:
    """Delivers to all application services. sources: where ephemeral data comes from."""

    def __init__(self, sources: Sequence[EphemeralSource]) -> None:
        self._sources = sources

    async def run(self, hs: Resources) -> None:
        """Delivers, for ever."""
        reachable = [service for service in hs.application_services if service.url is not None]
        if not reachable:
            return
        hs.metrics.describe(SENT_COUNTER, "Transactions sent to application services, and what became of them.")
        interests = Interests(hs.application_services)
        async with hs.database.hold("application_services"), trio.open_nursery() as nursery:
            for service in reachable:
                nursery.start_soon(_Delivery(hs, service, interests, self._sources).run)


class _Delivery:
    """The delivery to one application service, for as long as this node is the one that delivers."""

    _progress: Progress

    def __init__(
        self, hs: Resources, service: ApplicationService, interests: Interests, sources: Sequence[EphemeralSource]
    ) -> None:
        self._hs = hs
        self._service = service
        self._interests = interests
        self._sources = sources
        self._events_max = EVENTS_MAX

    async def run(self) -> None:
        """Delivers, for ever."""
        hs = self._hs
        self._progress = await hs.database.write(create_progress, self._service.id)
        stored, stored_s = self._progress.acked, trio.current_time()
        async with hs.stream.subscribe_all() as subscription:
            while True:
                acked = self._progress.acked
                if acked > stored and trio.current_time() >= stored_s + STORE_SECONDS:
                    await self._store(self._progress)
                    stored, stored_s = acked, trio.current_time()
                late = math.inf if acked == stored else stored_s + STORE_SECONDS
                position = acked
                with trio.move_on_at(late):
                    position = await subscription.wait(acked)
                if await self._deliver(self._progress.sending or position):
                    stored, stored_s = self._progress.acked, trio.current_time()

    async def _deliver(self, upto: int) -> bool:
        """Delivers everything up to a position. Returns whether the progress was stored."""
        has_stored = False
        while self._progress.acked < upto:
            outgoing = await self._read(upto)
            if outgoing.is_empty and not self._progress.sending:
                self._progress = self._progress._replace(acked=outgoing.upto)
                continue
            if not self._progress.sending:
                acked, _, number = self._progress
                await self._store(Progress(acked, outgoing.upto, number + 1))
            await self._send(outgoing)
            has_stored = True
        return has_stored

    async def _read(self, upto: int) -> Outgoing:
        """Returns the next transaction: after a crash the one that was under way, whatever that has become."""
        since, sending, _ = self._progress
        upto = min(sending or upto, since + SPAN_MAX)
        while True:
            try:
                return await self._hs.database.read(
                    read_outgoing, self._interests, self._sources, self._service, since, upto, self._events_max
                )
            except DatabaseDamaged as error:
                if upto == since + 1:
                    about = {"service": self._service.id, "position": upto, "damage": str(error)}
                    _log.error("an application service is not sent what is damaged", extra=about)
                    return Outgoing(upto, [], [])
                upto = since + (upto - since) // 2

    async def _send(self, outgoing: Outgoing) -> None:
        """Sends one transaction until it is taken, or cut because it was refused."""
        number, body, failures = self._progress.number, to_json(outgoing.body()), 0
        while True:
            outcome = await self._try(number, body)
            self._hs.metrics.count(SENT_COUNTER, (("service", self._service.id), ("outcome", outcome)))
            if outcome == "taken":
                self._events_max = EVENTS_MAX
                await self._store(Progress(outgoing.upto, 0, number))
                return
            if outcome == "refused":
                await self._cut(outgoing)
                return
            failures += 1
            await trio.sleep(min(2.0**failures, RETRY_S_MAX))

    async def _try(self, number: int, body: bytes) -> str:
        """Sends a transaction once. Returns what became of it: "taken", "refused" or "failed"."""
        about = {"service": self._service.id, "transaction": number}
        try:
            response = await request(
                self._hs, self._service, "PUT", f"/transactions/{number}", body=body,
                timeout_s=limits.APPLICATION_SERVICE_TIMEOUT_S,
            )  # fmt: skip
        except WireError as error:
            _log.info("application service not reached", extra={**about, "reason": str(error)})
            return "failed"
        if 200 <= response.status < 300:
            return "taken"
        _log.warning("application service does not take a transaction", extra={**about, "status": response.status})
        return "refused" if response.status in _REFUSALS else "failed"

    async def _cut(self, outgoing: Outgoing) -> None:
        """Goes on with half of a transaction that was refused, or leaves out the only event in it."""
        acked, _, number = self._progress
        if len(outgoing.events) > 1:
            self._events_max = len(outgoing.events) // 2
            await self._store(Progress(acked, 0, number))
            return
        left_out = [event["event_id"] for event in outgoing.events if "event_id" in event]
        _log.error(
            "an application service refuses an event, which is left out",
            extra={"service": self._service.id, "events": left_out},
        )
        self._events_max = EVENTS_MAX
        await self._store(Progress(outgoing.upto, 0, number))

    async def _store(self, progress: Progress) -> None:
        await self._hs.database.write(store_progress, self._service.id, progress)
        self._progress = progress
