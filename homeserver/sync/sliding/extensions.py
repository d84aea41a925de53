"""Extensions: what is not about events of rooms. It comes from the features, as in `/v3/sync`.

A feature tells what is new in a room since the client knows the room. If an extension is on for the first time, the
client knows nothing of it: then all of it is told. `pos` says which extensions the last answer had.

Spec: MSC3884 (e2ee), MSC3885 (to-device), MSC3959 (account data), MSC3960 (receipts), MSC3961 (typing),
MSC4308 (thread subscriptions)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from homeserver.api.filters import EventFilter, Filter, RoomEventFilter, RoomFilter
from homeserver.database import Transaction
from homeserver.feature import THREAD_SUBSCRIPTIONS, JsonObject, RoomSection, SyncContext
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.timeline import Tokens
from homeserver.sync.sections import Sections, add_sections
from homeserver.sync.sliding.lists import Wanted
from homeserver.sync.sliding.request import Extension, Extensions, SlidingRequest

ACCOUNT_DATA, RECEIPTS, TYPING, THREADS = 1, 2, 4, 8
NOTHING: list[str] = []


def extension_bits(extensions: Extensions) -> int:
    """Returns which extensions are on that must be told from the beginning, as a number for `pos`."""
    on = (
        (ACCOUNT_DATA, extensions.account_data), (RECEIPTS, extensions.receipts), (TYPING, extensions.typing),
        (THREADS, extensions.thread_subscriptions),
    )  # fmt: skip
    return sum(bit for bit, extension in on if extension.enabled)


class Told(msgspec.Struct):
    """What the features have told: the extensions, whether they have news, and the counts of rooms."""

    body: JsonObject = msgspec.field(default_factory=dict)
    has_news: bool = False
    queue_upto: int = 0
    counts: dict[RoomID, JsonObject] = msgspec.field(default_factory=dict)


def read_extensions(
    tx: Transaction,
    sections: Sections,
    request: SlidingRequest,
    tokens: Tokens,
    rooms: Mapping[RoomID, tuple[Wanted, RoomSection]],
    rooms_told: Iterable[RoomID],
    *,
    around_damage: bool,
) -> Told:
    """Asks the features what is new. rooms: the joined rooms in view; rooms_told: those that the answer has."""
    extensions, bits = request.extensions, extension_bits(request.extensions)
    context = _context(
        request, tokens, request.since or 0, {room_id: section for room_id, (_, section) in rooms.items()}
    )
    add_sections(tx, sections.news, context, around_damage=around_damage)
    by_bit = dict.fromkeys((ACCOUNT_DATA, RECEIPTS, TYPING, THREADS), context)
    added = bits & ~request.told_extensions if request.since is not None else 0
    if added:
        whole = _context(request, tokens, 0, {room_id: RoomSection(0) for room_id in rooms})
        add_sections(tx, sections.news, whole, around_damage=around_damage)
        by_bit |= {bit: whole for bit in by_bit if added & bit}
    told = Told(queue_upto=context.queue_upto)
    if extensions.to_device.enabled:
        next_batch = Tokens(context.queue_upto, tokens.generation).stream()
        told.body["to_device"] = {"next_batch": next_batch, "events": context.to_device}
        told.has_news |= bool(context.to_device)
    if extensions.account_data.enabled:
        _add_account_data(told, by_bit[ACCOUNT_DATA], _in_scope(extensions.account_data, rooms))
    for bit, name, extension, event_type in (
        (RECEIPTS, "receipts", extensions.receipts, "m.receipt"),
        (TYPING, "typing", extensions.typing, "m.typing"),
    ):
        if extension.enabled:
            _add_ephemeral(told, name, by_bit[bit], _in_scope(extension, rooms), event_type)
    if threads := by_bit[THREADS].extension_news.get(THREAD_SUBSCRIPTIONS):
        told.body[THREAD_SUBSCRIPTIONS] = threads
        told.has_news = True
    device_lists = context.extra.get("device_lists")
    told.has_news |= extensions.e2ee.enabled and device_lists is not None
    context.rooms_told = frozenset(rooms_told)
    add_sections(tx, sections.always, context, around_damage=around_damage)
    if extensions.e2ee.enabled:
        told.body["e2ee"] = {**context.always, **({} if device_lists is None else {"device_lists": device_lists})}
    _add_counts(told, context)
    return told


def _context(request: SlidingRequest, tokens: Tokens, since: int, rooms: dict[RoomID, RoomSection]) -> SyncContext:
    extensions = request.extensions
    ephemeral = [
        event_type
        for event_type, extension in (("m.receipt", extensions.receipts), ("m.typing", extensions.typing))
        if extension.enabled
    ]
    account_data = None if extensions.account_data.enabled else NOTHING
    return SyncContext(
        user_id=request.requester.user_id,
        device_id=request.requester.device_id,
        since=since,
        upto=tokens.position,
        filter=Filter(
            presence=EventFilter(types=NOTHING),
            account_data=EventFilter(types=account_data),
            room=RoomFilter(
                ephemeral=RoomEventFilter(types=ephemeral), account_data=RoomEventFilter(types=account_data)
            ),
        ),
        rooms=rooms,
        extensions=(
            {THREAD_SUBSCRIPTIONS: extensions.thread_subscriptions.limit}
            if extensions.thread_subscriptions.enabled
            else {}
        ),
        queue_since=request.queue_since,
        queue_upto=tokens.position,
    )


def _in_scope(extension: Extension, rooms: Mapping[RoomID, tuple[Wanted, RoomSection]]) -> set[RoomID]:
    """Returns the rooms that an extension is about: those of its lists, and of its subscriptions."""
    lists, subscribed = extension.lists, extension.rooms
    return {
        room_id
        for room_id, (wanted, _) in rooms.items()
        if (wanted.lists and (lists is None or "*" in lists or not set(lists).isdisjoint(wanted.lists)))
        or (wanted.is_subscribed and (subscribed is None or "*" in subscribed or room_id in subscribed))
    }


def _add_account_data(told: Told, context: SyncContext, rooms: set[RoomID]) -> None:
    of_rooms = {
        room_id: section.account_data
        for room_id, section in context.rooms.items()
        if section.account_data and room_id in rooms
    }
    if context.account_data or of_rooms:
        told.body["account_data"] = {"global": context.account_data, "rooms": of_rooms}
        told.has_news = True


def _add_ephemeral(told: Told, name: str, context: SyncContext, rooms: set[RoomID], event_type: str) -> None:
    """Adds the ephemeral events of a type. A room has one at most, so receipts of several threads become one."""
    found: dict[RoomID, JsonObject] = {}
    for room_id, section in context.rooms.items():
        contents = [event["content"] for event in section.ephemeral if event["type"] == event_type]
        if contents and room_id in rooms:
            content = contents[0] if len(contents) == 1 else _merge_receipts(contents)
            found[room_id] = {"type": event_type, "content": content}
    if found:
        told.body[name] = {"rooms": found}
        told.has_news = True


def _merge_receipts(contents: Iterable[JsonObject]) -> JsonObject:
    """Returns one content for those of several threads.

    A user may have receipts of two threads at one event, for which there is no place: then the unthreaded one is told,
    which implies the other.
    """
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for content in contents:
        for event_id, by_type in content.items():
            for receipt_type, users in by_type.items():
                known = merged.setdefault(event_id, {}).setdefault(receipt_type, {})
                for user_id, receipt in users.items():
                    if user_id not in known or "thread_id" not in receipt:
                        known[user_id] = receipt
    return merged


def _add_counts(told: Told, context: SyncContext) -> None:
    for room_id, section in context.rooms.items():
        counts = section.unread_notifications
        if counts:
            told.counts[room_id] = {
                name: counts[name] for name in ("notification_count", "highlight_count") if name in counts
            }
