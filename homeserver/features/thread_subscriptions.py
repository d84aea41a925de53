"""Thread subscriptions, and what sliding sync tells of them. Spec: MSC4306, MSC4308"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.feature import THREAD_SUBSCRIPTIONS, Feature, JsonObject, SyncContext
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.users.thread_subscriptions import (
    Change,
    State,
    forget_thread_subscriptions,
    forget_thread_subscriptions_in,
    get_state,
    list_changes,
    subscribe,
    unsubscribe,
)

# Changes in one answer, at 200 bytes each.
CHANGES_PER_ANSWER_MAX = 500
# A token of these pages, or a `pos` of sliding sync.
_TOKEN = re.compile(r"(?:t([0-9]{1,18})|s([0-9]{1,18})[._~][\x21-\x7e]{1,200})", re.ASCII)

_PATH = "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{event_id}/subscription"

routes = Routes()


class SubscriptionBody(msgspec.Struct, frozen=True):
    """automatic: the event for which a client subscribes on its own."""

    automatic: EventID | None = None


class PageQuery(msgspec.Struct, frozen=True):
    dir: Literal["b"]
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    limit: int = 100


@routes.put(_PATH, rate_limit="thread_subscription")
async def subscribe_to_thread(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, body: SubscriptionBody
) -> Empty:
    await hs.database.write(subscribe, requester.user_id, room_id, event_id, body.automatic)
    return Empty()


@routes.delete(_PATH, rate_limit="thread_subscription")
async def unsubscribe_from_thread(hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID) -> Empty:
    await hs.database.write(unsubscribe, requester.user_id, room_id, event_id)
    return Empty()


@routes.get(_PATH)
async def get_thread_subscription(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID
) -> JsonObject:
    state = await hs.database.read(get_state, requester.user_id, room_id, event_id)
    return {"automatic": state == State.AUTOMATIC}


@routes.get("/_matrix/client/unstable/io.element.msc4308/thread_subscriptions")
async def get_thread_subscriptions(hs: Resources, requester: Requester, query: PageQuery) -> JsonObject:
    if query.limit <= 0:
        raise invalid_param("limit must be greater than zero.")
    limit = min(query.limit, CHANGES_PER_ANSWER_MAX)
    upto = None if query.from_ is None else _read_token("from", query.from_)
    since = 0 if query.to is None else _read_token("to", query.to)
    return await hs.database.read(_page, requester.user_id, since, upto, limit)


def _read_token(name: str, token: str) -> int:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise invalid_param(f"{name} is not a token of this server.")
    return int(match[1] or match[2])


def _page(tx: Transaction, user_id: UserID, since: int, upto: int | None, limit: int) -> JsonObject:
    changes = list_changes(tx, user_id, since, tx.position if upto is None else upto, limit + 1)
    told = _tell(changes[:limit])
    if len(changes) > limit:
        told["end"] = _token_before(changes[limit - 1])
    return told


def sync_subscriptions(tx: Transaction, context: SyncContext) -> None:
    """Tells what has changed since, if the client's sliding sync has the extension: the newest changes only."""
    wanted = context.extensions.get(THREAD_SUBSCRIPTIONS)
    if wanted is None:
        return
    limit = min(max(wanted, 1), CHANGES_PER_ANSWER_MAX)
    changes = list_changes(tx, context.user_id, context.since, context.upto, limit + 1)
    if changes:
        told = context.extension_news[THREAD_SUBSCRIPTIONS] = _tell(changes[:limit])
        if len(changes) > limit:
            told["prev_batch"] = _token_before(changes[limit - 1])


def _token_before(change: Change) -> str:
    return f"t{change.position - 1}"


def _tell(changes: Sequence[Change]) -> JsonObject:
    told: JsonObject = {}
    for change in changes:
        about: JsonObject = {"bump_stamp": change.position}
        if change.state != State.UNSUBSCRIBED:
            about["automatic"] = change.state == State.AUTOMATIC
        kind = "unsubscribed" if change.state == State.UNSUBSCRIBED else "subscribed"
        told.setdefault(kind, {}).setdefault(change.room_id, {})[change.root_id] = about
    return told


FEATURE = Feature(
    name="thread_subscriptions",
    spec="MSC4306, MSC4308",
    routes=routes,
    sync=sync_subscriptions,
    limits={"thread_subscription": Bucket(100, 5)},  # one for each thread that somebody opens or writes in
    unstable_features={"org.matrix.msc4306": True},
    forget_user=forget_thread_subscriptions,
    forget_room=forget_thread_subscriptions_in,
)
