"""What other servers read from us: keys, events, states, history, answers to queries. Every answer is bounded.

Spec: server-server-api/#retrieving-server-keys, #backfilling-and-retrieving-missing-events, #retrieving-events
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from homeserver import limits
from homeserver.api.routes import Request, Routes
from homeserver.database import Transaction
from homeserver.errors import invalid_param, missing_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, ServerName, parse_server_name
from homeserver.federation.redaction import redact
from homeserver.federation.server_keys import build_notary_response
from homeserver.remote.access import check_may_read
from homeserver.remote.keys import WantedKey, find_keys, list_statements, own_statement, take_stranger
from homeserver.resources import Resources
from homeserver.rooms import state_tree
from homeserver.rooms.events import to_events
from homeserver.rooms.graph import auth_chain, walk_back
from homeserver.rooms.storage import PlacedEvent, StoredEvent, find_stored_by_id, list_event_ids, list_stored
from homeserver.rooms.timeline import Timestamp, list_by_timestamp
from homeserver.rooms.visibility import server_may_see

Natural = Annotated[int, Meta(ge=0)]


class MinimumQuery(msgspec.Struct, frozen=True):
    minimum_valid_until_ts: Natural | None = None


class KeyCriteria(msgspec.Struct, frozen=True):
    minimum_valid_until_ts: Natural | None = None


class KeyQueryBody(msgspec.Struct, frozen=True):
    """The wanted keys of each server. Spec: server-server-api/#post_matrixkeyv2query"""

    server_keys: Annotated[dict[str, dict[str, KeyCriteria]], Meta(max_length=limits.peers.NOTARY_SERVERS_MAX)]


class EventQuery(msgspec.Struct, frozen=True):
    event_id: EventID


class BackfillQuery(msgspec.Struct, frozen=True):
    limit: Natural
    v: list[EventID] = []


class MissingEventsBody(msgspec.Struct, frozen=True):
    """Spec: server-server-api/#post_matrixfederationv1get_missing_eventsroomid"""

    earliest_events: Annotated[list[EventID], Meta(max_length=1000)]
    latest_events: Annotated[list[EventID], Meta(max_length=1000)]
    limit: Natural = 10
    min_depth: int = 0


class TimestampQuery(msgspec.Struct, frozen=True):
    ts: Timestamp
    dir: Literal["f", "b"]


routes = Routes()


# Keys


@routes.get("/_matrix/key/v2/server", rate_limit="federation")
async def get_server_key(hs: Resources) -> JsonObject:
    return await own_statement(hs)


@routes.get("/_matrix/key/v2/query/{server_name}", rate_limit="federation")
async def perspectives_key_query(
    hs: Resources, server_name: ServerName, query: MinimumQuery, request: Request
) -> JsonObject:
    return await _vouch(hs, request, {server_name: {"": KeyCriteria(query.minimum_valid_until_ts)}})


# From before v1.6 of the spec, and still requested by older servers. The answer has all keys, whichever is asked for.


@routes.get("/_matrix/key/v2/server/{key_id}", rate_limit="federation")
async def get_server_key_by_id(hs: Resources, key_id: str) -> JsonObject:
    return await own_statement(hs)


@routes.get("/_matrix/key/v2/query/{server_name}/{key_id}", rate_limit="federation")
async def perspectives_key_query_by_id(
    hs: Resources, server_name: ServerName, key_id: str, query: MinimumQuery, request: Request
) -> JsonObject:
    return await _vouch(hs, request, {server_name: {key_id: KeyCriteria(query.minimum_valid_until_ts)}})


@routes.post("/_matrix/key/v2/query", rate_limit="federation", max_body_bytes=limits.peers.QUESTION_BODY_BYTES_MAX)
async def bulk_perspectives_key_query(hs: Resources, body: KeyQueryBody, request: Request) -> JsonObject:
    wanted: dict[ServerName, dict[str, KeyCriteria]] = {}
    for name, keys in body.server_keys.items():
        try:
            wanted[parse_server_name(name)] = keys
        except InvalidIdentifier as error:
            raise invalid_param(f"server_keys: {error}") from None
    return await _vouch(hs, request, wanted)


