"""Receipts: how far each user has read. Spec: client-server-api/#receipts, #fully-read-markers

A user has one receipt per room, type and thread: the newest one by timeline order. It replaces the previous row, so
that storage does not grow with each message read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from homeserver.api.filters import wants
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Row, Transaction
from homeserver.encoding import to_json
from homeserver.errors import invalid_param, not_found
from homeserver.feature import Edu, Ephemeral, Feature, JsonObject, OutgoingEdu, Shared, SyncContext
from homeserver.federation.edus import Receipt, parse_receipts
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID, parse_event_id, server_name_of
from homeserver.resources import Resources
from homeserver.rooms.membership import check_joined, find_membership, list_members
from homeserver.rooms.storage import find_stored_by_id
from homeserver.users.account_data import find_account_data, store_account_data
from homeserver.users.blocking import ignored_in_sync
from homeserver.users.friends import list_friends_among
from homeserver.users.presence import note_activity
from homeserver.users.privacy import list_allowing, list_for_everyone, read_privacy
from homeserver.users.receipts import (
    DELIVERED,
    PRIVATE,
    SPAN_BY_POSITION_MAX,
    find_thread,
    forget_receipts,
    is_ahead,
    is_kept_in,
    list_public_receipts,
    list_receipts_between,
    list_receipts_of_rooms,
    store_receipt,
)
from homeserver.users.told_audiences import ToldAudience, list_told_audiences, store_told_audience

FRIENDS_TYPE = "org.homeserver.receipt"
"""The EDU with the content of an m.receipt that is for friends only. Other software shows receipts to everybody."""

routes = Routes()

ReceiptType = Literal["m.read", "m.read.private", "m.fully_read"]
Markers = Mapping[ReceiptType, EventID]


class ReceiptBody(msgspec.Struct, frozen=True):
    thread_id: str | None = None


class ReadMarkersBody(
    msgspec.Struct, frozen=True, rename={"fully_read": "m.fully_read", "read": "m.read", "private": "m.read.private"}
):
    """Spec: client-server-api/#post_matrixclientv3roomsroomidread_markers"""

    fully_read: EventID | None = None
    read: EventID | None = None
    private: EventID | None = None


@routes.post(
    "/_matrix/client/v3/rooms/{room_id}/receipt/{receipt_type}/{event_id}", allow_guest=True, allow_suspended=True
)
async def post_receipt(
    hs: Resources,
    requester: Requester,
    room_id: RoomID,
    receipt_type: ReceiptType,
    event_id: EventID,
    body: ReceiptBody | None,
) -> Empty:
    thread_id = body.thread_id if body is not None else None
    if thread_id is not None:
        _check_thread(receipt_type, thread_id)
    markers: Markers = {_shown(requester, receipt_type): event_id}
    within = (room_id, requester.user_id)
    await hs.database.write(_read_up_to, room_id, requester.user_id, markers, thread_id or "", within=within)
    return Empty()


@routes.post("/_matrix/client/v3/rooms/{room_id}/read_markers", allow_guest=True, allow_suspended=True)
async def set_read_marker(hs: Resources, requester: Requester, room_id: RoomID, body: ReadMarkersBody) -> Empty:
    given: Mapping[ReceiptType, EventID | None] = {
        "m.fully_read": body.fully_read,
        "m.read": body.read,
        "m.read.private": body.private,
    }
    markers: Markers = {_shown(requester, kind): event_id for kind, event_id in given.items() if event_id is not None}
    within = (room_id, requester.user_id)
    await hs.database.write(_read_up_to, room_id, requester.user_id, markers, "", within=within)
    return Empty()


def _shown(requester: Requester, receipt_type: ReceiptType) -> ReceiptType:
    """Returns the type of a receipt. Others do not see the receipts of a shadow-banned user."""
    return "m.read.private" if requester.is_shadow_banned and receipt_type == "m.read" else receipt_type


def _check_thread(receipt_type: str, thread_id: str) -> None:
    if receipt_type == "m.fully_read":
        raise invalid_param("m.fully_read applies to the whole room and takes no thread_id.")
    if thread_id == "main":
        return
    try:
        parse_event_id(thread_id)
    except ValueError:
        raise invalid_param("thread_id must be an event ID or main.") from None


