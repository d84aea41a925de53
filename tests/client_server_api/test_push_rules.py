"""Spec: client-server-api/#push-rules, #predefined-rules, #push-rules-api, #push-rules-events"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeserver import limits
from homeserver.database import Transaction
from homeserver.users.push_rules import store_rule
from tests.support.homeservers import Client, Server
from tests.support.rows import row

DEFAULT_OVERRIDES = [
    ".m.rule.master", ".m.rule.suppress_notices", ".m.rule.invite_for_me", ".m.rule.member_event",
    ".m.rule.is_user_mention", ".m.rule.is_room_mention", ".m.rule.tombstone", ".m.rule.reaction",
    ".m.rule.room.server_acl", ".m.rule.poll_response", ".m.rule.suppress_edits",
]  # fmt: skip
DEFAULT_UNDERRIDES = [
    ".m.rule.call", ".m.rule.encrypted_room_one_to_one", ".m.rule.room_one_to_one", ".m.rule.message",
    ".m.rule.encrypted", ".m.rule.poll_start_one_to_one", ".m.rule.poll_start", ".m.rule.poll_end_one_to_one",
    ".m.rule.poll_end",
]  # fmt: skip
ROOM = "!726s6s6q:example.com"
BOB = "@bob:example.com"
IS_TEXT = {"kind": "event_match", "key": "content.msgtype", "pattern": "m.text"}


def path_of(kind: str, rule_id: str, part: str = "") -> str:
    return f"pushrules/global/{kind}/{quote(rule_id, safe='')}" + (f"/{part}" if part else "")


async def put(client: Client, kind: str, rule_id: str, where: dict[str, str] | None = None, **content: Any) -> None:
    body = {"actions": ["notify"], **({"pattern": "tea"} if kind == "content" else {}), **content}
    assert await client.ok("PUT", path_of(kind, rule_id), json=body, params=where or {}) == {}


async def ids(client: Client, kind: str) -> list[str]:
    return [rule["rule_id"] for rule in (await client.ok("GET", "pushrules/global/"))[kind]]


async def told(client: Client, since: str = "") -> tuple[list[Any], str]:
    """Returns the push rules in a sync, and its token."""
    answer = await client.ok("GET", "sync", params={"since": since} if since else {})
    events = answer.get("account_data", {"events": []})["events"]
    return [event["content"] for event in events if event["type"] == "m.push_rules"], answer["next_batch"]


async def test_every_user_has_the_default_rules(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    ruleset = (await alice.ok("GET", "pushrules/"))["global"]
    assert await alice.ok("GET", "pushrules/global/") == ruleset
    assert list(ruleset) == ["override", "content", "postcontent", "room", "sender", "underride"]
    assert await ids(alice, "override") == DEFAULT_OVERRIDES
    assert await ids(alice, "underride") == DEFAULT_UNDERRIDES
    assert ruleset["content"] == ruleset["room"] == ruleset["sender"] == []
    for rule in (*ruleset["override"], *ruleset["underride"]):
        assert rule["default"] is True
        assert rule["enabled"] is (rule["rule_id"] != ".m.rule.master")


async def test_default_rules_contain_the_users_own_id(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await alice.ok("GET", path_of("override", ".m.rule.is_user_mention")) == {
        "rule_id": ".m.rule.is_user_mention",
        "default": True,
        "enabled": True,
        "conditions": [
            {"kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": alice.user_id}
        ],
        "actions": ["notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}],
    }
    invite = await alice.ok("GET", path_of("override", ".m.rule.invite_for_me"))
    assert {"kind": "event_match", "key": "state_key", "pattern": alice.user_id} in invite["conditions"]


@pytest.mark.parametrize(
    ("kind", "rule_id", "content"),
    [
        ("override", "my rule", {"conditions": [IS_TEXT]}),
        ("underride", "ohne Bedingung ☕", {"conditions": []}),
        ("content", "cake", {"pattern": "cake*lie"}),
        ("room", ROOM, {}),
        ("room", "!XpKZqR6dQ0m_9hV2b1JtR0wPX8p5x6m7nqYc3aTfLEs", {}),
        ("sender", BOB, {}),
    ],
)
async def test_a_rule_of_each_kind_can_be_created(
    homeserver: Server, kind: str, rule_id: str, content: dict[str, Any]
) -> None:
    alice = await homeserver.register("alice")
    path = path_of(kind, rule_id)
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    actions = ["notify", {"set_tweak": "sound", "value": "cakealarm.wav"}]
    await put(alice, kind, rule_id, actions=actions, **content)
    rule = {"rule_id": rule_id, "default": False, "enabled": True, "actions": actions, **content}
    assert await alice.ok("GET", path) == rule
    assert rule in (await alice.ok("GET", "pushrules/global/"))[kind]
    assert await alice.ok("GET", f"{path}/enabled") == {"enabled": True}
    assert await alice.ok("GET", f"{path}/actions") == {"actions": actions}
    assert await alice.ok("DELETE", path) == {}
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    assert await alice.refused("DELETE", path) == (404, "M_NOT_FOUND")


async def test_rules_are_scoped_to_their_user_and_kind(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await put(alice, "content", "tea", pattern="tea")
    await put(alice, "override", "tea", actions=[])
    assert (await alice.ok("GET", path_of("content", "tea")))["actions"] == ["notify"]
    assert await bob.refused("GET", path_of("content", "tea")) == (404, "M_NOT_FOUND")
    assert await homeserver.anonymous.refused("GET", "pushrules/") == (401, "M_MISSING_TOKEN")


async def test_a_rule_may_have_no_conditions(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await put(alice, "override", "all")
    assert (await alice.ok("GET", path_of("override", "all")))["conditions"] == []


async def test_new_rules_come_first_after_the_master_rule(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for rule_id in "abc":
        await put(alice, "override", rule_id)
        await put(alice, "underride", rule_id)
        await put(alice, "content", rule_id)
    assert await ids(alice, "override") == [DEFAULT_OVERRIDES[0], "c", "b", "a", *DEFAULT_OVERRIDES[1:]]
    assert await ids(alice, "underride") == ["c", "b", "a", *DEFAULT_UNDERRIDES]
    assert await ids(alice, "content") == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("rule_id", "where", "order"),
    [
        ("new", {"before": "a"}, "d c b new a"),
        ("new", {"before": "d"}, "new d c b a"),
        ("new", {"after": "a"}, "d c b a new"),
        ("new", {"after": "c"}, "d c new b a"),
        ("new", {"before": "b", "after": "d"}, "d c new b a"),
        ("b", {"before": "d"}, "b d c a"),
        ("d", {"after": "b"}, "c b d a"),
        ("c", {"before": "b"}, "d c b a"),
        ("b", {"before": "b"}, "d c b a"),
        ("b", {"after": "b"}, "d c b a"),
        ("b", {}, "d c b a"),
    ],
)
async def test_rules_can_be_placed_before_or_after_others(
    homeserver: Server, rule_id: str, where: dict[str, str], order: str
) -> None:
    """Spec: PUT /pushrules/global/{kind}/{ruleId}, before and after"""
    alice = await homeserver.register("alice")
    for each in "abcd":
        await put(alice, "content", each)
        await put(alice, "underride", each)
    await put(alice, "content", rule_id, where)
    assert await ids(alice, "content") == order.split()
    assert await ids(alice, "underride") == ["d", "c", "b", "a", *DEFAULT_UNDERRIDES]


async def test_the_order_holds_however_often_rules_move(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for each in "abc":
        await put(alice, "content", each)
    for _ in range(10):
        await put(alice, "content", "c", {"after": "b"})
        await put(alice, "content", "b", {"after": "c"})
        await put(alice, "content", "a", {"before": "c"})
    assert await ids(alice, "content") == ["a", "c", "b"]


@pytest.mark.parametrize("neighbour", ["none", ".m.rule.suppress_notices", ".m.rule.master", "", "inroom"])
async def test_a_rule_can_only_be_placed_next_to_the_users_own_rules(homeserver: Server, neighbour: str) -> None:
    alice = await homeserver.register("alice")
    await put(alice, "content", "inroom")
    await alice.ok("PUT", path_of("override", ".m.rule.suppress_notices", "enabled"), json={"enabled": False})
    for where in ({"before": neighbour}, {"after": neighbour}):
        answer = await alice.refused("PUT", path_of("override", "x"), json={"actions": []}, params=where)
        assert answer == (400, "M_UNKNOWN")
    assert await ids(alice, "override") == DEFAULT_OVERRIDES


async def test_changing_a_rule_keeps_its_place_and_whether_it_is_enabled(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await put(alice, "content", "a")
    await put(alice, "content", "b")
    await alice.ok("PUT", path_of("content", "a", "enabled"), json={"enabled": False})
    await put(alice, "content", "a", pattern="coffee", actions=[])
    assert (await alice.ok("GET", "pushrules/global/"))["content"][1] == {
        "rule_id": "a", "default": False, "enabled": False, "pattern": "coffee", "actions": [],
    }  # fmt: skip
    await alice.ok("DELETE", path_of("content", "a"))
    await put(alice, "content", "a")
    # "When creating push rules, they MUST be enabled by default."
    assert await alice.ok("GET", path_of("content", "a", "enabled")) == {"enabled": True}
    assert await ids(alice, "content") == ["a", "b"]


async def test_default_rules_can_be_disabled_and_given_other_actions(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    before = await bob.ok("GET", "pushrules/global/")
    for kind, rule_ids in (("override", DEFAULT_OVERRIDES), ("underride", DEFAULT_UNDERRIDES)):
        for rule_id in rule_ids:
            was = await alice.ok("GET", path_of(kind, rule_id))
            await alice.ok("PUT", path_of(kind, rule_id, "enabled"), json={"enabled": not was["enabled"]})
            assert await alice.ok("GET", path_of(kind, rule_id)) == {**was, "enabled": not was["enabled"]}
            actions = ["notify", {"set_tweak": "highlight", "value": False}]
            await alice.ok("PUT", path_of(kind, rule_id, "actions"), json={"actions": actions})
            now = await alice.ok("GET", path_of(kind, rule_id))
            assert now == {**was, "enabled": not was["enabled"], "actions": actions}
    assert await ids(alice, "override") == DEFAULT_OVERRIDES
    assert await ids(alice, "underride") == DEFAULT_UNDERRIDES
    assert (await bob.ok("GET", "pushrules/global/"))["underride"] == before["underride"]


async def test_default_rules_cannot_be_deleted(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = path_of("underride", ".m.rule.message")
    assert await alice.refused("DELETE", path) == (404, "M_NOT_FOUND")
    await alice.ok("PUT", f"{path}/enabled", json={"enabled": False})
    assert await alice.refused("DELETE", path) == (404, "M_NOT_FOUND")
    assert await alice.ok("GET", f"{path}/enabled") == {"enabled": False}
    assert await alice.refused("PUT", path, json={"actions": []}) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    ("kind", "rule_id"), [("override", "none"), ("override", ".m.rule.message"), ("sender", BOB), ("room", ".m.x")]
)
async def test_unknown_rules_cannot_be_changed(homeserver: Server, kind: str, rule_id: str) -> None:
    alice = await homeserver.register("alice")
    for part, body in (("enabled", {"enabled": True}), ("actions", {"actions": ["notify"]})):
        path = path_of(kind, rule_id, part)
        assert await alice.refused("PUT", path, json=body) == (404, "M_NOT_FOUND")
        assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")


async def test_deprecated_actions_are_dropped(homeserver: Server) -> None:
    """Spec: client-server-api/#historical-actions"""
    alice = await homeserver.register("alice")
    await put(alice, "sender", BOB, actions=["dont_notify"])
    assert await alice.ok("GET", path_of("sender", BOB, "actions")) == {"actions": []}
    tweak = {"set_tweak": "highlight"}
    await alice.ok("PUT", path_of("sender", BOB, "actions"), json={"actions": ["coalesce", tweak, "notify"]})
    assert await alice.ok("GET", path_of("sender", BOB, "actions")) == {"actions": [tweak, "notify"]}


