"""Presence in the client-server and server-server APIs. `homeserver.users.presence` keeps the states.

Spec: client-server-api/#presence, server-server-api/#presence
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgspec
import trio

from homeserver import limits
from homeserver.api.filters import wants
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import (
    UNTIL_NEWS_MS,
    BeforeSync,
    Edu,
    Ephemeral,
    Feature,
    JsonObject,
    OutgoingEdu,
    PresenceState,
    SyncContext,
    SyncStart,
)
from homeserver.federation.edus import PresenceUpdate, parse_presence
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import (
    list_joined_rooms,
    list_joined_servers,
    list_members,
    list_newcomers,
    list_sharing,
)
from homeserver.rooms.visibility import list_arrivals
from homeserver.users.blocking import ignored_in_sync
from homeserver.users.presence import (
    WAKE_KEY,
    Presence,
    find_presence,
    forget_presence,
    fresh_for_ms,
    is_anybody_there,
    is_news_of_device,
    list_due,
    list_presence_changes,
    list_presences,
    list_present,
    note_device,
    note_silence,
    set_status,
    store_presence,
)
from homeserver.users.privacy import Privacy, has_just_hidden, list_allowing, list_servers_allowed, read_privacies
from homeserver.users.status import note_heartbeat

routes = Routes()


class PresenceBody(msgspec.Struct, frozen=True):
    presence: PresenceState
    status_msg: str | None = None


@routes.get("/_matrix/client/v3/presence/{user_id}/status", allow_guest=True)
async def get_presence(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    return await hs.database.read(_read_presence, requester, user_id)


@routes.put("/_matrix/client/v3/presence/{user_id}/status", allow_guest=True)
async def set_presence(hs: Resources, requester: Requester, user_id: UserID, body: PresenceBody) -> Empty:
    if requester.user_id != user_id:
        raise forbidden("You cannot set another user's presence.")
    if len((body.status_msg or "").encode("utf-8", "surrogatepass")) > limits.users.STATUS_MESSAGE_BYTES_MAX:
        most = limits.users.STATUS_MESSAGE_BYTES_MAX
        raise MatrixError(400, "M_TOO_LARGE", f"A status message may be at most {most} bytes long.")
    if hs.config.presence.enabled:
        await hs.database.write(set_status, user_id, requester.device_id, body.presence, body.status_msg)
    return Empty()


def _read_presence(tx: Transaction, requester: Requester, user_id: UserID) -> JsonObject:
    is_own = requester.user_id == user_id
    if not (is_own or requester.is_admin or list_sharing(tx, requester.user_id, (user_id,))):
        raise forbidden("You share no room with that user.")
    nothing = Presence(user_id, True)
    if not (requester.is_admin or list_allowing(tx, requester.user_id, (user_id,), "status")):
        return nothing.body(tx.now_ms)
    return (find_presence(tx, user_id) or nothing).body(tx.now_ms)


async def follow_time(hs: Resources) -> None:
    """Makes users idle and offline when it is time."""
    if not hs.config.presence.enabled:
        return
    interval_s = min(limits.users.PRESENCE_SWEEP_INTERVAL_S, hs.config.presence.online_timeout_s / 3)
    lane = Lane("presence", hs.database, hs.metrics)

    async def sweep_some(user_nids: Sequence[int]) -> None:
        await hs.database.write(note_silence, user_nids)

    while True:
        await lane.work(await hs.database.read(list_due), sweep_some)
        somebody_is_there, position = await hs.database.read(is_anybody_there)
        if not somebody_is_there:
            await hs.stream.wait((WAKE_KEY, RETRY_KEY), position, math.inf)
        await trio.sleep(interval_s)


# --- sync and federation ---


def _is_shown_anew(tx: Transaction, start: SyncStart) -> bool:
    """Returns whether a sync shows the device in another state than before, or for the first time in a while.

    A sync with "offline" says nothing about presence: the state set by the user or another device stays.
    """
    if start.set_presence == "offline" or not tx.server.config.presence.enabled:
        return False
    return is_news_of_device(tx, start.user_id, start.device_id, start.set_presence)


def _is_shown_for_ms(tx: Transaction, start: SyncStart) -> int:
    """Returns for how long a sync with the same state shows the device as it is shown already."""
    if start.set_presence == "offline" or not tx.server.config.presence.enabled:
        return UNTIL_NEWS_MS
    return fresh_for_ms(tx, start.user_id, start.device_id)


def _show(tx: Transaction, start: SyncStart) -> None:
    note_device(tx, start.user_id, start.device_id, start.set_presence)


def sync_presence(tx: Transaction, context: SyncContext) -> None:
    """Adds the presence of the user and of users who share a room: first of all who are present, then the changes."""
    if not wants(context.filter.presence, "m.presence", None):
        return
    news = list_presence_changes(tx, context.since, context.upto) if context.since > 0 else list_present(tx)
    sharing = {context.user_id, *list_sharing(tx, context.user_id, [presence.user_id for presence in news])}
    told = [presence for presence in news if presence.user_id in sharing]
    if context.since > 0:
        told += _of_newcomers(tx, context, {presence.user_id for presence in told})
    ignored = ignored_in_sync(tx, context)
    told = [presence for presence in told if presence.user_id not in ignored]
    allowed = list_allowing(tx, context.user_id, [presence.user_id for presence in told], "status")
    for presence in told:
        if presence.user_id in allowed:
            context.presence.append(presence.event(tx.now_ms))
        elif context.since > 0 and has_just_hidden(tx, presence.user_id, context.since, context.upto):
            context.presence.append(Presence(presence.user_id, True).event(tx.now_ms))


def _of_newcomers(tx: Transaction, context: SyncContext, told: set[UserID]) -> list[Presence]:
    """Returns the presence of members of newly joined rooms, and of new members of the other rooms."""
    members: set[UserID] = set()
    for room_id, section in context.rooms.items():
        if section.since == 0:
            members.update(list_members(tx, room_id, "join"))
        elif section.members_changed:
            members.update(list_newcomers(tx, room_id, section.since))
    return [presence for presence in list_presences(tx, members - told) if presence.state != "offline"]


def list_presence_edus(tx: Transaction, since: int, upto: int) -> Iterable[OutgoingEdu]:
    """Yields an m.presence for each local user whose presence has changed, to the servers in the user's rooms.

    Also yields one for each user who has joined a room, to the servers in that room. Only servers of users who may see
    it get it. The others get a last one when the user has just hidden from them: the user is offline.
    """
    rooms: dict[UserID, list[RoomID]] = defaultdict(list)
    for user_id, room_id in list_arrivals(tx, since, upto):
        rooms[user_id].append(room_id)
    presences = [presence for presence in list_presences(tx, rooms) if presence.state != "offline"]
    changed = list_presence_changes(tx, since, upto)
    rooms.update((presence.user_id, list_joined_rooms(tx, presence.user_id)) for presence in changed)
    for presence in {each.user_id: each for each in (*presences, *changed)}.values():
        if not presence.is_local:
            continue
        servers: set[ServerName] = set()
        for room_id in rooms[presence.user_id]:
            head = find_head(tx, room_id)
            servers |= list_joined_servers(tx, head) if head is not None else set()
        servers.discard(server_name_of(presence.user_id))
        allowed = list_servers_allowed(tx, presence.user_id, servers)
        if allowed:
            yield _edu(tx, presence, allowed)
        if allowed != servers and has_just_hidden(tx, presence.user_id, since, upto):
            yield _edu(tx, Presence(presence.user_id, True), servers - allowed)


def list_ephemeral(tx: Transaction, since: int, upto: int) -> Iterator[Ephemeral]:
    """Yields the changes of presence that everybody may see."""
    changed = list_presence_changes(tx, since, upto)
    privacies = read_privacies(tx, [presence.user_id for presence in changed if presence.is_local])
    for presence in changed:
        if privacies.get(presence.user_id, Privacy()).status == "everyone":
            yield Ephemeral(presence.event(tx.now_ms), about=presence.user_id)


def _edu(tx: Transaction, presence: Presence, servers: set[ServerName]) -> OutgoingEdu:
    # The spec requires last_active_ago, even of a user who was never active.
    update = {"user_id": presence.user_id, "last_active_ago": 0, **presence.body(tx.now_ms)}
    return OutgoingEdu({"push": [update]}, destinations=tuple(sorted(servers)))


async def receive_presence(hs: Resources, origin: ServerName, updates: Sequence[PresenceUpdate]) -> None:
    """Stores the presence of users of another server who share a room with ours."""
    if hs.config.presence.enabled:
        await hs.database.write(_store_remote, updates)


def _store_remote(tx: Transaction, updates: Sequence[PresenceUpdate]) -> None:
    for update in updates:
        if not list_joined_rooms(tx, update.user_id):
            continue
        old = find_presence(tx, update.user_id) or Presence(update.user_id, False)
        active_ms = old.last_active_ms
        if update.last_active_ago is not None:
            active_ms = max(0, tx.now_ms - update.last_active_ago)
        is_online = update.presence == "online"
        note_heartbeat(tx, update.user_id, active_ms if update.presence == "offline" else tx.now_ms)
        new = replace(
            old,
            state=update.presence,
            status_msg=update.status_msg,
            last_active_ms=active_ms,
            currently_active=is_online and update.currently_active,
            due_ms=None if update.presence == "offline" else tx.now_ms + limits.users.PRESENCE_REMOTE_TIMEOUT_MS,
        )
        store_presence(tx, old, new)


FEATURE = Feature(
    name="presence",
    spec="client-server-api/#presence",
    routes=routes,
    edus={
        "m.presence": Edu(
            parse_presence,
            receive_presence,
            user=lambda update: update.user_id,
            room=None,
            source=list_presence_edus,
            coalesce_by=lambda update: update.user_id,
        )
    },
    before_sync=BeforeSync(_is_shown_anew, _show, _is_shown_for_ms),
    sync=sync_presence,
    ephemeral=list_ephemeral,
    background=(follow_time,),
    forget_user=forget_presence,
)
