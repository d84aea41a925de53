"""The rooms that a user shares with another one. Spec: client-server-api/#mutual-rooms

A page begins after a room's number in the database, which is its token: so pages need no memory, and their tokens do
not expire. A token shows only how many rooms and users the server knows of, roughly; any number is a valid one.
"""

from __future__ import annotations

import re

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID, localpart_of
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.rooms.membership import count_mutual_rooms, list_mutual_rooms

# 25 KB of room IDs. Most pairs of users share a few rooms.
ROOMS_PER_PAGE = 500
# Spec: appendices/#historical-user-ids
_COMPLIANT = re.compile(r"[\x21-\x7e]+", re.ASCII)
_TOKEN = re.compile(r"m([0-9]{1,18})", re.ASCII)

routes = Routes()


class MutualRoomsQuery(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#get_matrixclientv1mutual_rooms"""

    user_id: UserID
    from_: str | None = msgspec.field(name="from", default=None)


@routes.get("/_matrix/client/v1/mutual_rooms", rate_limit="mutual_rooms")
@routes.get("/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", rate_limit="mutual_rooms")
async def get_mutual_rooms(hs: Resources, requester: Requester, query: MutualRoomsQuery) -> JsonObject:
    if query.user_id == requester.user_id:
        raise invalid_param("user_id must be another user's.")
    if _COMPLIANT.fullmatch(localpart_of(query.user_id)) is None:
        raise invalid_param("user_id must consist of printable ASCII characters.")
    after = 0
    if query.from_ is not None:
        token = _TOKEN.fullmatch(query.from_)
        if token is None:
            raise invalid_param("from is not a token of this server.")
        after = int(token[1])
    return await hs.database.read(_page, requester.user_id, query.user_id, after)


def _page(tx: Transaction, user_id: UserID, other: UserID, after: int) -> JsonObject:
    found = list_mutual_rooms(tx, user_id, other, after, ROOMS_PER_PAGE + 1)
    shown = found[:ROOMS_PER_PAGE]
    answer: JsonObject = {
        "joined": [room_id for _, room_id in shown], "count": count_mutual_rooms(tx, user_id, other),
    }  # fmt: skip
    if len(found) > ROOMS_PER_PAGE:
        answer["next_batch"] = f"m{shown[-1][0]}"
    return answer


FEATURE = Feature(
    name="mutual_rooms",
    spec="client-server-api/#mutual-rooms",
    routes=routes,
    limits={"mutual_rooms": Bucket(50, 5)},  # a look-up for each room of the user; clients ask for each profile shown
    # Clients from before v1.19 ask at the unstable path, and only if it is announced.
    unstable_features={
        "uk.half-shot.msc2666.query_mutual_rooms": True,
        "uk.half-shot.msc2666.query_mutual_rooms.stable": True,
    },
)
