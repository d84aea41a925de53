"""The user directory: finding people by the beginning of their names. Spec: client-server-api/#user-directory

Whom a user may find: people who share a room with them, and people in rooms that anyone may join or read. The index is
in `homeserver/users/user_directory.py`; a tail keeps it. A search first indexes what the tail has not reached yet, so
a new name is found at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import DatabaseUnavailable, Transaction
from homeserver.database.tail import find_position, store_position
from homeserver.errors import invalid_param
from homeserver.feature import Feature, Follower, JsonObject
from homeserver.federation.identifiers import UserID, localpart_of, server_name_of
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.rooms.heads import STATE_CHANGES
from homeserver.rooms.member_changes import Joined, is_open, list_joined, list_members_after
from homeserver.users.directory_words import are_found, words_of, words_of_person
from homeserver.users.profile import RENAMES, list_renames
from homeserver.users.user_directory import (
    SCHEMA,
    Name,
    Stale,
    forget_room_words,
    forget_words,
    list_names,
    list_open_rooms,
    list_proposed,
    list_proposed_in_open,
    list_stale,
    replace_words_of,
    set_room,
    store_words,
)

routes = Routes()

TAIL = "user_directory"
PEOPLE_PER_WRITE = 200  # some 20 ms, for which other writes wait


class SearchBody(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#post_matrixclientv3user_directorysearch"""

    search_term: str
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10


@routes.post("/_matrix/client/v3/user_directory/search", rate_limit="user_directory")
async def search_user_directory(hs: Resources, requester: Requester, body: SearchBody) -> JsonObject:
    if len(body.search_term) > limits.users.USER_SEARCH_TERM_CHARACTERS_MAX:
        raise invalid_param(
            f"A search term may be at most {limits.users.USER_SEARCH_TERM_CHARACTERS_MAX} characters long."
        )
    searched = _parse_term(body.search_term)
    if not searched.words:
        return {"results": [], "limited": False}
    with contextlib.suppress(DatabaseUnavailable):  # what is indexed can be found even while nothing can be written
        await _catch_up(hs)
    return await hs.database.read(
        _search, requester.user_id, searched, min(body.limit, limits.users.USER_SEARCH_LIMIT_MAX)
    )


# --- searching ---


class _Searched(msgspec.Struct, frozen=True):
    """words: each begins a word of the person. server: how the person's server begins, in a search for a user ID."""

    words: Sequence[str]
    server: str = ""

    def accepts(self, user_id: UserID, name: Name) -> bool:
        if self.server and not server_name_of(user_id).startswith(self.server):
            return False
        return are_found(self.words, words_of_person(localpart_of(user_id), name.display_name))


def _parse_term(term: str) -> _Searched:
    term = term.strip()
    if term.startswith("@"):
        localpart, _, server = term[1:].partition(":")
        return _Searched(words_of(localpart), server.casefold())
    return _Searched(words_of(term))


def _search(tx: Transaction, requester: UserID, searched: _Searched, limit: int) -> JsonObject:
    """Returns the people found: those called exactly so first, then those who share a room with the requester."""
    own_nid = tx.find(requester)
    if own_nid is None:
        return {"results": [], "limited": False}
    own_rooms = {each.room_nid for each in list_joined(tx, [own_nid])}
    closed = own_rooms - list_open_rooms(tx, own_rooms)
    word = max(searched.words, key=len)
    is_selective = len(searched.words) == 1 and not searched.server
    read_max = 2 * (limit + 1) + 1 if is_selective else limits.users.USER_SEARCH_READ_MAX
    near, far = list_proposed(tx, closed, word, read_max), list_proposed_in_open(tx, word, read_max)
    proposed = [nid for nid in dict.fromkeys([*near, *far]) if nid != own_nid]
    found = sorted(_list_found(tx, proposed, own_rooms, searched), key=lambda each: each[:2])
    results = [_shown(user_id, name) for _, user_id, name in found[:limit]]
    is_cut = max(len(near), len(far)) >= read_max
    return {"results": results, "limited": len(found) > limit or is_cut}