@pytest.mark.parametrize(
    "condition",
    [
        IS_TEXT,
        {"kind": "event_property_is", "key": r"content.m\.federate", "value": None},
        {"kind": "event_property_is", "key": "content.n", "value": -(2**53) + 1},
        {"kind": "event_property_contains", "key": "content.alt_aliases", "value": "#a:b"},
        {"kind": "contains_display_name"},
        {"kind": "room_member_count", "is": ">=10"},
        {"kind": "sender_notification_permission", "key": "room"},
        {"kind": "org.example.unknown", "moon": {"phase": "full"}},
    ],
)
async def test_unknown_conditions_are_kept_as_given(homeserver: Server, condition: dict[str, Any]) -> None:
    alice = await homeserver.register("alice")
    for kind in ("override", "underride"):
        await put(alice, kind, "x", conditions=[condition, condition])
        assert (await alice.ok("GET", path_of(kind, "x")))["conditions"] == [condition, condition]


async def test_malformed_conditions_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for condition, errcode in [
        ("event_match", "M_BAD_JSON"),
        ({}, "M_BAD_JSON"),
        ({"kind": 7}, "M_BAD_JSON"),
        ({"kind": "event_match", "key": "content.body"}, "M_MISSING_PARAM"),
        ({"kind": "event_match", "pattern": "x"}, "M_MISSING_PARAM"),
        ({"kind": "event_match", "key": "type", "pattern": None}, "M_BAD_JSON"),
        ({"kind": "event_property_is", "key": "type"}, "M_MISSING_PARAM"),
        ({"kind": "event_property_is", "key": "type", "value": []}, "M_BAD_JSON"),
        ({"kind": "event_property_is", "key": "type", "value": {"a": 1}}, "M_BAD_JSON"),
        ({"kind": "event_property_is", "key": "type", "value": 0.5}, "M_BAD_JSON"),
        ({"kind": "event_property_is", "key": "type", "value": 2**53}, "M_BAD_JSON"),
        ({"kind": "room_member_count"}, "M_MISSING_PARAM"),
        ({"kind": "room_member_count", "is": 2}, "M_BAD_JSON"),
        ({"kind": "room_member_count", "is": "=2"}, "M_INVALID_PARAM"),
        ({"kind": "room_member_count", "is": "two"}, "M_INVALID_PARAM"),
        ({"kind": "sender_notification_permission"}, "M_MISSING_PARAM"),
        ({"kind": "org.example.unknown", "key": 3}, "M_BAD_JSON"),
    ]:
        with row(condition, errcode):
            body = {"actions": [], "conditions": [IS_TEXT, condition]}
            assert await alice.refused("PUT", path_of("override", "x"), json=body) == (400, errcode)
            assert await ids(alice, "override") == DEFAULT_OVERRIDES


