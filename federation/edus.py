"""EDUs: short-lived messages between servers that nobody stores. Spec: server-server-api/#edus

Each EDU is checked on its own, so that a malformed one does not affect the others. The receiver must check that the
origin may speak for the users in an EDU: compare `server_name_of(user_id)` with the origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import INT_MAX
from homeserver.federation.identifiers import EventID, RoomID, UserID, parse_event_id, parse_room_id, parse_user_id

NaturalInt = Annotated[int, Meta(ge=0, le=INT_MAX)]
DeviceID = Annotated[str, Meta(max_length=255)]
"""The spec sets no limit. Clients choose device IDs, or servers generate a few letters. They must fit in an index."""

ShortText = Annotated[str, Meta(max_length=4096)]


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


class ReceiptData(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a user read an event (`ts` in ms), and in which thread: an event ID, "main", or None if unthreaded."""

    ts: NaturalInt
    thread_id: Annotated[str, Meta(max_length=255)] | None = None


class UserReceipt(Struct, frozen=True, kw_only=True):
    """How far one user has read: exactly one event."""

    event_ids: Annotated[list[EventID], Meta(min_length=1, max_length=1)]
    data: ReceiptData

    def __post_init__(self) -> None:
        parse_event_id(self.event_ids[0])


class RoomReceipts(Struct, frozen=True, kw_only=True):
    """The receipts of one room. Only public read receipts travel between servers; other kinds are ignored."""

    read: dict[UserID, UserReceipt] = field(name="m.read", default_factory=dict)

    def __post_init__(self) -> None:
        for user_id in self.read:
            parse_user_id(user_id)


ReceiptContent = dict[RoomID, RoomReceipts]
"""`m.receipt`: receipts by room. Spec: server-server-api/#receipts"""


class PresenceUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One user's presence. The spec requires `last_active_ago` (ms), but it is absent for users never seen active."""

    user_id: UserID
    presence: Literal["offline", "unavailable", "online"]
    status_msg: ShortText | None = None
    last_active_ago: NaturalInt | None = None
    currently_active: bool = False

    def __post_init__(self) -> None:
        parse_user_id(self.user_id)


class PresenceContent(Struct, frozen=True, kw_only=True):
    """`m.presence`: presence of several users of the origin. Spec: server-server-api/#presence"""

    push: list[PresenceUpdate]


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


EduContent = (
    TypingContent
    | ReceiptContent
    | PresenceContent
    | DeviceListUpdateContent
    | DirectToDeviceContent
    | SigningKeyUpdateContent
    | dict[str, Any]
)

CONTENT_TYPES: Mapping[str, Any] = {
    "m.typing": TypingContent,
    "m.receipt": ReceiptContent,
    "m.presence": PresenceContent,
    "m.device_list_update": DeviceListUpdateContent,
    "m.direct_to_device": DirectToDeviceContent,
    "m.signing_key_update": SigningKeyUpdateContent,
}


def parse_edu(edu: object) -> tuple[str, EduContent]:
    """Returns the EDU type and its content: a Struct of `CONTENT_TYPES`, or for other types the object as received.

    Raises InvalidEdu. Invalid updates in an `m.presence` EDU are left out one by one: some servers send states that the
    spec does not know ("busy"), and that must not affect their other users.
    """
    try:
        canonical_json.check(edu, strict=False)
        parsed = msgspec.convert(edu, _Edu)
        if parsed.edu_type == "m.presence":
            return parsed.edu_type, _parse_presence(parsed.content)
        if parsed.edu_type == "m.receipt":
            return parsed.edu_type, _parse_receipts(parsed.content)
        kind = CONTENT_TYPES.get(parsed.edu_type)
        return parsed.edu_type, parsed.content if kind is None else msgspec.convert(parsed.content, kind)
    except ValueError as error:  # msgspec.ValidationError, InvalidIdentifier and NotCanonical are ValueErrors
        raise InvalidEdu(str(error)) from None


def build_edu(edu_type: str, content: EduContent) -> dict[str, Any]:
    """Returns the EDU in the form in which it is sent. `content` is a Struct of `CONTENT_TYPES` or a plain object."""
    return {"edu_type": edu_type, "content": msgspec.to_builtins(content)}


def _parse_receipts(content: dict[str, Any]) -> ReceiptContent:
    for room_id in content:
        parse_room_id(room_id)
    return msgspec.convert(content, ReceiptContent)


def _parse_presence(content: dict[str, Any]) -> PresenceContent:
    push = content.get("push")
    if not isinstance(push, list):
        raise InvalidEdu("Expected an array - at `$.push`")
    updates = []
    for update in push:
        try:
            updates.append(msgspec.convert(update, PresenceUpdate))
        except msgspec.ValidationError:
            continue
    return PresenceContent(push=updates)
