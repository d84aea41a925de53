"""The keys in a backup: one session, the sessions of a room, or all. Spec: client-server-api/#server-side-key-backups

A backup may have a hundred thousand keys. All keys are answered page by page as the client takes them, so an answer
needs the memory of a page only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated

import msgspec

from homeserver import limits
from homeserver.api.routes import Response, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import is_intact, to_json
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.key_backup.storage import (
    Key,
    Version,
    delete_all_keys,
    delete_key,
    delete_keys_of_room,
    find_key,
    find_version,
    list_keys,
    store_keys,
)
from homeserver.features.key_backup.versions import get_version
from homeserver.federation.identifiers import InvalidIdentifier, RoomID, UserID, parse_room_id
from homeserver.resources import Resources

routes = Routes()

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class KeyBody(msgspec.Struct, frozen=True):
    """Spec: KeyBackupData"""

    first_message_index: Count
    forwarded_count: Count
    is_verified: bool
    session_data: JsonObject


class RoomBody(msgspec.Struct, frozen=True):
    sessions: dict[str, KeyBody]


class RoomsBody(msgspec.Struct, frozen=True):
    rooms: dict[str, RoomBody]


class VersionQuery(msgspec.Struct, frozen=True):
    version: str


# --- reading ---


@routes.get("/_matrix/client/v3/room_keys/keys")
async def get_room_keys(hs: Resources, requester: Requester, query: VersionQuery) -> Response:
    version = await hs.database.read(get_version, requester.user_id, query.version)
    return _streamed(_all_rooms(hs, version))


@routes.get("/_matrix/client/v3/room_keys/keys/{room_id}")
async def get_room_keys_by_room_id(
    hs: Resources, requester: Requester, room_id: RoomID, query: VersionQuery
) -> Response:
    version = await hs.database.read(get_version, requester.user_id, query.version)
    return _streamed(_one_room(hs, version, room_id))


@routes.get("/_matrix/client/v3/room_keys/keys/{room_id}/{session_id}")
async def get_room_key_by_session_id(
    hs: Resources, requester: Requester, room_id: RoomID, session_id: str, query: VersionQuery
) -> JsonObject:
    key = await hs.database.read(_find_key, requester.user_id, query.version, room_id, session_id)
    if key is None:
        raise not_found("The backup does not have this key.")
    return key.body()


def _find_key(tx: Transaction, user_id: UserID, version: str, room_id: RoomID, session_id: str) -> Key | None:
    return find_key(tx, get_version(tx, user_id, version), room_id, session_id)


def _streamed(chunks: AsyncIterator[bytes]) -> Response:
    return Response(headers={"content-type": "application/json"}, stream=chunks)


async def _all_rooms(hs: Resources, version: Version) -> AsyncIterator[bytes]:
    """Yields the body of an answer with all keys, by room."""
    yield b'{"rooms":{'
    room_id = ""
    async for page in _pages(hs, version, None):
        parts: list[bytes] = []
        for of_room, session_id, key in page:
            if of_room != room_id:
                parts.append((b"}}," if room_id else b"") + to_json(of_room) + b':{"sessions":{')
            else:
                parts.append(b",")
            parts += (to_json(session_id), b":", key.json())
            room_id = of_room
        yield b"".join(parts)
    yield b"}}}}" if room_id else b"}}"


async def _one_room(hs: Resources, version: Version, room_id: RoomID) -> AsyncIterator[bytes]:
    """Yields the body of an answer with the keys of one room."""
    yield b'{"sessions":{'
    separator = b""
    async for page in _pages(hs, version, room_id):
        yield separator + b",".join(to_json(session_id) + b":" + key.json() for _, session_id, key in page)
        separator = b","
    yield b"}}"


async def _pages(hs: Resources, version: Version, room_id: RoomID | None) -> AsyncIterator[list[tuple[str, str, Key]]]:
    """Yields the keys in order, some at a time, without empty pages. Leaves out keys that are damaged."""
    after = ("", "")
    size = limits.users.KEY_BACKUP_PAGE_KEYS
    while page := await hs.database.read(list_keys, version.store, room_id, after, size):
        if intact := [each for each in page if is_intact(each[2].session_data, "key of a backup")]:
            yield intact
        if len(page) < size:
            return
        after = page[-1][:2]


# --- writing ---


@routes.put("/_matrix/client/v3/room_keys/keys")
async def put_room_keys(hs: Resources, requester: Requester, query: VersionQuery, body: RoomsBody) -> JsonObject:
    return await _put(hs, requester, query, {room_id: room.sessions for room_id, room in body.rooms.items()})


@routes.put("/_matrix/client/v3/room_keys/keys/{room_id}")
async def put_room_keys_by_room_id(
    hs: Resources, requester: Requester, room_id: RoomID, query: VersionQuery, body: RoomBody
) -> JsonObject:
    return await _put(hs, requester, query, {room_id: body.sessions})


@routes.put("/_matrix/client/v3/room_keys/keys/{room_id}/{session_id}")
async def put_room_key_by_session_id(
    hs: Resources, requester: Requester, room_id: RoomID, session_id: str, query: VersionQuery, body: KeyBody
) -> JsonObject:
    return await _put(hs, requester, query, {room_id: {session_id: body}})


async def _put(
    hs: Resources, requester: Requester, query: VersionQuery, rooms: Mapping[str, Mapping[str, KeyBody]]
) -> JsonObject:
    keys = {
        _checked_room_id(room_id): {_checked_session_id(name): _key(body) for name, body in sessions.items()}
        for room_id, sessions in rooms.items()
    }
    return _updated(await hs.database.write(_store, requester.user_id, query.version, keys))


def _store(tx: Transaction, user_id: UserID, text: str, keys: Mapping[RoomID, Mapping[str, Key]]) -> Version:
    """Stores keys in the current version. Raises M_WRONG_ROOM_KEYS_VERSION for an older one."""
    version = get_version(tx, user_id, text)
    current = find_version(tx, user_id)
    if current is None or current.version != version.version:
        current_version = "" if current is None else str(current.version)
        error = "Keys can only be added to the newest version of the backup."
        raise MatrixError(403, "M_WRONG_ROOM_KEYS_VERSION", error, current_version=current_version)
    return store_keys(tx, version, keys)


def _checked_room_id(text: str) -> RoomID:
    try:
        return parse_room_id(text)
    except InvalidIdentifier as error:
        raise invalid_param(f"Keys are stored by room: {error}") from error


def _checked_session_id(text: str) -> str:
    """Returns the ID if it can be stored. What it looks like is up to clients."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        size_bytes = 0
    if not 0 < size_bytes <= limits.users.KEY_BACKUP_SESSION_ID_BYTES_MAX or "\0" in text:
        most = limits.users.KEY_BACKUP_SESSION_ID_BYTES_MAX
        raise invalid_param(f"The ID of a session must be 1 to {most} bytes of text without NUL characters.")
    return text


