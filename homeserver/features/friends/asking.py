"""Asking, accepting and ending: what happens in the write of a request. What is left to do is a task, see `settling`.

A conversation is created as by the preset "trusted_private_chat": both people get the same, highest power, so that
either can turn on encryption, name it or replace it, and neither can lock the other out. A person who has enough
leaves. The inviter's right to retract an invitation, which this gives up, is replaced by `friend_withdrawals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from homeserver.authenticate import get_account_flags
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, not_found
from homeserver.feature import JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomID, UserID, server_name_of
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.limits.users import FRIENDS_MAX
from homeserver.rooms.append import append_create, append_local, choose_room_id
from homeserver.rooms.heads import get_head, state_content
from homeserver.rooms.power import initial_levels
from homeserver.users.accounts import find_user
from homeserver.users.blocking import FRIEND_MARK, check_pending, find_refusal, ignored_users
from homeserver.users.friend_rooms import Conversation, list_conversations, note_room, refresh
from homeserver.users.friend_tasks import Task, delete_task, store_task
from homeserver.users.friends import Friend, FriendState, count_friends, find_friend
from homeserver.users.presence import note_activity
from homeserver.users.profile import get_member_profile

_TRUSTED_LEVEL = 100


class Asking(NamedTuple):
    """A request as a client makes it. is_encrypted: whether a conversation that is created for it is."""

    user_id: UserID
    other: UserID
    message: str
    is_encrypted: bool


def ask(tx: Transaction, request: Asking) -> Friend:
    """Asks a person, or accepts what they have asked. Repeating it changes nothing. Returns what they are now.

    Raises MatrixError: 403 if the user blocks the person, has too many friends, or the person takes no requests; 404 if
    this server has no such user.
    """
    user_id, other = request.user_id, request.other
    refresh(tx, user_id, other)
    before = find_friend(tx, user_id, other)
    if before is not None and before.state in ("friend", "outgoing"):
        return before
    if other in ignored_users(tx, user_id):
        raise forbidden(f"You block {other}. Unblock them first.")
    if count_friends(tx, user_id) >= FRIENDS_MAX:
        raise forbidden(f"You can have at most {FRIENDS_MAX} friends and requests. End some of them first.")
    if before is not None and before.state == "incoming" and before.room_id is not None:
        accept(tx, user_id, other, before.room_id)
    else:
        _invite(tx, request)
    note_activity(tx, user_id)
    refresh(tx, user_id, other)
    refresh(tx, other, user_id)
    after = find_friend(tx, user_id, other)
    assert after is not None
    return after


def accept(tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID) -> None:
    """Joins a conversation if this server is in it. Otherwise stores the task to do so."""
    conversation = next(each for each in list_conversations(tx, user_id, other) if each.room_id == room_id)
    if conversation.is_outside:
        store_task(tx, Task(user_id, other, room_id, "join"))
    else:
        append_join(tx, user_id, room_id)


def append_join(tx: Transaction, user_id: UserID, room_id: RoomID) -> None:
    """Joins a user to a room that this server is in."""
    content = {"membership": "join", **get_member_profile(tx, user_id)}
    append_local(tx, Draft(room_id, user_id, "m.room.member", content, state_key=user_id))


def _invite(tx: Transaction, request: Asking) -> None:
    """Invites the person to the conversation that the user has kept, or else to a new one."""
    user_id, other = request.user_id, request.other
    is_ours = server_name_of(other) == tx.server.name
    if is_ours:
        _check_person(tx, user_id, other)
    room_id = _find_kept(tx, user_id, other) or _create(tx, request)
    note_room(tx, user_id, other, room_id)
    if is_ours:
        content = invitation(request.message) | get_member_profile(tx, other)
        append_local(tx, Draft(room_id, user_id, "m.room.member", content, state_key=other))
    else:
        store_task(tx, Task(user_id, other, room_id, "invite", request.message))


def invitation(message: str) -> JsonObject:
    """Returns the content of a request, which is an m.room.member event. Its reason is the user's message."""
    content: JsonObject = {"membership": "invite", "is_direct": True}
    return {**content, "reason": message} if message else content


