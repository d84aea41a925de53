"""The conditions of push rules: each is compiled to a function of a `Subject`. Spec: client-server-api/#conditions-1

A condition of an unknown kind, or with a missing or malformed field, matches no event.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.users.push.globs import Glob, Steps, contains_words

_INTEGER_MAX = 2**53 - 1
_COUNT_DIGITS_MAX = 18  # no room has more members; int() would refuse thousands of digits
_ABSENT = object()
_IS = re.compile(r"(==|<=|>=|<|>)?([0-9]+)", re.ASCII)
_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}

Path = tuple[str, ...]


class Facts(Protocol):
    """What conditions may ask about an event. The event is in the format for clients, without `unsigned`."""

    @property
    def event(self) -> JsonObject: ...

    @property
    def member_count(self) -> int: ...

    def display_name_of(self, user_id: UserID) -> str | None:
        """Returns the user's display name in the room."""
        ...

    def is_in_followed_thread(self, user_id: UserID) -> bool | None:
        """Returns whether the user is subscribed to the event's thread, None if it is in no thread. Spec: MSC4306"""
        ...

    def may_notify(self, key: str) -> bool:
        """Returns whether the sender has the power level for notifications of this kind."""
        ...


class Subject(msgspec.Struct):
    """One event as one user's rules judge it."""

    facts: Facts
    user_id: UserID
    steps: Steps = msgspec.field(default_factory=Steps)


Condition = Callable[[Subject], bool]


def compile_condition(condition: JsonObject) -> Condition:
    """Returns the condition as a function. It never raises, whatever the condition and the event are."""
    kind = condition.get("kind")
    compile_ = _KINDS.get(kind) if isinstance(kind, str) else None
    compiled = None if compile_ is None else compile_(condition)
    return _never if compiled is None else compiled


def split_path(key: str) -> Path:
    r"""Returns the parts of a dot-separated path, where \. is a dot and \\ a backslash.

    Spec: appendices/#dot-separated-property-paths
    """
    parts, part = [], ""
    characters = iter(key)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            part += following if following in (".", "\\") else "\\" + following
        elif character == ".":
            parts.append(part)
            part = ""
        else:
            part += character
    return (*parts, part)


def _never(subject: Subject) -> bool:
    return False


def _property(event: JsonObject, path: Path) -> object:
    value: object = event
    for part in path:
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _is_same(value: object, expected: object) -> bool:
    """Returns whether two values are equal and of the same type: true is not 1."""
    return type(value) is type(expected) and value == expected


def _is_simple(value: object) -> bool:
    """Returns whether a condition may ask for this value: a string, an integer of canonical JSON, a boolean or null."""
    if type(value) is int:
        return -_INTEGER_MAX <= value <= _INTEGER_MAX
    return value is None or isinstance(value, str | bool)


def event_match(key: str, pattern: str) -> Condition:
    """Returns a condition that matches a property with a pattern."""
    path = split_path(key)
    glob = Glob(pattern, words=path == ("content", "body"))

    def is_met(subject: Subject) -> bool:
        value = _property(subject.facts.event, path)
        return isinstance(value, str) and glob.matches(value, subject.steps)

    return is_met


def _event_match(condition: JsonObject) -> Condition | None:
    key, pattern = condition.get("key"), condition.get("pattern")
    return event_match(key, pattern) if isinstance(key, str) and isinstance(pattern, str) else None


def _event_property_is(condition: JsonObject) -> Condition | None:
    key, expected = condition.get("key"), condition.get("value", _ABSENT)
    if not isinstance(key, str) or not _is_simple(expected):
        return None
    path = split_path(key)
    return lambda subject: _is_same(_property(subject.facts.event, path), expected)


def _event_property_contains(condition: JsonObject) -> Condition | None:
    key, expected = condition.get("key"), condition.get("value", _ABSENT)
    if not isinstance(key, str) or not _is_simple(expected):
        return None
    path = split_path(key)

    def is_met(subject: Subject) -> bool:
        values = _property(subject.facts.event, path)
        return isinstance(values, list) and any(_is_same(value, expected) for value in values)

    return is_met


def _contains_display_name(condition: JsonObject) -> Condition | None:
    def is_met(subject: Subject) -> bool:
        body = _property(subject.facts.event, ("content", "body"))
        if not isinstance(body, str):
            return False
        name = subject.facts.display_name_of(subject.user_id)
        return name is not None and contains_words(body, name, subject.steps)

    return is_met


def _room_member_count(condition: JsonObject) -> Condition | None:
    is_ = condition.get("is")
    match = _IS.fullmatch(is_) if isinstance(is_, str) else None
    if match is None:
        return None
    compare = _COMPARE[match[1] or "=="]
    digits = match[2].lstrip("0") or "0"
    number = int(digits) if len(digits) <= _COUNT_DIGITS_MAX else 10**_COUNT_DIGITS_MAX
    return lambda subject: compare(subject.facts.member_count, number)


def _sender_notification_permission(condition: JsonObject) -> Condition | None:
    key = condition.get("key")
    return (lambda subject: subject.facts.may_notify(key)) if isinstance(key, str) else None


def _thread_subscription(condition: JsonObject) -> Condition | None:
    wanted = condition.get("subscribed")
    if not isinstance(wanted, bool):
        return None
    return lambda subject: subject.facts.is_in_followed_thread(subject.user_id) is wanted


_KINDS: Mapping[str, Callable[[JsonObject], Condition | None]] = {
    "event_match": _event_match,
    "event_property_is": _event_property_is,
    "event_property_contains": _event_property_contains,
    "contains_display_name": _contains_display_name,
    "room_member_count": _room_member_count,
    "sender_notification_permission": _sender_notification_permission,
    "io.element.msc4306.thread_subscription": _thread_subscription,
}
