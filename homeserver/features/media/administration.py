"""The admin API for media: quarantine, deletion and lists, for administrators of the server.

It is not part of the specification. Every operation has two paths: under `/_homeserver/admin/v1`, and the one that
tools for Synapse's admin API expect. The formats are those of these tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.media import cleanup, listing, quarantine, storage
from homeserver.features.media.downloads import check_media_id, parse_mxc
from homeserver.features.media.listing import Listed
from homeserver.features.media.operations import routes
from homeserver.features.media.uploads import mxc_uri
from homeserver.federation.identifiers import RoomID, ServerName, UserID, localpart_of
from homeserver.limits import MEDIA_CLEANUP_ROWS, TIMESTAMP_MS_MAX
from homeserver.resources import Resources
from homeserver.rooms.storage import list_positions, list_stored
from homeserver.rooms.timeline import END, list_backwards
from homeserver.users.profile import find_profile, list_avatars

OWN = "/_homeserver/admin/v1"
TOOLS = "/_synapse/admin/v1"
_PAGE_MAX = 1000
# Files that one request deletes or puts into quarantine. The tool repeats it until nothing is left.
_PER_REQUEST_MAX = 10_000
# Events of a room that one read goes through: some milliseconds.
_EVENTS_PER_READ = 500
# Rows of files, and positions of events, that one read searches: some milliseconds.
_ROWS_PER_READ = 10_000
_POSITIONS_PER_READ = 50_000


# --- one file ---


@routes.post(f"{OWN}/media/quarantine/{{server_name}}/{{media_id}}")
@routes.post(f"{TOOLS}/media/quarantine/{{server_name}}/{{media_id}}")
async def quarantine_media(hs: Resources, requester: Requester, server_name: ServerName, media_id: str) -> JsonObject:
    check_admin(requester)
    check_media_id(media_id)
    await hs.database.write(quarantine.store_quarantine, server_name, media_id, requester.user_id)
    return {}


@routes.post(f"{OWN}/media/unquarantine/{{server_name}}/{{media_id}}")
@routes.post(f"{TOOLS}/media/unquarantine/{{server_name}}/{{media_id}}")
async def unquarantine_media(hs: Resources, requester: Requester, server_name: ServerName, media_id: str) -> JsonObject:
    check_admin(requester)
    await hs.database.write(quarantine.delete_quarantine, server_name, media_id)
    return {}


@routes.post(f"{TOOLS}/media/protect/{{media_id}}")
async def protect_media(hs: Resources, requester: Requester, media_id: str) -> JsonObject:
    check_admin(requester)
    check_media_id(media_id)
    await hs.database.write(quarantine.store_protected, media_id)
    return {}


@routes.post(f"{TOOLS}/media/unprotect/{{media_id}}")
async def unprotect_media(hs: Resources, requester: Requester, media_id: str) -> JsonObject:
    check_admin(requester)
    await hs.database.write(quarantine.delete_protected, media_id)
    return {}


@routes.get(f"{OWN}/media/{{server_name}}/{{media_id}}")
@routes.get(f"{TOOLS}/media/{{server_name}}/{{media_id}}")
async def get_media_for_admin(
    hs: Resources, requester: Requester, server_name: ServerName, media_id: str
) -> JsonObject:
    check_admin(requester)
    found = await hs.database.read(listing.find_listed, server_name, media_id)
    if found is None:
        raise not_found("This server does not have that media.")
    return {"media_info": {"media_origin": server_name, **_body(found)}}


@routes.delete(f"{OWN}/media/{{server_name}}/{{media_id}}")
@routes.delete(f"{TOOLS}/media/{{server_name}}/{{media_id}}")
async def delete_media(hs: Resources, requester: Requester, server_name: ServerName, media_id: str) -> JsonObject:
    check_admin(requester)
    if not await hs.database.write(storage.delete_media, server_name, media_id):
        raise not_found("This server does not have that media.")
    await cleanup.delete_released(hs)
    return _deleted([media_id])


# --- a user's files ---


MediaOrder = Literal[
    "media_id", "upload_name", "created_ts", "last_access_ts", "media_length", "media_type", "quarantined_by",
    "safe_from_quarantine",
]  # fmt: skip


class MediaQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    """from: how many files to leave out. Without any order the newest come first."""

    start: int = 0
    limit: int = 100
    order_by: MediaOrder | None = None
    direction: Literal["f", "b"] | None = None


@routes.get(f"{OWN}/users/{{user_id}}/media")
@routes.get(f"{TOOLS}/users/{{user_id}}/media")
async def list_media_of_user(hs: Resources, requester: Requester, user_id: UserID, query: MediaQuery) -> JsonObject:
    check_admin(requester)
    limit = _check_page(query.start, query.limit)
    files = [_body(each) for each in await hs.database.read(listing.list_all_media_of, user_id)]
    if query.order_by is None and query.direction is None:
        files.reverse()
    else:
        key = query.order_by or "created_ts"
        files.sort(key=lambda file: (file[key] is not None, file[key] or 0), reverse=query.direction == "b")
    page = files[query.start : query.start + limit]
    more = {"next_token": query.start + limit} if query.start + limit < len(files) else {}
    return {"media": page, "total": len(files), **more}


def _check_page(start: int, limit: int) -> int:
    """Returns how many entries a page has. Raises M_INVALID_PARAM."""
    if limit < 1 or not 0 <= start < 2**53:
        raise invalid_param("The limit must be at least 1, and from a next_token.")
    return min(limit, _PAGE_MAX)


@routes.delete(f"{OWN}/users/{{user_id}}/media")
@routes.delete(f"{TOOLS}/users/{{user_id}}/media")
async def delete_media_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_admin(requester)
    deleted: list[str] = []
    while len(deleted) < _PER_REQUEST_MAX:
        some = await hs.database.write(listing.delete_media_of, user_id, MEDIA_CLEANUP_ROWS)
        deleted += some
        if len(some) < MEDIA_CLEANUP_ROWS:
            break
    await cleanup.delete_released(hs)
    return _deleted(deleted)


@routes.post(f"{OWN}/users/{{user_id}}/media/quarantine")
@routes.post(f"{TOOLS}/user/{{user_id}}/media/quarantine")
async def quarantine_media_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_admin(requester)
    count, after = 0, 0
    while True:
        page = await hs.database.read(listing.list_media_of, user_id, after, MEDIA_CLEANUP_ROWS)
        uris = [(hs.server_name, each.media_id) for each in page]
        count += await hs.database.write(_quarantine_all, uris, requester.user_id)
        if len(page) < MEDIA_CLEANUP_ROWS:
            return {"num_quarantined": count}
        after = page[-1].media_nid


def _quarantine_all(tx: Transaction, uris: Sequence[tuple[ServerName, str]], by: UserID) -> int:
    return sum(quarantine.store_quarantine(tx, server_name, media_id, by) for server_name, media_id in uris)


# --- a room's files ---


@routes.get(f"{OWN}/rooms/{{room_id}}/media")
@routes.get(f"{TOOLS}/room/{{room_id}}/media")
async def list_media_of_room(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    """Lists the URIs in the unencrypted events of the room, the newest 10,000 at most."""
    check_admin(requester)
    uris = await _uris_in(hs, room_id)
    listed: dict[str, list[str]] = {"local": [], "remote": []}
    for server_name, media_id in uris:
        listed["local" if server_name == hs.server_name else "remote"].append(f"mxc://{server_name}/{media_id}")
    return {**listed, "total": len(uris)}


@routes.post(f"{OWN}/rooms/{{room_id}}/media/quarantine")
@routes.post(f"{TOOLS}/room/{{room_id}}/media/quarantine")
@routes.post(f"{TOOLS}/quarantine_media/{{room_id}}")
async def quarantine_media_of_room(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    uris, count = await _uris_in(hs, room_id), 0
    for start in range(0, len(uris), MEDIA_CLEANUP_ROWS):
        some = uris[start : start + MEDIA_CLEANUP_ROWS]
        count += await hs.database.write(_quarantine_all, some, requester.user_id)
    return {"num_quarantined": count}


async def _uris_in(hs: Resources, room_id: RoomID) -> list[tuple[ServerName, str]]:
    """Returns the URIs in a room's events, newest first, at most _PER_REQUEST_MAX of them."""
    found: dict[tuple[ServerName, str], None] = {}
    point: int | None = END
    while point is not None and len(found) < _PER_REQUEST_MAX:
        uris, point = await hs.database.read(_list_uris, room_id, point)
        found.update(dict.fromkeys(uris))
    return list(found)[:_PER_REQUEST_MAX]


