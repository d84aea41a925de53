"""The request of a search, and the token of its next page. Spec: client-server-api/#post_matrixclientv3search"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from homeserver import limits
from homeserver.api.filters import RoomEventFilter
from homeserver.errors import invalid_param
from homeserver.features.search.texts import HAS_LABELS
from homeserver.federation.signing import SigningKey
from homeserver.rooms.timeline import Timestamp

Count = Annotated[int, msgspec.Meta(ge=0)]


class EventContext(msgspec.Struct, frozen=True):
    """Which events to show around each result."""

    before_limit: Count = 5
    after_limit: Count = 5
    include_profile: bool = False


class Group(msgspec.Struct, frozen=True):
    key: Literal["room_id", "sender"]


class Groupings(msgspec.Struct, frozen=True):
    group_by: list[Group] = []


class RoomEvents(msgspec.Struct, frozen=True):
    """The criteria for events of rooms."""

    search_term: str
    keys: list[Literal["content.body", "content.name", "content.topic"]] | None = None
    filter: RoomEventFilter | None = None
    order_by: Literal["recent", "rank"] = "rank"
    event_context: EventContext | None = None
    include_state: bool = False
    groupings: Groupings | None = None


class Categories(msgspec.Struct, frozen=True):
    room_events: RoomEvents | None = None


class SearchBody(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#post_matrixclientv3search"""

    search_categories: Categories


class SearchQuery(msgspec.Struct, frozen=True):
    next_batch: str | None = None


class SimpleQuery(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """The simple form of a search: a query, and conditions. has: of "image", "file" and "link", separated by commas.

    after, before: times in milliseconds since 1970.
    """

    q: str
    room_id: str | None = None
    sender: str | None = None
    has: str = ""
    after: Timestamp | None = None
    before: Timestamp | None = None
    limit: Count = 10
    from_: str | None = None


class NextBatch(msgspec.Struct, frozen=True, array_like=True):
    """Where the next page begins. seen: how many results came before. group: that the page is limited to.

    The place may be one of an event that the user may not see. So the token is sealed with a key of the server.
    """

    order_by: Literal["recent", "rank"]
    score: float
    time: int
    number: int
    seen: Count
    group_key: Literal["", "room_id", "sender"] = ""
    group: str = ""

    def encode(self, key: SigningKey) -> str:
        """Returns the token that clients get."""
        sealed = _box(key).encrypt(msgspec.msgpack.encode(self))
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def parse_has(text: str) -> int:
    """Returns the labels, of which events must have one; 0 if the text is empty. Raises MatrixError 400."""
    labels = 0
    for name in text.split(",") if text else ():
        if name not in HAS_LABELS:
            raise invalid_param(f"has may be {', '.join(HAS_LABELS)}, or several of them with commas.")
        labels |= HAS_LABELS[name]
    return labels


def _box(key: SigningKey) -> SecretBox:
    return SecretBox(blake2b(key.seed, person=b"search", digest_size=SecretBox.KEY_SIZE).digest())


def parse_next_batch(token: str | None, order_by: str, key: SigningKey) -> NextBatch | None:
    """Returns where the page begins, None for the first one. Raises MatrixError 400."""
    if token is None:
        return None
    wrong = invalid_param("next_batch is not a token of this search.")
    if len(token) > limits.search.SEARCH_TOKEN_CHARACTERS_MAX or not token.isascii():
        raise wrong
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        batch = msgspec.msgpack.decode(_box(key).decrypt(data), type=NextBatch)
    except (binascii.Error, CryptoError, msgspec.DecodeError, ValueError) as error:
        raise wrong from error
    if batch.order_by != order_by:
        raise wrong
    return batch
