"""Message status: to whom a message was delivered, and who has read it. Not in the spec, see docs/status.md.

A delivered receipt says that a device has acknowledged a message. Acks are collected for a moment, so that a
conversation costs a few writes in that time and not one for each message and member. From then on delivered receipts
are receipts like all others: `homeserver.features.receipts` tells clients and other servers.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.feature import Feature, SyncStart
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.limits import Bucket
from homeserver.process.acknowledged import Ack
from homeserver.resources import Resources
from homeserver.rooms.access import get_visible_event
from homeserver.rooms.membership import check_joined
from homeserver.users.delivered import forget_delivered, list_undelivered, store_delivered
from homeserver.users.message_status import MessageStatus, read_message_status

# About 20 ms, for which other writes wait.
POINTERS_PER_WRITE = 200

routes = Routes()


@routes.get("/_homeserver/client/v1/rooms/{room_id}/events/{event_id}/status", rate_limit="message_status")
async def get_message_status(hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID) -> MessageStatus:
    return await hs.database.read(_read_status, requester.user_id, room_id, event_id)


def _read_status(tx: Transaction, user_id: UserID, room_id: RoomID, event_id: EventID) -> MessageStatus:
    event = get_visible_event(tx, room_id, event_id, user_id)
    check_joined(tx, room_id, user_id)  # a former member may see the event, but not what its readers do since
    return read_message_status(tx, user_id, event)


def note_acknowledged(hs: Resources, start: SyncStart) -> None:
    """Notes that a device has everything up to `start.since`."""
    if hs.config.messages.delivery_members_max:
        hs.acknowledged.note(start.user_id, start.since, hs.now_ms())


async def store_receipts(hs: Resources) -> None:
    """Makes receipts of acks, those of a moment together."""
    while True:
        await hs.acknowledged.wait()
        await trio.sleep(limits.users.DELIVERED_INTERVAL_S)
        await _store(hs, hs.acknowledged.take())


async def _store(hs: Resources, acks: Mapping[UserID, Ack]) -> None:
    before = hs.acknowledged.find_done(acks)
    pointers, done = await hs.database.read(list_undelivered, acks, before)
    for start in range(0, len(pointers), POINTERS_PER_WRITE):
        some = pointers[start : start + POINTERS_PER_WRITE]
        moved = {pointer.user_id for pointer in some} - {pointer.user_id for pointer in pointers[start + len(some) :]}
        await hs.database.write(store_delivered, some, {user_id: done[user_id] for user_id in moved})
    for user_id, position in done.items():
        hs.acknowledged.note_done(user_id, position)


FEATURE = Feature(
    name="message_status",
    spec="none: docs/status.md",
    routes=routes,
    limits={"message_status": Bucket(200, 20)},  # a client asks for each message that is open in front of somebody
    acknowledged=note_acknowledged,
    background=(store_receipts,),
    forget_user=forget_delivered,
)
