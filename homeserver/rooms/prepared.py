"""Events prepared for clients: each is encoded once, and its bytes are spliced into the answers of all who may see it.

Theory of operation. What a client gets of an event is the same for all readers, except for parts of `unsigned`: its
age, the reader's membership when it was sent, the transaction ID on the device that sent it, and what a state event
replaced, if the reader may see that. A `PreparedEvent` has the JSON up to these parts, and `encode_events` adds them.
An event with more in `unsigned`, such as the redaction of a redacted event, is encoded by itself with `client_events`.

A prepared event depends on stored events only, so it is cached under the event's position with the number of rewrites
of its room (`rewrites.py`): after a redaction or an erasure, the room's events are prepared again. The same
holds for the list of all state events of a root. Permissions are checked by the callers, for each reader.

Invariant: the decoded result of `encode_events` equals that of `client_events` for the same events and reader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
import orjson

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.client_event import client_event, client_events, list_replaced, list_visible
from homeserver.rooms.erasure import find_erased
from homeserver.rooms.heads import Head
from homeserver.rooms.resolve import StateAt, entries_of
from homeserver.rooms.storage import (
    EVENT_ROW_BYTES,
    Status,
    StoredEvent,
    TimelineEvent,
    list_stored,
    without_withheld,
)
from homeserver.rooms.transaction_ids import own_fields
from homeserver.rooms.visibility import Memberships

PREPARED_BYTES_MAX = 16 << 20  # some 10,000 events: the members of the largest rooms and the ends of the timelines
STATES_BYTES_MAX = 16 << 20  # the states of ten rooms of 1,000 members, or of many small ones


class PreparedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event with its JSON for clients, up to the last field.

    head: the JSON without `room_id`, `unsigned` and the closing brace.
    membership: what a member event says; None for other events.
    replaced: the state event that it replaced. `replaces` is the part of `unsigned` that says so, `previous` the part
    for readers who may see that event.
    has_more: `unsigned` may have more than the age and a membership. is_individual: it has parts that are not prepared,
    so that the event is encoded by itself.
    """

    event: StoredEvent
    head: bytes
    membership: object = None
    replaced: StoredEvent | None = None
    replaces: bytes = b""
    previous: bytes = b""
    has_more: bool = False
    is_individual: bool = False

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes, with its StoredEvent."""
        content = len(self.event.envelope) + len(self.event.content_json)
        return EVENT_ROW_BYTES + content + len(self.head) + len(self.previous)


def list_prepared(tx: Transaction, head: Head, positions: Iterable[int]) -> list[PreparedEvent]:
    """Returns the events of a room at these positions, in order. Raises DatabaseDamaged if one is missing."""
    cache = tx.sized_cache("prepared_events", PREPARED_BYTES_MAX)
    found: dict[int, PreparedEvent | None] = {}
    missing: list[int] = []
    for position in positions:
        known = cache.get(position)
        if known is not None and known[0] == head.rewrites:
            found[position] = known[1]
        else:
            found[position] = None
            missing.append(position)
    if missing:
        for event in _prepare(tx, list(list_stored(tx, missing).values())):
            found[event.event.position] = event
            if not tx.is_write:  # what a write has stored may still be rolled back
                cache.put(event.event.position, (head.rewrites, event), event.size_bytes)
    return [event for event in found.values() if event is not None]


def list_prepared_state(tx: Transaction, head: Head, state: StateAt) -> Sequence[PreparedEvent]:
    """Returns the events of a whole state, in the order of their positions, without redactions that have no effect."""
    if state.changes:
        return _list_state(tx, head, state)
    cache = tx.sized_cache("prepared_states", STATES_BYTES_MAX)
    version = (head.room_nid, head.rewrites)
    known: tuple[tuple[int, int], Sequence[PreparedEvent]] | None = cache.get(state.root)
    if known is not None and known[0] == version:
        return known[1]
    events = _list_state(tx, head, state)
    if not tx.is_write:
        size = sum(event.size_bytes for event in events)
        cache.put(state.root, (version, events), size)
    return events


def _list_state(tx: Transaction, head: Head, state: StateAt) -> list[PreparedEvent]:
    prepared = list_prepared(tx, head, sorted(set(entries_of(tx, state).values())))
    shown = {event.position for event in without_withheld(tx, [each.event for each in prepared])}
    return [each for each in prepared if each.event.position in shown]


def _prepare(tx: Transaction, events: Sequence[StoredEvent]) -> list[PreparedEvent]:
    replaced = list_replaced(tx, events)
    erased = find_erased(tx, {event.sender for event in replaced.values()})
    return [_prepare_one(tx, event, replaced.get(event.position), erased) for event in events]


def _prepare_one(
    tx: Transaction, event: StoredEvent, before: StoredEvent | None, erased: Collection[str]
) -> PreparedEvent:
    fields = client_event(tx, event, with_room_id=False)
    del fields["unsigned"]
    head = to_json(fields)[:-1]
    membership = event.content.get("membership") if event.type == "m.room.member" else None
    # A redaction may be withheld, and an erased user's events look different to each reader.
    is_individual = event.redacted_by is not None or event.type == "m.room.redaction"
    if before is None:
        return PreparedEvent(event, head, membership, has_more=event.txn_id is not None, is_individual=is_individual)
    replaces = b',"replaces_state":' + to_json(before.event_id)
    previous = b',"prev_content":' + before.content_json + b',"prev_sender":' + to_json(before.sender)
    return PreparedEvent(
        event,
        head,
        membership,
        before,
        replaces,
        previous,
        has_more=True,
        is_individual=is_individual or before.sender in erased,
    )


def encode_events(
    tx: Transaction,
    room_id: RoomID,
    events: Sequence[PreparedEvent],
    *,
    user_id: str,
    device_id: str = "",
    with_room_id: bool = True,
    encoded: Mapping[int, bytes] | None = None,
    memberships: Memberships | None = None,
) -> orjson.Fragment:
    """Returns events of a room as a user's device gets them, in order: a JSON array with what `client_events` returns.

    encoded: events that the caller has encoded by itself, by position. memberships: the user's, if the caller has them.
    """
    now_ms = tx.now_ms
    memberships = memberships or Memberships(tx, user_id)
    apart = dict(encoded or {})
    apart |= _encode_individually(
        tx, [each.event for each in events if each.is_individual and each.event.position not in apart],
        user_id=user_id, device_id=device_id, with_room_id=with_room_id,
    )  # fmt: skip
    hidden = _list_hidden(tx, memberships, user_id, events)
    middle = (b',"room_id":' + to_json(room_id) if with_room_id else b"") + b',"unsigned":{"age":'
    endings: dict[str, bytes] = {}
    shown: list[bytes] = []
    for each in events:
        event = each.event
        if apart and (alone := apart.get(event.position)) is not None:
            shown.append(alone)
            continue
        ending = b"}}"
        if event.state_before is not None:
            membership = memberships.at(event.state_before)
            known = endings.get(membership)
            if known is None:
                known = endings[membership] = b',"membership":' + to_json(membership) + b"}}"
            ending = known
        if each.has_more or event.state_key == user_id:
            ending = _encode_rest(each, user_id, device_id, hidden, ending)
        shown.append(b"%b%b%d%b" % (each.head, middle, now_ms - event.origin_server_ts, ending))
    return orjson.Fragment(b"[" + b",".join(shown) + b"]")


def _encode_rest(event: PreparedEvent, user_id: str, device_id: str, hidden: Collection[int], ending: bytes) -> bytes:
    """Returns the end of an event whose `unsigned` may have more than `ending`: the reader's membership."""
    stored = event.event
    if stored.state_key == user_id and stored.type == "m.room.member" and stored.state_before is not None:
        ending = b',"membership":' + to_json(event.membership) + b"}}"
    if stored.txn_id is not None and stored.sender == user_id and (own := own_fields(stored, device_id)):
        ending = b"," + to_json(own)[1:-1] + ending
    if event.replaced is not None:
        previous = b"" if event.replaced.position in hidden else event.previous
        ending = event.replaces + previous + ending
    return ending


