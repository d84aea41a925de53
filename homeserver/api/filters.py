"""Filters: the events a client asks for, as an argument of its requests. Spec: client-server-api/#filtering"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec
import orjson

from homeserver.encoding import to_json
from homeserver.errors import bad_json

FILTER_LIST_MAX = 1000  # entries of one list of a filter: each is tried on each event
TIMELINE_LIMIT_DEFAULT = 10
TIMELINE_LIMIT_MAX = 1000  # a client gets more of the timeline from /messages

# "A server may include more fields than were requested": what the schema of an event requires.
ALWAYS_SELECTED = ("event_id", "type", "state_key", "sender", "origin_server_ts")

_Names = list[str] | None


class EventFilter(msgspec.Struct, frozen=True):
    """A filter for events. Types may contain "*"; `None` accepts everything."""

    limit: int | None = None
    types: _Names = None
    not_types: list[str] = []
    senders: _Names = None
    not_senders: list[str] = []

    def __post_init__(self) -> None:
        for names in (self.types, self.not_types, self.senders, self.not_senders):
            if names is not None and len(names) > FILTER_LIST_MAX:
                raise ValueError(f"a list of a filter may have {FILTER_LIST_MAX} entries at most")


class RoomEventFilter(EventFilter, frozen=True):
    """An EventFilter with further conditions that apply only to events of rooms."""

    rooms: _Names = None
    not_rooms: list[str] = []
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False

    @property
    def accepts_all(self) -> bool:
        """Whether it accepts every event, without looking at it."""
        required = (self.types, self.senders, self.rooms, self.contains_url)
        return required == (None, None, None, None) and not (self.not_types or self.not_senders or self.not_rooms)


class RoomFilter(msgspec.Struct, frozen=True):
    """The filters for each part of a room's answer."""

    rooms: _Names = None
    not_rooms: list[str] = []
    include_leave: bool = False
    timeline: RoomEventFilter = RoomEventFilter()
    state: RoomEventFilter = RoomEventFilter()
    ephemeral: RoomEventFilter = RoomEventFilter()
    account_data: RoomEventFilter = RoomEventFilter()


class Filter(msgspec.Struct, frozen=True):
    """A complete filter, as sent to POST /filter."""

    event_fields: _Names = None
    event_format: Literal["client", "federation"] = "client"
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    room: RoomFilter = RoomFilter()


EVERYTHING = Filter()


def parse_filter(value: Any) -> Filter:
    """Returns the filter for decoded JSON. Raises MatrixError 400 M_BAD_JSON."""
    try:
        return msgspec.convert(value, Filter)
    except msgspec.ValidationError as error:
        raise bad_json(f"The filter is not valid: {error}") from None


def parse_room_event_filter(text: str | None) -> RoomEventFilter:
    """Returns the `filter` parameter of /messages and /context, which is JSON in a string. Raises MatrixError 400."""
    if not text:
        return RoomEventFilter()
    try:
        return msgspec.convert(orjson.loads(text), RoomEventFilter)
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise bad_json(f"The filter is not valid: {error}") from None


def timeline_limit(wanted: int | None) -> int:
    """Returns the largest number of events for a timeline."""
    return TIMELINE_LIMIT_DEFAULT if wanted is None else max(0, min(wanted, TIMELINE_LIMIT_MAX))


def wants(filter_: EventFilter, event_type: str, sender: str | None) -> bool:
    """Returns whether the filter accepts an event of that type and sender (None: it has no sender)."""
    if filter_.types is not None and not _matches(filter_.types, event_type):
        return False
    if filter_.not_types and _matches(filter_.not_types, event_type):
        return False
    if sender is None:
        return True
    if filter_.senders is not None and sender not in filter_.senders:
        return False
    return sender not in filter_.not_senders


def wants_room(filter_: RoomEventFilter | RoomFilter, room_id: str) -> bool:
    """Returns whether the filter accepts events of that room."""
    return (filter_.rooms is None or room_id in filter_.rooms) and room_id not in filter_.not_rooms


def select_fields(events: list[dict[str, Any]], fields: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns the events with only the wanted fields and those that every event must have.

    `fields` are dotted paths, in which "\\." stands for a dot in a key.
    """
    return events if fields is None else [_select_fields(event, fields) for event in events]


def _select_fields(event: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {name: event[name] for name in ALWAYS_SELECTED if name in event} | {"content": {}}
    whole = orjson.loads(to_json(event))
    for field in fields:
        path = [part.replace("\0", ".") for part in field.replace("\\.", "\0").split(".")]
        source, target = whole, answer
        for part in path[:-1]:
            source = source.get(part) if isinstance(source, dict) else None
            if not isinstance(source, dict):
                break
            target = target.setdefault(part, {})
        if isinstance(source, dict) and path[-1] in source and isinstance(target, dict):
            target[path[-1]] = source[path[-1]]
    return answer


def _matches(patterns: Sequence[str], event_type: str) -> bool:
    for pattern in patterns:
        if "*" not in pattern:
            if pattern == event_type:
                return True
        elif fnmatchcase(event_type, pattern.replace("[", "[[]").replace("?", "[?]")):
            return True
    return False
