"""Notifications: which events notify whom, unread counts, and the list of notifications.

Spec: client-server-api/#receiving-notifications, #listing-notifications
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.database.tail import find_position, store_position
from homeserver.errors import invalid_param
from homeserver.feature import Feature, Follower, JsonObject, SyncContext
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.rooms.client_event import client_events
from homeserver.rooms.storage import list_event_ids
from homeserver.rooms.visibility import filter_visible
from homeserver.users.push.counts import Counts, RoomCounts
from homeserver.users.push.evaluation import Evaluated, evaluate
from homeserver.users.push.notifications import (
    TAIL,
    UNREACHED_MAX,
    Listed,
    count_unread,
    forget_notifications,
    list_late_rooms,
    list_notifications,
    pack_actions,
    store_notifications,
)
from homeserver.users.push.pushers import COUNTS_ONLY, list_with_pushers, store_queued
from homeserver.users.push.recount import recount_unread
from homeserver.users.receipts import list_read_rooms, list_readers

LIMIT_DEFAULT = 20
LIMIT_MAX = 100
"""Each may be an event of 64 KiB."""

# The position up to which the tail has come is stored at least this often: syncs judge what lies after it themselves.
STORE_EVERY = UNREACHED_MAX // 4
# The tail rests so many times as long as it worked, so that a busy server judges and stores some messages together,
# in a commit that others rarely wait for. Only pushes come later by that.
REST = 10

routes = Routes()


# --- the list ---


class NotificationsQuery(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Spec: client-server-api/#get_matrixclientv3notifications"""

    from_: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0)] = LIMIT_DEFAULT
    only: str | None = None


@routes.get("/_matrix/client/v3/notifications", rate_limit="notifications")
async def get_notifications(hs: Resources, requester: Requester, query: NotificationsQuery) -> JsonObject:
    before = 2**63 - 1
    if query.from_ is not None:
        if not (query.from_.isascii() and query.from_.isdigit() and len(query.from_) < 19):
            raise invalid_param("from is not a next_token that this server has returned.")
        before = int(query.from_)
    limit = max(1, min(query.limit, LIMIT_MAX))
    return await hs.database.read(_page, requester, before, limit, query.only == "highlight")


def _page(tx: Transaction, requester: Requester, before: int, limit: int, only_highlights: bool) -> JsonObject:
    user_id = requester.user_id
    listed = list_notifications(tx, user_id, before, limit, only_highlights=only_highlights)
    answer: JsonObject = {"notifications": [_shown(tx, requester, each) for each in _visible(tx, user_id, listed)]}
    if len(listed) == limit:
        answer["next_token"] = str(listed[-1].event.ordering)
    return answer


def _visible(tx: Transaction, user_id: UserID, listed: list[Listed]) -> list[Listed]:
    return [each for each in listed if filter_visible(tx, user_id, each.event.room_id, [each.event])]


def _shown(tx: Transaction, requester: Requester, listed: Listed) -> JsonObject:
    event = listed.event
    (shown,) = client_events(tx, [event], user_id=requester.user_id, device_id=requester.device_id, with_room_id=False)
    return {
        "actions": listed.actions,
        "event": shown,
        "read": listed.is_read,
        "room_id": event.room_id,
        "ts": event.origin_server_ts,
    }


# --- sync ---


def tell_counts(tx: Transaction, context: SyncContext) -> None:
    """Adds the counts of rooms with events in the answer, and of those whose counts have changed without an event.

    The answer may lack a room that the user has read: the client need not ask for receipts.
    """
    changed = set(list_late_rooms(tx, context.since)) if context.since else set()
    for since, room_ids in context.rooms_by_since.items():
        if since:
            changed |= list_read_rooms(tx, context.user_id, room_ids, since, context.upto)
    told = [room_id for room_id in context.rooms if room_id in context.rooms_told or room_id in changed]
    apart = context.filter.room.timeline.unread_thread_notifications
    for room_id, counts in count_unread(tx, context.user_id, told, context.ignored).items():
        section = context.rooms[room_id]
        if not apart:
            section.unread_notifications = counts.total.body()
            continue
        section.unread_notifications = counts.main.body()
        section.unread_thread_notifications = _by_thread(tx, counts)


def recount(tx: Transaction, positions: Sequence[int]) -> Callable[[UserID, JsonObject], JsonObject | None] | None:
    """Returns what new messages do to the counts of their room, see `homeserver.feature.Recount`."""
    add = recount_unread(tx, positions)
    if add is None:
        return None

    def count(user_id: UserID, before: JsonObject) -> JsonObject | None:
        counts = add(user_id, Counts(before["notification_count"], before["highlight_count"]))
        return None if counts is None else counts.body()

    return count


def _by_thread(tx: Transaction, counts: RoomCounts) -> JsonObject | None:
    unread = {thread: each for thread, each in counts.threads.items() if each.notifications > 0}
    if not unread:
        return None
    roots = list_event_ids(tx, unread)
    return {roots[thread]: each.body() for thread, each in unread.items() if thread in roots}


# --- the tail ---


async def follow(hs: Resources, since: int, upto: int) -> None:
    """Judges the events of a span, and queues what pushers are to be told."""
    found, readers, reached = await hs.database.read(_evaluate, since, upto)
    if found or readers:
        await hs.database.write(_store, found, readers, since, upto)
    elif upto - reached >= STORE_EVERY:
        await hs.database.write(store_position, TAIL, upto)


def _evaluate(tx: Transaction, since: int, upto: int) -> tuple[Evaluated, set[UserID], int]:
    readers = list_readers(tx, since, upto)
    return evaluate(tx, since, upto), list_with_pushers(tx, readers) if readers else set(), find_position(tx, TAIL) or 0


def _store(tx: Transaction, found: Evaluated, readers: set[UserID], since: int, upto: int) -> None:
    store_notifications(tx, found, since, upto)
    for notified in found.notified:
        for user_id, outcome in notified.pushed.items():
            store_queued(tx, user_id, notified.event.position, pack_actions(outcome))
    for user_id in readers:
        store_queued(tx, user_id, COUNTS_ONLY, None)


FEATURE = Feature(
    name="notifications",
    spec="client-server-api/#receiving-notifications",
    routes=routes,
    limits={"notifications": Bucket(30, 1)},  # a page reads a little of each room
    sync_always=tell_counts,
    recount=recount,
    tails=(Follower(TAIL, follow, rest=REST, from_now=True),),
    forget_user=forget_notifications,
)
