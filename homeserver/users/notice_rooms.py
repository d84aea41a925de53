"""Rooms that the server makes by itself: for the members of a room that was shut down, and for notices to users.

Members can read and leave; only the creator can write.
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.append import append_create, append_local, choose_room_id
from homeserver.rooms.power import initial_levels
from homeserver.users.profile import get_member_profile

READER_LEVEL = -10
"""The power level of everybody but the creator: too low to send anything."""


def create_notice_room(tx: Transaction, creator: UserID, name: str) -> RoomID:
    """Creates a private room that only the creator writes in. The creator needs no account."""
    version = ROOM_VERSIONS[tx.server.config.rooms.default_version]
    content: dict[str, object] = {"room_version": version.id}
    if version.create_content_has_creator:
        content["creator"] = creator
    draft = Draft(choose_room_id(tx, version), creator, "m.room.create", content, state_key="")
    room_id = append_create(tx, draft, version).room_id
    append_join(tx, room_id, creator)
    levels = initial_levels(version, {} if version.creators_privileged else {creator: 100}, invite=50)
    for event_type, state in (
        ("m.room.power_levels", {**levels, "users_default": READER_LEVEL}),
        ("m.room.join_rules", {"join_rule": "invite"}),
        ("m.room.history_visibility", {"history_visibility": "shared"}),
        ("m.room.guest_access", {"guest_access": "forbidden"}),
        ("m.room.name", {"name": name}),
    ):
        append_local(tx, Draft(room_id, creator, event_type, state, state_key=""))
    return room_id


def append_join(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    """Lets a user join a room that they may join."""
    content = {"membership": "join", **get_member_profile(tx, user_id)}
    append_local(tx, Draft(room_id, user_id, "m.room.member", content, state_key=user_id))


def append_invite(tx: Transaction, room_id: RoomID, sender: UserID, user_id: UserID) -> None:
    """Invites a user of this server, without asking whether they want invitations: the server itself invites."""
    content = {"membership": "invite", **get_member_profile(tx, user_id)}
    append_local(tx, Draft(room_id, sender, "m.room.member", content, state_key=user_id))
