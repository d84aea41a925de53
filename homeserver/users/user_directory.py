"""The index of the user directory: by which words people are found, and by whom.

Theory of operation. A person is found by users who share a room with them, and by everyone if they are in an open room,
which anyone may join or read. So the index has a *scope* for each closed room, and one for all open rooms together; a
person is in each scope with the words of the name that they have there. A search reads the beginnings of words in the
scopes of the requester's rooms and in the open one, so its cost depends on the answer, not on the number of users.

The index follows the stream: `list_stale` says what the changes of a span concern, and `store_words` computes the
entries of some people again, from what is true at that moment. Both may be repeated. A room that was never indexed, or
that has become open or closed, is indexed as a whole, in several writes; `is_complete` says that it is done.

An entry may be out of date, so it only proposes people: the search checks memberships and names itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import RoomID, UserID, localpart_of, server_name_of
from homeserver.rooms.member_changes import (
    Joined,
    count_joined,
    is_open,
    list_joined,
    list_member_contents,
    list_members_after,
    list_members_changed,
    list_rooms_changed,
)
from homeserver.users.accounts import list_active
from homeserver.users.directory_words import words_of_person
from homeserver.users.profile import delete_renames, find_profile

OPEN_SCOPE = 0  # no room has this number
_MEMBERS_PER_READ = 500

SCHEMA = Schema(
    "user_directory",
    (
        Step(
            "001_create",
            """
            CREATE TABLE directory_rooms (
                room_nid INTEGER PRIMARY KEY,
                is_open INTEGER NOT NULL,
                is_complete INTEGER NOT NULL
            );
            -- scope: the number of a closed room, or 0 for all open rooms. word: UTF-8, which both engines sort alike.
            CREATE TABLE directory_words (
                scope INTEGER NOT NULL,
                word BLOB NOT NULL,
                user_nid INTEGER NOT NULL,
                PRIMARY KEY (scope, word, user_nid)
            ) WITHOUT ROWID;
            CREATE INDEX directory_words_of_user ON directory_words (user_nid, scope);
            """,
        ),
    ),
)


class Stale(msgspec.Struct, frozen=True):
    """What has to be indexed again in a room: some users, or everyone if `users` is None. people: how many."""

    room_nid: int
    is_open: bool
    users: Sequence[int] | None
    people: int


def list_stale(tx: Transaction, since: int, upto: int) -> list[Stale]:
    """Returns what has to be indexed again after the changes in since < position ≤ upto."""
    found: list[Stale] = []
    rooms = list_rooms_changed(tx, since, upto)
    known = {
        row[0]: bool(row[1])
        for row in tx.all_in(
            "SELECT room_nid, is_open FROM directory_rooms WHERE room_nid IN (?*) AND is_complete = 1", rooms
        )
    }
    for room_nid in sorted(rooms):
        is_now_open = is_open(tx, room_nid)
        if known.get(room_nid) is not is_now_open:
            found.append(Stale(room_nid, is_now_open, None, count_joined(tx, room_nid)))
        if users := list_members_changed(tx, room_nid, since, upto):
            found.append(Stale(room_nid, is_now_open, users, len(users)))
    return found


def set_room(tx: Transaction, room_nid: int, *, is_open: bool, is_complete: bool) -> None:
    """Stores whether a room is open, and whether all of its members are indexed accordingly."""
    tx.run(
        "INSERT INTO directory_rooms (room_nid, is_open, is_complete) VALUES (?, ?, ?) ON CONFLICT (room_nid)"
        " DO UPDATE SET is_open = excluded.is_open, is_complete = excluded.is_complete",
        room_nid, int(is_open), int(is_complete),
    )  # fmt: skip


def list_open_rooms(tx: Transaction, room_nids: Collection[int]) -> set[int]:
    """Returns those of the rooms that are indexed as open."""
    rows = tx.all_in("SELECT room_nid FROM directory_rooms WHERE room_nid IN (?*) AND is_open = 1", room_nids)
    return {row[0] for row in rows}


def store_words(tx: Transaction, room_nid: int, user_nids: Collection[int]) -> None:
    """Computes the entries of users again, in the scope of a room and in that of all open rooms."""
    joined = list_joined(tx, user_nids)
    open_rooms = list_open_rooms(tx, {each.room_nid for each in joined} | {room_nid})
    by_scope: dict[int, dict[int, Joined]] = {OPEN_SCOPE: {}, room_nid: {}}
    for each in sorted(joined, key=lambda each: each.changed_position):
        if each.room_nid in open_rooms:
            by_scope[OPEN_SCOPE][each.user_nid] = each  # the newest remains
        elif each.room_nid == room_nid:
            by_scope[room_nid][each.user_nid] = each
    people = [each for of_users in by_scope.values() for each in of_users.values()]
    names = dict(zip(people, list_names(tx, people), strict=True))
    user_ids = tx.names(user_nids)
    for scope, of_users in by_scope.items():
        wanted = {
            (word.encode(), nid)
            for nid, each in of_users.items()
            if (name := names[each]) is not None
            for word in words_of_person(localpart_of(UserID(user_ids[nid])), name.display_name)
        }
        _replace_words(tx, scope, user_nids, wanted)


class Name(msgspec.Struct, frozen=True):
    """How a person is shown."""

    display_name: str | None
    avatar_url: str | None


def list_names(tx: Transaction, people: Sequence[Joined]) -> list[Name | None]:
    """Returns how each of the people is called: local users by their profile, others by their member event in the room.

    None for local users whose account has ended.
    """
    user_ids = {nid: UserID(name) for nid, name in tx.names({each.user_nid for each in people}).items()}
    local = {user_id for user_id in user_ids.values() if server_name_of(user_id) == tx.server.name}
    active = list_active(tx, local)
    profiles = {user_id: find_profile(tx, user_id) for user_id in active}
    remote = {each.event_position for each in people if user_ids[each.user_nid] not in local}
    contents = list_member_contents(tx, remote)
    found: list[Name | None] = []
    for each in people:
        user_id = user_ids[each.user_nid]
        if user_id in local:
            found.append(_name(profiles[user_id]) if user_id in active else None)
        else:
            found.append(_name(contents.get(each.event_position, {})))
    return found


def _name(content: dict[str, object]) -> Name:
    name, avatar = content.get("displayname"), content.get("avatar_url")
    return Name(
        name if isinstance(name, str) and name else None,
        avatar if isinstance(avatar, str) and avatar.startswith("mxc://") else None,
    )


def replace_words_of(tx: Transaction, user_ids: Collection[UserID]) -> None:
    """Gives local users the words of their new display names wherever they are indexed."""
    active = list_active(tx, user_ids)
    for user_id in active:
        name = _name(find_profile(tx, user_id, "displayname"))
        words = [word.encode() for word in words_of_person(localpart_of(user_id), name.display_name)]
        nid = tx.intern(user_id)
        for scope in tx.values("SELECT DISTINCT scope FROM directory_words WHERE user_nid = ?", nid):
            _replace_words(tx, scope, [nid], {(word, nid) for word in words})
    delete_renames(tx, user_ids)


def _replace_words(tx: Transaction, scope: int, user_nids: Collection[int], wanted: set[tuple[bytes, int]]) -> None:
    """Makes `wanted` (words and users) the entries of the users in a scope."""
    rows = tx.all_in(
        "SELECT word, user_nid FROM directory_words WHERE user_nid IN (?*) AND scope = ?", user_nids, scope
    )
    stored = {(bytes(word), nid) for word, nid in rows}
    if stored - wanted:
        tx.many(
            "DELETE FROM directory_words WHERE scope = ? AND word = ? AND user_nid = ?",
            [(scope, *entry) for entry in sorted(stored - wanted)],
        )
    if wanted - stored:
        tx.many(
            "INSERT INTO directory_words (scope, word, user_nid) VALUES (?, ?, ?)",
            [(scope, *entry) for entry in sorted(wanted - stored)],
        )


def list_proposed(tx: Transaction, scopes: Iterable[int], prefix: str, limit: int) -> list[int]:
    """Returns `limit` users, or a few more, with a word that begins with `prefix` in one of the scopes."""
    start = prefix.encode()
    rows = tx.all_in(
        "SELECT DISTINCT user_nid FROM directory_words WHERE scope IN (?*) AND word >= ? AND word < ? LIMIT ?",
        list(scopes), start, start + b"\xff", limit,
    )  # fmt: skip
    return list(dict.fromkeys(row[0] for row in rows))


def list_proposed_in_open(tx: Transaction, prefix: str, limit: int) -> list[int]:
    """Does the same in open rooms. Users with the shortest words come first."""
    start = prefix.encode()
    nids = tx.values(
        "SELECT user_nid FROM directory_words WHERE scope = ? AND word >= ? AND word < ?"
        " ORDER BY word, user_nid LIMIT ?",
        OPEN_SCOPE, start, start + b"\xff", limit,
    )  # fmt: skip
    return list(dict.fromkeys(nids))


def forget_words(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all entries of a user whose account ends. While the user leaves rooms, no new ones are made."""
    tx.run("DELETE FROM directory_words WHERE user_nid = ?", tx.find(user_id))
    return False


def forget_room_words(tx: Transaction, room_id: RoomID) -> None:
    """Deletes the words of names that a room's member events contained."""
    room_nid = tx.find(room_id)
    assert room_nid is not None
    tx.run("DELETE FROM directory_words WHERE scope = ?", room_nid)
    nids, last = [], 0
    while some := list_members_after(tx, room_nid, last, _MEMBERS_PER_READ):
        nids += some
        last = some[-1]
    store_words(tx, room_nid, nids)
