"""The answer to a search: the results with what surrounds them. Spec: client-server-api/#post_matrixclientv3search"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from homeserver import limits
from homeserver.api.filters import RoomEventFilter
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.features.search.matches import Match
from homeserver.features.search.request import EventContext, Groupings, NextBatch, RoomEvents
from homeserver.federation.identifiers import RoomID
from homeserver.federation.signing import SigningKey
from homeserver.rooms.access import read_access
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.client_event import client_events
from homeserver.rooms.history import Reader, point_beside, read_page
from homeserver.rooms.resolve import StateAt, entries_of, positions_in
from homeserver.rooms.storage import StoredEvent, TimelineEvent, list_stored, without_withheld
from homeserver.rooms.timeline import END, START, Tokens
from homeserver.users.blocking import ignored_users

_MEMBER = "m.room.member"


class Page(msgspec.Struct, frozen=True):
    """A page of results. count: how many are known by now. next_batch: where the next page begins."""

    matches: Sequence[Match]
    count: int
    next_batch: NextBatch | None


class _Shown(msgspec.Struct, frozen=True):
    """The reader of the answer, and what shapes the events in it."""

    requester: Requester
    ignored: frozenset[str]
    tokens: Tokens

    def events(self, tx: Transaction, events: Sequence[TimelineEvent]) -> list[JsonObject]:
        user_id, device_id = self.requester.user_id, self.requester.device_id
        return bundled_events(tx, events, user_id=user_id, device_id=device_id, ignored=self.ignored)


def describe(tx: Transaction, requester: Requester, asked: RoomEvents, page: Page, generation: str) -> JsonObject:
    """Returns `room_events` of the response."""
    shown = _Shown(requester, ignored_users(tx, requester.user_id), Tokens(tx.position, generation))
    events = [match.event for match in page.matches]
    results: list[JsonObject] = [
        {"rank": match.hit.score, "result": event}
        for match, event in zip(page.matches, shown.events(tx, events), strict=True)
    ]
    senders = {(event.room_id, event.sender) for event in events}
    if asked.event_context is not None:
        for result, event in zip(results, events, strict=True):
            result["context"], around = _context(tx, shown, event, asked.event_context)
            senders.update((each.room_id, each.sender) for each in around)
    answer: JsonObject = {
        "count": page.count,
        "highlights": sorted({word for match in page.matches for word in match.words}),
        "results": results,
    }
    if page.next_batch is not None:
        answer["next_batch"] = page.next_batch.encode(tx.server.signing_key)
    if asked.groupings is not None:
        answer["groups"] = _groups(asked.groupings, events, page.next_batch, tx.server.signing_key)
    if asked.include_state:
        lazily = asked.filter is not None and asked.filter.lazy_load_members
        answer["state"] = _states(tx, requester, senders, lazily=lazily)
    return answer


def _groups(
    groupings: Groupings, events: Sequence[TimelineEvent], next_batch: NextBatch | None, signing_key: SigningKey
) -> JsonObject:
    groups: dict[str, dict[str, JsonObject]] = {group.key: {} for group in groupings.group_by}
    for key, of_key in groups.items():
        for event in events:
            name = event.room_id if key == "room_id" else event.sender
            group = of_key.setdefault(name, {"results": [], "order": len(of_key) + 1})
            group["results"].append(event.event_id)
            if next_batch is not None and not next_batch.group_key:
                within = NextBatch(
                    next_batch.order_by, next_batch.score, next_batch.time, next_batch.number, len(group["results"]),
                    "room_id" if key == "room_id" else "sender", name,
                )  # fmt: skip
                group["next_batch"] = within.encode(signing_key)
            elif next_batch is not None and (next_batch.group_key, next_batch.group) == (key, name):
                group["next_batch"] = next_batch.encode(signing_key)
    return groups


# --- what surrounds a result ---


def _context(
    tx: Transaction, shown: _Shown, event: TimelineEvent, asked: EventContext
) -> tuple[JsonObject, list[TimelineEvent]]:
    """Returns the context of a result, and the events in it."""
    reader = Reader(shown.requester.user_id, event.room_id, RoomEventFilter(), shown.ignored)
    most = limits.search.SEARCH_CONTEXT_EVENTS_MAX
    before_point, after_point = point_beside(event, is_after=False), point_beside(event, is_after=True)
    before = read_page(tx, reader, before_point, START, min(asked.before_limit, most))
    after = read_page(tx, reader, after_point, END, min(asked.after_limit, most), forwards=True)
    context: JsonObject = {
        "events_before": shown.events(tx, before.events),
        "events_after": shown.events(tx, after.events),
        "start": shown.tokens.timeline(before.end),
        "end": shown.tokens.timeline(after.end),
    }
    around = [*before.events, *after.events]
    if asked.include_profile:
        context["profile_info"] = _profiles(tx, [event, *around])
    return context, around


def _profiles(tx: Transaction, events: Sequence[TimelineEvent]) -> JsonObject:
    """Returns the profiles that the senders had when they sent these events; the first event of each decides."""
    first: dict[str, TimelineEvent] = {}
    for event in events:
        first.setdefault(event.sender, event)
    positions: dict[str, int] = {}
    for sender, event in first.items():
        key = (_MEMBER, str(sender))
        found = positions_in(tx, StateAt(event.state_before), [key])
        if key in found:
            positions[sender] = found[key]
    members = list_stored(tx, set(positions.values()))
    return {sender: _profile(members[position].content) for sender, position in positions.items()}


def _profile(member: dict[str, Any]) -> JsonObject:
    profile: JsonObject = {}
    for name in ("displayname", "avatar_url"):
        if isinstance(member.get(name), str):
            profile[name] = member[name]
    if not str(profile.get("avatar_url", "mxc://")).startswith("mxc://"):
        del profile["avatar_url"]
    return profile


def _states(
    tx: Transaction, requester: Requester, senders: set[tuple[RoomID, Any]], *, lazily: bool
) -> dict[str, list[JsonObject]]:
    """Returns the current state of each room of the results, or the one when the user left.

    lazily: with the members only who sent something that is shown; so if everything together would be too much.
    """
    answer: dict[str, list[JsonObject]] = {}
    left = limits.search.SEARCH_STATE_EVENTS_MAX
    for room_id in sorted({room_id for room_id, _ in senders}):
        try:
            state = read_access(tx, room_id, requester.user_id).state
        except MatrixError:  # they may see the event, but no longer the state
            answer[room_id] = []
            continue
        positions = entries_of(tx, state)
        if lazily or len(positions) > left:
            member_nid = tx.find(_MEMBER)
            wanted = {tx.find(sender) for each, sender in senders if each == room_id}
            positions = {key: at for key, at in positions.items() if key[0] != member_nid or key[1] in wanted}
        left -= len(positions)
        events: Sequence[StoredEvent] = without_withheld(tx, list(list_stored(tx, set(positions.values())).values()))
        answer[room_id] = client_events(tx, events, user_id=requester.user_id, device_id=requester.device_id)
    return answer
