"""The room versions as rows of a table. Each row lists its changes from the version before. Spec: rooms/"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec
from msgspec.structs import replace

DEPTH_MAX_INT64 = 2**63 - 1
DEPTH_MAX_CANONICAL = 2**53 - 1


class RoomVersion(msgspec.Struct, frozen=True, eq=False):
    """The behaviour of a room version. Flags are named for the behaviour that they enable; compared by identity."""

    id: str
    stable: bool

    # Event format
    event_id_is_reference_hash: bool
    """If False, the sender's server chooses the event ID, "$opaque:domain", and sends it as the PDU's `event_id`."""
    event_id_urlsafe: bool
    """The reference hash is written in URL-safe base64."""
    references_with_hashes: bool
    """`prev_events` and `auth_events` are pairs of an event ID and its reference hash instead of event IDs."""
    room_id_is_create_event_id: bool
    """Room IDs are "!" and the hash of the create event, which itself has no `room_id`."""
    depth_max: int
    redacts_in_content: bool
    """`redacts` lies in the content of m.room.redaction instead of at the top level."""
    create_content_has_creator: bool
    canonical_json_strict: bool
    """Floats and integers beyond ±(2^53-1) make an event invalid."""

    # Signatures
    signing_key_validity_enforced: bool
    """A signature counts only while its key's `valid_until_ts` lies after the event's `origin_server_ts`."""
    event_id_domain_must_sign: bool
    """The domain of the event ID must sign as well as the domain of the sender."""

    # State resolution
    state_resolution: Literal["v1", "v2", "v2.1"]
    iterative_auth_starts_empty: bool
    """The iterative auth checks begin with the empty state instead of the unconflicted one."""
    conflicted_state_subgraph: bool
    """The full conflicted set includes the events between the conflicted ones."""

    # Redaction
    redaction_top_level_keys: frozenset[str]
    redaction_content_keys: Mapping[str, frozenset[str] | None]
    """By event type, the content keys that survive; None: all of them. Other types lose their whole content."""
    redaction_nested_content_keys: Mapping[str, Mapping[str, frozenset[str]]]
    """By event type and content key, the keys inside its value that survive."""

    # Authorisation rules
    redaction_checked_by_auth_rules: bool
    redaction_applied_if_power_or_same_sender_domain: bool
    aliases_special_case: bool
    create_requires_creator: bool
    create_room_id_domain_must_match_sender: bool
    create_event_in_auth_events: Literal["required", "forbidden"]
    room_id_must_be_accepted_create_event: bool
    additional_creators: bool
    creators_privileged: bool
    notifications_power_levels_checked: bool
    integer_power_levels: bool
    power_levels_as_strings: bool
    power_levels_as_floats: bool
    knock: bool
    leave_from_knock: bool
    restricted_join: bool
    knock_restricted: bool
    join_authorised_signature_checked: bool

    def __repr__(self) -> str:
        return f"RoomVersion({self.id!r})"


def _keys(
    base: Mapping[str, frozenset[str] | None], changed: Mapping[str, frozenset[str] | None], dropped: str = ""
) -> Mapping[str, frozenset[str] | None]:
    return MappingProxyType({kind: keys for kind, keys in {**base, **changed}.items() if kind != dropped})


_V1 = RoomVersion(
    id="1",
    stable=True,
    event_id_is_reference_hash=False,
    event_id_urlsafe=False,
    references_with_hashes=True,
    room_id_is_create_event_id=False,
    depth_max=DEPTH_MAX_INT64,
    redacts_in_content=False,
    create_content_has_creator=True,
    canonical_json_strict=False,
    signing_key_validity_enforced=False,
    event_id_domain_must_sign=True,
    state_resolution="v1",
    iterative_auth_starts_empty=False,
    conflicted_state_subgraph=False,
    redaction_top_level_keys=frozenset(
        {
            "event_id",
            "type",
            "room_id",
            "sender",
            "state_key",
            "content",
            "hashes",
            "signatures",
            "depth",
            "prev_events",
            "prev_state",
            "auth_events",
            "origin",
            "origin_server_ts",
            "membership",
        }
    ),
    redaction_content_keys=_keys(
        {},
        {
            "m.room.member": frozenset({"membership"}),
            "m.room.create": frozenset({"creator"}),
            "m.room.join_rules": frozenset({"join_rule"}),
            "m.room.power_levels": frozenset(
                {
                    "ban",
                    "events",
                    "events_default",
                    "kick",
                    "redact",
                    "state_default",
                    "users",
                    "users_default",
                }
            ),
            "m.room.aliases": frozenset({"aliases"}),
            "m.room.history_visibility": frozenset({"history_visibility"}),
        },
    ),
    redaction_nested_content_keys=MappingProxyType({}),
    redaction_checked_by_auth_rules=True,
    redaction_applied_if_power_or_same_sender_domain=False,
    aliases_special_case=True,
    create_requires_creator=True,
    create_room_id_domain_must_match_sender=True,
    create_event_in_auth_events="required",
    room_id_must_be_accepted_create_event=False,
    additional_creators=False,
    creators_privileged=False,
    notifications_power_levels_checked=False,
    integer_power_levels=False,
    power_levels_as_strings=True,
    power_levels_as_floats=True,
    knock=False,
    leave_from_knock=False,
    restricted_join=False,
    knock_restricted=False,
    join_authorised_signature_checked=False,
)

_V2 = replace(_V1, id="2", state_resolution="v2")

_V3 = replace(
    _V2,
    id="3",
    event_id_is_reference_hash=True,
    references_with_hashes=False,
    event_id_domain_must_sign=False,
    redaction_checked_by_auth_rules=False,
    redaction_applied_if_power_or_same_sender_domain=True,
)

_V4 = replace(_V3, id="4", event_id_urlsafe=True)

_V5 = replace(_V4, id="5", signing_key_validity_enforced=True)

_V6 = replace(
    _V5,
    id="6",
    depth_max=DEPTH_MAX_CANONICAL,
    canonical_json_strict=True,
    redaction_content_keys=_keys(_V5.redaction_content_keys, {}, dropped="m.room.aliases"),
    aliases_special_case=False,
    notifications_power_levels_checked=True,
    power_levels_as_floats=False,
)

_V7 = replace(_V6, id="7", knock=True, leave_from_knock=True)

_V8 = replace(
    _V7,
    id="8",
    restricted_join=True,
    join_authorised_signature_checked=True,
    redaction_content_keys=_keys(_V7.redaction_content_keys, {"m.room.join_rules": frozenset({"join_rule", "allow"})}),
)

_V9 = replace(
    _V8,
    id="9",
    redaction_content_keys=_keys(
        _V8.redaction_content_keys, {"m.room.member": frozenset({"membership", "join_authorised_via_users_server"})}
    ),
)

_V10 = replace(_V9, id="10", knock_restricted=True, integer_power_levels=True, power_levels_as_strings=False)

_V11 = replace(
    _V10,
    id="11",
    redacts_in_content=True,
    create_content_has_creator=False,
    create_requires_creator=False,
    redaction_top_level_keys=_V10.redaction_top_level_keys - {"prev_state", "origin", "membership"},
    redaction_content_keys=_keys(
        _V10.redaction_content_keys,
        {
            "m.room.create": None,
            "m.room.redaction": frozenset({"redacts"}),
            "m.room.power_levels": (_V10.redaction_content_keys["m.room.power_levels"] or frozenset()) | {"invite"},
        },
    ),
    redaction_nested_content_keys=MappingProxyType(
        {
            "m.room.member": MappingProxyType({"third_party_invite": frozenset({"signed"})}),
        }
    ),
)

_V12 = replace(
    _V11,
    id="12",
    room_id_is_create_event_id=True,
    state_resolution="v2.1",
    iterative_auth_starts_empty=True,
    conflicted_state_subgraph=True,
    create_room_id_domain_must_match_sender=False,
    create_event_in_auth_events="forbidden",
    room_id_must_be_accepted_create_event=True,
    additional_creators=True,
    creators_privileged=True,
)

ROOM_VERSIONS: Mapping[str, RoomVersion] = MappingProxyType(
    {version.id: version for version in (_V1, _V2, _V3, _V4, _V5, _V6, _V7, _V8, _V9, _V10, _V11, _V12)}
)
"""The room versions by their `room_version` in the content of m.room.create; it defaults to "1"."""

DEFAULT_ROOM_VERSION = "12"
"""The version of new rooms."""
