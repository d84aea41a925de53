"""What people who are not in a room may learn about it, and who may. Spec: client-server-api/#spaces, #room-summary"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomID,
    ServerName,
    parse_room_alias,
    parse_room_id,
    server_name_of,
)
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.aliases import PublishedRoom
from homeserver.rooms.heads import Head, get_head, state_content, state_events
from homeserver.rooms.membership import (
    count_members,
    find_membership,
    is_joined_to_any,
    is_server_invited,
    is_server_joined,
)
from homeserver.rooms.restricted import CONDITIONS_MAX
from homeserver.rooms.visibility import history_visibility

OPEN_RULES = ("public", "knock", "knock_restricted")
"""Join rules by which anyone may join, or ask to."""
RESTRICTED_RULES = ("restricted", "knock_restricted")
KNOWN_ALGORITHM = "m.megolm.v1.aes-sha2"


def directory_entry(tx: Transaction, room: PublishedRoom) -> dict[str, Any]:
    """Returns a room as an entry of the directory. Spec: PublishedRoomsChunk. It is cached: do not change it."""
    cache = tx.cache("directory", limits.DIRECTORY_ENTRIES_CACHED_MAX)
    entry: dict[str, Any] | None = cache.get(room)
    if entry is None:
        entry = _entry(tx, get_head(tx, room.room_id))
        if not tx.is_write:
            cache.put(room, entry)
    return entry


def _entry(tx: Transaction, head: Head) -> dict[str, Any]:
    def text(event_type: str, key: str) -> Any:
        value = (state_content(tx, head.state_root, event_type) or {}).get(key)
        return value if isinstance(value, str) else None

    optional = {
        "name": text("m.room.name", "name"),
        "topic": text("m.room.topic", "topic"),
        "canonical_alias": _alias_or_none(text("m.room.canonical_alias", "alias")),
        "avatar_url": text("m.room.avatar", "url"),
        "room_type": text("m.room.create", "type"),
        "join_rule": text("m.room.join_rules", "join_rule"),
    }
    return {
        "room_id": head.room_id,
        "num_joined_members": count_members(tx, head.room_id, "join"),
        "world_readable": history_visibility(tx, head.state_root) == "world_readable",
        "guest_can_join": text("m.room.guest_access", "guest_access") == "can_join",
        **{key: value for key, value in optional.items() if value is not None},
    }


def _alias_or_none(text: str | None) -> str | None:
    try:
        return parse_room_alias(text)
    except InvalidIdentifier:
        return None


def room_summary(tx: Transaction, head: Head) -> dict[str, Any]:
    """Returns the summary of a room that this server is in. Spec: RoomSummary"""
    room = PublishedRoom(head.room_id, head.last_position, head.members_position)
    summary = {**directory_entry(tx, room), "room_version": head.version.id}
    encryption = (state_content(tx, head.state_root, "m.room.encryption") or {}).get("algorithm")
    if encryption == KNOWN_ALGORITHM:
        summary["encryption"] = encryption
    if summary.get("join_rule") in RESTRICTED_RULES:
        summary["allowed_room_ids"] = _allowed(state_content(tx, head.state_root, "m.room.join_rules") or {})
    return summary


def _allowed(rules: Mapping[str, object]) -> list[RoomID]:
    """Returns the rooms whose members may join."""
    allow = rules.get("allow")
    found: list[RoomID] = []
    for condition in allow[:CONDITIONS_MAX] if isinstance(allow, list) else ():
        if isinstance(condition, dict) and condition.get("type") == "m.room_membership":
            try:
                found.append(parse_room_id(condition.get("room_id")))
            except InvalidIdentifier:
                continue
    return list(dict.fromkeys(found))


def is_open(summary: Mapping[str, Any]) -> bool:
    """Returns whether everyone may learn about the room: they may join it, knock on it, or read it."""
    return _join_rule(summary) in OPEN_RULES or summary.get("world_readable") is True


def _join_rule(summary: Mapping[str, Any]) -> str:
    """Returns the join rule, or "invite" if the room's version does not know it. An unknown version knows all."""
    rule, version = summary.get("join_rule"), ROOM_VERSIONS.get(summary.get("room_version") or "")
    if not isinstance(rule, str):
        return "invite"
    if version is not None:
        known = {"knock": version.knock, "restricted": version.restricted_join}
        known["knock_restricted"] = version.knock_restricted
        return rule if known.get(rule, True) else "invite"
    return rule


def may_see_summary(tx: Transaction, summary: Mapping[str, Any], user_id: str | None) -> bool:
    """Returns whether a user may learn about a room by its summary, which may be another server's.

    user_id None: a user without an account.
    """
    membership = None if user_id is None else find_membership(tx, summary["room_id"], user_id)
    if membership in ("join", "invite") or summary.get("world_readable") is True:
        return True
    if membership == "ban":
        return False
    if is_open(summary):
        return True
    return user_id is not None and is_joined_to_any(tx, user_id, _rooms_that_allow(summary))


def _rooms_that_allow(summary: Mapping[str, Any]) -> list[str]:
    return summary.get("allowed_room_ids") or [] if _join_rule(summary) in RESTRICTED_RULES else []


def may_server_see_summary(tx: Transaction, head: Head, summary: Mapping[str, Any], server: ServerName) -> bool:
    """Returns whether the users of another server could join, knock on or read the room. Its ACL is not checked."""
    create = state_content(tx, head.state_root, "m.room.create") or {}
    if create.get("m.federate") is False and _creator_server(tx, head) != server:
        return False
    if is_open(summary) or is_server_joined(tx, head.room_id, server) or is_server_invited(tx, head.room_id, server):
        return True
    return any(is_server_joined(tx, room_id, server) for room_id in _rooms_that_allow(summary))


def _creator_server(tx: Transaction, head: Head) -> ServerName | None:
    found = state_events(tx, head.state_root, (("m.room.create", ""),))
    return server_name_of(found["m.room.create", ""].sender) if found else None
