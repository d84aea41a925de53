"""The part of a room's state that the authorisation rules read, and their answer when they refuse an event."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from homeserver.federation.auth_events import JOIN_RULES_KEY, POWER_LEVELS_KEY, StateKey, member_key
from homeserver.federation.event import Event
from homeserver.federation.power_levels import PowerLevels, read_power_levels
from homeserver.federation.room_versions import RoomVersion


class Rejection(msgspec.Struct, frozen=True):
    """An event is not allowed; `reason` says why in one sentence."""

    reason: str


class AuthState(msgspec.Struct, frozen=True):
    """A state of a room as the authorisation rules see it. Its events may contain anything: not all were checked."""

    version: RoomVersion
    create: Event
    state: Mapping[StateKey, Event]
    power_levels: PowerLevels

    def membership_of(self, user_id: str) -> str:
        """Returns the user's current membership, "leave" if the user was never in the room."""
        member = self.state.get(member_key(user_id))
        return "leave" if member is None else member.membership or "leave"

    @property
    def join_rule(self) -> str | None:
        """The room's `join_rule`; "invite" if it is not set, None if it is not a string."""
        join_rules = self.state.get(JOIN_RULES_KEY)
        rule = "invite" if join_rules is None else join_rules.content.get("join_rule", "invite")
        return rule if isinstance(rule, str) else None


def read_auth_state(version: RoomVersion, create: Event, state: Mapping[StateKey, Event]) -> AuthState:
    """Returns the state as the rules of the room version see it."""
    return AuthState(version, create, state, read_power_levels(create, state.get(POWER_LEVELS_KEY), version))


def domain_of(identifier: str) -> str:
    """Returns everything after the first ":", or an empty string. Unlike `server_name_of` it never fails."""
    return identifier.partition(":")[2]
