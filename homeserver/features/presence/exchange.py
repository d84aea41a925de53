"""Presence between servers: that of our users for other servers, and that of their users for us.

Theory of operation. A change is told to the servers in the user's rooms. A server with a new user in a room is told who
is there, because nobody else would tell it before something changes.

Only an m.presence for everyone is one: servers that know nothing of audiences show it to everybody who shares a room.
Presence for friends goes to the servers of friends only, in an EDU of a type of our own, which other software ignores;
the server that gets it shows it to the user's friends (`homeserver.users.told_audiences`). When a user hides, all
servers get an m.presence of somebody offline. It says for whom: "friends" makes servers that know audiences ignore it,
because the other EDU tells them what their users may see; after "nobody" they forget what they knew.

Presence of people with whom no user here shares a room is kept for a moment, see `homeserver.process.early_presence`.

Spec: server-server-api/#presence
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import trio
from msgspec.structs import replace

from homeserver import limits
from homeserver.database import Transaction
from homeserver.feature import Edu, OutgoingEdu
from homeserver.federation.edus import AUDIENCE_FIELD, PresenceUpdate, parse_presence
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.member_changes import has_at_most, is_server_new
from homeserver.rooms.membership import list_joined_from, list_joined_rooms, list_joined_servers
from homeserver.rooms.visibility import list_arrivals
from homeserver.users.presence import Presence, find_presence, list_presence_changes, list_presences, store_presence
from homeserver.users.privacy import has_just_hidden, list_servers_allowed, read_privacy
from homeserver.users.status import forget_heartbeats, note_heartbeat
from homeserver.users.told_audiences import ToldAudience, store_told_audience

FRIENDS_TYPE = "org.homeserver.presence"
"""The EDU with the content of an m.presence that is for friends only."""

EARLY_INTERVAL_S = 1


# --- what others are told ---


def list_presence_edus(tx: Transaction, since: int, upto: int) -> Iterator[OutgoingEdu]:
    """Yields an m.presence for each local user whose presence is for everyone, or who has just hidden."""
    for presence, servers in _list_news(tx, since, upto):
        user_id = presence.user_id
        if read_privacy(tx, user_id).status == "everyone":
            yield _edu(tx, presence, servers)
        elif has_just_hidden(tx, user_id, since, upto):
            of_friends = list_servers_allowed(tx, user_id, servers)
            if of_friends:
                yield _edu(tx, Presence(user_id, True), of_friends, "friends")
            if servers - of_friends:
                yield _edu(tx, Presence(user_id, True), servers - of_friends, "nobody")


def list_friends_presence_edus(tx: Transaction, since: int, upto: int) -> Iterator[OutgoingEdu]:
    """Yields the presence of each local user who shows it to friends, for the servers of friends."""
    for presence, servers in _list_news(tx, since, upto):
        if read_privacy(tx, presence.user_id).status == "friends":
            of_friends = list_servers_allowed(tx, presence.user_id, servers)
            if of_friends:
                yield _edu(tx, presence, of_friends)


def _list_news(tx: Transaction, since: int, upto: int) -> Iterator[tuple[Presence, set[ServerName]]]:
    """Yields the presence of local users who have news, each with the servers for which it is news. None is empty."""
    servers: dict[UserID, set[ServerName]] = defaultdict(set)
    entered: dict[RoomID, set[ServerName]] = defaultdict(set)
    for user_id, room_id in list_arrivals(tx, since, upto):
        if server_name_of(user_id) == tx.server.name:
            servers[user_id] |= _list_servers(tx, room_id)
        else:
            entered[room_id].add(server_name_of(user_id))
    for user_id, new in _list_present_in(tx, entered, since):
        servers[user_id] |= new
    changed = [each for each in list_presence_changes(tx, since, upto) if each.is_local]
    for presence in changed:
        for room_id in list_joined_rooms(tx, presence.user_id):
            servers[presence.user_id] |= _list_servers(tx, room_id)
    known = (each for each in list_presences(tx, servers) if each.state != "offline" or each.last_active_ms)
    for presence in {each.user_id: each for each in (*known, *changed)}.values():
        told = servers[presence.user_id] - {tx.server.name}
        if told:
            yield presence, told


def _list_servers(tx: Transaction, room_id: RoomID) -> frozenset[ServerName]:
    head = find_head(tx, room_id)
    return list_joined_servers(tx, head) if head is not None else frozenset()


def _list_present_in(
    tx: Transaction, entered: Mapping[RoomID, set[ServerName]], since: int
) -> Iterator[tuple[UserID, set[ServerName]]]:
    """Yields the local members of rooms, with the servers that have entered the room after `since`."""
    for room_id, servers in entered.items():
        new = {server for server in servers if is_server_new(tx, room_id, server, since)}
        if new and has_at_most(tx, tx.intern(room_id), limits.users.PRESENCE_TOLD_MEMBERS_MAX):
            for user_id in list_joined_from(tx, room_id, tx.server.name):
                yield user_id, new


def _edu(
    tx: Transaction, presence: Presence, servers: set[ServerName], audience: ToldAudience | None = None
) -> OutgoingEdu:
    # The spec requires last_active_ago, even of a user who was never active.
    update = {"user_id": presence.user_id, "last_active_ago": 0, **presence.body(tx.now_ms)}
    if audience is not None:
        update[AUDIENCE_FIELD] = audience
    return OutgoingEdu({"push": [update]}, destinations=tuple(sorted(servers)))


# --- what others tell ---


async def receive_presence(hs: Resources, origin: ServerName, updates: Sequence[PresenceUpdate]) -> None:
    """Stores the presence of users of another server, who let everyone see it or have just hidden."""
    await _receive(hs, [each for each in updates if each.audience != "friends"])


async def receive_friends_presence(hs: Resources, origin: ServerName, updates: Sequence[PresenceUpdate]) -> None:
    """Stores the presence of users of another server who let only friends see it."""
    await _receive(hs, [msgspec.structs.replace(each, audience="friends") for each in updates])


async def _receive(hs: Resources, updates: Sequence[PresenceUpdate]) -> None:
    if hs.config.presence.enabled and updates:
        for update in await hs.database.write(_store, updates):
            hs.early_presence.note(update.user_id, update, hs.now_ms())


async def store_early(hs: Resources) -> None:
    """Stores presence that came before the room in which it is seen, see `homeserver.process.early_presence`."""
    while True:
        await hs.early_presence.wait()
        await trio.sleep(EARLY_INTERVAL_S)
        kept = hs.early_presence.list_kept(hs.now_ms())
        known = await hs.database.read(_list_known, kept)
        taken = [found for user_id in known if (found := hs.early_presence.take(user_id, hs.now_ms())) is not None]
        if taken:
            await hs.database.write(_store, [_aged(update, age_ms) for update, age_ms in taken])


def _list_known(tx: Transaction, user_ids: Sequence[UserID]) -> list[UserID]:
    return [user_id for user_id in user_ids if list_joined_rooms(tx, user_id)]


def _aged(update: PresenceUpdate, age_ms: int) -> PresenceUpdate:
    if update.last_active_ago is None:
        return update
    return msgspec.structs.replace(update, last_active_ago=update.last_active_ago + age_ms)


def _store(tx: Transaction, updates: Iterable[PresenceUpdate]) -> list[PresenceUpdate]:
    """Stores updates, and returns those of users with whom nobody here shares a room."""
    early: list[PresenceUpdate] = []
    for update in updates:
        if list_joined_rooms(tx, update.user_id):
            _store_one(tx, update)
        else:
            early.append(update)
    return early


def _store_one(tx: Transaction, update: PresenceUpdate) -> None:
    old = find_presence(tx, update.user_id) or Presence(update.user_id, False)
    has_changed = store_told_audience(tx, update.user_id, "status", update.audience)
    active_ms = old.last_active_ms
    if update.last_active_ago is not None:
        active_ms = max(0, tx.now_ms - update.last_active_ago)
    is_online = update.presence == "online"
    if update.audience == "nobody":
        forget_heartbeats(tx, update.user_id, False)
    elif update.presence != "offline":
        note_heartbeat(tx, update.user_id, tx.now_ms)
    elif update.last_active_ago:  # 0 is what servers say of somebody who was never active
        note_heartbeat(tx, update.user_id, active_ms)
    new = replace(
        old,
        state=update.presence,
        status_msg=update.status_msg,
        last_active_ms=active_ms,
        currently_active=is_online and update.currently_active,
        due_ms=None if update.presence == "offline" else tx.now_ms + limits.users.PRESENCE_REMOTE_TIMEOUT_MS,
    )
    store_presence(tx, replace(old, position=0) if has_changed else old, new)


EDUS = {
    "m.presence": Edu(
        parse_presence,
        receive_presence,
        user=lambda update: update.user_id,
        room=None,
        source=list_presence_edus,
        coalesce_by=lambda update: update.user_id,
    ),
    FRIENDS_TYPE: Edu(
        parse_presence,
        receive_friends_presence,
        user=lambda update: update.user_id,
        room=None,
        source=list_friends_presence_edus,
        coalesce_by=lambda update: update.user_id,
    ),
}