def _read_up_to(tx: Transaction, room_id: RoomID, user_id: UserID, markers: Markers, thread_id: str) -> None:
    check_joined(tx, room_id, user_id)
    for receipt_type, event_id in markers.items():
        event = find_stored_by_id(tx, event_id)
        if event is None or event.room_id != room_id:
            raise not_found("There is no such event in that room.")
        if thread_id == event_id:
            continue  # a thread's root is in the main timeline, so it says nothing about the thread
        if thread_id not in ("", "main") and find_thread(tx, event) != thread_id:
            raise invalid_param("The event is not in that thread.")
        if receipt_type == "m.fully_read":
            if _is_marker_ahead(tx, room_id, user_id, event.ordering):
                store_account_data(tx, user_id, room_id, "m.fully_read", {"event_id": event_id})
        elif is_ahead(tx, room_id, user_id, receipt_type, thread_id, event.ordering):
            store_receipt(
                tx, room_id, user_id, receipt_type, thread_id, event_id, event.ordering, tx.now_ms, is_local=True
            )
    note_activity(tx, user_id)


def _is_marker_ahead(tx: Transaction, room_id: RoomID, user_id: UserID, ordering: int | None) -> bool:
    """Returns whether a fully read marker at `ordering` is newer than the user's current one."""
    old = find_account_data(tx, user_id, room_id, "m.fully_read")
    event = None if old is None else find_stored_by_id(tx, EventID(old["event_id"]))
    if event is None or event.ordering is None:
        return True
    return ordering is not None and ordering > event.ordering


async def receive_receipts(hs: Resources, origin: ServerName, receipts: Sequence[Receipt]) -> None:
    """Stores receipts of users of another server."""
    await hs.database.write(_store_remote, receipts, None)


async def receive_friends_receipts(hs: Resources, origin: ServerName, receipts: Sequence[Receipt]) -> None:
    """Stores delivered receipts of users of another server who let only friends see them."""
    await hs.database.write(_store_remote, receipts, "friends")


def _store_remote(tx: Transaction, receipts: Sequence[Receipt], audience: ToldAudience | None) -> None:
    """Stores receipts. audience: of those that are delivered receipts, None for everyone."""
    delivered = {receipt.user_id for receipt in receipts if receipt.receipt_type == DELIVERED}
    told = list_told_audiences(tx, delivered, "delivery")
    for receipt in receipts:
        room_id, user_id, event_id = receipt.room_id, receipt.user_id, receipt.event_id
        receipt_type, thread_id = receipt.receipt_type, receipt.thread_id or ""
        if find_membership(tx, room_id, user_id) != "join":
            continue
        if receipt_type == DELIVERED and (thread_id or not is_kept_in(tx, tx.intern(room_id))):
            continue
        if receipt_type == DELIVERED and told.get(user_id) != audience:
            store_told_audience(tx, user_id, "delivery", audience)
        event = find_stored_by_id(tx, event_id)
        if event is not None and event.room_id != room_id:
            event = None
        if thread_id not in ("", "main"):
            if event is None or thread_id == event_id:
                continue
            # Anyone can make up threads, and each would be sent to everyone in the room.
            thread_id = find_thread(tx, event) or "main"
        ordering = None if event is None else event.ordering
        if ordering is None or is_ahead(tx, room_id, user_id, receipt_type, thread_id, ordering):
            store_receipt(tx, room_id, user_id, receipt_type, thread_id, event_id, ordering, receipt.ts, is_local=False)


