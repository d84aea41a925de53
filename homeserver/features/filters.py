"""Filters that clients have stored. What they mean is the business of `homeserver.sync.filter`.

Spec: client-server-api/#filtering
"""

from __future__ import annotations

import hashlib

import orjson

from federation.identifiers import InvalidIdentifier, UserID, parse_room_id, parse_user_id
from homeserver import limits
from homeserver.api import Routes
from homeserver.authenticate import Requester
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, bad_json, forbidden, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources
from homeserver.sync.filter import Filter, parse_filter

SCHEMA = Schema(
    "filters",
    (
        Step(
            "create",
            """
            CREATE TABLE filters (
                user_nid INTEGER NOT NULL,
                filter_id INTEGER NOT NULL,
                digest BLOB NOT NULL,
                content BLOB NOT NULL,
                PRIMARY KEY (user_nid, filter_id)
            ) WITHOUT ROWID;
            CREATE UNIQUE INDEX filters_digest ON filters (user_nid, digest);
            """,
        ),
    ),
)

routes = Routes()


@routes.post("/_matrix/client/v3/user/{user_id}/filter")
async def define_filter(hs: Resources, requester: Requester, user_id: UserID, body: dict) -> JsonObject:
    _check_own(requester, user_id)
    check_filter(body)
    content = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    if len(content) > limits.FILTER_BYTES_MAX:
        raise MatrixError(413, "M_TOO_LARGE", f"A filter is at most {limits.FILTER_BYTES_MAX} bytes.")
    return {"filter_id": await hs.database.write(store_filter, user_id, content)}


@routes.get("/_matrix/client/v3/user/{user_id}/filter/{filter_id}")
async def get_filter(hs: Resources, requester: Requester, user_id: UserID, filter_id: str) -> JsonObject:
    _check_own(requester, user_id)
    content = await hs.database.read(find_filter, user_id, filter_id)
    if content is None:
        raise not_found("There is no such filter.")
    return content


def _check_own(requester: Requester, user_id: UserID) -> None:
    if requester.user_id != user_id:
        raise forbidden("Filters are for their user only.")


def check_filter(content: JsonObject) -> Filter:
    """The filter; raises M_BAD_JSON for wrong types and for what is no user id or room id."""
    parsed = parse_filter(content)
    room = parsed.room
    of_events = (room.timeline, room.state, room.ephemeral, room.account_data)
    try:
        for with_rooms in (room, *of_events):
            for room_id in (*(with_rooms.rooms or ()), *with_rooms.not_rooms):
                parse_room_id(room_id)
        for with_senders in (parsed.presence, parsed.account_data, *of_events):
            for user_id in (*(with_senders.senders or ()), *with_senders.not_senders):
                parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise bad_json(f"That is not a filter: {error}") from error
    return parsed


# --- storage ---


def store_filter(tx: Transaction, user_id: UserID, content: bytes) -> str:
    """The id of the filter. The same content has the same id; of too many the oldest is forgotten."""
    nid, digest = tx.intern(user_id), hashlib.sha256(content).digest()
    found = tx.one("SELECT filter_id FROM filters WHERE user_nid = ? AND digest = ?", nid, digest)
    if found is not None:
        return str(found[0])
    (last,) = tx.one("SELECT MAX(filter_id) FROM filters WHERE user_nid = ?", nid) or (None,)
    filter_id = (last or 0) + 1
    tx.run(
        "INSERT INTO filters (user_nid, filter_id, digest, content) VALUES (?, ?, ?, ?)",
        nid, filter_id, digest, content,
    )  # fmt: skip
    tx.run(
        "DELETE FROM filters WHERE user_nid = ? AND filter_id <= ?", nid, filter_id - limits.FILTERS_PER_USER_MAX
    )
    return str(filter_id)


def find_filter(tx: Transaction, user_id: UserID, filter_id: str) -> JsonObject | None:
    """The filter as it was stored, None if the user has none of that id."""
    if not (filter_id.isascii() and filter_id.isdigit() and len(filter_id) <= 16):
        return None
    row = tx.one(
        "SELECT content FROM filters WHERE user_nid = ? AND filter_id = ?", tx.find(user_id), int(filter_id)
    )
    return None if row is None else orjson.loads(row[0])


def delete_filters(tx: Transaction, user_id: UserID) -> None:
    """Forgets every filter of the user."""
    tx.run("DELETE FROM filters WHERE user_nid = ?", tx.find(user_id))


FEATURE = Feature(name="filters", spec="client-server-api/#filtering", schema=SCHEMA, routes=routes)
