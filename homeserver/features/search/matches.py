"""Checks what the index proposes: whether a user may see it, and whether it is still what they search for.

Theory of operation. A document of the index is the text of one event, as it was sent. A proposal becomes a match if

- its event is in a timeline and has not been redacted, and its sender has not been erased;
- it is what the user gets to see of a message: the edit that the message is bundled with for this user, or the message
  itself if there is none;
- the user may see that message, does not ignore its sender, and the filter accepts it;
- the text fulfils the rule of `homeserver.search.query`: the index does not know where words are.

So nothing but matches is ever counted or told, and changes take effect at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from homeserver.api.filters import RoomEventFilter
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.features.search.texts import TYPES, find_edited, is_edit, labels_of, text_of
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.bundles import shown_edits
from homeserver.rooms.erasure import find_erased
from homeserver.rooms.history import list_wanted
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored_at
from homeserver.rooms.visibility import filter_visible
from homeserver.search.documents import Hit
from homeserver.search.query import Query
from homeserver.search.words import Stemmers
from homeserver.users.blocking import ignored_users


class Narrowed(msgspec.Struct, frozen=True):
    """Further conditions. has: labels, of which an event has at least one; 0 for any. after ≤ time of it < before."""

    has: int = 0
    after: int | None = None
    before: int | None = None

    def accepts(self, message: StoredEvent, shown: StoredEvent) -> bool:
        """Returns whether a message fulfils them. shown: the message, or its edit."""
        return (
            (not self.has or bool(labels_of(shown) & self.has))
            and (self.after is None or message.origin_server_ts >= self.after)
            and (self.before is None or message.origin_server_ts < self.before)
        )


class Searched(msgspec.Struct, frozen=True):
    """What a user searches for. keys: as in the request. narrowed: conditions that only our own operation has."""

    requester: Requester
    query: Query
    stemmers: Stemmers
    keys: frozenset[str]
    filter: RoomEventFilter
    narrowed: Narrowed


class Match(msgspec.Struct, frozen=True):
    """An event that the user searched for. words: what matches in its text, as it is written there."""

    event: TimelineEvent
    hit: Hit
    words: frozenset[str]


class Checked(NamedTuple):
    """The proposals that are matches, in order. characters: how many were read. last: where the check has stopped."""

    matches: list[Match]
    characters: int
    last: Hit | None


def check_proposals(tx: Transaction, searched: Searched, hits: Sequence[Hit], characters_max: int) -> Checked:
    """Returns which proposals are matches. Stops after `characters_max` characters of their texts."""
    user_id = searched.requester.user_id
    ignored = ignored_users(tx, user_id)
    stored = find_stored_at(tx, [hit.number for hit in hits])
    proposed = {
        position: event
        for position, event in stored.items()
        if isinstance(event, TimelineEvent) and event.redacted_by is None and TYPES.get(event.type) in searched.keys
    }
    erased = find_erased(tx, {event.sender for event in proposed.values()})
    messages = _list_messages(tx, [event for event in proposed.values() if event.sender not in erased])
    shown = _list_shown(tx, searched, ignored, list(messages.values()))
    edits = shown_edits(tx, list(shown.values()), user_id=user_id, ignored=ignored)
    matches: list[Match] = []
    characters = 0
    last: Hit | None = None
    for hit in hits:
        message = messages.get(hit.number)
        if message is None or message.position not in shown:
            continue
        current = edits.get(message.position, message)
        if current.position != hit.number or not searched.narrowed.accepts(message, current):
            continue
        text = text_of(current)
        characters += len(text)
        if last is not None and characters > characters_max:
            return Checked(matches, characters, last)
        last = hit
        words = searched.query.find(text, searched.stemmers)
        if words is not None:
            matches.append(Match(message, hit, frozenset(words)))
    return Checked(matches, characters, None)


def _list_messages(tx: Transaction, events: Sequence[TimelineEvent]) -> dict[int, TimelineEvent]:
    """Returns, by the position of each event, the message that it is or edits."""
    messages: dict[int, TimelineEvent] = {}
    for event in events:
        message: StoredEvent | None = find_edited(tx, event) if is_edit(event) else event
        if isinstance(message, TimelineEvent) and message.redacted_by is None:
            messages[event.position] = message
    return messages


def _list_shown(
    tx: Transaction, searched: Searched, ignored: frozenset[str], messages: Sequence[TimelineEvent]
) -> dict[int, TimelineEvent]:
    """Returns those of the messages that the user may see and wants, by position."""
    by_room: dict[RoomID, dict[int, TimelineEvent]] = {}
    for message in messages:
        if message.is_state or message.sender not in ignored:
            by_room.setdefault(message.room_id, {})[message.position] = message
    return {
        message.position: message
        for room_id, of_room in by_room.items()
        for message in list_wanted(
            searched.filter, filter_visible(tx, searched.requester.user_id, room_id, list(of_room.values()))
        )
    }
