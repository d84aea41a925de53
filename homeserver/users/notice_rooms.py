"""Rooms that the server makes by itself: for the members of a room that was shut down, and for notices to users.

Members can read and leave; only the creator can write.
"""

from __future__ import annotations

from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.append import append_create, append_local, choose_room_id
from homeserver.rooms.membership import find_membership
from homeserver.rooms.power import initial_levels
from homeserver.users.account_data import find_account_data, store_account_data
from homeserver.users.accounts import create_user, find_user
from homeserver.users.profile import get_member_profile

SCHEMA = Schema(
    "notice_rooms",
    (
        Step(
            "001_create",
            """
            -- The room in which the server tells a user something.
            CREATE TABLE notice_rooms (user_nid INTEGER PRIMARY KEY, room_nid INTEGER NOT NULL);
            CREATE INDEX notice_rooms_by_room ON notice_rooms (room_nid);
            """,
        ),
    ),
)

NOTICES_LOCALPART = "notices"
NOTICES_NAME = "Server notices"
NOTICES_TAG = "m.server_notice"

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


# --- notices to one user: client-server-api/#server-notices ---


def get_notice_room(tx: Transaction, user_id: UserID) -> tuple[UserID, RoomID]:
    """Returns the sender of notices and the user's room for them. Creates both, and invites the user, if necessary.

    Raises 400 M_UNKNOWN if the account of the sender is somebody's.
    """
    sender = _get_sender(tx)
    room_id = find_notice_room(tx, user_id)
    if room_id is None or find_membership(tx, room_id, sender) != "join":
        room_id = create_notice_room(tx, sender, NOTICES_NAME)
        store_notice_room(tx, user_id, room_id)
    if find_membership(tx, room_id, user_id) not in ("join", "invite"):
        append_invite(tx, room_id, sender, user_id)
        tags = (find_account_data(tx, user_id, room_id, "m.tag") or {}).get("tags")
        shown = {**(tags if isinstance(tags, dict) else {}), NOTICES_TAG: {}}
        store_account_data(tx, user_id, room_id, "m.tag", {"tags": shown})
    return sender, room_id


def _get_sender(tx: Transaction) -> UserID:
    sender = UserID(f"@{NOTICES_LOCALPART}:{tx.server.name}")
    user = find_user(tx, sender)
    if user is None:
        create_user(tx, sender)
        user = find_user(tx, sender)
    if user is None or user.password_hash is not None or user.is_deactivated:
        raise MatrixError(400, "M_UNKNOWN", f"Notices are sent by {sender}, which is the account of a person here.")
    return sender


def find_notice_room(tx: Transaction, user_id: UserID) -> RoomID | None:
    """Returns the user's room for notices, None if there never was one."""
    row = tx.one("SELECT room_nid FROM notice_rooms WHERE user_nid = ?", tx.find(user_id))
    return None if row is None else RoomID(tx.name(row[0]))


def store_notice_room(tx: Transaction, user_id: UserID, room_id: RoomID) -> None:
    """Makes a room the user's room for notices."""
    tx.run(
        "INSERT INTO notice_rooms (user_nid, room_nid) VALUES (?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET room_nid = excluded.room_nid",
        tx.intern(user_id), tx.intern(room_id),
    )  # fmt: skip


def is_notice_room(tx: Transaction, user_id: UserID, room_id: str) -> bool:
    """Returns whether the server tells the user something in this room."""
    row = tx.one("SELECT 1 FROM notice_rooms WHERE user_nid = ? AND room_nid = ?", tx.find(user_id), tx.find(room_id))
    return row is not None


def forget_notice_room(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Forgets which room it is. The user leaves it like every other one."""
    tx.run("DELETE FROM notice_rooms WHERE user_nid = ?", tx.find(user_id))
    return False
