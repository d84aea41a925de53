"""Push rules: which events notify a user, and how. A user's rules are the server's defaults plus their own changes.

A ruleset has a list of rules for each kind, most important first. Spec: client-server-api/#push-rules
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, get_args

import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID

Kind = Literal["override", "content", "postcontent", "room", "sender", "underride"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order in which they are checked

# content: what the user has set in a rule: "enabled", "actions", "conditions" or "pattern"; for a server-default rule
# only the differences. priority: the lowest is the most important; NULL for server-default rules, whose place is fixed.
# push_rule_changes: the stream position of the last change of the user's rules.
SCHEMA = Schema(
    "push_rules",
    (
        Step(
            "create",
            """
            CREATE TABLE push_rules (
                user_nid INTEGER NOT NULL,
                kind TEXT NOT NULL,
                rule_id TEXT NOT NULL,
                priority INTEGER,
                content BLOB NOT NULL,
                PRIMARY KEY (user_nid, kind, rule_id)
            ) WITHOUT ROWID;
            CREATE TABLE push_rule_changes (user_nid INTEGER PRIMARY KEY, position INTEGER NOT NULL);
            """,
        ),
        Step(
            "002_changes_by_position",
            "CREATE INDEX push_rule_changes_by_position ON push_rule_changes (position);",
        ),
    ),
)


# --- the server-default rules ---

UNSUBSCRIBED_THREAD = ".io.element.msc4306.rule.unsubscribed_thread"
SUBSCRIBED_THREAD = ".io.element.msc4306.rule.subscribed_thread"

_SOUND = {"set_tweak": "sound", "value": "default"}
_RING = {"set_tweak": "sound", "value": "ring"}
_HIGHLIGHT = {"set_tweak": "highlight"}
_TWO_MEMBERS = {"kind": "room_member_count", "is": "2"}


def _matches(key: str, pattern: str) -> JsonObject:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _rule(rule_id: str, conditions: list[JsonObject], actions: list[Any], *, enabled: bool = True) -> JsonObject:
    return {"rule_id": rule_id, "default": True, "enabled": enabled, "conditions": conditions, "actions": actions}


def default_rules(user_id: UserID) -> dict[Kind, list[JsonObject]]:
    """Returns the server-default rules of a user. Spec: client-server-api/#predefined-rules; for polls MSC3930"""
    mentions_user = {
        "kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": user_id,
    }  # fmt: skip
    mentions_room = {"kind": "event_property_is", "key": r"content.m\.mentions.room", "value": True}
    may_notify_room = {"kind": "sender_notification_permission", "key": "room"}
    is_edit = {"kind": "event_property_is", "key": r"content.m\.relates_to.rel_type", "value": "m.replace"}
    invites_user = [
        _matches("type", "m.room.member"), _matches("content.membership", "invite"), _matches("state_key", user_id),
    ]  # fmt: skip

    def is_of_type(event_type: str) -> list[JsonObject]:
        return [{"kind": "event_property_is", "key": "type", "value": event_type}]

    def is_state(event_type: str) -> list[JsonObject]:
        return [_matches("type", event_type), _matches("state_key", "")]

    return {
        "override": [
            _rule(".m.rule.master", [], [], enabled=False),
            _rule(".m.rule.suppress_notices", [_matches("content.msgtype", "m.notice")], []),
            _rule(".m.rule.invite_for_me", invites_user, ["notify", _SOUND]),
            _rule(".m.rule.member_event", [_matches("type", "m.room.member")], []),
            _rule(".m.rule.is_user_mention", [mentions_user], ["notify", _SOUND, _HIGHLIGHT]),
            _rule(".m.rule.is_room_mention", [mentions_room, may_notify_room], ["notify", _HIGHLIGHT]),
            _rule(".m.rule.tombstone", is_state("m.room.tombstone"), ["notify", _HIGHLIGHT]),
            _rule(".m.rule.reaction", [_matches("type", "m.reaction")], []),
            _rule(".m.rule.room.server_acl", is_state("m.room.server_acl"), []),
            _rule(".m.rule.poll_response", is_of_type("m.poll.response"), []),
            _rule(".m.rule.suppress_edits", [is_edit], []),
        ],
        "content": [],
        # MSC4306. Off until the user's first subscription, see `users/thread_subscriptions.py`.
        "postcontent": [
            _rule(
                rule_id,
                [{"kind": "io.element.msc4306.thread_subscription", "subscribed": wanted}],
                actions,
                enabled=False,
            )
            for rule_id, wanted, actions in (
                (UNSUBSCRIBED_THREAD, False, []),
                (SUBSCRIBED_THREAD, True, ["notify", _SOUND]),
            )
        ],
        "room": [],
        "sender": [],
        "underride": [
            _rule(".m.rule.call", [_matches("type", "m.call.invite")], ["notify", _RING]),
            _rule(
                ".m.rule.encrypted_room_one_to_one",
                [_TWO_MEMBERS, _matches("type", "m.room.encrypted")],
                ["notify", _SOUND],
            ),
            _rule(".m.rule.room_one_to_one", [_TWO_MEMBERS, _matches("type", "m.room.message")], ["notify", _SOUND]),
            _rule(".m.rule.message", [_matches("type", "m.room.message")], ["notify"]),
            _rule(".m.rule.encrypted", [_matches("type", "m.room.encrypted")], ["notify"]),
            _rule(".m.rule.poll_start_one_to_one", [_TWO_MEMBERS, *is_of_type("m.poll.start")], ["notify", _SOUND]),
            _rule(".m.rule.poll_start", is_of_type("m.poll.start"), ["notify"]),
            _rule(".m.rule.poll_end_one_to_one", [_TWO_MEMBERS, *is_of_type("m.poll.end")], ["notify", _SOUND]),
            _rule(".m.rule.poll_end", is_of_type("m.poll.end"), ["notify"]),
        ],
    }