def encode_bare(tx: Transaction, events: Iterable[PreparedEvent]) -> orjson.Fragment:
    """Returns state events as a sync tells them: without `room_id`, and with the age alone in `unsigned`."""
    now_ms = tx.now_ms
    shown = [b'%b,"unsigned":{"age":%d}}' % (each.head, now_ms - each.event.origin_server_ts) for each in events]
    return orjson.Fragment(b"[" + b",".join(shown) + b"]")


def _encode_individually(
    tx: Transaction, events: Sequence[StoredEvent], *, user_id: str, device_id: str, with_room_id: bool
) -> dict[int, bytes]:
    if not events:
        return {}
    shown = client_events(tx, events, user_id=user_id, device_id=device_id, with_room_id=with_room_id)
    return {event.position: to_json(each) for event, each in zip(events, shown, strict=True)}


def _list_hidden(tx: Transaction, memberships: Memberships, user_id: str, events: Sequence[PreparedEvent]) -> set[int]:
    """Returns the positions of replaced events that the user may not see."""
    doubtful = [
        each.replaced
        for each in events
        if each.replaced is not None
        and not each.is_individual
        and not _is_surely_visible(memberships, user_id, each.replaced)
    ]
    if not doubtful:
        return set()
    return {event.position for event in doubtful} - list_visible(tx, user_id, doubtful).keys()


def _is_surely_visible(memberships: Memberships, user_id: str, event: StoredEvent) -> bool:
    """Returns whether the user may see an event, without looking at the visibility of the room's history.

    Its sender is not erased.
    """
    if event.status == Status.OUTLIER:
        return True
    if not isinstance(event, TimelineEvent):
        return False
    is_own = event.type == "m.room.member" and event.state_key == user_id
    return is_own or memberships.at(event.state_before) == "join"
