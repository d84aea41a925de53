"""Bundled aggregations: `unsigned.m.relations` of an event, with its latest edit, its references and its thread.

A page of events without children costs one query. Everything that is bundled is visible to the user. Children that
ignored users have sent are left out, and so are those whose content the user does not get because the sender is erased.

Spec: client-server-api/#aggregations-of-child-events
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.client_event import client_events
from homeserver.rooms.relations import (
    EDIT,
    REFERENCE,
    THREAD,
    Aggregation,
    Kind,
    Wanted,
    count_replies,
    count_replies_upto,
    find_relation,
    list_aggregations,
    list_children,
    list_edits,
    list_participated,
)
from homeserver.rooms.storage import StoredEvent, TimelineEvent, list_in_timeline
from homeserver.rooms.timeline import END, START
from homeserver.rooms.visibility import filter_visible

_REL_TYPES = {Kind.EDITS: EDIT, Kind.REFERENCES: REFERENCE, Kind.THREAD: THREAD}


class _Viewer(msgspec.Struct, frozen=True):
    user_id: str
    device_id: str
    ignored: frozenset[str]
    with_room_id: bool


def bundled_events(
    tx: Transaction,
    events: Sequence[StoredEvent],
    *,
    user_id: str,
    device_id: str = "",
    ignored: frozenset[str] = frozenset(),
    with_room_id: bool = True,
) -> list[dict[str, Any]]:
    """Does the same as `client_events`, and bundles each event with its aggregations.

    The user may see all of the events. ignored: users whose events are not bundled.
    """
    return _bundled(tx, _Viewer(user_id, device_id, ignored, with_room_id), events)


def shown_edits(
    tx: Transaction, events: Sequence[StoredEvent], *, user_id: str, ignored: frozenset[str] = frozenset()
) -> dict[int, TimelineEvent]:
    """Returns the edit that each of the events is bundled with for the user, by the position of the edited event."""
    viewer = _Viewer(user_id, "", ignored, with_room_id=True)
    parents = {event.position: event for event in events if event.state_key is None}
    found = [
        each
        for each in list_aggregations(tx, parents)
        if each.kind == Kind.EDITS and _may_have(parents[each.parent], each.kind, is_nested=False)
    ]
    latest = _list_latest(tx, viewer, found)
    edits = {each.parent: latest.get(each.latest) or _find_earlier(tx, viewer, each) for each in found}
    return {parent: edit for parent, edit in edits.items() if edit is not None}


def visible_children(
    tx: Transaction, user_id: str, ignored: frozenset[str], events: Iterable[TimelineEvent]
) -> list[TimelineEvent]:
    """Returns those of some children that the user may see and does not ignore. Those of one room keep their order.

    A child whose relation is part of what the user may not see is left out.
    """
    by_room: dict[RoomID, list[TimelineEvent]] = {}
    for event in events:
        if event.sender not in ignored:
            by_room.setdefault(event.room_id, []).append(event)
    return [
        event
        for room_id, children in by_room.items()
        for event in filter_visible(tx, user_id, room_id, children)
        if find_relation(event.content) is not None
    ]


def _bundled(
    tx: Transaction, viewer: _Viewer, events: Sequence[StoredEvent], *, is_nested: bool = False
) -> list[dict[str, Any]]:
    shown = client_events(
        tx, events, user_id=viewer.user_id, device_id=viewer.device_id, with_room_id=viewer.with_room_id
    )
    parents = {event.position: event for event in events if event.state_key is None}
    found = list_aggregations(tx, parents)
    if not found:
        return shown
    bundles: dict[int, dict[str, Any]] = {}
    may_have = [each for each in found if _may_have(parents[each.parent], each.kind, is_nested=is_nested)]
    latest = _list_latest(tx, viewer, may_have)
    threads: list[tuple[Aggregation, TimelineEvent]] = []
    for each in may_have:
        if each.kind == Kind.REFERENCES:
            if references := _list_references(tx, viewer, each.parent):
                bundles.setdefault(each.parent, {})[REFERENCE] = {"chunk": references}
            continue
        child = latest.get(each.latest) or _find_earlier(tx, viewer, each)
        if child is None:
            continue
        if each.kind == Kind.THREAD:
            threads.append((each, child))
        else:
            (edit,) = client_events(
                tx, [child], user_id=viewer.user_id, device_id=viewer.device_id, with_room_id=viewer.with_room_id
            )
            bundles.setdefault(each.parent, {})[EDIT] = edit
    for parent, thread in _threads(tx, viewer, threads).items():
        bundles.setdefault(parent, {})[THREAD] = thread
    for event, answer in zip(events, shown, strict=True):
        if event.position in bundles:
            answer["unsigned"]["m.relations"] = bundles[event.position]
    return shown


def _may_have(parent: StoredEvent, kind: int, *, is_nested: bool) -> bool:
    """Returns whether an event may be bundled with such children, by what it says itself.

    A redacted event or an edit has no edits, and an event that relates to another one is not the root of a thread.
    """
    if kind == Kind.REFERENCES:
        return True
    relation = find_relation(parent.content)
    if kind == Kind.EDITS:
        return parent.redacted_by is None and (relation is None or relation.rel_type != EDIT)
    return relation is None and not is_nested


def _list_latest(tx: Transaction, viewer: _Viewer, found: Iterable[Aggregation]) -> dict[int, TimelineEvent]:
    """Returns the newest edits and replies that the user may see and wants, by position."""
    positions = [each.latest for each in found if each.kind != Kind.REFERENCES]
    if not positions:
        return {}
    children = list_in_timeline(tx, positions).values()
    return {event.position: event for event in visible_children(tx, viewer.user_id, viewer.ignored, children)}


def _find_earlier(tx: Transaction, viewer: _Viewer, found: Aggregation) -> TimelineEvent | None:
    """Returns the newest edit or reply that the user may see and wants, among the newest HIDDEN_CHILDREN_MAX."""
    if found.kind == Kind.EDITS:
        children = list_edits(tx, found.parent, limits.HIDDEN_CHILDREN_MAX)
    else:
        children = list_children(
            tx, (found.parent,), Wanted(THREAD), START, END, limits.HIDDEN_CHILDREN_MAX, forwards=False
        )
    shown = visible_children(tx, viewer.user_id, viewer.ignored, children)
    return shown[0] if shown else None


def _list_references(tx: Transaction, viewer: _Viewer, parent: int) -> list[dict[str, Any]]:
    """Returns the newest references to an event, oldest first."""
    children = list_children(
        tx, (parent,), Wanted(REFERENCE), START, END, limits.REFERENCES_BUNDLED_MAX, forwards=False
    )
    shown = visible_children(tx, viewer.user_id, viewer.ignored, children)
    return [{"event_id": event.event_id} for event in reversed(shown)]


def _threads(
    tx: Transaction, viewer: _Viewer, threads: Sequence[tuple[Aggregation, TimelineEvent]]
) -> dict[int, dict[str, Any]]:
    """Returns the summary of each thread, given with the latest reply that the user sees, by the root's position."""
    if not threads:
        return {}
    participated = list_participated(tx, viewer.user_id, [each.parent for each, _ in threads])
    shown = _bundled(tx, viewer, [reply for _, reply in threads], is_nested=True)
    return {
        each.parent: {
            "latest_event": answer,
            "count": _count_replies(tx, viewer, each, reply),
            "current_user_participated": each.parent in participated,
        }
        for (each, reply), answer in zip(threads, shown, strict=True)
    }


def _count_replies(tx: Transaction, viewer: _Viewer, thread: Aggregation, latest: TimelineEvent) -> int:
    """Returns the number of replies without those of ignored users, and without those after the last visible one."""
    if latest.position != thread.latest:
        return count_replies_upto(tx, thread.parent, latest.ordering, viewer.ignored)
    return thread.children - (count_replies(tx, thread.parent, viewer.ignored) if viewer.ignored else 0)
