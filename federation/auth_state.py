"""What the authorisation rules ask of a room's state, and their answer where they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from homeserver.federation.auth_events import JOIN_RULES_KEY, POWER_LEVELS_KEY, StateKey, member_key
from homeserver.federation.event import Event
from homeserver.federation.power_levels import PowerLevels, read_power_levels
from homeserver.federation.room_versions import RoomVersion


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event is not allowed; `reason` says why in one sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class AuthState:
    """A state of a room, as far as the rules look into it. Its events may hold anything: they were not all checked."""

    version: RoomVersion
    create: Event
    state: Mapping[StateKey, Event]
    power_levels: PowerLevels

    def membership_of(self, user_id: str) -> str:
        """The user's current membership state; "leave" for who never was in the room."""
        member = self.state.get(member_key(user_id))
        return "leave" if member is None else member.membership or "leave"

    @property
    def join_rule(self) -> str | None:
        """The room's `join_rule`, by default "invite"; None if it is not even a string."""
        join_rules = self.state.get(JOIN_RULES_KEY)
        rule = "invite" if join_rules is None else join_rules.content.get("join_rule", "invite")
        return rule if isinstance(rule, str) else None


def read_auth_state(version: RoomVersion, create: Event, state: Mapping[StateKey, Event]) -> AuthState:
    """The state as the rules of the room version see it."""
    return AuthState(version, create, state, read_power_levels(create, state.get(POWER_LEVELS_KEY), version))


def domain_of(identifier: str) -> str:
    """All after the first ":", the empty string where there is none. Never fails, unlike `server_name_of`."""
    return identifier.partition(":")[2]
