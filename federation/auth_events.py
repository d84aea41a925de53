"""Auth events selection: which part of the state gives a sender permission.

Spec: server-server-api/#auth-events-selection
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeserver.federation.event import Event
from homeserver.federation.room_versions import RoomVersion

StateKey = tuple[str, str]
"""(type, state_key)"""

CREATE_KEY: StateKey = ("m.room.create", "")
POWER_LEVELS_KEY: StateKey = ("m.room.power_levels", "")
JOIN_RULES_KEY: StateKey = ("m.room.join_rules", "")


def member_key(user_id: str) -> StateKey:
    """Returns the state key of a user's membership."""
    return ("m.room.member", user_id)


def select_auth_keys(
    event_type: str, sender: str, state_key: str | None, content: Mapping[str, Any], version: RoomVersion
) -> list[StateKey]:
    """Returns the state keys whose events, if present, belong in `auth_events`. There are no duplicates.

    `content` is not trusted: a value of the wrong type selects nothing.
    """
    # The auth_events for the m.room.create event in a room is empty
    if event_type == "m.room.create":
        return []
    # Depending on the room version, the m.room.create event
    keys = [CREATE_KEY] if version.create_event_in_auth_events == "required" else []
    # The current m.room.power_levels event, if any · The sender's current m.room.member event, if any
    keys += [POWER_LEVELS_KEY, member_key(sender)]
    if event_type == "m.room.member" and state_key is not None:
        keys += [key for key in _member_keys(state_key, content, version) if key not in keys]
    return keys


def _member_keys(state_key: str, content: Mapping[str, Any], version: RoomVersion) -> list[StateKey]:
    # The target's current m.room.member event, if any
    keys = [member_key(state_key)]
    membership = content.get("membership")
    # If membership is join, invite or knock, the current m.room.join_rules event, if any
    if membership in ("join", "invite", "knock"):
        keys.append(JOIN_RULES_KEY)
    # If membership is invite and content contains a third_party_invite property, the current
    # m.room.third_party_invite event with state_key matching content.third_party_invite.signed.token, if any
    if membership == "invite":
        token = third_party_invite_token(content)
        if token is not None:
            keys.append(("m.room.third_party_invite", token))
    # If membership is join, content.join_authorised_via_users_server is present, and the room version supports
    # restricted rooms, then the m.room.member event with state_key matching it
    if membership == "join" and version.restricted_join:
        authorised_via = content.get("join_authorised_via_users_server")
        if isinstance(authorised_via, str) and authorised_via != state_key:
            keys.append(member_key(authorised_via))
    return keys


def third_party_invite_token(content: Mapping[str, Any]) -> str | None:
    """Returns `third_party_invite.signed.token` of the content of an m.room.member event, or None."""
    third_party_invite = content.get("third_party_invite")
    signed = third_party_invite.get("signed") if isinstance(third_party_invite, dict) else None
    token = signed.get("token") if isinstance(signed, dict) else None
    return token if isinstance(token, str) else None


def select_auth_keys_of(event: Event) -> list[StateKey]:
    """Returns the keys that the event's auth events may have."""
    return select_auth_keys(event.type, event.sender, event.state_key, event.content, event.version)
