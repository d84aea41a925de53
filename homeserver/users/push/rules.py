"""Compiled rulesets: what a user's rules say about an event. Spec: client-server-api/#push-rules"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.users.push.conditions import Condition, Subject, compile_condition, event_match
from homeserver.users.push_rules import KINDS, Kind, default_rules, find_rules_position, get_ruleset

RULESETS_CACHED_MAX = 2_000
"""Users with rules of their own, and users who were mentioned: some 5 KiB each, 100 KiB with many keywords."""

SILENT, NOTIFY, HIGHLIGHT = 0, 1, 2
"""Whether an event notifies a user, and whether it also counts as a highlight."""


class Outcome(NamedTuple):
    """What the rules say about an event: SILENT, NOTIFY or HIGHLIGHT, and the actions of the rule that matched."""

    level: int
    actions: Sequence[Any]


NOTHING = Outcome(SILENT, ())


class Rule(msgspec.Struct, frozen=True):
    """An enabled rule. It matches if all conditions do."""

    conditions: Sequence[Condition]
    outcome: Outcome

    def matches(self, subject: Subject) -> bool:
        """Returns whether the rule decides about the event."""
        return all(is_met(subject) for is_met in self.conditions)


class Rules(msgspec.Struct, frozen=True):
    """A user's enabled rules, most important first.

    affected: the rooms in which they may say something else than the server's defaults, in lower case; None for all
    rooms. A user who has muted one room is like everybody else in all others.
    """

    rules: Sequence[Rule]
    affected: frozenset[str] | None

    def evaluate(self, subject: Subject) -> Outcome:
        """Returns what the rules say about the event. The caller leaves out the user's own events."""
        for rule in self.rules:
            if rule.matches(subject):
                return rule.outcome
        return NOTHING

    def affect(self, room_id: str) -> bool:
        """Returns whether the user is to be asked in this room, and not only the server's defaults."""
        return self.affected is None or room_id.lower() in self.affected


def rules_of(tx: Transaction, user_id: UserID) -> Rules:
    """Returns the user's rules as they are now. They are compiled when they have changed."""
    cache = tx.cache("push_rules", RULESETS_CACHED_MAX)
    position = find_rules_position(tx, user_id)
    known: tuple[int, Rules] | None = cache.get(user_id)
    if known is not None and known[0] == position:
        return known[1]
    rules = compile_ruleset(user_id, get_ruleset(tx, user_id))
    if not tx.is_write:
        cache.put(user_id, (position, rules))
    return rules


def compile_ruleset(user_id: UserID, ruleset: Mapping[Kind, Sequence[JsonObject]]) -> Rules:
    """Returns the rules of a user, as `get_ruleset` returns them, in a form that can be applied."""
    defaults = {(kind, rule["rule_id"]): rule for kind, rules in default_rules(user_id).items() for rule in rules}
    compiled = []
    affected: set[str] | None = set()
    for kind in KINDS:
        for rule in ruleset[kind]:
            is_default = rule == defaults.get((kind, rule["rule_id"]))
            if not is_default and (rule["enabled"] or rule["default"]):
                room_id = None if rule["default"] else _room_of(kind, rule)
                affected = None if room_id is None or affected is None else affected | {room_id.lower()}
            if rule["enabled"]:
                compiled.append(Rule(_conditions_of(kind, rule), _outcome_of(rule["actions"])))
    return Rules(compiled, None if affected is None else frozenset(affected))


def _conditions_of(kind: Kind, rule: JsonObject) -> list[Condition]:
    if kind == "content":
        return [event_match("content.body", rule["pattern"])]
    if kind == "room":
        return [_has("room_id", rule["rule_id"])]
    if kind == "sender":
        return [_has("sender", rule["rule_id"])]
    return [compile_condition(condition) for condition in rule["conditions"]]


def _has(field: str, value: str) -> Condition:
    return lambda subject: bool(subject.facts.event[field] == value)


def _room_of(kind: Kind, rule: JsonObject) -> str | None:
    """Returns the only room in which a rule may match, None if there is no such limit."""
    if kind == "room":
        return str(rule["rule_id"])
    for condition in rule.get("conditions", ()):
        if condition.get("kind") == "event_match" and condition.get("key") == "room_id":
            pattern = condition.get("pattern")
            # This is how clients mute a room.
            if isinstance(pattern, str) and not {"*", "?"} & {*pattern}:
                return pattern
    return None


def _outcome_of(actions: Sequence[Any]) -> Outcome:
    if "notify" not in actions:
        return NOTHING
    tweaks = tweaks_of(actions)
    return Outcome(HIGHLIGHT if tweaks.get("highlight", False) is not False else NOTIFY, tuple(actions))


def tweaks_of(actions: Sequence[Any]) -> JsonObject:
    """Returns the tweaks that actions set. A highlight without a value is true. Spec: client-server-api/#actions"""
    tweaks: JsonObject = {}
    for action in actions:
        if isinstance(action, dict) and isinstance(name := action.get("set_tweak"), str):
            if "value" in action:
                tweaks[name] = action["value"]
            elif name == "highlight":
                tweaks[name] = True
    return tweaks
