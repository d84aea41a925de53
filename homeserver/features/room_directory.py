"""Aliases and the published room directory. Spec: client-server-api/#room-aliases, #published-room-directory"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Literal

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Request, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, missing_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomAlias,
    RoomID,
    ServerName,
    UserID,
    parse_room_alias,
    server_name_of,
)
from homeserver.limits import Bucket
from homeserver.remote.application_services import provide_alias
from homeserver.remote.directory import public_rooms as remote_public_rooms
from homeserver.remote.directory import resolve_alias
from homeserver.resources import Resources
from homeserver.rooms.access import find_in_state
from homeserver.rooms.aliases import (
    SCHEMA,
    delete_alias,
    find_alias,
    forget_creator,
    is_published,
    list_aliases,
    list_published,
    list_published_everywhere,
    list_published_in,
    set_visibility,
    store_alias,
)
from homeserver.rooms.append import append_local
from homeserver.rooms.heads import Head, find_head, get_head
from homeserver.rooms.membership import check_joined, find_membership, list_joined_servers
from homeserver.rooms.power import check_may_send_state
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.summaries import directory_entry
from homeserver.rooms.visibility import is_world_readable
from homeserver.users.accounts import exclusive
from homeserver.users.application_services import check_may_use_alias, find_calling
from homeserver.users.shadow_bans import write_for

routes = Routes()


class AliasBody(msgspec.Struct, frozen=True):
    room_id: RoomID


class VisibilityBody(msgspec.Struct, frozen=True):
    visibility: Literal["public", "private"] = "public"


class PublicRoomsQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] | None = None
    since: str | None = None
    server: ServerName | None = None


class PublicRoomsFilter(msgspec.Struct, frozen=True):
    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class PublicRoomsBody(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] | None = None
    since: str | None = None
    filter: PublicRoomsFilter = PublicRoomsFilter()
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class FederationRoomsQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] | None = None
    since: str | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class ServerQuery(msgspec.Struct, frozen=True):
    server: ServerName | None = None


@routes.get("/_matrix/client/v3/directory/room/{room_alias}", rate_limit="directory")
async def get_room_id_by_alias(hs: Resources, room_alias: RoomAlias, request: Request) -> JsonObject:
    if server_name_of(room_alias) == hs.server_name:
        await provide_alias(hs, room_alias, find_calling(hs, request))
        return await hs.database.read(_look_up, room_alias)
    room_id, servers = await resolve_alias(hs, room_alias)
    return {"room_id": room_id, "servers": servers}


@routes.put("/_matrix/client/v3/directory/room/{room_alias}", rate_limit="directory")
async def set_room_alias(hs: Resources, requester: Requester, room_alias: RoomAlias, body: AliasBody) -> Empty:
    if server_name_of(room_alias) != hs.server_name:
        raise invalid_param(f"This server can only create aliases that end with :{hs.server_name}.")
    if room_alias.startswith("#:"):
        raise invalid_param("The local part of an alias must not be empty.")
    check_may_use_alias(hs, requester, room_alias)
    await write_for(hs, requester, _add_alias, room_alias, body.room_id, requester.user_id)
    return Empty()


@routes.delete("/_matrix/client/v3/directory/room/{room_alias}")
async def delete_room_alias(hs: Resources, requester: Requester, room_alias: RoomAlias) -> Empty:
    if hs.application_services.is_alias_of_others(room_alias, requester.appservice) and not requester.is_admin:
        raise exclusive(f"The alias {room_alias} belongs to an application service.")
    await write_for(hs, requester, _remove_alias, room_alias, requester)
    return Empty()


@routes.get("/_matrix/client/v3/rooms/{room_id}/aliases")
async def get_local_aliases(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    return {"aliases": await hs.database.read(_list_readable_aliases, room_id, requester.user_id)}


@routes.get("/_matrix/client/v3/directory/list/room/{room_id}")
async def get_room_visibility_on_directory(hs: Resources, room_id: RoomID) -> JsonObject:
    return {"visibility": "public" if await hs.database.read(_is_listed, room_id) else "private"}


@routes.put("/_matrix/client/v3/directory/list/room/{room_id}")
async def set_room_visibility_on_directory(
    hs: Resources, requester: Requester, room_id: RoomID, body: VisibilityBody
) -> Empty:
    await write_for(hs, requester, _list_room, room_id, requester, body.visibility == "public")
    return Empty()


@routes.get("/_matrix/client/v3/publicRooms", rate_limit="directory")
async def get_public_rooms(hs: Resources, requester: Requester | None, query: PublicRoomsQuery) -> JsonObject:
    if hs.config.directory.require_login and requester is None:
        raise MatrixError(401, "M_MISSING_TOKEN", "You must log in to see the rooms of this server.")
    body = PublicRoomsBody(limit=query.limit, since=query.since)
    return await _public_rooms(hs, query.server, body)


@routes.post("/_matrix/client/v3/publicRooms", rate_limit="directory", allow_suspended=True)
async def query_public_rooms(
    hs: Resources, requester: Requester, query: ServerQuery, body: PublicRoomsBody
) -> JsonObject:
    return await _public_rooms(hs, query.server, body)


@routes.get("/_matrix/federation/v1/publicRooms")
async def get_public_rooms_over_federation(
    hs: Resources, origin: ServerName, query: FederationRoomsQuery
) -> JsonObject:
    return await _public_rooms_for_server(hs, msgspec.convert(query, PublicRoomsBody, from_attributes=True))


@routes.post("/_matrix/federation/v1/publicRooms")
async def query_public_rooms_over_federation(hs: Resources, origin: ServerName, body: PublicRoomsBody) -> JsonObject:
    return await _public_rooms_for_server(hs, body)


async def _public_rooms_for_server(hs: Resources, body: PublicRoomsBody) -> JsonObject:
    if not hs.config.directory.over_federation:
        raise forbidden("This server does not show its room directory to other servers.")
    return await _public_rooms(hs, None, body)


async def _public_rooms(hs: Resources, server: ServerName | None, body: PublicRoomsBody) -> JsonObject:
    if body.include_all_networks and body.third_party_instance_id:
        raise invalid_param("third_party_instance_id names one network: leave out include_all_networks.")
    if server is not None and server != hs.server_name:
        return await remote_public_rooms(hs, server, msgspec.to_builtins(body))
    return await hs.database.read(_list_public, body)


async def answer_directory_query(hs: Resources, origin: ServerName, query: Mapping[str, str]) -> JsonObject:
    """Spec: server-server-api/#get_matrixfederationv1querydirectory"""
    if "room_alias" not in query:
        raise missing_param("room_alias is required.")
    try:
        alias = parse_room_alias(query["room_alias"])
    except InvalidIdentifier as error:
        raise invalid_param(str(error)) from None
    with suppress(MatrixError):  # a server is told that there is no such alias: the question is the client's
        await provide_alias(hs, alias)
    return await hs.database.read(_look_up, alias)


