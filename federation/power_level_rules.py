"""The authorisation rules about m.room.power_levels. Spec: rooms/v12/#authorisation-rules (10) and earlier versions'

Each check stands under the sentence of the spec that it implements, with the room versions that it holds for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from homeserver.federation.auth_events import POWER_LEVELS_KEY
from homeserver.federation.auth_state import AuthState, Rejection
from homeserver.federation.event import Event
from homeserver.federation.power_levels import LEVEL_DEFAULTS, is_user_id, parse_level, room_creators
from homeserver.federation.room_versions import RoomVersion


class _Change(msgspec.Struct, frozen=True):
    """A level that a new m.room.power_levels event changes. None stands for a level that is absent before or after."""

    key: str
    current: int | None
    new: int | None

    def exceeds(self, level: int) -> bool:
        return (self.current is not None and self.current > level) or (self.new is not None and self.new > level)


def check_power_levels(event: Event, auth: AuthState, sender_level: int) -> Rejection | None:
    """Returns None if the rules allow the m.room.power_levels event, whose sender has `sender_level`."""
    rejection = _check_shape(event.content, auth)
    if rejection is not None:
        return rejection
    # If there is no previous m.room.power_levels event in the room, allow.
    previous = auth.state.get(POWER_LEVELS_KEY)
    if previous is None:
        return None
    return _check_changes(event, previous.content, sender_level)


def _check_shape(content: Mapping[str, Any], auth: AuthState) -> Rejection | None:
    version = auth.version
    if version.integer_power_levels:
        # v10-: If any of the properties users_default, events_default, state_default, ban, redact, kick, or invite in
        # content are present and not an integer, reject.
        for name in LEVEL_DEFAULTS:
            if name in content and parse_level(content[name], version) is None:
                return Rejection(f"{name} must be an integer.")
        # v10-: If either of the properties events or notifications in content are present and not an object with values
        # that are integers, reject.
        for name in ("events", "notifications"):
            if name in content and not _are_levels(content[name], version):
                return Rejection(f"{name} must be an object of integers.")
    if "users" not in content:
        return None
    # If the users property in content is not an object with keys that are valid user IDs with values that are integers
    # (v1-v9: or a string that is an integer), reject.
    users = content["users"]
    if not _are_levels(users, version) or not all(is_user_id(user_id) for user_id in users):
        return Rejection("users must be an object with user IDs as keys and integers as values.")
    # v12-: If the users property in content contains the sender of the m.room.create event or any of the
    # additional_creators array (if present) from the content of the m.room.create event, reject.
    if version.creators_privileged and not room_creators(auth.create).isdisjoint(users):
        return Rejection("users must not contain a creator of the room.")
    return None


def _are_levels(value: object, version: RoomVersion) -> bool:
    return isinstance(value, dict) and all(parse_level(level, version) is not None for level in value.values())


def _check_changes(event: Event, previous: Mapping[str, Any], sender_level: int) -> Rejection | None:
    content, version = event.content, event.version
    # v6-: or notifications
    entries = ("events", "notifications") if version.notifications_power_levels_checked else ("events",)
    # v1-v9 do not define the meaning of a level that is not an integer. A change must not add one.
    for name in (*LEVEL_DEFAULTS, *entries):
        if not _is_readable(name, content, version) and content[name] != previous.get(name):
            return Rejection(f"{name} contains a value that is not a power level.")
    # For the properties users_default, events_default, state_default, ban, redact, kick, invite check if they were
    # added, changed or removed. For each found alteration:
    for change in _changes(LEVEL_DEFAULTS, previous, content, version):
        # If the current value is higher than the sender's current power level, reject.
        # If the new value is higher than the sender's current power level, reject.
        if change.exceeds(sender_level):
            return Rejection(f"The sender lacks the power level to change {change.key}.")
    # For each entry being changed in, or removed from, the events (v6-: or notifications) properties: If the current
    # value is greater than the sender's current power level, reject.
    # For each entry being added to, or changed in, the events (v6-: or notifications) properties: If the new value is
    # greater than the sender's current power level, reject.
    for name in entries:
        for change in _entry_changes(name, previous, content, version):
            if change.exceeds(sender_level):
                return Rejection(f"The sender lacks the power level to change {name}.")
    for change in _entry_changes("users", previous, content, version):
        # For each entry being changed in, or removed from, the users property, other than the sender's own entry: If
        # the current value is greater than or equal to the sender's current power level, reject.
        if change.key != event.sender and change.current is not None and change.current >= sender_level:
            return Rejection(f"The sender lacks the power level to change that of {change.key}.")
        # For each entry being added to, or changed in, the users property: If the new value is greater than the
        # sender's current power level, reject.
        if change.new is not None and change.new > sender_level:
            return Rejection(f"The sender lacks the power level to raise {change.key} that high.")
    # Otherwise, allow.
    return None


def _is_readable(name: str, content: Mapping[str, Any], version: RoomVersion) -> bool:
    if name not in content:
        return True
    if name in LEVEL_DEFAULTS:
        return parse_level(content[name], version) is not None
    return _are_levels(content[name], version)


def _changes(
    keys: Iterable[str], previous: Mapping[str, Any], content: Mapping[str, Any], version: RoomVersion
) -> Iterator[_Change]:
    for key in keys:
        current, new = parse_level(previous.get(key), version), parse_level(content.get(key), version)
        if current != new:
            yield _Change(key, current, new)


def _entry_changes(
    name: str, previous: Mapping[str, Any], content: Mapping[str, Any], version: RoomVersion
) -> Iterator[_Change]:
    current, new = previous.get(name), content.get(name)
    current = current if isinstance(current, dict) else {}
    new = new if isinstance(new, dict) else {}
    return _changes(dict.fromkeys([*current, *new]), current, new, version)