async def _vouch(hs: Resources, request: Request, wanted: dict[ServerName, dict[str, KeyCriteria]]) -> JsonObject:
    """Returns the statements of servers about their keys, signed by us too. Stored ones, if a server is unreachable."""
    now_ms = hs.now_ms()
    others = [server for server in wanted if server != hs.server_name]
    stored = await hs.database.read(list_statements, others)
    cause = take_stranger(hs, request.client_ip, len(others) - len(stored))
    needs: list[WantedKey] = []
    for server in others:
        criteria = wanted[server] or {"": KeyCriteria()}
        for key_id, each in criteria.items():
            minimum_ts = now_ms if each.minimum_valid_until_ts is None else each.minimum_valid_until_ts
            # Without a key ID any stored key suffices. If there is none, "" is a key that makes us ask the server.
            known = next(iter(stored[server][0].verify_keys), "") if server in stored else ""
            needs.append(WantedKey(server, key_id or known, minimum_ts))
    await find_keys(hs, needs, cause)
    stored = await hs.database.read(list_statements, others)
    responses = [statement.response for server in others for statement in stored.get(server, ())]
    answer = build_notary_response(responses, hs.server_name, hs.signing_key)
    if hs.server_name in wanted:
        answer["server_keys"].append(await own_statement(hs))
    return answer


@routes.get("/_matrix/federation/v1/version", rate_limit="federation")
async def get_version(hs: Resources) -> JsonObject:
    return {"server": {"name": "homeserver", "version": _version()}}


def _version() -> str:
    try:
        return version("homeserver")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


# Events


@routes.get("/_matrix/federation/v1/event/{event_id}", rate_limit="federation")
async def get_event(hs: Resources, origin: ServerName, event_id: EventID) -> JsonObject:
    return _transaction(hs, [await hs.database.read(_event, hs.server_name, event_id, origin)])


def _event(tx: Transaction, own: ServerName, event_id: EventID, origin: ServerName) -> JsonObject:
    stored = find_stored_by_id(tx, event_id)
    if stored is None:
        raise not_found("This server does not know that event.")
    check_may_read(tx, own, stored.room_id, origin, [event_id])
    return _pdus(tx, [stored], origin)[0]


@routes.get("/_matrix/federation/v1/event_auth/{room_id}/{event_id}", rate_limit="federation_state")
async def get_event_auth(hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID) -> JsonObject:
    return {"auth_chain": await hs.database.read(_event_auth, hs.server_name, room_id, event_id, origin)}


def _event_auth(
    tx: Transaction, own: ServerName, room_id: RoomID, event_id: EventID, origin: ServerName
) -> list[JsonObject]:
    check_may_read(tx, own, room_id, origin, [event_id])
    stored = _event_of(tx, room_id, event_id)
    return whole_pdus(tx, auth_chain(tx, [stored.position]))


@routes.get("/_matrix/federation/v1/state_ids/{room_id}", rate_limit="federation")
async def get_room_state_ids(hs: Resources, origin: ServerName, room_id: RoomID, query: EventQuery) -> JsonObject:
    return await hs.database.read(_state_ids, hs.server_name, room_id, query.event_id, origin)


def _state_ids(tx: Transaction, own: ServerName, room_id: RoomID, event_id: EventID, origin: ServerName) -> JsonObject:
    state = _state_positions(tx, own, room_id, event_id, origin)
    return {
        "pdu_ids": list(list_event_ids(tx, state).values()),
        "auth_chain_ids": list(list_event_ids(tx, auth_chain(tx, state)).values()),
    }


@routes.get("/_matrix/federation/v1/state/{room_id}", rate_limit="federation_state")
async def get_room_state(hs: Resources, origin: ServerName, room_id: RoomID, query: EventQuery) -> JsonObject:
    return await hs.database.read(_state, hs.server_name, room_id, query.event_id, origin)


def _state(tx: Transaction, own: ServerName, room_id: RoomID, event_id: EventID, origin: ServerName) -> JsonObject:
    state = _state_positions(tx, own, room_id, event_id, origin)
    return {"pdus": whole_pdus(tx, state), "auth_chain": whole_pdus(tx, auth_chain(tx, state))}


def _state_positions(
    tx: Transaction, own: ServerName, room_id: RoomID, event_id: EventID, origin: ServerName
) -> list[int]:
    """Returns the positions of the state before the event."""
    check_may_read(tx, own, room_id, origin, [event_id])
    stored = _event_of(tx, room_id, event_id)
    if not isinstance(stored, PlacedEvent):
        raise not_found("This server does not know the state at that event.")
    return list(state_tree.items(tx, stored.state_before).values())


@routes.get("/_matrix/federation/v1/backfill/{room_id}", rate_limit="federation")
async def backfill_room(hs: Resources, origin: ServerName, room_id: RoomID, query: BackfillQuery) -> JsonObject:
    if not query.v:
        raise missing_param("v is required.")
    limit = min(query.limit, limits.peers.BACKFILL_EVENTS_MAX)
    start = query.v[: limits.peers.BACKFILL_EVENTS_MAX]
    pdus = await hs.database.read(_backfill, hs.server_name, room_id, start, limit, origin)
    return _transaction(hs, pdus)


