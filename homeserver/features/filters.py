"""Filters stored by clients. `homeserver.api.filters` interprets them. Spec: client-server-api/#filtering"""

from __future__ import annotations

from homeserver import limits
from homeserver.api.filters import Filter, parse_filter
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, forbidden, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import InvalidIdentifier, UserID, parse_room_id, parse_user_id
from homeserver.resources import Resources
from homeserver.users.filters import find_filter, forget_filters, store_filter

routes = Routes()


@routes.post("/_matrix/client/v3/user/{user_id}/filter", allow_guest=True, allow_suspended=True)
async def define_filter(hs: Resources, requester: Requester, user_id: UserID, body: dict) -> JsonObject:
    _check_own(requester, user_id)
    check_filter(body)
    content = to_json(body, sort_keys=True)
    if len(content) > limits.users.FILTER_BYTES_MAX:
        raise MatrixError(413, "M_TOO_LARGE", f"A filter may be at most {limits.users.FILTER_BYTES_MAX} bytes long.")
    return {"filter_id": await hs.database.write(store_filter, user_id, content)}


@routes.get("/_matrix/client/v3/user/{user_id}/filter/{filter_id}", allow_guest=True)
async def get_filter(hs: Resources, requester: Requester, user_id: UserID, filter_id: str) -> JsonObject:
    _check_own(requester, user_id)
    content = await hs.database.read(find_filter, user_id, filter_id)
    if content is None:
        raise not_found("There is no such filter.")
    return content


def _check_own(requester: Requester, user_id: UserID) -> None:
    if requester.user_id != user_id:
        raise forbidden("You can only access your own filters.")


def check_filter(content: JsonObject) -> Filter:
    """Returns the filter. Raises M_BAD_JSON for wrong types and for invalid user or room IDs."""
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
        raise bad_json(f"The filter is not valid: {error}") from error
    return parsed


FEATURE = Feature(name="filters", spec="client-server-api/#filtering", routes=routes, forget_user=forget_filters)
