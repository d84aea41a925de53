"""Room tags: labels that a user puts on rooms, kept as account data m.tag. Spec: client-server-api/#room-tagging"""

from __future__ import annotations

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import bad_json, invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources
from homeserver.users.account_data import check_own, find_account_data, store_account_data

routes = Routes()


@routes.get("/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags")
async def get_room_tags(hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID) -> JsonObject:
    check_own(requester, user_id)
    return {"tags": await hs.database.read(list_tags, user_id, room_id)}


@routes.put("/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}", allow_suspended=True)
async def set_room_tag(
    hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID, tag: str, body: dict
) -> Empty:
    check_own(requester, user_id)
    if not 0 < len(tag.encode()) <= limits.users.TAG_BYTES_MAX:
        raise invalid_param(f"The name of a tag must be 1 to {limits.users.TAG_BYTES_MAX} bytes long.")
    order = body.get("order", 0)
    if isinstance(order, bool) or not isinstance(order, int | float):
        raise bad_json("The order of a tag must be a number.")
    if not 0 <= order <= 1:
        raise invalid_param("The order of a tag must be between 0 and 1.")
    if len(to_json(body)) > limits.users.TAG_CONTENT_BYTES_MAX:
        raise invalid_param(f"The content of a tag may be at most {limits.users.TAG_CONTENT_BYTES_MAX} bytes long.")
    await hs.database.write(_store_tag, user_id, room_id, tag, body)
    return Empty()


@routes.delete("/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}", allow_suspended=True)
async def delete_room_tag(hs: Resources, requester: Requester, user_id: UserID, room_id: RoomID, tag: str) -> Empty:
    check_own(requester, user_id)
    await hs.database.write(_delete_tag, user_id, room_id, tag)
    return Empty()


# --- storage ---


def list_tags(tx: Transaction, user_id: UserID, room_id: RoomID) -> JsonObject:
    """Returns the user's tags of the room and their contents."""
    content = find_account_data(tx, user_id, room_id, "m.tag") or {}
    tags = content.get("tags")  # clients can also write m.tag as account data, with any content
    return tags if isinstance(tags, dict) else {}


def _store_tag(tx: Transaction, user_id: UserID, room_id: RoomID, tag: str, content: JsonObject) -> None:
    tags = {**list_tags(tx, user_id, room_id), tag: content}
    if len(tags) > limits.users.TAGS_PER_ROOM_MAX:
        raise invalid_param(f"A room may have at most {limits.users.TAGS_PER_ROOM_MAX} tags.")
    store_account_data(tx, user_id, room_id, "m.tag", {"tags": tags})


def _delete_tag(tx: Transaction, user_id: UserID, room_id: RoomID, tag: str) -> None:
    tags = list_tags(tx, user_id, room_id)
    if tag in tags:
        del tags[tag]
        store_account_data(tx, user_id, room_id, "m.tag", {"tags": tags})


FEATURE = Feature(name="tags", spec="client-server-api/#room-tagging", routes=routes)