def _list_uris(tx: Transaction, room_id: RoomID, point: int) -> tuple[list[tuple[ServerName, str]], int | None]:
    events = list_backwards(tx, room_id, point, _EVENTS_PER_READ)
    uris = [uri for event in events for uri in _uris_of(event.content)]
    last = events[-1].ordering if len(events) == _EVENTS_PER_READ else None
    return uris, None if last is None else last - 1


def _uris_of(content: JsonObject) -> Iterator[tuple[ServerName, str]]:
    """Yields the files that an event shows: pictures and other files, and their thumbnails."""
    info = content.get("info")
    shown = [content.get("url"), info.get("thumbnail_url") if isinstance(info, dict) else None]
    for uri in shown:
        if isinstance(uri, str):
            try:
                yield parse_mxc(uri)
            except MatrixError:
                continue


# --- all files ---


class BeforeQuery(msgspec.Struct, frozen=True):
    """before_ts: milliseconds since 1970. Files of other servers that have not been used since then are deleted."""

    before_ts: int


@routes.post(f"{OWN}/purge_media_cache")
@routes.post(f"{TOOLS}/purge_media_cache")
async def purge_media_cache(hs: Resources, requester: Requester, query: BeforeQuery) -> JsonObject:
    check_admin(requester)
    count = 0
    while some := await hs.database.write(storage.delete_unused_remote, query.before_ts, MEDIA_CLEANUP_ROWS):
        count += some
    await cleanup.delete_released(hs)
    return {"deleted": count}


