"""Room upgrades: a new room takes the place of an old one. Spec: client-server-api/#room-upgrades

Everything happens in one transaction, so a failed upgrade leaves neither a new room nor a tombstone. The settings that
members keep for themselves follow when they join the new room: see `homeserver.users.room_upgrades`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomAlias, RoomID, UserID, parse_user_id
from homeserver.federation.power_levels import LEVEL_DEFAULTS, PowerLevels, is_user_id, parse_level, room_creators
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.rooms.access import find_in_state
from homeserver.rooms.aliases import is_published, replace_room_of_aliases, set_visibility
from homeserver.rooms.append import append_create, append_local, choose_room_id
from homeserver.rooms.heads import Head, get_head
from homeserver.rooms.membership import check_joined, list_latest
from homeserver.rooms.power import check_may_send_state, power_levels
from homeserver.rooms.resolve import StateAt
from homeserver.users.profile import get_member_profile
from homeserver.users.room_upgrades import carry_over
from homeserver.users.shadow_bans import write_for

routes = Routes()

# Spec: "the recommended state events to transfer", in the order of a new room; power levels follow last, because until
# then the creator may do everything.
COPIED = (
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
)
# The level of creators whose power was unlimited, in a room version that gives them a level.
CREATOR_LEVEL = 100


class UpgradeBody(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#post_matrixclientv3roomsroomidupgrade"""

    new_version: str
    additional_creators: list[str] = []


@routes.post("/_matrix/client/v3/rooms/{room_id}/upgrade", rate_limit="upgrade_room")
async def upgrade_room(hs: Resources, requester: Requester, room_id: RoomID, body: UpgradeBody) -> JsonObject:
    version = ROOM_VERSIONS.get(body.new_version)
    if version is None:
        raise MatrixError(400, "M_UNSUPPORTED_ROOM_VERSION", "This server does not know that room version.")
    creators: list[UserID] = []
    if version.additional_creators:
        creators = _parse_creators(body.additional_creators, requester.user_id)
    plan = await hs.database.read(_plan, requester.user_id, room_id, version)
    new_id = await write_for(hs, requester, _upgrade, requester.user_id, room_id, version, creators, plan)
    return {"replacement_room": new_id}


class _Plan(msgspec.Struct, frozen=True):
    """What the new room's ID depends on. It stays the same if the write is repeated: see `rooms/policy.py`.

    new_id: None if the ID follows from the create event. last_event: of the old room. now_ms: when the room is created.
    """

    new_id: RoomID | None
    last_event: EventID
    now_ms: int


def _plan(tx: Transaction, user_id: UserID, room_id: RoomID, version: RoomVersion) -> _Plan:
    check_joined(tx, room_id, user_id)
    return _Plan(choose_room_id(tx, version), get_head(tx, room_id).extremity_ids[-1], tx.now_ms)


def _parse_creators(given: list[str], user_id: UserID) -> list[UserID]:
    """Returns the other creators, each once. Raises M_INVALID_PARAM."""
    try:
        creators = [parse_user_id(each) for each in given]
    except InvalidIdentifier as error:
        raise invalid_param(f"additional_creators: {error}") from None
    return [each for each in dict.fromkeys(creators) if each != user_id]


def _upgrade(
    tx: Transaction, user_id: UserID, room_id: RoomID, version: RoomVersion, creators: list[UserID], plan: _Plan
) -> RoomID:
    """Replaces the room. Raises MatrixError 403 if the user may not, 400 M_INVALID_ROOM_STATE if its state does not
    fit into a room of that version."""
    check_joined(tx, room_id, user_id)
    old = get_head(tx, room_id)
    check_may_send_state(tx, old, user_id, "m.room.tombstone")
    new_id, last_event = plan.new_id, plan.last_event
    if new_id is not None:
        last_event = _append_tombstone(tx, room_id, user_id, new_id).event_id
    content = _creation_content(tx, old, version, user_id, creators)
    content["predecessor"] = {"room_id": room_id, "event_id": last_event}
    draft = Draft(new_id, user_id, "m.room.create", content, state_key="", origin_server_ts=plan.now_ms)
    create = append_create(tx, draft, version)
    _fill(tx, old, create, user_id)
    moved = replace_room_of_aliases(tx, room_id, create.room_id)
    if new_id is None:
        _append_tombstone(tx, room_id, user_id, create.room_id)
    _move_canonical_alias(tx, old, create.room_id, user_id, moved)
    if is_published(tx, room_id):
        set_visibility(tx, room_id, is_public=False)
        set_visibility(tx, create.room_id, is_public=True)
    _close(tx, old, user_id)
    carry_over(tx, user_id, create.room_id)
    return create.room_id


def _append_tombstone(tx: Transaction, room_id: RoomID, user_id: UserID, new_id: RoomID) -> Event:
    content = {"body": "This room has been replaced.", "replacement_room": new_id}
    return append_local(tx, Draft(room_id, user_id, "m.room.tombstone", content, state_key=""))


def _content(tx: Transaction, head: Head, event_type: str, state_key: str = "") -> JsonObject | None:
    event = find_in_state(tx, StateAt(head.state_root), event_type, state_key)
    return None if event is None else event.content


def _creation_content(
    tx: Transaction, old: Head, version: RoomVersion, user_id: UserID, creators: list[UserID]
) -> JsonObject:
    content: JsonObject = {"room_version": version.id}
    if version.create_content_has_creator:
        content["creator"] = user_id
    if creators:
        content["additional_creators"] = creators
    # A room that was closed to other servers stays closed.
    before = _content(tx, old, "m.room.create") or {}
    return content | {name: before[name] for name in ("type", "m.federate") if name in before}


