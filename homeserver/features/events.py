"""What came before /sync: the stream of events, which also shows rooms to people who have not joined them.

Spec: client-server-api/#get_matrixclientv3events, #room-previews

A stream position stands for a point of all rooms at once, so events of several rooms are told in one order, and an
answer may end anywhere: the next request goes on from there.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import orjson
import trio

from homeserver import limits
from homeserver.api.filters import RoomEventFilter
from homeserver.api.routes import Request, Routes
from homeserver.authenticate import Requester, check_token
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.resources import Resources
from homeserver.rooms.access import get_visible_event, read_access
from homeserver.rooms.aliases import is_published
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.client_event import client_events
from homeserver.rooms.history import Reader, read_page
from homeserver.rooms.membership import RoomMembership, find_membership, list_memberships
from homeserver.rooms.resolve import entries_of
from homeserver.rooms.storage import ORDERING_SHIFT, TimelineEvent, find_stored_by_id, list_stored, without_withheld
from homeserver.rooms.timeline import END, START, Tokens, after_position, find_since, parse_sync_token
from homeserver.rooms.visibility import find_leave
from homeserver.users.account_data import list_of_rooms
from homeserver.users.blocking import ignored_users, read_invite_filter

EVENTS_TIMEOUT_MS_MAX = 90_000  # as of /sync
EVENTS_PER_ANSWER_MAX = 100

routes = Routes()


class EventsQuery(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """`room_id`: only the events of that room, which the user need not be in if anyone may read it."""

    from_: str | None = None
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0
    room_id: RoomID | None = None


class SnapshotQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10


@routes.get("/_matrix/client/v3/events", rate_limit="sync", waits=True, allow_guest=True)
async def get_events(hs: Resources, requester: Requester, request: Request, query: EventsQuery) -> JsonObject:
    since = await hs.database.read(_read_start, query.from_)
    start = since
    deadline = trio.current_time() + min(query.timeout, EVENTS_TIMEOUT_MS_MAX) / 1000
    answer = await hs.database.read(_read_events, requester, start, query.room_id)
    while not answer.chunk and trio.current_time() < deadline:
        position = await hs.stream.wait(answer.keys, answer.upto, deadline, request.wait_ended)
        if position <= answer.upto:
            break
        answer = await hs.database.read(_read_again, requester, answer.upto, query.room_id)
    generation = hs.database.generation
    return {
        "chunk": answer.chunk,
        "start": Tokens(start, generation).stream(),
        "end": Tokens(answer.upto, generation).stream(),
    }


@routes.get("/_matrix/client/v3/events/{event_id}")
async def get_one_event(hs: Resources, requester: Requester, event_id: EventID) -> JsonObject:
    return await hs.database.read(_read_event, requester, event_id)


@routes.get("/_matrix/client/v3/rooms/{room_id}/initialSync", allow_guest=True)
async def room_initial_sync(hs: Resources, requester: Requester, room_id: RoomID, query: SnapshotQuery) -> JsonObject:
    limit = min(query.limit, limits.MESSAGES_LIMIT_MAX)
    return await hs.database.read(_read_room, requester, room_id, limit, hs.database.generation)


# --- the stream ---


class _Events(msgspec.Struct, frozen=True):
    """Events up to a position of the stream, and the keys to wait for if there are none."""

    chunk: list[JsonObject]
    upto: int
    keys: frozenset[str]


def _read_start(tx: Transaction, token: str | None) -> int:
    """Returns the position of a token. Without one, and after a restore from a backup, the stream begins now."""
    since = None if token is None else find_since(tx, parse_sync_token(token))
    return tx.position if since is None else since


def _read_again(tx: Transaction, requester: Requester, since: int, room_id: RoomID | None) -> _Events:
    check_token(tx, requester)
    return _read_events(tx, requester, since, room_id)


def _read_events(tx: Transaction, requester: Requester, since: int, room_id: RoomID | None) -> _Events:
    user_id = requester.user_id
    if room_id is not None:
        spans = [(room_id, read_access(tx, room_id, user_id).upto)]
        invites: list[JsonObject] = []
        keys = frozenset((user_id, room_id))
    else:
        memberships = list_memberships(tx, user_id)
        spans = [span for each in memberships if (span := _span(tx, requester, each, since)) is not None]
        invites = _list_invites(tx, requester, memberships, since)
        keys = frozenset((user_id, *(each.room_id for each in memberships if each.membership == "join")))
    ignored = ignored_users(tx, user_id)
    found: list[TimelineEvent] = []
    end = after_position(tx.position)
    for each_id, upto in spans:
        reader = Reader(user_id, each_id, RoomEventFilter(), ignored)
        page = read_page(tx, reader, after_position(since), upto, EVENTS_PER_ANSWER_MAX, forwards=True)
        found += page.events
        if page.more:
            end = min(end, page.end)
    found = sorted((event for event in found if event.ordering <= end), key=lambda event: event.ordering)
    if len(found) > EVENTS_PER_ANSWER_MAX:
        del found[EVENTS_PER_ANSWER_MAX:]
        end = found[-1].ordering
    shown = client_events(tx, found, user_id=user_id, device_id=requester.device_id)
    return _Events([*invites, *shown], end >> ORDERING_SHIFT, keys)


def _span(tx: Transaction, requester: Requester, membership: RoomMembership, since: int) -> tuple[RoomID, int] | None:
    """Returns a room with events for the user after a position, and up to which point of its timeline."""
    if membership.membership == "join" and membership.last_position > since:
        return membership.room_id, END
    if membership.membership in ("leave", "ban") and membership.changed_position > since and not membership.forgotten:
        left = find_leave(tx, membership.room_id, requester.user_id)
        return None if left is None else (membership.room_id, left.ordering)
    return None


def _list_invites(
    tx: Transaction, requester: Requester, memberships: list[RoomMembership], since: int
) -> list[JsonObject]:
    """Returns the user's new invites, except those that the user does not want to see."""
    new = [each for each in memberships if each.membership == "invite" and each.changed_position > since]
    if not new:
        return []
    unwanted = read_invite_filter(tx, requester.user_id, ignored_users(tx, requester.user_id))
    told = [
        (each.room_id, each.stripped[-1]) for each in new if each.stripped and not unwanted.hides(tx, each.stripped)
    ]
    return [{**event, "room_id": room_id} for room_id, event in told if "event_id" in event]


