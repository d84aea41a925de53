"""Hypothesis strategies for the tests of the protocol: JSON values, and events of every room version."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from homeserver.federation.canonical_json import INT_MAX
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.signing import SigningKey
from tests.support.examples import is_default_profile

PROPERTY = settings(derandomize=is_default_profile())
KEY = SigningKey("a_key", bytes(range(32)))
SERVER = "example.org"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
integers = st.integers(-INT_MAX, INT_MAX)
scalars = st.none() | st.booleans() | integers | texts
strict_values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
strict_objects = st.dictionaries(texts, strict_values, max_size=5)
lenient_values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

versions = st.sampled_from(list(ROOM_VERSIONS.values()))

EVENT_TYPES = [
    "m.room.message",
    "m.room.member",
    "m.room.create",
    "m.room.join_rules",
    "m.room.power_levels",
    "m.room.aliases",
    "m.room.history_visibility",
    "m.room.redaction",
    "org.example.custom",
]
CONTENT_KEYS = [
    "membership",
    "creator",
    "join_rule",
    "allow",
    "join_authorised_via_users_server",
    "third_party_invite",
    "ban",
    "invite",
    "users",
    "aliases",
    "history_visibility",
    "redacts",
    "body",
]


def contents() -> st.SearchStrategy[dict[str, Any]]:
    """Contents with keys that some version protects and keys that none does."""
    signed = st.fixed_dictionaries({}, optional={"signed": strict_values, "display_name": strict_values})
    return st.dictionaries(st.sampled_from(CONTENT_KEYS), strict_values | signed, max_size=6)


@st.composite
def pdus(draw: st.DrawFn, version: RoomVersion) -> dict[str, Any]:
    """A well-formed PDU of the version, with hashes and signatures that are not valid."""
    event_type = draw(st.sampled_from(EVENT_TYPES))
    pdu = pdu_of(version, type=event_type, content=draw(contents()), depth=draw(st.integers(0, 2**40)))
    if draw(st.booleans()):
        pdu["state_key"] = draw(texts)
    if draw(st.booleans()):
        pdu |= draw(
            st.dictionaries(
                st.sampled_from(["origin", "membership", "prev_state", "extra", "age_ts"]), strict_values, max_size=3
            )
        )
    return pdu


def pdu_of(version: RoomVersion, **fields: Any) -> dict[str, Any]:
    """A small valid message of the version. `fields` replaces, and where the value is ... removes, what it has."""
    pdu: dict[str, Any] = {
        "type": "m.room.message",
        "sender": "@alice:example.org",
        "room_id": room_id_of(version),
        "content": {"msgtype": "m.text", "body": "hello"},
        "depth": 7,
        "origin_server_ts": 1_700_000_000_000,
        "prev_events": [reference_of(version, "prev")],
        "auth_events": [reference_of(version, "create"), reference_of(version, "member")],
        "hashes": {"sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"},
        "signatures": {"example.org": {"ed25519:1": "c2lnbmF0dXJl"}},
    }
    if not version.event_id_is_reference_hash:
        pdu["event_id"] = "$event:example.org"
    pdu.update(fields)
    return {name: value for name, value in pdu.items() if value is not ...}


def room_id_of(version: RoomVersion) -> str:
    return "!" + "r" * 43 if version.room_id_is_create_event_id else "!room:example.org"


def event_id_like(version: RoomVersion, name: str) -> str:
    return "$" + name.ljust(43, "0") if version.event_id_is_reference_hash else f"${name}:example.org"


def reference_of(version: RoomVersion, name: str) -> Any:
    event_id = event_id_like(version, name)
    return [event_id, {"sha256": "aGFzaA"}] if version.references_with_hashes else event_id


def nested(depth: int) -> list[Any]:
    """Arrays within one another, `depth` of them."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value