def _key(body: KeyBody) -> Key:
    session_data = to_json(body.session_data)
    if len(session_data) > limits.users.KEY_BACKUP_SESSION_BYTES_MAX:
        most = limits.users.KEY_BACKUP_SESSION_BYTES_MAX >> 10
        raise MatrixError(413, "M_TOO_LARGE", f"The session_data of a key may be at most {most} KiB long.")
    return Key(body.first_message_index, body.forwarded_count, body.is_verified, session_data)


def _updated(version: Version) -> JsonObject:
    return {"etag": str(version.etag), "count": version.keys}


# --- deleting ---


@routes.delete("/_matrix/client/v3/room_keys/keys")
async def delete_room_keys(hs: Resources, requester: Requester, query: VersionQuery) -> JsonObject:
    return _updated(await hs.database.write(_delete_all, requester.user_id, query.version))


@routes.delete("/_matrix/client/v3/room_keys/keys/{room_id}")
async def delete_room_keys_by_room_id(
    hs: Resources, requester: Requester, room_id: RoomID, query: VersionQuery
) -> JsonObject:
    more = True
    while more:
        version, more = await hs.database.write(_delete_of_room, requester.user_id, query.version, room_id)
    return _updated(version)


@routes.delete("/_matrix/client/v3/room_keys/keys/{room_id}/{session_id}")
async def delete_room_key_by_session_id(
    hs: Resources, requester: Requester, room_id: RoomID, session_id: str, query: VersionQuery
) -> JsonObject:
    return _updated(await hs.database.write(_delete_one, requester.user_id, query.version, room_id, session_id))


def _delete_all(tx: Transaction, user_id: UserID, version: str) -> Version:
    return delete_all_keys(tx, get_version(tx, user_id, version))


def _delete_of_room(tx: Transaction, user_id: UserID, version: str, room_id: RoomID) -> tuple[Version, bool]:
    found = get_version(tx, user_id, version)
    return delete_keys_of_room(tx, found, room_id, limits.users.KEY_BACKUP_DELETED_PER_WRITE)


def _delete_one(tx: Transaction, user_id: UserID, version: str, room_id: RoomID, session_id: str) -> Version:
    return delete_key(tx, get_version(tx, user_id, version), room_id, _checked_session_id(session_id))
