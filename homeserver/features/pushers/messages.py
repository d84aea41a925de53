"""What a push gateway is told. Spec: push-gateway-api/#post_matrixpushv1notify"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from homeserver import limits
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_recent
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.storage import TimelineEvent, find_stored
from homeserver.rooms.visibility import filter_visible
from homeserver.users.push.notifications import is_unread, unpack_actions
from homeserver.users.push.pushers import COUNTS_ONLY, Pusher, Queued, find_first_queued, find_pusher, list_queued
from homeserver.users.push.rules import tweaks_of


class Due(msgspec.Struct, frozen=True):
    """The first thing in a pusher's queue. notification: without the counts; None if there is nothing to tell."""

    pusher: Pusher
    queued: Queued
    notification: JsonObject | None


def find_due(tx: Transaction, number: int) -> Due | None:
    """Returns what a pusher is to be told next, None if its queue is empty or it was deleted."""
    pusher = find_pusher(tx, number)
    queued = None if pusher is None else find_first_queued(tx, number)
    if pusher is None or queued is None:
        return None
    if queued.position == COUNTS_ONLY:
        return Due(pusher, queued, {"devices": [_device(pusher, {})]})
    return Due(pusher, queued, find_notification(tx, pusher, queued))


def find_notification(tx: Transaction, pusher: Pusher, queued: Queued) -> JsonObject | None:
    """Returns the notification of an event, None if it came to nothing: it is too old, read, redacted or hidden."""
    event = find_stored(tx, queued.position)
    if not is_recent(queued.queued_ms, tx.now_ms, limits.users.PUSH_AGE_MS):
        return None
    if not isinstance(event, TimelineEvent) or event.redacted_by is not None:
        return None
    is_target = event.type == "m.room.member" and event.state_key == pusher.user_id
    if not is_target and not (
        is_unread(tx, pusher.user_id, event) and filter_visible(tx, pusher.user_id, event.room_id, [event])
    ):
        return None
    actions = unpack_actions(queued.actions)
    told: JsonObject = {"event_id": event.event_id, "room_id": event.room_id}
    if pusher.content["data"].get("format") != "event_id_only":
        told |= _event_fields(tx, event, pusher.user_id, is_target=is_target)
        told["prio"] = _priority(event, actions)
    return {**told, "devices": [_device(pusher, tweaks_of(actions))]}


def list_unusable(tx: Transaction, number: int) -> list[Queued]:
    """Returns what is in a pusher's queue but cannot be read; everything if that is not what is wrong with it."""
    pusher, queued = find_pusher(tx, number), list_queued(tx, number)
    damaged: list[Queued] = []
    if pusher is None:
        return queued
    for row in queued:
        try:
            tx.attempt(find_notification, tx, pusher, row)
        except DatabaseDamaged:
            damaged.append(row)
    return damaged or queued


def _event_fields(tx: Transaction, event: TimelineEvent, user_id: UserID, *, is_target: bool) -> JsonObject:
    told: JsonObject = {"type": event.type, "sender": event.sender, "content": event.content}
    head = find_head(tx, event.room_id)
    root = event.state_before if head is None or is_target else head.state_root
    for name, kind, state_key, field in (
        ("sender_display_name", "m.room.member", event.sender, "displayname"),
        ("room_name", "m.room.name", "", "name"),
        ("room_alias", "m.room.canonical_alias", "", "alias"),
    ):
        content = state_content(tx, root, kind, state_key)
        value = None if content is None else content.get(field)
        if isinstance(value, str) and value:
            told[name] = value
    if event.type == "m.room.member":
        told["user_is_target"] = is_target
    return told


def _priority(event: TimelineEvent, actions: Sequence[Any]) -> str:
    """Returns "high" for what a person should look at now. Only the app can judge an encrypted event."""
    tweaks = tweaks_of(actions)
    is_urgent = "sound" in tweaks or tweaks.get("highlight", False) is not False
    return "high" if is_urgent or event.type == "m.room.encrypted" else "low"


def _device(pusher: Pusher, tweaks: JsonObject) -> JsonObject:
    return {
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "pushkey_ts": pusher.set_ms // 1000,
        "data": pusher.data,
        "tweaks": tweaks,
    }