async def test_malformed_rules_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    before = await alice.ok("GET", "pushrules/")
    for kind, rule_id, body, errcode in [
        ("override", ".mine", {"actions": []}, "M_INVALID_PARAM"),
        ("override", "a/b", {"actions": []}, "M_INVALID_PARAM"),
        ("override", "a\\b", {"actions": []}, "M_INVALID_PARAM"),
        ("override", "ü" * 128, {"actions": []}, "M_INVALID_PARAM"),
        ("override", "a\0", {"actions": []}, "M_INVALID_PARAM"),
        ("room", "#alias:example.com", {"actions": []}, "M_INVALID_PARAM"),
        ("sender", "bob", {"actions": []}, "M_INVALID_PARAM"),
        ("content", "x", {"actions": []}, "M_MISSING_PARAM"),
        ("content", "x", {"actions": [], "pattern": ["tea"]}, "M_BAD_JSON"),
        ("override", "x", {}, "M_MISSING_PARAM"),
        ("override", "x", {"actions": "notify"}, "M_BAD_JSON"),
        ("override", "x", {"actions": [["notify"]]}, "M_BAD_JSON"),
        ("override", "x", {"actions": [None]}, "M_BAD_JSON"),
        ("override", "x", {"actions": [], "conditions": {}}, "M_BAD_JSON"),
        ("nonsense", "x", {"actions": []}, "M_INVALID_PARAM"),
    ]:
        with row(kind, rule_id, body, errcode):
            assert await alice.refused("PUT", path_of(kind, rule_id), json=body) == (400, errcode)
            assert await alice.ok("GET", "pushrules/") == before


