"""A client of /sync, as the specification describes what it has to do with each answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from homeserver.api.filters import parse_filter
from homeserver.authenticate import Requester
from homeserver.encoding import to_json
from homeserver.federation.identifiers import UserID
from homeserver.sync.answer import compute
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.sections import Sections
from tests.support.rooms import Rooms

StateKey = tuple[str, str]


@dataclass
class KnownRoom:
    """A room as the client knows it. `timeline` has no gaps: events before a gap are forgotten."""

    section: str
    state: dict[StateKey, str] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    prev_batch: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    was_invited: bool = False


@dataclass
class SyncClient:
    """One device of a user. It uses `state`, or `state_after` if it says so."""

    rooms: Rooms
    user_id: str
    use_state_after: bool = False
    limit: int = 10
    lazy: bool = False
    since: int | None = None
    known: dict[str, KnownRoom] = field(default_factory=dict)
    told: ToldMembers = field(default_factory=ToldMembers)

    async def sync(self, **options: Any) -> dict[str, Any]:
        """Asks what is new, and takes it in."""
        room_filter = {
            "include_leave": True,
            "timeline": {"limit": self.limit},
            "state": {"lazy_load_members": self.lazy},
        }
        request = SyncRequest(
            requester=Requester(UserID(self.user_id), "D"),
            since=self.since,
            filter=parse_filter({"room": room_filter}),
            use_state_after=self.use_state_after,
            **options,
        )
        answer = await self.rooms.read(compute, Sections(), request, "", self.told)
        body: dict[str, Any] = orjson.loads(to_json(answer.body))
        self.take_in(body)
        answer.members.remember(answer.upto)
        self.since = answer.upto
        return body

    def take_in(self, body: dict[str, Any]) -> None:
        """Applies an answer."""
        for section, rooms in body.get("rooms", {}).items():
            for room_id, update in rooms.items():
                self._take_in_room(section, room_id, update)

    def _take_in_room(self, section: str, room_id: str, update: dict[str, Any]) -> None:
        room = self.known.get(room_id)
        if section in ("invite", "knock"):
            known = self.known.setdefault(room_id, KnownRoom(section))  # what it knows of an earlier stay it keeps
            known.section, known.was_invited = section, True
            return
        is_entered = room is None or (room.section != "join" and section == "join")
        if room is None or is_entered:
            room = self.known[room_id] = KnownRoom(section)
        room.section = section
        room.summary |= update.get("summary", {})
        timeline = update.get("timeline", {"events": []})
        if timeline.get("limited") or is_entered:
            room.timeline = []
            room.prev_batch = timeline.get("prev_batch", "")
        assert ("state" in update) != ("state_after" in update) or "timeline" not in update
        events = update.get("state_after" if self.use_state_after else "state", {"events": []})["events"]
        if not self.use_state_after:
            events = events + [event for event in timeline["events"] if "state_key" in event]
        for event in events:
            room.state[event["type"], event["state_key"]] = event["event_id"]
        room.timeline += [event["event_id"] for event in timeline["events"]]
