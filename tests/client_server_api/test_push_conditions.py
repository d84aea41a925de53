"""Spec: client-server-api/#conditions-1, appendices/#glob-style-matching"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.identifiers import UserID
from homeserver.users.push.conditions import Subject, compile_condition, split_path
from homeserver.users.push.globs import Glob, Steps
from homeserver.users.push.rules import compile_ruleset, tweaks_of
from homeserver.users.push_rules import KINDS, default_rules

ALICE = UserID("@alice:test.example")


@dataclass
class Facts:
    """An event in a room of three, whose sender may use @room, and where everybody is called "Al *"."""

    event: dict[str, Any] = field(default_factory=dict)
    member_count: int = 3

    def display_name_of(self, user_id: UserID) -> str | None:
        return "Al *"

    def may_notify(self, key: str) -> bool:
        return key == "room"


def is_met(condition: dict[str, Any], content: dict[str, Any], **event: Any) -> bool:
    facts = Facts(
        {"type": "m.room.message", "room_id": "!r", "sender": "@bob:test.example", "content": content, **event}
    )
    return compile_condition(condition)(Subject(facts, ALICE))


@pytest.mark.parametrize(
    ("pattern", "value", "whole", "words"),
    [
        ("lunc?*", "Lunch plans", True, True),
        ("lunc?*", "LUNCH", True, True),
        ("lunc?*", " lunch", False, True),
        ("lunc?*", "lunc", False, False),
        ("ex*ple", "An example event.", False, True),
        ("ex*ple", "exple", True, True),
        ("ex*ple", "An exciting triple-whammy", False, True),
        ("cake", "pancake cakes", False, False),
        ("cake", "pancake, cake!", False, True),
        ("*", "", True, True),
        ("a*a", "a", False, False),
        ("[a-z]", "b", False, False),
        ("c\\d", "c\\d", True, True),
        ("a?c", "a\nc", True, True),
        ("ä", "Ä", True, True),
    ],
)
def test_patterns(pattern: str, value: str, whole: bool, words: bool) -> None:
    assert Glob(pattern).matches(value, Steps()) == whole
    assert Glob(pattern, words=True).matches(value, Steps()) == words


def naive(pattern: str, value: str) -> bool:
    if not pattern:
        return not value
    if pattern[0] == "*":
        return naive(pattern[1:], value) or (value != "" and naive(pattern, value[1:]))
    return value != "" and pattern[0] in ("?", value[0]) and naive(pattern[1:], value[1:])


def is_word(character: str) -> bool:
    return character in "ab"


@given(st.text("ab*?-", max_size=6), st.text("ab-", max_size=7))
def test_patterns_match_what_the_definition_says(pattern: str, value: str) -> None:
    assert Glob(pattern).matches(value, Steps()) == naive(pattern, value)
    starts = [at for at in range(len(value) + 1) if at == 0 or not is_word(value[at - 1])]
    ends = [at for at in range(len(value) + 1) if at == len(value) or not is_word(value[at])]
    expected = any(naive(pattern, value[start:end]) for start in starts for end in ends if start <= end)
    assert Glob(pattern, words=True).matches(value, Steps()) == expected


@pytest.mark.parametrize("pattern", ["*a" * 2000 + "b", "a?" * 1500 + "b", "a" * 4000, "?" * 4000, "*?" * 2000 + "b"])
@pytest.mark.parametrize("words", [True, False])
def test_malicious_patterns_cost_bounded_time(pattern: str, words: bool) -> None:
    began, steps = time.process_time(), Steps()
    for _ in range(20):
        Glob(pattern, words=words).matches("a" * 60_000, steps)
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize(
    ("condition", "content", "expected"),
    [
        ({"kind": "event_match", "key": "content.a.b", "pattern": "x*"}, {"a": {"b": "xyz"}}, True),
        ({"kind": "event_match", "key": r"content.a\.b", "pattern": "x*"}, {"a.b": "xyz"}, True),
        ({"kind": "event_match", "key": "content.a", "pattern": "*"}, {"a": 7}, False),
        ({"kind": "event_match", "key": "content.a", "pattern": "*"}, {}, False),
        ({"kind": "event_match", "key": "state_key", "pattern": ""}, {}, False),
        ({"kind": "event_property_is", "key": "content.a", "value": True}, {"a": True}, True),
        ({"kind": "event_property_is", "key": "content.a", "value": True}, {"a": 1}, False),
        ({"kind": "event_property_is", "key": "content.a", "value": None}, {"a": None}, True),
        ({"kind": "event_property_is", "key": "content.a", "value": None}, {}, False),
        ({"kind": "event_property_is", "key": "content.a", "value": {}}, {"a": {}}, False),
        ({"kind": "event_property_contains", "key": "content.a", "value": 1}, {"a": [[], True, 1]}, True),
        ({"kind": "event_property_contains", "key": "content.a", "value": 1}, {"a": [True, "1"]}, False),
        ({"kind": "event_property_contains", "key": "content.a", "value": "x"}, {"a": "x"}, False),
        ({"kind": "contains_display_name"}, {"body": "hello, AL *!"}, True),
        ({"kind": "contains_display_name"}, {"body": "al bert"}, False),
        ({"kind": "contains_display_name"}, {"body": ["al *"]}, False),
        ({"kind": "room_member_count", "is": "3"}, {}, True),
        ({"kind": "room_member_count", "is": "<3"}, {}, False),
        ({"kind": "room_member_count", "is": ">=03"}, {}, True),
        ({"kind": "room_member_count", "is": "<" + "9" * 5000}, {}, True),
        ({"kind": "room_member_count", "is": "three"}, {}, False),
        ({"kind": "sender_notification_permission", "key": "room"}, {}, True),
        ({"kind": "sender_notification_permission", "key": "other"}, {}, False),
        ({"kind": "org.example.future"}, {}, False),
        ({"kind": ["event_match"]}, {}, False),
        ({}, {}, False),
    ],
)
def test_conditions(condition: dict[str, Any], content: dict[str, Any], expected: bool) -> None:
    assert is_met(condition, content) == expected


@given(
    st.dictionaries(st.sampled_from(["kind", "key", "pattern", "value", "is"]), st.none() | st.text() | st.integers())
)
def test_no_condition_and_no_event_make_it_raise(condition: dict[str, Any]) -> None:
    assert is_met(condition, {"body": {"a": [1]}, "m.mentions": 7}, origin_server_ts=1) in (True, False)


def test_paths() -> None:
    assert split_path(r"content.m\.relates_to.rel\\type") == ("content", "m.relates_to", r"rel\type")
    assert split_path(r"a\b") == (r"a\b",)


def test_the_first_rule_that_matches_decides() -> None:
    ruleset = default_rules(ALICE)
    message = {"msgtype": "m.text", "body": "x", "m.mentions": {"user_ids": [ALICE]}}
    facts = Facts({"type": "m.room.message", "room_id": "!r", "sender": "@b:c", "content": message})
    assert compile_ruleset(ALICE, ruleset).evaluate(Subject(facts, ALICE)).level == 2
    muted = {"rule_id": "!r", "default": False, "enabled": True, "actions": ["dont_notify"]}
    rules = compile_ruleset(ALICE, {**{kind: ruleset[kind] for kind in KINDS}, "override": [], "room": [muted]})
    assert rules.evaluate(Subject(facts, ALICE)).level == 0


def test_only_rules_that_may_match_in_a_room_set_a_user_apart_there() -> None:
    ruleset = default_rules(ALICE)
    assert not compile_ruleset(ALICE, ruleset).affect("!r")
    muted = {"rule_id": "!r", "default": False, "enabled": True, "actions": []}
    rules = compile_ruleset(ALICE, {**ruleset, "room": [muted]})
    assert (rules.affect("!r"), rules.affect("!other")) == (True, False)
    changed = [{**rule, "enabled": False} for rule in ruleset["underride"]]
    assert compile_ruleset(ALICE, {**ruleset, "underride": changed}).affect("!other")


def test_tweaks() -> None:
    actions = ["notify", {"set_tweak": "highlight"}, {"set_tweak": "sound", "value": "ring"}, {"set_tweak": 7}, {}]
    assert tweaks_of(actions) == {"highlight": True, "sound": "ring"}
