"""EDUs: short-lived messages between servers that nobody stores. Spec: server-server-api/#edus

EDUs are parsed one at a time, so that a malformed one does not spoil the others. First call `parse_edu`, then convert
the content to the Struct for its type. `parse_receipts` and `parse_presence` yield the parts of contents with many.
Nothing here checks whether the origin may speak for the users and rooms that an EDU names: the receiver must.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import INT_MAX
from homeserver.federation.identifiers import (
    EventID,
    InvalidIdentifier,
    RoomID,
    UserID,
    parse_event_id,
    parse_room_id,
    parse_user_id,
)

NaturalInt = Annotated[int, Meta(ge=0, le=INT_MAX)]
DeviceID = Annotated[str, Meta(max_length=255)]
"""The spec sets no limit. Clients choose device IDs, or servers generate a few letters. They must fit in an index."""

ShortText = Annotated[str, Meta(max_length=4096)]


AUDIENCE_FIELD = "org.homeserver.audience"


class InvalidEdu(ValueError):
    """The EDU, or the content of a known EDU type, is malformed; the message says where."""


class _Edu(Struct, frozen=True):
    edu_type: Annotated[str, Meta(max_length=255)]
    content: dict[str, Any]


class TypingContent(Struct, frozen=True, kw_only=True):
    """`m.typing`: a user started or stopped typing in a room. Spec: server-server-api/#typing-notifications"""

    room_id: RoomID
    user_id: UserID
    typing: bool

    def __post_init__(self) -> None:
        parse_room_id(self.room_id)
        parse_user_id(self.user_id)


class Receipt(Struct, frozen=True, kw_only=True):
    """How far one user has read in a room, from an `m.receipt`. Spec: server-server-api/#receipts

    `ts` in ms. `thread_id`: an event ID, "main", or None if unthreaded. `receipt_type`: one of those asked for.
    """

    room_id: RoomID
    user_id: UserID
    event_id: EventID
    ts: int
    thread_id: str | None = None
    receipt_type: str = "m.read"


class _ReceiptData(Struct, frozen=True):
    ts: NaturalInt
    thread_id: Annotated[str, Meta(max_length=255)] | None = None


class _UserReceipt(Struct, frozen=True):
    event_ids: Annotated[list[EventID], Meta(min_length=1, max_length=1)]
    data: _ReceiptData


class PresenceUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One user's presence. The spec requires `last_active_ago` (ms), but it is absent for users never seen active.

    audience: not in the spec, see `homeserver.users.told_audiences`. "friends": this is what all others are told;
    "nobody": nobody may see any more what was told before.
    """

    user_id: UserID
    presence: Literal["offline", "unavailable", "online"]
    status_msg: ShortText | None = None
    last_active_ago: NaturalInt | None = None
    currently_active: bool = False
    audience: Literal["friends", "nobody"] | None = msgspec.field(default=None, name=AUDIENCE_FIELD)

    def __post_init__(self) -> None:
        parse_user_id(self.user_id)


class DeviceListUpdateContent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`m.device_list_update`: one device changed. Spec: server-server-api/#device-management"""

    user_id: UserID
    device_id: DeviceID
    stream_id: NaturalInt
    prev_id: Annotated[list[NaturalInt], Meta(max_length=1000)] = []
    deleted: bool = False
    device_display_name: ShortText | None = None
    keys: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        parse_user_id(self.user_id)


class DirectToDeviceContent(Struct, frozen=True, kw_only=True):
    """`m.direct_to_device`: a message to devices, `messages[user_id][device_id or "*"]`.

    Spec: server-server-api/#send-to-device-messaging. The spec limits `message_id` to 32 code points, but some servers
    send longer ones, and dropping their messages would lose encryption keys.
    """

    sender: UserID
    type: Annotated[str, Meta(max_length=255)]
    message_id: Annotated[str, Meta(max_length=255)]
    messages: dict[UserID, dict[DeviceID, dict[str, Any]]]

    def __post_init__(self) -> None:
        parse_user_id(self.sender)
        for user_id in self.messages:
            parse_user_id(user_id)


class SigningKeyUpdateContent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`m.signing_key_update`: a user's new cross-signing keys. Spec: server-server-api/#end-to-end-encryption"""

    user_id: UserID
    master_key: dict[str, Any] | None = None
    self_signing_key: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        parse_user_id(self.user_id)


def parse_edu(edu: object) -> tuple[str, dict[str, Any]]:
    """Returns the type of an EDU and its content, as it came. Raises InvalidEdu."""
    try:
        canonical_json.check(edu, strict=False)
        parsed = msgspec.convert(edu, _Edu)
    except ValueError as error:  # msgspec.ValidationError and NotCanonical are ValueErrors
        raise InvalidEdu(str(error)) from None
    return parsed.edu_type, parsed.content


def parse_receipts(content: dict[str, Any], types: Collection[str] = ("m.read",)) -> Iterator[Receipt]:
    """Yields the receipts of an `m.receipt`, without malformed ones.

    types: the receipt types to read. The spec lets only public read receipts travel between servers.
    """
    for room, kinds in content.items():
        try:
            room_id = parse_room_id(room)
        except InvalidIdentifier:
            continue
        for receipt_type in types:
            receipts = kinds.get(receipt_type) if isinstance(kinds, dict) else None
            if isinstance(receipts, dict):
                yield from _receipts_of_users(room_id, receipt_type, receipts)


def _receipts_of_users(room_id: RoomID, receipt_type: str, receipts: dict[str, Any]) -> Iterator[Receipt]:
    for user, receipt in receipts.items():
        try:
            user_id = parse_user_id(user)
            told = msgspec.convert(receipt, _UserReceipt)
            event_id = parse_event_id(told.event_ids[0])
        except ValueError:  # msgspec.ValidationError and InvalidIdentifier are ValueErrors
            continue
        yield Receipt(
            room_id=room_id, user_id=user_id, event_id=event_id, ts=told.data.ts, thread_id=told.data.thread_id,
            receipt_type=receipt_type,
        )  # fmt: skip


def parse_presence(content: dict[str, Any]) -> Iterator[PresenceUpdate]:
    """Yields the updates of an `m.presence`, without malformed ones. Raises InvalidEdu if it has no list of them.

    Servers send states that the spec does not know ("busy"), and the other users of that server are not to blame.
    """
    push = content.get("push")
    if not isinstance(push, list):
        raise InvalidEdu("Expected an array - at `$.push`")
    for update in push:
        try:
            yield msgspec.convert(update, PresenceUpdate)
        except msgspec.ValidationError:
            continue