# --- storage ---


def get_ruleset(tx: Transaction, user_id: UserID) -> dict[Kind, list[JsonObject]]:
    """Returns all rules of the user by kind, most important first."""
    own: dict[Kind, list[JsonObject]] = {kind: [] for kind in KINDS}
    changes: dict[tuple[Kind, str], JsonObject] = {}
    for kind, rule_id, priority, encoded in tx.all(
        "SELECT kind, rule_id, priority, content FROM push_rules WHERE user_nid = ? ORDER BY priority",
        tx.find(user_id),
    ):
        content = orjson.loads(encoded)
        if priority is None:
            changes[kind, rule_id] = content
        else:
            own[kind].append({"rule_id": rule_id, "default": False, **content})
    ruleset = {}
    for kind, rules in default_rules(user_id).items():
        defaults = [{**rule, **changes.get((kind, rule["rule_id"]), {})} for rule in rules]
        above = 1 if kind == "override" else 0  # .m.rule.master has "always a higher priority than any other rule"
        ruleset[kind] = defaults[:above] + own[kind] + defaults[above:]
    return ruleset


def get_rule(tx: Transaction, user_id: UserID, kind: Kind, rule_id: str) -> JsonObject:
    """Returns one rule of the user. Raises M_NOT_FOUND."""
    for rule in get_ruleset(tx, user_id)[kind]:
        if rule["rule_id"] == rule_id:
            return rule
    raise unknown_rule()


def store_rule(
    tx: Transaction,
    user_id: UserID,
    kind: Kind,
    rule_id: str,
    content: JsonObject,
    before: str | None = None,
    after: str | None = None,
) -> None:
    """Adds a rule of the user's own, or changes its content and, if requested, its place.

    before, after: another rule of the user's own to place it next to; `before` takes precedence. Without them a new
    rule becomes the most important one.
    Raises M_UNKNOWN if there is no such rule, M_INVALID_PARAM if there are too many rules.
    """
    user_nid = tx.intern(user_id)
    known = tx.one(
        "SELECT priority, content FROM push_rules WHERE user_nid = ? AND kind = ? AND rule_id = ?",
        user_nid, kind, rule_id,
    )  # fmt: skip
    if known is None:
        (count,) = tx.one("SELECT COUNT(*) FROM push_rules WHERE user_nid = ?", user_nid) or (0,)
        if count >= limits.users.PUSH_RULES_MAX:
            raise invalid_param(f"A user may have at most {limits.users.PUSH_RULES_MAX} push rules.")
    priority = known[0] if known else _get_top_priority(tx, user_nid, kind)
    if before is not None:
        priority = _make_place(tx, user_nid, kind, before, -1)
    elif after is not None:
        priority = _make_place(tx, user_nid, kind, after, +1)
    enabled = orjson.loads(known[1])["enabled"] if known else True
    _store(tx, user_id, kind, rule_id, priority, {"enabled": enabled, **content})