class DeletionQuery(msgspec.Struct, frozen=True):
    """size_gt: only files with more bytes. keep_profiles: not the avatars of users and rooms."""

    before_ts: int
    size_gt: int = 0
    keep_profiles: bool = True


@routes.post(f"{OWN}/media/delete")
@routes.post(f"{TOOLS}/media/delete")
async def delete_old_media(hs: Resources, requester: Requester, query: DeletionQuery) -> JsonObject:
    """Deletes files of this server, 10,000 at most: repeat it until nothing is left."""
    check_admin(requester)
    kept = await _list_avatars(hs) if query.keep_profiles else set()
    last_nid = await hs.database.read(listing.get_last_nid)
    deleted: list[str] = []
    for after in range(0, last_nid, _ROWS_PER_READ):
        ids = await hs.database.read(
            listing.list_local_ids, hs.server_name, after, after + _ROWS_PER_READ, query.before_ts, query.size_gt + 1
        )
        ids = [media_id for media_id in ids if mxc_uri(hs.server_name, media_id) not in kept]
        for start in range(0, len(ids), MEDIA_CLEANUP_ROWS):
            deleted += await hs.database.write(_delete_all, hs.server_name, ids[start : start + MEDIA_CLEANUP_ROWS])
        if len(deleted) >= _PER_REQUEST_MAX:
            break
    await cleanup.delete_released(hs)
    return _deleted(deleted)


def _delete_all(tx: Transaction, server_name: ServerName, media_ids: Sequence[str]) -> list[str]:
    return [media_id for media_id in media_ids if storage.delete_media(tx, server_name, media_id)]


async def _list_avatars(hs: Resources) -> set[str]:
    """Returns the avatar URLs of the users of this server, and all that rooms have or have had."""
    found = set(await hs.database.read(list_avatars))
    last = await hs.database.read(_get_position)
    for since in range(0, last, _POSITIONS_PER_READ):
        found.update(await hs.database.read(_list_room_avatars, since, since + _POSITIONS_PER_READ))
    return found


def _get_position(tx: Transaction) -> int:
    return tx.position


def _list_room_avatars(tx: Transaction, since: int, upto: int) -> list[str]:
    events = list_stored(tx, list_positions(tx, since, upto, "m.room.avatar"))
    urls = [event.content.get("url") for event in events.values()]
    return [url for url in urls if isinstance(url, str)]


def _deleted(media_ids: Sequence[str]) -> JsonObject:
    return {"deleted_media": list(media_ids), "total": len(media_ids)}


def _body(each: Listed) -> JsonObject:
    """Returns a file in the format that tools expect."""
    return {
        "media_id": each.media_id,
        "media_type": each.content_type,
        "media_length": each.size_bytes,
        "upload_name": each.filename,
        "created_ts": each.created_ms,
        "last_access_ts": each.used_ms,
        "quarantined_by": each.quarantined_by,
        "safe_from_quarantine": each.is_protected,
    }


# --- how much users have uploaded ---


class UsageQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    """from_ts, until_ts: only files uploaded in this time. search_term: a part of the localpart or the display name."""

    start: int = 0
    limit: int = 100
    order_by: Literal["user_id", "displayname", "media_length", "media_count"] = "user_id"
    direction: Literal["f", "b"] = "f"
    from_ts: Annotated[int, msgspec.Meta(ge=0, le=TIMESTAMP_MS_MAX)] = 0
    until_ts: Annotated[int, msgspec.Meta(ge=0, le=TIMESTAMP_MS_MAX)] = TIMESTAMP_MS_MAX
    search_term: str = ""


@routes.get(f"{TOOLS}/statistics/users/media")
async def list_media_usage(hs: Resources, requester: Requester, query: UsageQuery) -> JsonObject:
    check_admin(requester)
    limit = _check_page(query.start, query.limit)
    users = await hs.database.read(_list_usage, query)
    users.sort(key=lambda user: str(user["user_id"]))
    if query.order_by != "user_id":
        users.sort(key=lambda user: user[query.order_by] or 0 if query.order_by != "displayname" else _name(user))
    if query.direction == "b":
        users.reverse()
    more = {"next_token": query.start + limit} if query.start + limit < len(users) else {}
    return {"users": users[query.start : query.start + limit], "total": len(users), **more}


def _name(user: JsonObject) -> str:
    return str(user["displayname"] or "").casefold()


def _list_usage(tx: Transaction, query: UsageQuery) -> list[JsonObject]:
    term, found = query.search_term.casefold(), []
    for user_id, (count, size_bytes) in listing.list_usage(tx, query.from_ts, query.until_ts).items():
        name = find_profile(tx, user_id, "displayname").get("displayname")
        if term in localpart_of(user_id).casefold() or term in str(name or "").casefold():
            found.append({"user_id": user_id, "displayname": name, "media_count": count, "media_length": size_bytes})
    return found
