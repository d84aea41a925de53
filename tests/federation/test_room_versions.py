"""The table of room versions, held to the specification. Spec: rooms/"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields

from homeserver.federation.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS, RoomVersion

CONTRACT = json.loads((Path(__file__).parents[1] / "data" / "room-versions.json").read_text())


def as_specified(version: RoomVersion) -> dict[str, Any]:
    """The flags of the version in the words and the shape of the contract."""
    event_id_format = "opaque_id_and_domain"
    pattern, encoding = r"^\$[^:]+:.+$", None
    if version.event_id_is_reference_hash and version.event_id_urlsafe:
        event_id_format, encoding = "reference_hash_urlsafe_base64", "url-safe unpadded base64"
        pattern = r"^\$[A-Za-z0-9_-]{43}$"
    elif version.event_id_is_reference_hash:
        event_id_format, encoding = "reference_hash_base64", "unpadded base64"
        pattern = r"^\$[A-Za-z0-9+/]{43}$"
    of_create = version.room_id_is_create_event_id
    return {
        "stable": version.stable,
        "default_for_new_rooms": version.id == DEFAULT_ROOM_VERSION,
        "event_id": {
            "format": event_id_format,
            "pattern": pattern,
            "derived_from_reference_hash": version.event_id_is_reference_hash,
            "encoding": encoding,
            "sent_over_federation": not version.event_id_is_reference_hash,
        },
        "room_id": {
            "format": "create_event_hash" if of_create else "opaque_id_and_domain",
            "create_event_has_room_id": not of_create,
        },
        "event_format": {
            "auth_and_prev_events": "event_id_hash_pairs" if version.references_with_hashes else "event_ids",
            "event_id_field": not version.event_id_is_reference_hash,
            "depth_max": version.depth_max,
            "redacts_location": "content" if version.redacts_in_content else "top_level",
            "create_content_has_creator": version.create_content_has_creator,
        },
        "canonical_json_strict": version.canonical_json_strict,
        "signing_key_validity_enforced": version.signing_key_validity_enforced,
        "signatures_required_from": ["sender_domain"] + ["event_id_domain"] * version.event_id_domain_must_sign,
        "state_resolution": {
            "algorithm": version.state_resolution,
            "iterative_auth_start": iterative_auth_start(version),
            "conflicted_state_subgraph": version.conflicted_state_subgraph,
        },
        "redaction": {
            "top_level_keys": version.redaction_top_level_keys,
            "content_keys": {
                event_type: "*" if keys is None else keys for event_type, keys in version.redaction_content_keys.items()
            },
            "nested_content_keys": {
                event_type: dict(keys) for event_type, keys in version.redaction_nested_content_keys.items()
            },
        },
        "auth": {name: getattr(version, name) for name in CONTRACT["room_versions"]["1"]["auth"]},
    }


def iterative_auth_start(version: RoomVersion) -> str | None:
    if version.state_resolution == "v1":
        return None
    return "empty" if version.iterative_auth_starts_empty else "unconflicted"


def specified(version_id: str) -> dict[str, Any]:
    """The contract of the version, without its prose and with lists of keys as sets."""
    contract = CONTRACT["room_versions"][version_id]
    contract = {key: value for key, value in contract.items() if key not in ("summary", "source", "fragments")}
    contract["state_resolution"] = {k: v for k, v in contract["state_resolution"].items() if k != "note"}
    contract["event_format"] = {k: v for k, v in contract["event_format"].items() if k != "pdu_schema"}
    return {**contract, "redaction": as_sets(contract["redaction"])}


def as_sets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_sets(inner) for key, inner in value.items()}
    return frozenset(value) if isinstance(value, list) else value


@pytest.mark.parametrize("version_id", CONTRACT["room_versions"])
def test_room_versions_match_the_specification(version_id: str) -> None:
    assert as_specified(ROOM_VERSIONS[version_id]) == specified(version_id)


def test_the_table_is_complete() -> None:
    assert list(ROOM_VERSIONS) == list(CONTRACT["room_versions"])
    assert CONTRACT["default_room_version"] == DEFAULT_ROOM_VERSION
    assert all(version.id == version_id for version_id, version in ROOM_VERSIONS.items())


def test_every_flag_of_the_contract_about_authorisation_is_a_flag_of_ours() -> None:
    ours = {field.name for field in fields(RoomVersion)}
    assert all(set(contract["auth"]) <= ours for contract in CONTRACT["room_versions"].values())


def test_a_room_version_cannot_be_changed_and_is_itself_a_key() -> None:
    with pytest.raises(AttributeError):
        ROOM_VERSIONS["1"].knock = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        ROOM_VERSIONS["11"].redaction_content_keys["m.room.create"] = frozenset()  # type: ignore[index]
    assert len(set(ROOM_VERSIONS.values())) == 12
    assert repr(ROOM_VERSIONS["12"]) == "RoomVersion('12')"