def _list_found(
    tx: Transaction, user_nids: Sequence[int], own_rooms: set[int], searched: _Searched
) -> Iterator[tuple[tuple[bool, bool, bool], UserID, Name]]:
    """Yields the users whom the requester may find by these words, each with a rank: the lower the better.

    Whether another name was searched for, whether they share no room, whether they have no display name.
    """
    rooms: dict[int, list[Joined]] = {}
    for each in list_joined(tx, user_nids):
        rooms.setdefault(each.user_nid, []).append(each)
    open_rooms = list_open_rooms(tx, {each.room_nid for of_user in rooms.values() for each in of_user})
    for nid in user_nids:
        user_id = UserID(tx.name(nid))
        of_user = sorted(rooms.get(nid, ()), key=lambda each: (each.room_nid not in own_rooms, -each.changed_position))
        shown = [each for each in of_user if each.room_nid in own_rooms or each.room_nid in open_rooms]
        shown = shown[: limits.users.USER_SEARCH_ROOMS_MAX]
        for each, name in zip(shown, list_names(tx, shown), strict=True):
            if name is None or not searched.accepts(user_id, name):
                continue
            is_shared = each.room_nid in own_rooms
            if is_shared or is_open(tx, each.room_nid):
                names = (words_of(localpart_of(user_id)), words_of(name.display_name or ""))
                rank = (list(searched.words) not in names, not is_shared, name.display_name is None)
                yield rank, user_id, name
                break


def _shown(user_id: UserID, name: Name) -> JsonObject:
    shown: JsonObject = {"user_id": user_id}
    if name.display_name is not None:
        shown["display_name"] = name.display_name
    if name.avatar_url is not None:
        shown["avatar_url"] = name.avatar_url
    return shown


# --- indexing ---


async def follow_members(hs: Resources, since: int, upto: int) -> None:
    """Indexes what has changed in a span of the stream."""
    await _index(hs, await hs.database.read(_list_due, since, upto))


async def _catch_up(hs: Resources) -> None:
    """Indexes what the tail has not reached yet. If it is much, the tail does it."""
    due = await hs.database.read(_list_due)
    if sum(each.people for each in due.stale) <= PEOPLE_PER_WRITE:
        await _index(hs, due)


class _Due(msgspec.Struct, frozen=True):
    """What has to be indexed up to a position of the stream."""

    upto: int
    stale: Sequence[Stale]
    renamed: Sequence[UserID]


def _list_due(tx: Transaction, since: int | None = None, upto: int | None = None) -> _Due:
    """Returns what has to be indexed after the changes of a span; by default, the one that the tail has not stored."""
    since = find_position(tx, TAIL) or 0 if since is None else since
    upto = tx.position if upto is None else upto
    return _Due(upto, list_stale(tx, since, upto), list_renames(tx, PEOPLE_PER_WRITE))


async def _index(hs: Resources, due: _Due) -> None:
    if due.renamed:
        await hs.database.write(replace_words_of, due.renamed)
    for stale in due.stale:
        if stale.users is None:
            last: int | None = 0
            while last is not None:
                last = await hs.database.write(_index_room, stale, last)
        else:
            for start in range(0, len(stale.users), PEOPLE_PER_WRITE):
                some = stale.users[start : start + PEOPLE_PER_WRITE]
                await hs.database.write(store_words, stale.room_nid, some)
    if due.stale:
        await hs.database.write(store_position, TAIL, due.upto)


def _index_room(tx: Transaction, stale: Stale, after: int) -> int | None:
    """Indexes some members of a room. Returns the last of them, None if there are no more."""
    nids = list_members_after(tx, stale.room_nid, after, PEOPLE_PER_WRITE)
    is_complete = len(nids) < PEOPLE_PER_WRITE
    set_room(tx, stale.room_nid, is_open=stale.is_open, is_complete=is_complete)
    store_words(tx, stale.room_nid, nids)
    return None if is_complete else nids[-1]


FEATURE = Feature(
    name="user_directory",
    spec="client-server-api/#user-directory",
    schema=SCHEMA,
    routes=routes,
    limits={"user_directory": Bucket(60, 10)},  # clients search at each keystroke
    tails=(Follower(TAIL, follow_members, wake_keys=(STATE_CHANGES, RENAMES)),),
    forget_user=forget_words,
    forget_room=forget_room_words,
)
