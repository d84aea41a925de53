"""What an application service is sent: the events and the ephemeral data of a span of the stream that concern it.

Spec: application-service-api/#put_matrixappv1transactionstxnid
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.feature import Ephemeral, JsonObject
from homeserver.features.application_services.interest import Interests
from homeserver.rooms.client_event import client_event
from homeserver.rooms.member_changes import list_shown_changes
from homeserver.rooms.storage import ORDERING_SHIFT, TimelineEvent, find_stored_at, list_positions

EphemeralSource = Callable[[Transaction, int, int], Iterable[Ephemeral]]

EVENTS_MAX = 100
"""A transaction has as many as those of other servers, for which bridges are made."""
SPAN_MAX = 2_000
"""Positions read at a time, so that a bridge that was away for long does not hold up others."""


class Outgoing(NamedTuple):
    """What lies in since < position ≤ upto. The contents of events are encoded already: only orjson takes them."""

    upto: int
    events: Sequence[JsonObject]
    ephemeral: Sequence[JsonObject]

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the span concerns the application service."""
        return not self.events and not self.ephemeral

    def body(self) -> JsonObject:
        """Returns the body of the transaction. Bridges of before v1.13 of the spec read the older name."""
        body: dict[str, Any] = {"events": self.events}
        if self.ephemeral:
            body["ephemeral"] = body["de.sorunome.msc2409.ephemeral"] = self.ephemeral
        return body


def read_outgoing(
    tx: Transaction,
    interests: Interests,
    sources: Sequence[EphemeralSource],
    service: ApplicationService,
    since: int,
    upto: int,
    events_max: int = EVENTS_MAX,
) -> Outgoing:
    """Returns what concerns the service in since < position ≤ upto, or in the beginning of this span if it is much."""
    upto = min(upto, since + SPAN_MAX)
    events: list[tuple[int, JsonObject]] = []
    for position, event in _list_events(tx, interests, service, since, upto):
        if len(events) == events_max:
            upto = position - 1
            break
        events.append((position, event))
    wanted = sources if service.receives_ephemeral else ()
    ephemeral = list(_list_ephemeral(tx, interests, wanted, service, since, upto))
    return Outgoing(upto, [event for _, event in events], ephemeral)


def _list_events(
    tx: Transaction, interests: Interests, service: ApplicationService, since: int, upto: int
) -> Iterator[tuple[int, JsonObject]]:
    """Yields new events of timelines, and invites to rooms of other servers, in order. No history that was fetched."""
    stored = find_stored_at(tx, list_positions(tx, since, upto))
    shown = dict(list_shown_changes(tx, since, upto))
    for position in sorted({*stored, *shown}):
        event = stored.get(position)
        if isinstance(event, TimelineEvent) and event.ordering == position << ORDERING_SHIFT:
            if interests.has_event(tx, service, event):
                yield position, client_event(tx, event, {"age": tx.now_ms - event.origin_server_ts})
        elif event is None and service.covers(shown[position].user_id):
            own = shown[position].own_event
            if own is not None:
                yield position, {**own, "room_id": shown[position].room_id, "unsigned": {}}


def _list_ephemeral(
    tx: Transaction,
    interests: Interests,
    sources: Sequence[EphemeralSource],
    service: ApplicationService,
    since: int,
    upto: int,
) -> Iterator[JsonObject]:
    for source in sources:
        for each in source(tx, since, upto):
            if each.private_to is not None:
                concerns = service.covers(each.private_to)
            elif each.room_id is not None:
                concerns = interests.has_room(tx, service, each.room_id)
            else:
                concerns = each.about is not None and interests.has_user(tx, service, each.about)
            if concerns:
                yield {**each.event, "room_id": each.room_id} if each.room_id is not None else each.event