def sync_receipts(tx: Transaction, ctx: SyncContext) -> None:
    """Adds an m.receipt event for each room with new receipts. Private ones are for their own user only.

    Delivered receipts are only for those whom their user lets see them.
    """
    if not wants(ctx.filter.room.ephemeral, "m.receipt", None):
        return
    nids: dict[int, RoomID] = {}
    rows: list[Row] = []
    for since, room_ids in ctx.rooms_by_since.items():
        of_rooms = {nid: room_id for room_id in room_ids if (nid := tx.find(room_id)) is not None}
        nids |= of_rooms
        if since and ctx.upto - since <= SPAN_BY_POSITION_MAX:
            rows += [row for row in list_receipts_between(tx, since, ctx.upto) if row[0] in of_rooms]
        else:
            rows += list_receipts_of_rooms(tx, of_rooms, since)
    names = tx.names({row[1] for row in rows})
    ignored = ignored_in_sync(tx, ctx)
    recipients = {UserID(names[row[1]]) for row in rows if row[2] == DELIVERED}
    shown = list_allowing(tx, ctx.user_id, recipients, "delivery") if recipients else recipients
    content: dict[tuple[RoomID, str], JsonObject] = {}
    for room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms in rows:
        user_id = names[user_nid]
        if user_id in ignored or (receipt_type == PRIVATE and user_id != ctx.user_id):
            continue
        if receipt_type == DELIVERED and (user_id == ctx.user_id or user_id not in shown):
            continue  # a user's own would only end the wait of the device that has just acknowledged
        receipt = {"ts": ts_ms, "thread_id": thread_id} if thread_id else {"ts": ts_ms}
        by_event = content.setdefault((nids[room_nid], thread_id), {})
        by_event.setdefault(event_id, {}).setdefault(receipt_type, {})[user_id] = receipt
    for (room_id, _), by_event in content.items():
        ctx.rooms[room_id].ephemeral.append({"type": "m.receipt", "content": by_event})


class _ReceiptsShare(msgspec.Struct):
    """New receipts of a room.

    rows: thread, event, type, owner and JSON of each receipt that is not private. readers: users who have read
    something, so that their counts have changed. limited: owners of delivered receipts that are not for everyone.
    """

    rows: list[tuple[str, EventID, str, UserID, bytes]] = msgspec.field(default_factory=list)
    readers: set[UserID] = msgspec.field(default_factory=set)
    limited: set[UserID] = msgspec.field(default_factory=set)

    def tell(self, tx: Transaction, user_id: UserID, ignored: frozenset[str]) -> list[bytes] | None:
        if user_id in self.readers:
            return None
        hidden = {user_id, *ignored}  # of delivered receipts
        if self.limited:
            hidden |= self.limited - list_allowing(tx, user_id, self.limited, "delivery")
        threads: dict[str, dict[EventID, dict[str, list[bytes]]]] = {}
        for thread_id, event_id, receipt_type, owner, part in self.rows:
            if owner in (hidden if receipt_type == DELIVERED else ignored):
                continue
            by_type = threads.setdefault(thread_id, {}).setdefault(event_id, {})
            by_type.setdefault(receipt_type, []).append(part)
        return [b'{"type":"m.receipt","content":%b}' % _join_receipts(by_event) for by_event in threads.values()]


def _join_receipts(by_event: Mapping[EventID, Mapping[str, Sequence[bytes]]]) -> bytes:
    return _join(
        to_json(event_id) + b":" + _join(to_json(name) + b":" + _join(parts) for name, parts in by_type.items())
        for event_id, by_type in by_event.items()
    )


def _join(parts: Iterable[bytes]) -> bytes:
    return b"{%b}" % b",".join(parts)


def share_receipts(tx: Transaction, since: int, upto: int) -> Shared:
    """Returns what `sync_receipts` tells of a span. Each receipt is encoded once."""
    rows = list_receipts_between(tx, since, upto)
    names = tx.names({nid for row in rows for nid in row[:2]})
    shown = list_for_everyone(tx, {UserID(names[row[1]]) for row in rows if row[2] == DELIVERED}, "delivery")
    rooms: dict[RoomID, _ReceiptsShare] = {}
    for room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms in rows:
        user_id, share = UserID(names[user_nid]), rooms.setdefault(RoomID(names[room_nid]), _ReceiptsShare())
        if receipt_type != DELIVERED:
            share.readers.add(user_id)
        elif user_id not in shown:
            share.limited.add(user_id)
        if receipt_type != PRIVATE:
            receipt = {"ts": ts_ms, "thread_id": thread_id} if thread_id else {"ts": ts_ms}
            part = to_json(user_id) + b":" + to_json(receipt)
            share.rows.append((thread_id, event_id, receipt_type, user_id, part))
    return Shared(len(rows), rooms)


