"""Event: a PDU whose shape has been checked. Spec: server-server-api/#pdus, rooms/v12/#event-format-1"""

from __future__ import annotations

from typing import Any

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.hashing import event_id_of
from homeserver.federation.identifiers import (
    EventID,
    InvalidIdentifier,
    RoomID,
    UserID,
    fits,
    parse_event_id,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    server_name_of,
)
from homeserver.federation.room_versions import RoomVersion

PDU_BYTES_MAX = 65536
"""The limit for its canonical JSON, signatures included. Spec: client-server-api/#size-limits"""
PREV_EVENTS_MAX = 20
AUTH_EVENTS_MAX = 10

INT64_MAX = 2**63 - 1


class InvalidEvent(ValueError):
    """The PDU is not a valid event of the room version; the message says why in one sentence."""


class NotCanonicalEvent(InvalidEvent):
    """The event has no canonical JSON by the rules of its room version."""


class Event:
    """An event of a room. Threads and caches share it: never change it, and above all never change its PDU."""

    __slots__ = (
        "auth_events",
        "content",
        "depth",
        "event_id",
        "origin_server_ts",
        "pdu",
        "prev_events",
        "redacts",
        "room_id",
        "sender",
        "state_key",
        "type",
        "version",
    )

    version: RoomVersion
    pdu: dict[str, Any]
    """The object that is hashed, signed and sent."""
    event_id: EventID
    room_id: RoomID
    type: str
    sender: UserID
    state_key: str | None
    content: dict[str, Any]
    prev_events: tuple[EventID, ...]
    auth_events: tuple[EventID, ...]
    depth: int
    origin_server_ts: int
    """Milliseconds, as the sender's server claims."""
    redacts: EventID | None
    """The event that an m.room.redaction redacts, wherever the room version keeps it."""

    def __init__(self, pdu: dict[str, Any], version: RoomVersion, event_id: EventID) -> None:
        """Takes a PDU that is known to be well-formed; use `parse_event` for all others."""
        self.version = version
        self.pdu = pdu
        self.event_id = event_id
        self.type = event_type = pdu["type"]
        self.sender = pdu["sender"]
        self.state_key = pdu.get("state_key")
        self.content = content = pdu["content"]
        self.depth = pdu["depth"]
        self.origin_server_ts = pdu["origin_server_ts"]
        if version.references_with_hashes:
            self.prev_events = tuple([reference[0] for reference in pdu["prev_events"]])
            self.auth_events = tuple([reference[0] for reference in pdu["auth_events"]])
        else:
            self.prev_events = tuple(pdu["prev_events"])
            self.auth_events = tuple(pdu["auth_events"])
        if version.room_id_is_create_event_id and event_type == "m.room.create":
            self.room_id = RoomID("!" + event_id[1:])
        else:
            self.room_id = pdu["room_id"]
        self.redacts = None
        if event_type == "m.room.redaction":
            redacts = (content if version.redacts_in_content else pdu).get("redacts")
            if isinstance(redacts, str):
                self.redacts = EventID(redacts)

    @property
    def is_state(self) -> bool:
        """Whether it is a state event."""
        return self.state_key is not None

    @property
    def key(self) -> tuple[str, str]:
        """The (type, state_key) of a state event. Raises ValueError for any other event."""
        if self.state_key is None:
            raise ValueError("Only a state event has a key.")
        return (self.type, self.state_key)

    @property
    def membership(self) -> str | None:
        """The membership that an m.room.member event sets; None for other events or a value that is not a string."""
        if self.type != "m.room.member":
            return None
        membership = self.content.get("membership")
        return membership if isinstance(membership, str) else None

    def __repr__(self) -> str:
        return f"<Event {self.event_id} {self.type} in {self.room_id}>"


def trusted_event(pdu: dict[str, Any], version: RoomVersion, event_id: EventID) -> Event:
    """Returns the event of a PDU that was checked before, e.g. a stored one. Takes ownership of the PDU."""
    return Event(pdu, version, event_id)


