"""Presence in the client-server API; `exchange` has it between servers, `homeserver.users.presence` keeps the states.

Spec: client-server-api/#presence
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    Ephemeral,
    Feature,
    JsonObject,
    PresenceState,
    SyncContext,
    SyncStart,
)
from homeserver.features.presence.exchange import EDUS, store_early
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.rooms.membership import list_members, list_newcomers, list_sharing
from homeserver.users.blocking import ignored_in_sync
from homeserver.users.friends import list_changed
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
)
from homeserver.users.privacy import has_just_hidden, list_allowing, list_for_everyone

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
    if hs.config.presence.enabled and not requester.is_shadow_banned:
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


# --- sync ---


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
        told += _of_other_friends(tx, context, {presence.user_id for presence in told})
    ignored = ignored_in_sync(tx, context)
    told = [presence for presence in told if presence.user_id not in ignored]
    allowed = list_allowing(tx, context.user_id, [presence.user_id for presence in told], "status")
    for presence in told:
        if presence.user_id in allowed:
            context.presence.append(presence.event(tx.now_ms))
        elif context.since > 0 and _is_just_hidden(tx, context, presence):
            context.presence.append(Presence(presence.user_id, True).event(tx.now_ms))


def _is_just_hidden(tx: Transaction, context: SyncContext, presence: Presence) -> bool:
    """Returns whether the user of the sync cannot see a presence any more, or may have been able to until just now."""
    if has_just_hidden(tx, presence.user_id, context.since, context.upto):
        return True
    return not presence.is_local and presence.user_id in list_changed(tx, context.user_id, context.since, context.upto)


def _of_other_friends(tx: Transaction, context: SyncContext, told: set[UserID]) -> list[Presence]:
    """Returns the presence of people of other servers who have become, or are no longer, friends of the user.

    Their servers may have told it before, or for others.
    """
    changed = list_changed(tx, context.user_id, context.since, context.upto) - told
    return [presence for presence in list_presences(tx, changed) if not presence.is_local]


def _of_newcomers(tx: Transaction, context: SyncContext, told: set[UserID]) -> list[Presence]:
    """Returns the presence of members of newly joined rooms, and of new members of the other rooms."""
    members: set[UserID] = set()
    for room_id, section in context.rooms.items():
        if section.since == 0:
            members.update(list_members(tx, room_id, "join"))
        elif section.members_changed:
            members.update(list_newcomers(tx, room_id, section.since))
    return [presence for presence in list_presences(tx, members - told) if presence.state != "offline"]


def list_ephemeral(tx: Transaction, since: int, upto: int) -> Iterator[Ephemeral]:
    """Yields the changes of presence that everybody may see."""
    changed = list_presence_changes(tx, since, upto)
    shown = list_for_everyone(tx, [presence.user_id for presence in changed], "status")
    for presence in changed:
        if presence.user_id in shown:
            yield Ephemeral(presence.event(tx.now_ms), about=presence.user_id)


FEATURE = Feature(
    name="presence",
    spec="client-server-api/#presence",
    routes=routes,
    edus=EDUS,
    before_sync=BeforeSync(_is_shown_anew, _show, _is_shown_for_ms),
    sync=sync_presence,
    ephemeral=list_ephemeral,
    background=(follow_time, store_early),
    forget_user=forget_presence,
)
