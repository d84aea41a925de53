"""Spec: server-server-api/#policy-servers"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.build import sign_event
from homeserver.federation.event import Event, parse_event
from homeserver.federation.hashing import signed_part
from homeserver.federation.identifiers import ServerName
from homeserver.federation.policy import (
    POLICY_KEY_ID,
    POLICY_TYPE,
    PolicyServer,
    is_recommended,
    needs_recommendation,
    parse_policy,
    with_recommendation,
)
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.signing import SigningKey, sign_json

VERSION = ROOM_VERSIONS["12"]
OURS = SigningKey("1", b"\1" * 32)
KEY = SigningKey("policy_server", b"\2" * 32)
POLICY = PolicyServer(ServerName("policy.example"), KEY.verify_key_base64)


def an_event(body: str = "hello", **changes: Any) -> Event:
    pdu = {
        "type": "m.room.message",
        "room_id": "!" + "r" * 43,
        "sender": "@alice:a.example",
        "content": {"body": body},
        "depth": 1,
        "origin_server_ts": 1,
        "prev_events": [],
        "auth_events": [],
        **changes,
    }
    return parse_event(sign_event(pdu, VERSION, ServerName("a.example"), OURS), VERSION)


def answer_to(event: Event, key: SigningKey = KEY, name: str = POLICY.name) -> dict[str, Any]:
    signed = sign_json(signed_part(event.pdu, event.version), name, key)
    return {name: signed["signatures"][name]}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"via": "policy.example"},
        {"via": "policy.example", "public_keys": []},
        {"via": "policy.example", "public_keys": {"ed25519": 1}},
        {"via": "not a name", "public_keys": {"ed25519": "x"}},
        {"via": None, "public_keys": {"ed25519": "x"}},
    ],
)
def test_malformed_policies_name_nobody(content: dict[str, Any]) -> None:
    assert parse_policy(content) is None


def test_a_policy_names_a_server_and_its_key() -> None:
    content = {"via": POLICY.name, "public_keys": {"ed25519": KEY.verify_key_base64}}
    assert parse_policy(content) == POLICY


def test_a_policy_server_is_asked_about_everything_but_the_policy() -> None:
    assert needs_recommendation(an_event())
    assert needs_recommendation(an_event(type=POLICY_TYPE))
    assert needs_recommendation(an_event(type=POLICY_TYPE, state_key="x"))
    assert not needs_recommendation(an_event(type=POLICY_TYPE, state_key=""))


def test_a_recommendation_is_a_signature_of_the_policy_server() -> None:
    event = an_event()
    assert not is_recommended(event, POLICY)
    recommended = with_recommendation(event, POLICY, answer_to(event))
    assert recommended is not None
    assert recommended.event_id == event.event_id
    assert is_recommended(recommended, POLICY)
    assert recommended.pdu["signatures"].keys() == {"a.example", POLICY.name}
    assert not is_recommended(recommended, PolicyServer(POLICY.name, OURS.verify_key_base64))


def test_an_unusable_answer_is_not_a_recommendation() -> None:
    event, other = an_event(), an_event("another")
    answers: list[object] = [
        None,
        {},
        {POLICY.name: None},
        {POLICY.name: {}},
        {POLICY.name: {POLICY_KEY_ID: 1}},
        {POLICY.name: {POLICY_KEY_ID: "x"}},
        answer_to(other),
        answer_to(event, OURS),
        answer_to(event, name="other.example"),
        {POLICY.name: {POLICY_KEY_ID: "x" * 70_000}},
    ]
    for answer in answers:
        assert with_recommendation(event, POLICY, answer) is None