def parse_event(pdu: object, version: RoomVersion) -> Event:
    """Returns the event of an untrusted PDU. Checks shape and size, not hashes or signatures. Raises InvalidEvent.

    Takes ownership of the PDU, except for `unsigned`: no signature covers it, so it is left out.
    """
    if type(pdu) is not dict:
        raise InvalidEvent("A PDU must be an object without duplicate keys.")
    if "unsigned" in pdu:
        if not isinstance(pdu["unsigned"], dict):
            raise InvalidEvent("unsigned must be an object.")
        pdu = {key: value for key, value in pdu.items() if key != "unsigned"}
    try:
        if len(canonical_json.encode(pdu, strict=version.canonical_json_strict)) > PDU_BYTES_MAX:
            raise InvalidEvent(f"The event is larger than {PDU_BYTES_MAX} bytes.")
        check_fields(pdu, version)
        check_references(pdu, version)
        _check_signed(pdu)
        return Event(pdu, version, event_id_of(pdu, version))
    except NotCanonical as error:
        raise NotCanonicalEvent(str(error)) from None
    except InvalidIdentifier as error:
        raise InvalidEvent(str(error)) from None


def check_fields(pdu: dict[str, Any], version: RoomVersion) -> None:
    """Raises InvalidEvent or InvalidIdentifier for a field of the wrong type, size or range."""
    event_type = pdu.get("type")
    if not isinstance(event_type, str) or not fits(event_type):
        raise InvalidEvent("type must be a string of at most 255 bytes.")
    if "state_key" in pdu and not (isinstance(pdu["state_key"], str) and fits(pdu["state_key"])):
        raise InvalidEvent("state_key must be a string of at most 255 bytes.")
    parse_user_id(pdu.get("sender"))
    if not version.event_id_is_reference_hash:
        parse_server_name(server_name_of(parse_event_id(pdu.get("event_id"))))
    if not (version.room_id_is_create_event_id and event_type == "m.room.create"):
        room_id = parse_room_id(pdu.get("room_id"))
        if version.room_id_is_create_event_id == (":" in room_id):
            raise InvalidEvent("The room_id does not have the format of the room version.")
    if not isinstance(pdu.get("content"), dict):
        raise InvalidEvent("content must be an object.")
    depth = pdu.get("depth")
    if type(depth) is not int or not 0 <= depth <= version.depth_max:
        raise InvalidEvent(f"depth must be an integer from 0 to {version.depth_max}.")
    origin_server_ts = pdu.get("origin_server_ts")
    if type(origin_server_ts) is not int or not -INT64_MAX <= origin_server_ts <= INT64_MAX:
        raise InvalidEvent("origin_server_ts must be a 64-bit integer.")
    if event_type == "m.room.redaction" and not version.redacts_in_content and "redacts" in pdu:
        parse_event_id(pdu["redacts"])


def _check_signed(pdu: dict[str, Any]) -> None:
    hashes = pdu.get("hashes")
    if not isinstance(hashes, dict) or not isinstance(hashes.get("sha256"), str):
        raise InvalidEvent("hashes must be an object with a string sha256.")
    signatures = pdu.get("signatures")
    if not isinstance(signatures, dict) or not all(_is_signatures(by_key) for by_key in signatures.values()):
        raise InvalidEvent("signatures must be an object of objects of strings.")


def _is_signatures(by_key: object) -> bool:
    return isinstance(by_key, dict) and all(isinstance(signature, str) for signature in by_key.values())


def check_references(pdu: dict[str, Any], version: RoomVersion) -> None:
    """Raises InvalidEvent or InvalidIdentifier for malformed or too many `prev_events` or `auth_events`."""
    for field, count_max in (("prev_events", PREV_EVENTS_MAX), ("auth_events", AUTH_EVENTS_MAX)):
        references = pdu.get(field)
        if not isinstance(references, list) or len(references) > count_max:
            raise InvalidEvent(f"{field} must be an array of at most {count_max}.")
        for reference in references:
            if version.references_with_hashes:
                if not isinstance(reference, list) or len(reference) != 2 or not isinstance(reference[1], dict):
                    raise InvalidEvent(f"{field} must hold pairs of an event ID and its hashes.")
                reference = reference[0]
            parse_event_id(reference)
