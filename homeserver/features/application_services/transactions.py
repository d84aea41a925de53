"""What an application service is sent: what happened in a span of the stream that concerns it.

Spec: application-service-api/#put_matrixappv1transactionstxnid
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.feature import Ephemeral, JsonObject
from homeserver.features.application_services.encryption import Keys, list_for_service, read_keys, read_messages
from homeserver.features.application_services.interest import Interest
from homeserver.rooms.client_event import client_event, list_replaced
from homeserver.rooms.member_changes import ShownChange, list_shown_changes
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    StoredEvent,
    TimelineEvent,
    find_stored_at,
    list_positions,
    list_stored,
    without_withheld,
)

EphemeralSource = Callable[[Transaction, int, int], Iterable[Ephemeral]]

EVENTS_MAX = 100
"""A transaction has as many as those of other servers, for which bridges are made; and as many to-device messages."""
SPAN_MAX = 2_000
"""Positions read at a time, so that a bridge that was away for long does not hold up others."""


class Outgoing(msgspec.Struct, frozen=True):
    """What lies in since < position ≤ upto. The contents of events are encoded already: only orjson takes them.

    was_left_out: it could not be read, so there is nothing in it.
    """

    upto: int
    events: Sequence[JsonObject] = ()
    ephemeral: Sequence[JsonObject] = ()
    to_device: Sequence[JsonObject] = ()
    keys: Keys = msgspec.field(default_factory=Keys)
    was_left_out: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the span concerns the application service."""
        return not (self.events or self.ephemeral or self.to_device or self.keys)

    def describe(self) -> str:
        """Returns what it is, for administrators."""
        event_ids = [str(event["event_id"]) for event in self.events if "event_id" in event]
        return ", ".join(event_ids) or "what is not an event"

    def body(self) -> JsonObject:
        """Returns the body of the transaction. Bridges of before v1.13 of the spec read the older name."""
        body: dict[str, Any] = {"events": self.events, **self.keys.body()}
        if self.ephemeral:
            body["ephemeral"] = body["de.sorunome.msc2409.ephemeral"] = self.ephemeral
        if self.to_device:
            body["de.sorunome.msc2409.to_device"] = self.to_device
        return body


def read_outgoing(
    tx: Transaction, sources: Sequence[EphemeralSource], service: ApplicationService, since: int, upto: int
) -> Outgoing:
    """Returns what concerns the service in since < position ≤ upto, or in the beginning of this span if it is much."""
    upto = min(upto, since + SPAN_MAX)
    positions = list_positions(tx, since, upto)
    has_more = len(positions) < upto - since  # every change has a position of its own: otherwise it is events only
    interest = Interest(tx, service, since)
    received = list_for_service(tx, service, since, upto) if has_more else []
    if len(received) > EVENTS_MAX:
        upto = received[EVENTS_MAX].position - 1
    shown = dict(list_shown_changes(tx, since, upto)) if has_more else {}
    events, invites, upto = _read_events(tx, interest, service, positions, shown, upto)
    received = [each for each in received if each.position <= upto]
    replaced = list_replaced(tx, list(events.values()))
    told = _tell_events(tx, events, replaced) | invites
    moves = [
        (event, replaced.get(position)) for position, event in events.items() if event.type == "m.room.member"
    ]  # fmt: skip
    wanted = sources if service.receives_ephemeral and has_more else ()
    return Outgoing(
        upto,
        [told[position] for position in sorted(told)],
        list(_list_ephemeral(tx, interest, wanted, service, since, upto)),
        read_messages(tx, received),
        read_keys(tx, interest, service, since, upto, received, moves, has_more=has_more),
    )


def _read_events(
    tx: Transaction,
    interest: Interest,
    service: ApplicationService,
    positions: Sequence[int],
    shown: Mapping[int, ShownChange],
    upto: int,
) -> tuple[dict[int, TimelineEvent], dict[int, JsonObject], int]:
    """Returns what concerns the service by position, at most EVENTS_MAX, and the position up to which that is all.

    These are new events of timelines, no history that was fetched; and invites to rooms of other servers.
    """
    events: dict[int, TimelineEvent] = {}
    invites: dict[int, JsonObject] = {}
    for position, found in _list_concerning(tx, interest, service, positions, shown):
        if position > upto:
            break
        if len(events) + len(invites) == EVENTS_MAX:
            return events, invites, position - 1
        if isinstance(found, TimelineEvent):
            events[position] = found
        else:
            invites[position] = found
    return events, invites, upto


def _list_concerning(
    tx: Transaction,
    interest: Interest,
    service: ApplicationService,
    positions: Sequence[int],
    shown: Mapping[int, ShownChange],
) -> Iterator[tuple[int, TimelineEvent | JsonObject]]:
    """Yields what concerns the service, in order. Events are read as they are needed: a span may have thousands."""
    all_positions = sorted({*positions, *shown})
    for start in range(0, len(all_positions), EVENTS_MAX):
        part = all_positions[start : start + EVENTS_MAX]
        stored = find_stored_at(tx, part)
        visible = {event.position for event in without_withheld(tx, list(stored.values()))}
        for position in part:
            event = stored.get(position)
            if event is None:
                change = shown[position]
                if change.own_event is not None and service.covers(change.user_id):
                    yield position, {**change.own_event, "room_id": change.room_id, "unsigned": {}}
            elif isinstance(event, TimelineEvent) and position in visible:
                if event.ordering == position << ORDERING_SHIFT and interest.has_event(event):
                    yield position, event


def _tell_events(
    tx: Transaction, events: Mapping[int, TimelineEvent], replaced: Mapping[int, StoredEvent]
) -> dict[int, JsonObject]:
    """Returns the events as clients get them. `unsigned` has what `/sync` would tell everyone in the room."""
    redactions = list_stored(tx, {event.redacted_by for event in events.values() if event.redacted_by is not None})
    told = {}
    for position, event in events.items():
        unsigned: JsonObject = {"age": tx.now_ms - event.origin_server_ts}
        before = replaced.get(position)
        if before is not None:
            unsigned["replaces_state"] = before.event_id
            unsigned["prev_content"] = orjson.Fragment(before.content_json)
            unsigned["prev_sender"] = before.sender
        redaction = redactions.get(event.redacted_by) if event.redacted_by is not None else None
        if redaction is not None:
            age_ms = tx.now_ms - redaction.origin_server_ts
            unsigned["redacted_because"] = client_event(tx, redaction, {"age": age_ms})
        told[position] = client_event(tx, event, unsigned)
    return told


def _list_ephemeral(
    tx: Transaction,
    interest: Interest,
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
                concerns = interest.has_room(each.room_id)
            else:
                concerns = each.about is not None and interest.has_user(each.about)
            if concerns:
                yield {**each.event, "room_id": each.room_id} if each.room_id is not None else each.event
