"""Rooms made of real events, for the tests of the rules and of state resolution."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any

from homeserver.federation.auth_events import StateKey, select_auth_keys
from homeserver.federation.auth_rules import check
from homeserver.federation.auth_state import Rejection
from homeserver.federation.build import Draft, build_event, reference_to
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, UserID, server_name_of
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.signing import SigningKey

ALICE, BOB, CAROL, DAVE = (
    UserID("@alice:alpha.test"),
    UserID("@bob:beta.test"),
    UserID("@carol:gamma.test"),
    UserID("@dave:alpha.test"),
)

ALL = list(ROOM_VERSIONS.values())


def versions(first: int = 1, last: int = 12) -> list[RoomVersion]:
    return [ROOM_VERSIONS[str(number)] for number in range(first, last + 1)]


@cache
def key_of(server: str) -> SigningKey:
    return SigningKey("1", sha256(server.encode()).digest())


@dataclass
class Room:
    """A room as its creator's server knows it. `fork` gives a branch; both go on from the same last event."""

    version: RoomVersion
    creator: UserID = ALICE
    state: dict[StateKey, Event] = field(default_factory=dict)
    events: dict[EventID, Event] = field(default_factory=dict)
    last: list[Event] = field(default_factory=list)
    clock: int = 1_700_000_000_000
    room_id: RoomID | None = None
    numbers: list[int] = field(default_factory=lambda: [0])

    def build(
        self,
        sender: str,
        event_type: str,
        content: dict[str, Any],
        state_key: str | None = None,
        *,
        redacts: EventID | None = None,
        prev: Iterable[Event] | None = None,
        auth: Iterable[Event] | None = None,
    ) -> Event:
        """The event that the user's server would make now; the room stays as it is."""
        keys = select_auth_keys(event_type, sender, state_key, content, self.version)
        auth = [self.state[key] for key in keys if key in self.state] if auth is None else list(auth)
        prev = self.last if prev is None else list(prev)
        self.numbers[0] += 1
        server = server_name_of(sender)
        room_id = self.room_id
        if event_type == "m.room.create" and self.version.room_id_is_create_event_id:
            room_id = None
        return build_event(
            Draft(room_id, UserID(sender), event_type, content, state_key, redacts, self.clock),
            self.version,
            prev_events=[reference_to(event) for event in prev],
            auth_events=auth,
            depth=1 + max((event.depth for event in prev), default=0),
            server_name=server,
            key=key_of(server),
            event_id_opaque=f"event{self.numbers[0]}",
        )

    def check(self, *args: Any, **kwargs: Any) -> Rejection | None:
        """Returns the verdict of the auth rules on the event that `build` makes, in the room's state."""
        return check(self.build(*args, **kwargs), self.state)

    def allows(self, *args: Any, **kwargs: Any) -> bool:
        return self.check(*args, **kwargs) is None

    def send(self, *args: Any, **kwargs: Any) -> Event:
        """Builds an event that the rules allow and appends it."""
        event = self.build(*args, **kwargs)
        rejection = check(event, self.state)
        assert rejection is None, rejection
        return self.append(event)

    def append(self, event: Event) -> Event:
        """Appends an event, allowed or not."""
        self.events[event.event_id] = event
        self.last = [event]
        self.clock += 1000
        if event.is_state:
            self.state[event.key] = event
        return event

    def member(self, sender: str, membership: str, target: str | None = None, **content: Any) -> Event:
        return self.send(sender, "m.room.member", {"membership": membership, **content}, target or sender)

    def allows_member(self, sender: str, membership: str, target: str | None = None, **content: Any) -> bool:
        return self.allows(sender, "m.room.member", {"membership": membership, **content}, target or sender)

    def set_levels(self, sender: str = ALICE, **content: Any) -> Event:
        return self.send(sender, "m.room.power_levels", content, "")

    def allows_levels(self, sender: str = ALICE, **content: Any) -> bool:
        return self.allows(sender, "m.room.power_levels", content, "")

    def join_rule(self, rule: str, **content: Any) -> Event:
        return self.send(ALICE, "m.room.join_rules", {"join_rule": rule, **content}, "")

    def state_map(self) -> dict[StateKey, EventID]:
        return {key: event.event_id for key, event in self.state.items()}

    def fork(self) -> Room:
        branch = copy(self)
        branch.state = dict(self.state)
        return branch


def new_room(version: RoomVersion, *, join_rule: str | None = "public", **create: Any) -> Room:
    """A room that ALICE created and joined, with power levels (where she may be in them) and a join rule."""
    room = Room(version)
    if not version.room_id_is_create_event_id:
        room.room_id = RoomID("!room:alpha.test")
    content: dict[str, Any] = {"room_version": version.id, **create}
    if version.create_content_has_creator:
        content["creator"] = ALICE
    room.room_id = room.send(ALICE, "m.room.create", content, "").room_id
    room.member(ALICE, "join")
    if join_rule is not None:
        room.set_levels(**alice_is_admin(version))
        room.join_rule(join_rule)
    return room


def alice_is_admin(version: RoomVersion, **users: Any) -> dict[str, Any]:
    """Content of m.room.power_levels in which ALICE can do all; privileged creators must not be in it."""
    return {"users": users if version.creators_privileged else {ALICE: 100, **users}}