def set_rule_fields(tx: Transaction, user_id: UserID, kind: Kind, rule_id: str, changes: JsonObject) -> None:
    """Changes a part of a rule, either one of the user's own or a server-default one. Raises M_NOT_FOUND."""
    row = tx.one(
        "SELECT priority, content FROM push_rules WHERE user_nid = ? AND kind = ? AND rule_id = ?",
        tx.find(user_id), kind, rule_id,
    )  # fmt: skip
    if row is None and all(rule["rule_id"] != rule_id for rule in default_rules(user_id)[kind]):
        raise unknown_rule()
    priority, content = (row[0], orjson.loads(row[1])) if row else (None, {})
    _store(tx, user_id, kind, rule_id, priority, {**content, **changes})


def store_thread_rules(tx: Transaction, user_id: UserID) -> None:
    """Turns on the rules about threads, unless the user has ever turned them on or off."""
    for rule_id in (UNSUBSCRIBED_THREAD, SUBSCRIBED_THREAD):
        row = tx.one(
            "SELECT content FROM push_rules WHERE user_nid = ? AND kind = 'postcontent' AND rule_id = ?",
            tx.find(user_id), rule_id,
        )  # fmt: skip
        if row is None or "enabled" not in orjson.loads(row[0]):
            set_rule_fields(tx, user_id, "postcontent", rule_id, {"enabled": True})


def store_rules_of_successor(tx: Transaction, user_id: UserID, old_id: RoomID, new_id: RoomID) -> None:
    """Gives a room the rules that are about another one: the room's own rule, and rules of its name for its events.

    Clients mute a room by such a rule of the kind `override`. Existing rules of the new room are kept. Raises
    M_INVALID_PARAM if the user would have too many rules.
    """
    rows = tx.all(
        "SELECT kind, content FROM push_rules WHERE user_nid = ? AND rule_id = ? AND priority IS NOT NULL"
        " AND kind NOT IN (SELECT kind FROM push_rules WHERE user_nid = ? AND rule_id = ?)",
        tx.find(user_id), old_id, tx.find(user_id), new_id,
    )  # fmt: skip
    for kind, encoded in rows:
        content = orjson.loads(encoded)
        if conditions := content.get("conditions"):
            content["conditions"] = [_about(condition, old_id, new_id) for condition in conditions]
        store_rule(tx, user_id, kind, new_id, content)


def _about(condition: JsonObject, old_id: RoomID, new_id: RoomID) -> JsonObject:
    """Returns the condition for another room, if it is about this one."""
    if condition.get("key") == "room_id" and condition.get("pattern", condition.get("value")) == old_id:
        return {name: new_id if value == old_id else value for name, value in condition.items()}
    return condition


def delete_rule(tx: Transaction, user_id: UserID, kind: Kind, rule_id: str) -> None:
    """Deletes a rule of the user's own. Raises M_NOT_FOUND, also for server-default rules, which cannot be deleted."""
    deleted = tx.run(
        "DELETE FROM push_rules WHERE user_nid = ? AND kind = ? AND rule_id = ? AND priority IS NOT NULL",
        tx.find(user_id), kind, rule_id,
    )  # fmt: skip
    if not deleted:
        raise unknown_rule()
    _note_change(tx, user_id)


def find_rules_position(tx: Transaction, user_id: UserID) -> int:
    """Returns the position of the last change of the user's rules, 0 if they are the server's defaults."""
    row = tx.one("SELECT position FROM push_rule_changes WHERE user_nid = ?", tx.find(user_id))
    return 0 if row is None else int(row[0])