def _fill(tx: Transaction, old: Head, create: Event, user_id: UserID) -> None:
    """Appends the creator's join, and the state and bans of the old room."""
    for event_type, state_key, content in _new_state(tx, old, create, user_id):
        try:
            append_local(tx, Draft(create.room_id, user_id, event_type, content, state_key=state_key))
        except MatrixError as error:
            text = f"{event_type} of the room does not fit into the new one: {error.error}"
            raise MatrixError(400, "M_INVALID_ROOM_STATE", text) from None


def _new_state(tx: Transaction, old: Head, create: Event, user_id: UserID) -> Iterator[tuple[str, str, JsonObject]]:
    yield "m.room.member", user_id, {"membership": "join", **get_member_profile(tx, user_id)}
    for event_type in COPIED:
        content = _content(tx, old, event_type)
        if content is not None:
            yield event_type, "", _join_rules(content, create.version) if event_type == COPIED[0] else content
    # A ban says who is not welcome, no matter who sent it. The newest ones are those that still matter.
    for banned in list_latest(tx, old.room_id, "ban", limits.UPGRADE_BANS_MAX):
        reason = (_content(tx, old, "m.room.member", banned) or {}).get("reason")
        if banned not in room_creators(create):
            yield "m.room.member", banned, {"membership": "ban", **({"reason": reason} if reason else {})}
    yield "m.room.power_levels", "", power_levels_content(power_levels(tx, old), create)


def _join_rules(content: JsonObject, version: RoomVersion) -> JsonObject:
    """Returns join rules that the version knows. Rules that it does not know would be those of a private room."""
    known = ["public", "invite", "private"]  # a list, because join_rule may be anything, even what has no hash
    known += ["knock"] if version.knock else []
    known += ["restricted"] if version.restricted_join else []
    known += ["knock_restricted"] if version.knock_restricted else []
    return content if content.get("join_rule") in known else {"join_rule": "invite"}


def power_levels_content(old: PowerLevels, create: Event) -> JsonObject:
    """Returns the content of m.room.power_levels for the new room: the levels of the old one, as integers.

    Creators whose power is unlimited in the new room have no level. Former ones, whose power is not, get a high one.
    Values that are not levels are left out.
    """
    content: JsonObject = dict(old.content or {})
    for name in LEVEL_DEFAULTS:
        level = _level(content.pop(name, None), old)
        if level is not None:
            content[name] = level
    for name in ("events", "users", "notifications"):
        entries = content.pop(name, None)
        levels = {key: _level(value, old) for key, value in entries.items()} if isinstance(entries, dict) else {}
        content[name] = {key: level for key, level in levels.items() if level is not None}
    users = {key: level for key, level in content["users"].items() if is_user_id(key)}
    if old.version.creators_privileged or old.content is None:
        users |= dict.fromkeys(old.creators, max([CREATOR_LEVEL, *users.values()]))
    if create.version.creators_privileged:
        users = {key: level for key, level in users.items() if key not in room_creators(create)}
    content["users"] = users
    return content


def _level(value: Any, old: PowerLevels) -> int | None:
    """Returns the level that the old room reads, if canonical JSON can hold it."""
    level = parse_level(value, old.version)
    return level if level is not None and abs(level) < 2**53 else None


def _move_canonical_alias(tx: Transaction, old: Head, new_id: RoomID, user_id: UserID, moved: list[RoomAlias]) -> None:
    """Names the new room by the moved aliases, and no longer the old one. Aliases of other servers stay where they are.

    A user who may not change the aliases of the old room leaves them there, although they now lead to the new one.
    """
    content = _content(tx, old, "m.room.canonical_alias") or {}
    alternatives = content.get("alt_aliases")
    alternatives = alternatives if isinstance(alternatives, list) else []
    taken: JsonObject = {"alias": content["alias"]} if content.get("alias") in moved else {}
    if names := [name for name in alternatives if name in moved]:
        taken["alt_aliases"] = names
    if not taken:
        return
    append_local(tx, Draft(new_id, user_id, "m.room.canonical_alias", taken, state_key=""))
    left = {name: value for name, value in content.items() if name not in ("alias", "alt_aliases")}
    if "alias" not in taken and "alias" in content:
        left["alias"] = content["alias"]
    if others := [name for name in alternatives if name not in moved]:
        left["alt_aliases"] = others
    _append_if_allowed(tx, Draft(old.room_id, user_id, "m.room.canonical_alias", left, state_key=""))


def _close(tx: Transaction, old: Head, user_id: UserID) -> None:
    """Raises the levels for messages and invites in the old room, "if possible"."""
    levels = power_levels(tx, old)
    content: JsonObject = dict(levels.content or {"users": dict.fromkeys(sorted(levels.creators), CREATOR_LEVEL)})
    if levels.content is None and levels.version.creators_privileged:
        content["users"] = {}
    users_default = parse_level(content.get("users_default"), levels.version) or 0
    raised = max(50, users_default + 1)
    messages = parse_level(content.get("events_default"), levels.version) or 0
    current = {"events_default": messages, "invite": levels.invite_level}
    changes = {name: raised for name, level in current.items() if level < raised}
    if changes:
        _append_if_allowed(tx, Draft(old.room_id, user_id, "m.room.power_levels", content | changes, state_key=""))


def _append_if_allowed(tx: Transaction, draft: Draft) -> None:
    try:
        append_local(tx, draft)
    except MatrixError as error:  # raised before anything is written
        if error.errcode not in ("M_FORBIDDEN", "M_BAD_JSON", "M_TOO_LARGE"):
            raise


FEATURE = Feature(
    name="room_upgrade",
    spec="client-server-api/#room-upgrades",
    routes=routes,
    limits={"upgrade_room": Bucket(10, 0.1)},  # each writes a whole room
)