def _look_up(tx: Transaction, alias: RoomAlias) -> JsonObject:
    found = find_alias(tx, alias)
    if found is None:
        raise not_found(f"There is no room called {alias}.")
    head = find_head(tx, found[0])
    servers = list_joined_servers(tx, head) if head is not None else ()
    return {"room_id": found[0], "servers": sorted(servers)[: limits.ALIAS_SERVERS_MAX]}


def _add_alias(tx: Transaction, alias: RoomAlias, room_id: RoomID, user_id: UserID) -> None:
    check_joined(tx, room_id, user_id)
    if find_alias(tx, alias) is not None:
        raise MatrixError(409, "M_UNKNOWN", f"The alias {alias} is already taken.")
    store_alias(tx, alias, room_id, user_id)


def _remove_alias(tx: Transaction, alias: RoomAlias, requester: Requester) -> None:
    found = find_alias(tx, alias)
    if found is None:
        raise not_found(f"There is no room called {alias}.")
    room_id, creator = found
    head = find_head(tx, room_id)
    owns = tx.server.application_services.owns_alias(alias, requester.appservice)
    if creator != requester.user_id and not requester.is_admin and not owns:
        if head is None:
            raise forbidden("Only the user who created this alias can delete it.")
        check_may_send_state(tx, head, requester.user_id, "m.room.canonical_alias")
    delete_alias(tx, alias)
    if head is not None:
        _remove_from_canonical(tx, head, alias, requester.user_id)