def find_last_change(tx: Transaction) -> int:
    """Returns the position of the last change of anybody's rules, 0 if there was none."""
    row = tx.one("SELECT MAX(position) FROM push_rule_changes")
    return 0 if row is None or row[0] is None else int(row[0])


def list_with_changes(tx: Transaction, user_ids: Collection[UserID]) -> list[UserID]:
    """Returns those of these users who have ever changed their rules."""
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in("SELECT user_nid FROM push_rule_changes WHERE user_nid IN (?*)", by_nid)
    return [by_nid[nid] for (nid,) in rows]


def has_changed(tx: Transaction, user_id: UserID, since: int, upto: int) -> bool:
    """Returns whether the last change of the user's rules is in since < position ≤ upto."""
    row = tx.one("SELECT position FROM push_rule_changes WHERE user_nid = ?", tx.find(user_id))
    return row is not None and since < row[0] <= upto


def forget_push_rules(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the user's own rules and changes."""
    tx.run("DELETE FROM push_rules WHERE user_nid = ?", tx.find(user_id))
    tx.run("DELETE FROM push_rule_changes WHERE user_nid = ?", tx.find(user_id))
    return False


def _get_top_priority(tx: Transaction, user_nid: int, kind: Kind) -> int:
    (least,) = tx.one("SELECT MIN(priority) FROM push_rules WHERE user_nid = ? AND kind = ?", user_nid, kind) or (None,)
    return (least or 0) - 1


def _make_place(tx: Transaction, user_nid: int, kind: Kind, neighbour: str, step: Literal[-1, 1]) -> int:
    """Returns a free priority just above (-1) or below (+1) that of `neighbour`, moving others if necessary."""
    taken = _get_priority(tx, user_nid, kind, neighbour)
    _set_priorities_beyond(tx, user_nid, kind, taken, step)
    return taken + step


def _get_priority(tx: Transaction, user_nid: int, kind: Kind, rule_id: str) -> int:
    row = tx.one(
        "SELECT priority FROM push_rules WHERE user_nid = ? AND kind = ? AND rule_id = ? AND priority IS NOT NULL",
        user_nid, kind, rule_id,
    )  # fmt: skip
    if row is None:
        raise MatrixError(400, "M_UNKNOWN", f"You have no rule {rule_id!r} of this kind to place the rule next to.")
    return int(row[0])


def _set_priorities_beyond(tx: Transaction, user_nid: int, kind: Kind, priority: int, step: Literal[-1, 1]) -> None:
    """Moves the rules above (-1) or below (+1) a priority by one, away from it."""
    tx.run(
        "UPDATE push_rules SET priority = priority + ? WHERE user_nid = ? AND kind = ? AND (priority - ?) * ? > 0",
        step, user_nid, kind, priority, step,
    )  # fmt: skip


def _store(
    tx: Transaction, user_id: UserID, kind: Kind, rule_id: str, priority: int | None, content: JsonObject
) -> None:
    encoded = to_json(content)
    if len(encoded) > limits.users.PUSH_RULE_BYTES_MAX:
        raise MatrixError(413, "M_TOO_LARGE", f"A push rule is limited to {limits.users.PUSH_RULE_BYTES_MAX} bytes.")
    tx.run(
        "INSERT INTO push_rules (user_nid, kind, rule_id, priority, content) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid, kind, rule_id) DO UPDATE SET priority = excluded.priority, content = excluded.content",
        tx.intern(user_id), kind, rule_id, priority, encoded,
    )  # fmt: skip
    _note_change(tx, user_id)


def _note_change(tx: Transaction, user_id: UserID) -> None:
    tx.run(
        "INSERT INTO push_rule_changes (user_nid, position) VALUES (?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET position = excluded.position",
        tx.intern(user_id), tx.next_position(user_id),
    )  # fmt: skip


def unknown_rule() -> MatrixError:
    """Returns 404 M_NOT_FOUND."""
    return not_found("There is no such push rule.")