async def test_unknown_scopes_are_not_found(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for path in ("pushrules/room/", "pushrules/device/", "pushrules/global/override/x/other"):
        assert await alice.refused("GET", path) == (404, "M_UNRECOGNIZED")


async def test_enabled_must_be_a_boolean(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = path_of("override", ".m.rule.master", "enabled")
    for enabled in [None, "true", 1, []]:
        with row(enabled):
            assert await alice.refused("PUT", path, json={"enabled": enabled}) == (400, "M_BAD_JSON")


async def test_rules_have_a_maximum_size(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    large = {"actions": ["x" * limits.users.PUSH_RULE_BYTES_MAX]}
    assert await alice.refused("PUT", path_of("sender", BOB), json=large) == (413, "M_TOO_LARGE")
    await put(alice, "sender", BOB)
    assert await alice.refused("PUT", path_of("sender", BOB, "actions"), json=large) == (413, "M_TOO_LARGE")
    assert await alice.ok("GET", path_of("sender", BOB, "actions")) == {"actions": ["notify"]}


async def test_the_number_of_rules_is_limited(homeserver: Server) -> None:
    alice = await homeserver.register("alice")

    def fill(tx: Transaction) -> None:
        for number in range(limits.users.PUSH_RULES_MAX):
            store_rule(tx, alice.user_id, "content", f"rule{number}", {"actions": [], "pattern": "tea"})

    await homeserver.write(fill)
    assert await alice.refused("PUT", path_of("override", "y"), json={"actions": []}) == (400, "M_INVALID_PARAM")
    await put(alice, "content", "rule7")
    await alice.ok("PUT", path_of("override", ".m.rule.master", "enabled"), json={"enabled": True})


async def test_sync_returns_all_rules_at_first_and_after_each_change(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rules, since = await told(alice)
    assert rules == [await alice.ok("GET", "pushrules/")]
    changes: list[tuple[str, str, Any]] = [
        ("PUT", path_of("sender", BOB), {"actions": []}),
        ("PUT", path_of("sender", BOB, "enabled"), {"enabled": False}),
        ("PUT", path_of("override", ".m.rule.master", "enabled"), {"enabled": True}),
        ("PUT", path_of("underride", ".m.rule.message", "actions"), {"actions": []}),
        ("DELETE", path_of("sender", BOB), None),
    ]
    for method, path, body in changes:
        await put(bob, "content", "tea")  # another's
        rules, since = await told(alice, since)
        assert rules == []
        await alice.ok(method, path, json=body)
        rules, since = await told(alice, since)
        assert rules == [await alice.ok("GET", "pushrules/")]
    assert (await told(alice))[0] == rules


async def test_a_filter_may_exclude_the_rules(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    filters = '{"account_data":{"not_types":["m.push_rules"]}}'
    answer = await alice.ok("GET", "sync", params={"filter": filters})
    assert "account_data" not in answer


async def test_clients_cannot_write_the_rules_as_account_data(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await put(alice, "content", "tea")
    path = f"user/{alice.user_id}/account_data/m.push_rules"
    assert await alice.ok("GET", path) == await alice.ok("GET", "pushrules/")
    assert await alice.refused("PUT", path, json={"global": {}}) == (405, "M_BAD_JSON")
    assert await alice.refused("GET", f"user/{alice.user_id}/rooms/{ROOM}/account_data/m.push_rules") == (
        404, "M_NOT_FOUND",
    )  # fmt: skip


async def test_erasing_an_account_deletes_its_rules(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await put(alice, "content", "secret", pattern="secret")
    await alice.ok("PUT", path_of("override", ".m.rule.master", "enabled"), json={"enabled": True})
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth(), "erase": True})
    for table in ("push_rules", "push_rule_changes"):
        assert await homeserver.read(lambda tx, table=table: tx.all(f"SELECT * FROM {table}")) == []