# --- single events, and rooms as they are now ---


def _read_event(tx: Transaction, requester: Requester, event_id: EventID) -> JsonObject:
    stored = find_stored_by_id(tx, event_id)
    if stored is None:
        raise not_found("There is no such event, or none that you may see.")
    event = get_visible_event(tx, stored.room_id, event_id, requester.user_id)
    return _show(tx, requester, [event])[0]


def _read_room(tx: Transaction, requester: Requester, room_id: RoomID, limit: int, generation: str) -> JsonObject:
    access = read_access(tx, room_id, requester.user_id)
    reader = Reader(requester.user_id, room_id, RoomEventFilter(), ignored_users(tx, requester.user_id))
    page = read_page(tx, reader, access.upto, START, limit)
    state = without_withheld(tx, list(list_stored(tx, set(entries_of(tx, access.state).values())).values()))
    tokens = Tokens(tx.position, generation)
    rows = list_of_rooms(tx, requester.user_id, [tx.find(room_id)])
    answer: dict[str, Any] = {
        "room_id": room_id,
        "messages": {
            "chunk": _show(tx, requester, page.events[::-1]),
            "start": tokens.timeline(page.end),
            # A token of the stream, which /events takes too.
            "end": tokens.stream() if access.upto == END else tokens.timeline(access.upto),
        },
        "state": client_events(tx, state, user_id=requester.user_id, device_id=requester.device_id),
        "visibility": "public" if is_published(tx, room_id) else "private",
        "account_data": [{"type": tx.name(row[1]), "content": orjson.Fragment(row[2])} for row in rows],
    }
    membership = find_membership(tx, room_id, requester.user_id)
    if membership is not None and membership != "knock":
        answer["membership"] = membership
    return answer


def _show(tx: Transaction, requester: Requester, events: list[TimelineEvent]) -> list[JsonObject]:
    ignored = ignored_users(tx, requester.user_id)
    return bundled_events(tx, events, user_id=requester.user_id, device_id=requester.device_id, ignored=ignored)


FEATURE = Feature(name="events", spec="client-server-api/#room-previews", routes=routes)