def _check_person(tx: Transaction, user_id: UserID, other: UserID) -> None:
    """Raises MatrixError if this user of this server cannot be asked by another one."""
    user = find_user(tx, other)
    if user is None:
        raise not_found(f"There is no user {other}.")
    if get_account_flags(tx, other).is_guest:
        raise forbidden(f"{other} is a guest, and guests have no friends.")
    if refusal := find_refusal(tx, other, user_id, {FRIEND_MARK: True}):
        raise refusal
    check_pending(tx, other)


def _find_kept(tx: Transaction, user_id: UserID, other: UserID) -> RoomID | None:
    """Returns the conversation that the other person has left and the user has not: it goes on there."""
    kept = [each for each in list_conversations(tx, user_id, other) if _can_go_on(tx, each)]
    return min((each.room_id for each in kept), default=None)


def _can_go_on(tx: Transaction, conversation: Conversation) -> bool:
    if conversation.own != "join" or conversation.others not in ("leave", None) or conversation.task is not None:
        return False
    return state_content(tx, get_head(tx, conversation.room_id).state_root, "m.room.tombstone") is None


# --- the room ---


def _create(tx: Transaction, request: Asking) -> RoomID:
    user_id, other = request.user_id, request.other
    version = ROOM_VERSIONS[tx.server.config.rooms.default_version]
    content: JsonObject = {FRIEND_MARK: True, "room_version": version.id}
    if version.create_content_has_creator:
        content["creator"] = user_id
    if version.additional_creators:
        content["additional_creators"] = [other]
    draft = Draft(choose_room_id(tx, version), user_id, "m.room.create", content, state_key="")
    create = append_create(tx, draft, version)
    append_join(tx, user_id, create.room_id)
    for event_type, state in _initial_state(request, version, create):
        append_local(tx, Draft(create.room_id, user_id, event_type, state, state_key=""))
    return create.room_id


def _initial_state(request: Asking, version: RoomVersion, create: Event) -> Iterator[tuple[str, JsonObject]]:
    people: Sequence[UserID] = () if version.creators_privileged else (request.user_id, request.other)
    levels = initial_levels(version, dict.fromkeys(people, _TRUSTED_LEVEL), invite=_TRUSTED_LEVEL)
    yield "m.room.power_levels", levels
    yield "m.room.join_rules", {"join_rule": "invite"}
    yield "m.room.history_visibility", {"history_visibility": "shared"}
    yield "m.room.guest_access", {"guest_access": "forbidden"}
    if request.is_encrypted:
        yield "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}


# --- ending ---


def end(tx: Transaction, user_id: UserID, other: UserID) -> list[RoomID]:
    """Refuses, cancels, or ends it. Returns the rooms elsewhere whose invitation has yet to be rejected."""
    elsewhere = []
    for each in list_conversations(tx, user_id, other):
        if each.own == "invite" and each.is_outside:
            elsewhere.append(each.room_id)
            delete_task(tx, user_id, other, each.room_id)
        elif each.own in ("join", "invite") and (each.is_asked or each.is_shared or each.is_offered):
            close(tx, user_id, each.room_id)
    refresh(tx, user_id, other)
    refresh(tx, other, user_id)
    return elsewhere


def close(tx: Transaction, user_id: UserID, room_id: RoomID, successor: RoomID | None = None) -> None:
    """Leaves a conversation that this server is in. successor: the one that remains, for a tombstone."""
    if successor is not None and state_content(tx, get_head(tx, room_id).state_root, "m.room.tombstone") is None:
        content = {"body": "This conversation goes on in another room.", "replacement_room": successor}
        try:
            append_local(tx, Draft(room_id, user_id, "m.room.tombstone", content, state_key=""))
        except MatrixError as error:  # raised before anything is written
            if error.errcode != "M_FORBIDDEN":
                raise
    append_local(tx, Draft(room_id, user_id, "m.room.member", {"membership": "leave"}, state_key=user_id))


def state_answer(friend: Friend | None) -> JsonObject:
    """Returns the answer to a request."""
    state: FriendState = "none" if friend is None else friend.state
    return {"state": state, "room_id": None if friend is None else friend.room_id}