def list_receipt_edus(tx: Transaction, since: int, upto: int) -> Iterable[OutgoingEdu]:
    """Yields an EDU with the public receipts of local users for each room and thread.

    Every EDU has `m.read`, if only an empty one, because the spec requires it and some servers refuse receipts without
    it. Delivered receipts that are not for everyone are left out, because servers show receipts to the whole room.
    """
    by_thread: dict[tuple[RoomID, str], JsonObject] = {}
    for room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms in list_public_receipts(tx, since, upto):
        data: dict[str, Any] = {"ts": ts_ms, "thread_id": thread_id} if thread_id else {"ts": ts_ms}
        room_id, user_id = RoomID(tx.name(room_nid)), UserID(tx.name(user_nid))
        receipts = {user_id: {"event_ids": [event_id], "data": data}}
        if receipt_type == DELIVERED and read_privacy(tx, user_id).delivery != "everyone":
            continue
        kinds = by_thread.setdefault((room_id, thread_id), {"m.read": {}})
        kinds.setdefault(receipt_type, {}).update(receipts)
    for (room_id, _), kinds in by_thread.items():
        yield OutgoingEdu({room_id: kinds}, room_id)


def list_friends_receipt_edus(tx: Transaction, since: int, upto: int) -> Iterable[OutgoingEdu]:
    """Yields an EDU for each delivered receipt that is for friends, to the servers with a friend in the room."""
    for room_nid, user_nid, receipt_type, _, event_id, ts_ms in list_public_receipts(tx, since, upto):
        if receipt_type != DELIVERED:
            continue
        room_id, user_id = RoomID(tx.name(room_nid)), UserID(tx.name(user_nid))
        if read_privacy(tx, user_id).delivery != "friends":
            continue
        if servers := _list_servers_of_friends(tx, user_id, room_id):
            receipts = {user_id: {"event_ids": [event_id], "data": {"ts": ts_ms}}}
            yield OutgoingEdu({room_id: {DELIVERED: receipts}}, destinations=servers)


def _list_servers_of_friends(tx: Transaction, user_id: UserID, room_id: RoomID) -> tuple[ServerName, ...]:
    """Returns the other servers with a friend of the user in the room."""
    friends = list_friends_among(tx, user_id, list_members(tx, room_id, "join"))
    return tuple(sorted({server_name_of(friend) for friend in friends} - {tx.server.name}))


def list_ephemeral(tx: Transaction, since: int, upto: int) -> Iterator[Ephemeral]:
    """Yields the receipts of a span, for application services. Spec: application-service-api/#pushing-ephemeral-data"""
    for room_nid, user_nid, receipt_type, thread_id, event_id, ts_ms in list_receipts_between(tx, since, upto):
        if receipt_type != DELIVERED:
            user_id = UserID(tx.name(user_nid))
            receipt = {"ts": ts_ms, **({"thread_id": thread_id} if thread_id else {})}
            event = {"type": "m.receipt", "content": {event_id: {receipt_type: {user_id: receipt}}}}
            private_to = user_id if receipt_type == PRIVATE else None
            yield Ephemeral(event, RoomID(tx.name(room_nid)), private_to=private_to)


FEATURE = Feature(
    name="receipts",
    spec="client-server-api/#receipts",
    routes=routes,
    edus={
        "m.receipt": Edu(
            partial(parse_receipts, types=("m.read", DELIVERED)),
            receive_receipts,
            user=lambda receipt: receipt.user_id,
            room=lambda receipt: receipt.room_id,
            source=list_receipt_edus,
            coalesce_by=lambda receipt: (receipt.room_id, receipt.user_id, receipt.receipt_type, receipt.thread_id),
        ),
        FRIENDS_TYPE: Edu(
            partial(parse_receipts, types=(DELIVERED,)),
            receive_friends_receipts,
            user=lambda receipt: receipt.user_id,
            room=lambda receipt: receipt.room_id,
            source=list_friends_receipt_edus,
            coalesce_by=lambda receipt: (receipt.room_id, receipt.user_id),
        ),
    },
    sync=sync_receipts,
    ephemeral=list_ephemeral,
    share=share_receipts,
    forget_user=forget_receipts,
)
