"""Content hash, reference hash and event ID. Spec: server-server-api/#signing-events, rooms/v3, rooms/v4"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.hashing import content_hash, event_id_of, reference_hash
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from tests.federation.json_values import PROPERTY, pdu_of, pdus, versions
from tests.federation.spec_events import MINIMAL, REDACTABLE


@pytest.mark.parametrize("version", ROOM_VERSIONS.values())
def test_content_hashes_of_the_specification(version: RoomVersion) -> None:
    assert content_hash(MINIMAL, version) == "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"
    assert content_hash(REDACTABLE, version) == "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"


def sha256_of(obj: dict[str, Any], without: set[str]) -> bytes:
    """As the example code of the specification takes it."""
    hashed = {key: value for key, value in obj.items() if key not in without}
    text = json.dumps(hashed, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


@PROPERTY
@given(st.data())
def test_hashes_equal_those_of_the_specifications_example_code(data: st.DataObject) -> None:
    version = data.draw(versions)
    pdu = data.draw(pdus(version))
    assert b64decode(content_hash(pdu, version) + "=") == sha256_of(pdu, {"unsigned", "signatures", "hashes"})
    assert reference_hash(pdu, version) == sha256_of(redact(pdu, version), {"unsigned", "signatures"})


@PROPERTY
@given(st.data())
def test_redaction_and_signatures_do_not_change_the_event_id(data: st.DataObject) -> None:
    version = data.draw(versions)
    pdu = data.draw(pdus(version))
    event_id = event_id_of(pdu, version)
    assert event_id_of(redact(pdu, version), version) == event_id
    assert event_id_of({**pdu, "unsigned": {"age": 1}}, version) == event_id
    assert event_id_of({**pdu, "signatures": {"other": {"ed25519:1": "x"}}}, version) == event_id
    assert event_id_of(json.loads(json.dumps(pdu)), version) == event_id


@pytest.mark.parametrize("version_id", list(ROOM_VERSIONS)[2:])
def test_every_protected_part_changes_the_event_id(version_id: str) -> None:
    version = ROOM_VERSIONS[version_id]
    pdu = pdu_of(version)
    ids = {event_id_of({**pdu, name: "changed"}, version) for name in set(pdu) - {"signatures", "content"}}
    assert len(ids) == len(pdu) - 2
    assert event_id_of(pdu, version) not in ids
    assert event_id_of({**pdu, "content": {}}, version) == event_id_of(pdu, version)


@pytest.mark.parametrize("version_id", ["1", "2"])
def test_in_versions_1_and_2_the_pdu_contains_its_event_id(version_id: str) -> None:
    assert event_id_of(REDACTABLE, ROOM_VERSIONS[version_id]) == "$0:domain"


def test_event_ids_are_base64_in_version_3_and_urlsafe_from_version_4() -> None:
    standard, urlsafe = re.compile(r"\$[A-Za-z0-9+/]{43}"), re.compile(r"\$[A-Za-z0-9_-]{43}")
    for depth in range(64):
        pdu = {**MINIMAL, "depth": depth}
        third, fourth = (event_id_of(pdu, ROOM_VERSIONS[version]) for version in "34")
        assert standard.fullmatch(third) and urlsafe.fullmatch(fourth)
        assert third.replace("+", "-").replace("/", "_") == fourth


def test_event_ids_of_the_minimal_event() -> None:
    """Pinned by value, taken with the example code of the specification: `origin` is not protected since version 11."""
    ids = {version.id: event_id_of(MINIMAL, version) for version in list(ROOM_VERSIONS.values())[2:]}
    assert ids["3"] == "$GznJ7AhFWldAKVFf2pXjJPsdJRXC2WSSZsudqLgRjmg"
    assert {ids[str(version)] for version in range(4, 11)} == {"$GznJ7AhFWldAKVFf2pXjJPsdJRXC2WSSZsudqLgRjmg"}
    assert {ids["11"], ids["12"]} == {"$7BAJrdW0Cu93zbT-U6sby_2dpCYXdF1LGzacgs-gTHk"}


def test_floats_can_be_hashed_before_version_6_only() -> None:
    pdu = {**MINIMAL, "content": {"level": 50.0}, "type": "m.room.message"}
    assert content_hash(pdu, ROOM_VERSIONS["5"]) != content_hash(MINIMAL, ROOM_VERSIONS["5"])
    with pytest.raises(NotCanonical):
        content_hash(pdu, ROOM_VERSIONS["6"])