def _remove_from_canonical(tx: Transaction, head: Head, alias: RoomAlias, user_id: UserID) -> None:
    """Removes the alias from m.room.canonical_alias too, if the user may do that."""
    event = find_in_state(tx, StateAt(head.state_root), "m.room.canonical_alias", "")
    if event is None:
        return
    content = event.content
    alternatives = content.get("alt_aliases")
    kept = [name for name in alternatives if name != alias] if isinstance(alternatives, list) else None
    if content.get("alias") == alias or kept != alternatives:
        changed = {key: value for key, value in content.items() if key not in ("alias", "alt_aliases")}
        if content.get("alias") not in (None, alias):
            changed["alias"] = content["alias"]
        if kept:
            changed["alt_aliases"] = kept
        try:
            check_may_send_state(tx, head, user_id, "m.room.canonical_alias")
        except MatrixError:
            return
        append_local(tx, Draft(head.room_id, user_id, "m.room.canonical_alias", changed, state_key=""))


def _list_readable_aliases(tx: Transaction, room_id: RoomID, user_id: UserID) -> list[RoomAlias]:
    if find_membership(tx, room_id, user_id) != "join" and not is_world_readable(tx, room_id):
        raise forbidden("You are not in that room.")
    return list_aliases(tx, room_id)


def _is_listed(tx: Transaction, room_id: RoomID) -> bool:
    get_head(tx, room_id)
    return is_published(tx, room_id)


def _list_room(tx: Transaction, room_id: RoomID, requester: Requester, is_public: bool) -> None:
    head = get_head(tx, room_id)
    if not requester.is_admin:
        check_joined(tx, room_id, requester.user_id)
        check_may_send_state(tx, head, requester.user_id, "m.room.canonical_alias")
    set_visibility(tx, room_id, is_public=is_public)


def _list_public(tx: Transaction, body: PublicRoomsBody) -> JsonObject:
    """Returns a page of the directory, largest rooms first."""
    if body.third_party_instance_id:
        rooms = list_published_in(tx, body.third_party_instance_id)
    else:
        rooms = list_published_everywhere(tx) if body.include_all_networks else list_published(tx)
    found = [directory_entry(tx, room) for room in rooms]
    entries = [entry for entry in found if entry["num_joined_members"] and _matches(entry, body.filter)]
    entries.sort(key=lambda entry: (-entry["num_joined_members"], entry["room_id"]))
    start = _parse_page(body.since)
    limit = min(limits.PUBLIC_ROOMS_LIMIT_MAX if body.limit is None else body.limit, limits.PUBLIC_ROOMS_LIMIT_MAX)
    answer: JsonObject = {"chunk": entries[start : start + limit], "total_room_count_estimate": len(entries)}
    if start + limit < len(entries) and limit:
        answer["next_batch"] = f"p{start + limit}"
    if start > 0:
        answer["prev_batch"] = f"p{max(0, start - limit)}"
    return answer


def _parse_page(since: str | None) -> int:
    if since is None:
        return 0
    if not since.startswith("p") or not since[1:].isdecimal() or len(since) > 10:
        raise invalid_param("since is not a token of this server's room directory.")
    return int(since[1:])


def _matches(entry: JsonObject, filter_: PublicRoomsFilter) -> bool:
    if filter_.room_types is not None and entry.get("room_type") not in filter_.room_types:
        return False
    term = filter_.generic_search_term
    if not term:
        return True
    texts = (entry.get("name"), entry.get("topic"), entry.get("canonical_alias"))
    return any(isinstance(text, str) and term.casefold() in text.casefold() for text in texts)


def forget_aliases(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes who has created an alias, if the user is erased. The alias belongs to the room."""
    if erase:
        forget_creator(tx, user_id)
    return False


FEATURE = Feature(
    name="room_directory",
    spec="client-server-api/#room-aliases",
    schema=SCHEMA,
    routes=routes,
    limits={"directory": Bucket(50, 5)},  # may query another server
    queries={"directory": answer_directory_query},
    forget_user=forget_aliases,
    # Element lists spaces only where this is announced, although `room_types` is in the spec since v1.4.
    unstable_features={"org.matrix.msc3827.stable": True},
)