def _backfill(
    tx: Transaction, own: ServerName, room_id: RoomID, start: Sequence[EventID], limit: int, origin: ServerName
) -> list[JsonObject]:
    check_may_read(tx, own, room_id, origin, start)
    return _pdus_at(tx, walk_back(tx, room_id, start, limit), origin)


@routes.post(
    "/_matrix/federation/v1/get_missing_events/{room_id}",
    rate_limit="federation",
    max_body_bytes=limits.peers.QUESTION_BODY_BYTES_MAX,
)
async def get_missing_previous_events(
    hs: Resources, origin: ServerName, room_id: RoomID, body: MissingEventsBody
) -> JsonObject:
    return {"events": await hs.database.read(_missing_events, hs.server_name, room_id, body, origin)}


def _missing_events(
    tx: Transaction, own: ServerName, room_id: RoomID, body: MissingEventsBody, origin: ServerName
) -> list[JsonObject]:
    check_may_read(tx, own, room_id, origin, body.latest_events)
    positions = walk_back(
        tx, room_id, body.latest_events, min(body.limit, limits.peers.MISSING_EVENTS_MAX),
        known=body.earliest_events, min_depth=body.min_depth, with_start=False,
    )  # fmt: skip
    return _pdus_at(tx, positions[::-1], origin)


@routes.get("/_matrix/federation/v1/timestamp_to_event/{room_id}", rate_limit="federation")
async def get_event_by_timestamp(
    hs: Resources, origin: ServerName, room_id: RoomID, query: TimestampQuery
) -> JsonObject:
    return await hs.database.read(_event_by_timestamp, hs.server_name, room_id, query, origin)


def _event_by_timestamp(
    tx: Transaction, own: ServerName, room_id: RoomID, query: TimestampQuery, origin: ServerName
) -> JsonObject:
    check_may_read(tx, own, room_id, origin, ())
    for limit in (1, limits.peers.BACKFILL_EVENTS_MAX):  # usually the server may see the nearest one
        for event in list_by_timestamp(tx, room_id, query.ts, query.dir, limit):
            if server_may_see(tx, origin, event):
                return {"event_id": event.event_id, "origin_server_ts": event.origin_server_ts}
    raise not_found("There is no event of that time.")


# Queries


def query_routes(features: Sequence[Feature]) -> Routes:
    """Returns the route of `GET /query/{query_type}`, which the features answer."""
    handlers = {kind: handler for feature in features for kind, handler in feature.queries.items()}
    answers = Routes()

    @answers.get("/_matrix/federation/v1/query/{query_type}", rate_limit="federation")
    async def query_info(hs: Resources, origin: ServerName, query_type: str, request: Request) -> JsonObject:
        handler = handlers.get(query_type)
        if handler is None:
            raise not_found("This server answers no such query.")
        return await handler(hs, origin, {name: values[0] for name, values in request.query.items()})

    return answers


# Parts of answers


def _transaction(hs: Resources, pdus: list[JsonObject]) -> JsonObject:
    return {"origin": hs.server_name, "origin_server_ts": hs.now_ms(), "pdus": pdus}


def _event_of(tx: Transaction, room_id: RoomID, event_id: EventID) -> StoredEvent:
    stored = find_stored_by_id(tx, event_id)
    if stored is None or stored.room_id != room_id:
        raise not_found("This server does not know that event in that room.")
    return stored


def whole_pdus(tx: Transaction, positions: Collection[int]) -> list[dict[str, Any]]:
    """Returns the PDUs of a state or auth chain, which every server in the room may see in full."""
    return [event.pdu for event in to_events(tx, list(list_stored(tx, positions).values()))]


def _pdus_at(tx: Transaction, positions: Sequence[int], origin: ServerName) -> list[JsonObject]:
    stored = list_stored(tx, positions)
    return _pdus(tx, [stored[position] for position in positions], origin)


def _pdus(tx: Transaction, stored: Sequence[StoredEvent], origin: ServerName) -> list[JsonObject]:
    """Returns the PDUs. Those that the origin may not see are redacted, because it needs them to place the others."""
    events: Iterable[Event] = to_events(tx, stored)
    return [
        event.pdu if row.is_state or server_may_see(tx, origin, row) else redact(event.pdu, event.version)
        for row, event in zip(stored, events, strict=True)
    ]
