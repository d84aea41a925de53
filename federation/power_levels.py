"""PowerLevels: who may do what in a room. Spec: client-server-api/#mroompower_levels, server-server-api/#definitions"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from homeserver.federation.event import Event
from homeserver.federation.identifiers import InvalidIdentifier, parse_user_id
from homeserver.federation.room_versions import RoomVersion

CREATOR_LEVEL = 2**63
"""The "infinitely high" power level of privileged room creators: above every integer of canonical JSON."""

LEVEL_DEFAULTS: Mapping[str, int] = {
    "users_default": 0,
    "events_default": 0,
    "state_default": 50,
    "ban": 50,
    "redact": 50,
    "kick": 50,
    "invite": 0,
}
"""The properties of m.room.power_levels that hold one level, with their defaults."""

_CREATOR_LEVEL_WITHOUT_EVENT = 100
_NOTIFICATION_LEVEL_DEFAULT = 50
_STRING_LEVEL = re.compile(r"[^\S\x1c-\x1f]*([+-]?)([0-9]+)[^\S\x1c-\x1f]*")
"""An integer with optional whitespace. Python's patterns count U+001C to U+001F as whitespace; other servers do not."""
_DOUBLE_DIGITS_MAX = 309
"""An integer with more digits is not a double. Python refuses to read one with more than 4300 digits."""


def parse_level(value: object, version: RoomVersion) -> int | None:
    """Returns the power level that a JSON value stands for in the room version, or None if it is not a level.

    Spec: rooms/v1/#mroompower_levels-events-accept-values-as-strings and …-as-floats
    """
    if type(value) is int:
        return value if _is_double(value) else None
    if type(value) is str and version.power_levels_as_strings:
        match = _STRING_LEVEL.fullmatch(value)
        digits = "" if match is None else match[2].lstrip("0")
        if match is None or len(digits) > _DOUBLE_DIGITS_MAX:
            return None
        level = int(f"{match[1]}0{digits}")
        return level if _is_double(level) else None
    if type(value) is float and version.power_levels_as_floats and math.isfinite(value):
        return math.trunc(value)
    return None


def _is_double(level: int) -> bool:
    try:
        float(level)
    except OverflowError:
        return False
    return True


def room_creator(create: Event) -> str | None:
    """Returns the user who is allowed to join first, or None if the content names none."""
    if create.version.create_content_has_creator:
        creator = create.content.get("creator")
        return creator if isinstance(creator, str) else None
    return create.sender


def room_creators(create: Event) -> frozenset[str]:
    """Returns the creator and, from room version 12 on, the `additional_creators`."""
    creator = room_creator(create)
    creators = set() if creator is None else {creator}
    if create.version.additional_creators:
        additional = create.content.get("additional_creators")
        if isinstance(additional, list):
            creators.update(user_id for user_id in additional if isinstance(user_id, str))
    return frozenset(creators)


def are_user_ids(value: object) -> bool:
    """Returns whether the value is an array of valid user IDs, as `additional_creators` must be."""
    return isinstance(value, list) and all(is_user_id(item) for item in value)


def is_user_id(value: object) -> bool:
    """Returns whether the value is a valid user ID, historical ones included."""
    try:
        parse_user_id(value)
    except InvalidIdentifier:
        return False
    return True


class PowerLevels(msgspec.Struct, frozen=True):
    """The power levels of a room at one moment. Cheap to create: a level is read when it is asked for.

    A value that is not a level counts as absent. Without an m.room.power_levels event (`content` None) the creators
    have level 100.
    """

    version: RoomVersion
    creators: frozenset[str]
    content: Mapping[str, Any] | None

    def user_level(self, user_id: str) -> int:
        """Returns the power level of a user, whether or not they are in the room."""
        if self.version.creators_privileged and user_id in self.creators:
            return CREATOR_LEVEL
        if self.content is None:
            return _CREATOR_LEVEL_WITHOUT_EVENT if user_id in self.creators else 0
        level = self._entry("users", user_id)
        return self._level("users_default") if level is None else level

    def event_level(self, event_type: str, is_state: bool) -> int:
        """Returns the *required power level* for sending events of a type."""
        level = self._entry("events", event_type)
        if level is not None:
            return level
        return self._level("state_default" if is_state else "events_default")

    def notification_level(self, key: str) -> int:
        """Returns the level required for a kind of notification, e.g. "room" for @room."""
        level = self._entry("notifications", key)
        return _NOTIFICATION_LEVEL_DEFAULT if level is None else level

    @property
    def ban_level(self) -> int:
        """The level required to ban, and together with `kick_level` to unban."""
        return self._level("ban")

    @property
    def kick_level(self) -> int:
        """The level required to kick."""
        return self._level("kick")

    @property
    def redact_level(self) -> int:
        """The level required to redact events of others."""
        return self._level("redact")

    @property
    def invite_level(self) -> int:
        """The level required to invite."""
        return self._level("invite")

    def _level(self, name: str) -> int:
        if self.content is None:
            return LEVEL_DEFAULTS[name]
        level = parse_level(self.content.get(name), self.version)
        return LEVEL_DEFAULTS[name] if level is None else level

    def _entry(self, name: str, key: str) -> int | None:
        entries = None if self.content is None else self.content.get(name)
        return parse_level(entries.get(key), self.version) if isinstance(entries, dict) else None


def read_power_levels(create: Event | None, power_levels: Event | None, version: RoomVersion) -> PowerLevels:
    """Returns the power levels set by the room's m.room.create and m.room.power_levels events."""
    return PowerLevels(
        version,
        frozenset() if create is None else room_creators(create),
        None if power_levels is None else power_levels.content,
    )
