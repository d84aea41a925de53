"""Random rooms that fork: several servers with keys of their own write into one room, and hear of each other late."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from homeserver.federation.auth_events import select_auth_keys
from homeserver.federation.auth_rules import check
from homeserver.federation.build import Draft, build_event, reference_to
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID, server_name_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.signing import SigningKey
from homeserver.federation.state_resolution import Missing, resolve
from tests.differential.values import chance, pick

StateKey = tuple[str, str]
State = dict[StateKey, EventID]

SERVERS = ("alpha.test", "beta.test:8448", "gamma.test")
CREATOR = UserID("@creator:alpha.test")
USERS = tuple(UserID(user) for user in (
    CREATOR, "@admin:alpha.test", "@mod:beta.test:8448", "@user:beta.test:8448", "@mod:gamma.test", "@user:gamma.test",
))  # fmt: skip
PREV_EVENTS_MAX = 10


class MissingEvents(AssertionError):
    """Our resolution asked for events although it was given all."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """States that met, and what we made of them."""

    states: tuple[State, ...]
    resolved: State


@dataclass(frozen=True, slots=True)
class Verdict:
    """An event, the state it was checked against, and whether we allowed it."""

    event: Event
    state: State
    allowed: bool


@dataclass(slots=True)
class Server:
    """The events of the room that one server knows."""

    name: ServerName
    key: SigningKey
    known: set[EventID] = field(default_factory=set)
    heads: set[EventID] = field(default_factory=set)


class History:
    """A room's events, made from one random generator, and every question that came up on the way."""

    def __init__(self, seed: object, version: RoomVersion) -> None:
        self.rng = random.Random(f"history {version.id} {seed}")
        self.version = version
        self.events: dict[EventID, Event] = {}
        self.refused: dict[EventID, Event] = {}
        self.state_before: dict[EventID, State] = {}
        self.state_after: dict[EventID, State] = {}
        self.resolutions: list[Resolution] = []
        self.verdicts: list[Verdict] = []
        self.room_id = RoomID("!room:alpha.test")
        self.now_ms = 1_700_000_000_000
        self.servers = {name: Server(ServerName(name), SigningKey("1", self.rng.randbytes(32))) for name in SERVERS}

    # -- what a server does ------------------------------------------------------------------------

    def state_at(self, heads: Iterable[EventID]) -> State:
        """The state after the given heads, resolved by us."""
        states = [self.state_after[head] for head in sorted(heads)]
        return self.resolve(states) if states else {}

    def resolve(self, states: list[State]) -> State:
        if len(states) == 1:
            return states[0]
        resolved = resolve(self.version, states, self.events)
        if isinstance(resolved, Missing):
            raise MissingEvents(f"{sorted(resolved.event_ids)}")
        self.resolutions.append(Resolution(tuple(states), dict(resolved)))
        return dict(resolved)

    def send(self, sender: UserID, event_type: str, content: dict[str, object], state_key: str | None = None) -> bool:
        """The sender's server appends an event to the room as it knows it. False if the rules refuse it."""
        server = self.servers[server_name_of(sender)]
        heads = sorted(self.rng.sample(sorted(server.heads), min(len(server.heads), PREV_EVENTS_MAX)))
        state = self.state_at(heads)
        draft = self._draft(sender, event_type, content, state_key)
        keys = select_auth_keys(event_type, sender, state_key, content, self.version)
        chosen = {key: state[key] for key in keys if key in state}
        self._cite_older(chosen, state)
        event = build_event(
            draft,
            self.version,
            prev_events=[reference_to(self.events[head]) for head in heads],
            auth_events=[self.events[event_id] for event_id in chosen.values()],
            depth=self._depth(heads),
            server_name=server.name,
            key=server.key,
            event_id_opaque=f"{len(self.events)}x{len(self.refused)}",
        )
        if event_type == "m.room.create" and not heads:
            self.room_id = event.room_id
        elif not (self._allowed(event, {**chosen, **self._create_of(state)}) and self._allowed(event, state)):
            self.refused[event.event_id] = event
            return False
        self._append(event, state, server)
        return True

    def _draft(
        self,
        sender: UserID,
        event_type: str,
        content: dict[str, object],
        state_key: str | None,
    ) -> Draft:
        self.now_ms += self.rng.choice((0, 0, 1, 1000))
        derived = event_type == "m.room.create" and self.version.room_id_is_create_event_id
        # Clocks differ, and some events have the same time.
        ts = self.now_ms - self.rng.choice((0, 0, 0, 1, 1000, 5000))
        room_id = None if derived else self.room_id
        return Draft(room_id, sender, event_type, content, state_key, origin_server_ts=ts)

    def _depth(self, heads: list[EventID]) -> int:
        depth = max((self.events[head].depth for head in heads), default=0) + 1
        return (
            depth if chance(self.rng, 0.9) else self.rng.randrange(60)
        )  # room version 1 resolves by it, and anyone may lie

    def _cite_older(self, chosen: State, state: State) -> None:
        """Sometimes cites an auth event that the state has replaced, as a server may that wants its old powers back."""
        if not chosen or not chance(self.rng, 0.1):
            return
        older = self.state_after[self.rng.choice(sorted(self.state_after))]
        for key in [*chosen]:
            if key in older and key[0] != "m.room.create":
                chosen[key] = older[key]

    def _create_of(self, state: State) -> State:
        return {key: event_id for key, event_id in state.items() if key[0] == "m.room.create"}

    def _allowed(self, event: Event, state: State) -> bool:
        allowed = check(event, {key: self.events[event_id] for key, event_id in state.items()}) is None
        self.verdicts.append(Verdict(event, state, allowed))
        return allowed

    def _append(self, event: Event, state: State, server: Server) -> None:
        self.events[event.event_id] = event
        self.state_before[event.event_id] = state
        self.state_after[event.event_id] = {**state, event.key: event.event_id} if event.is_state else state
        server.known.add(event.event_id)
        server.heads = (server.heads - set(event.prev_events)) | {event.event_id}

    def hear(self, server: Server, other: Server) -> None:
        """A server receives all that another one knows."""
        server.known |= other.known
        cited = {prev for event_id in server.known for prev in self.events[event_id].prev_events}
        server.heads = server.known - cited

    # -- the story ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """The creator's first events, known to all."""
        rng = self.rng
        content: dict[str, object] = {"room_version": self.version.id}
        if self.version.create_content_has_creator:
            content["creator"] = CREATOR
        if self.version.additional_creators and chance(rng, 0.3):
            content["additional_creators"] = rng.sample(USERS[1:], rng.randrange(1, 3))
        self.send(CREATOR, "m.room.create", content, "")
        self.send(CREATOR, "m.room.member", {"membership": "join"}, CREATOR)
        if chance(rng, 0.9):
            self.send(CREATOR, "m.room.power_levels", self.power_levels(), "")
        self.send(CREATOR, "m.room.join_rules", {"join_rule": pick(rng, (4, "public"), (1, "invite"))}, "")
        for server in self.servers.values():
            self.hear(server, self.servers[ServerName("alpha.test")])

    def power_levels(self) -> dict[str, object]:
        rng = self.rng
        users = {user: rng.choice((0, 25, 50, 75, 99, 100)) for user in rng.sample(USERS[1:], rng.randrange(1, 5))}
        if not self.version.creators_privileged:
            users[CREATOR] = 100
        content: dict[str, object] = {"users": users}
        for key in ("ban", "kick", "invite", "state_default", "events_default", "users_default"):
            if chance(rng, 0.2):
                content[key] = rng.choice((0, 25, 50, 75))
        if chance(rng, 0.4):
            content["events"] = {
                kind: rng.choice((0, 50, 99)) for kind in ("m.room.topic", "m.room.power_levels") if chance(rng, 0.6)
            }
        return content

    def step(self) -> None:
        """Somebody does something, or two servers talk."""
        rng = self.rng
        if chance(rng, 0.25):
            server, other = rng.sample([*self.servers.values()], 2)
            self.hear(server, other)
            return
        sender = rng.choice(USERS)
        target = rng.choice(USERS)
        actions: tuple[tuple[float, Callable[[], bool]], ...] = (
            (8, lambda: self.send(sender, "m.room.member", self._joining(sender), sender)),
            (3, lambda: self.send(sender, "m.room.member", {"membership": "leave"}, sender)),
            (3, lambda: self.send(sender, "m.room.member", {"membership": "invite"}, target)),
            (3, lambda: self.send(sender, "m.room.member", {"membership": "ban"}, target)),
            (3, lambda: self.send(sender, "m.room.member", {"membership": "leave"}, target)),
            (1, lambda: self.send(sender, "m.room.member", {"membership": "knock"}, sender)),
            (5, lambda: self.send(sender, "m.room.power_levels", self._changed_power_levels(sender), "")),
            (3, lambda: self.send(sender, "m.room.join_rules", self._join_rules(), "")),
            (4, lambda: self.send(sender, "m.room.topic", {"topic": f"{rng.random()}"}, "")),
            (2, lambda: self.send(sender, "m.room.name", {"name": f"{rng.random()}"}, "")),
            (1, lambda: self.send(sender, "org.example.own", {"n": rng.randrange(9)}, sender)),
            (1, lambda: self.send(sender, "m.room.third_party_invite", {"display_name": "x"}, rng.choice("ab"))),
            (1, lambda: self.send(sender, "m.room.aliases", {"aliases": []}, server_name_of(sender))),
            (0.5, lambda: self.send(sender, "m.room.join_rules", {"join_rule": "public"}, "other")),
            (2, lambda: self.send(sender, "m.room.message", {"body": "hello", "msgtype": "m.text"})),
        )
        pick(rng, *actions)()

    def _joining(self, sender: UserID) -> dict[str, object]:
        content: dict[str, object] = {"membership": "join", "displayname": f"{self.rng.random()}"}
        if self.version.restricted_join and chance(self.rng, 0.5):
            content["join_authorised_via_users_server"] = self.rng.choice(USERS)
        return content

    def _join_rules(self) -> dict[str, object]:
        rules = ["public", "public", "invite"]
        rules += ["knock"] * self.version.knock + ["restricted"] * self.version.restricted_join
        rules += ["knock_restricted"] * self.version.knock_restricted
        return {"join_rule": self.rng.choice(rules), "allow": []}

    def _changed_power_levels(self, sender: UserID) -> dict[str, object]:
        """Mostly a small change of what the sender sees, as a client makes it, since others are refused."""
        current = self.state_at(self.servers[server_name_of(sender)].heads).get(("m.room.power_levels", ""))
        if current is None or chance(self.rng, 0.2):
            return self.power_levels()
        content = dict(self.events[current].content)
        content["users"] = {
            **content.get("users", {}),
            self.rng.choice(USERS[1:]): self.rng.choice((0, 25, 50, 75, 99, 100)),
        }
        return content

    def end(self) -> None:
        """All hear of everything; and then states meet that never met on the way."""
        first, *others = self.servers.values()
        for other in others:
            self.hear(first, other)
        self.state_at(first.heads)
        for _ in range(4):
            some = self.rng.sample(sorted(self.state_after), min(len(self.state_after), self.rng.randrange(2, 5)))
            states = [dict(self.state_after[event_id]) for event_id in some]
            if chance(self.rng, 0.4):
                self._forget(states)
            if len({tuple(sorted(state.items())) for state in states}) > 1:
                self.resolve(states)

    def _forget(self, states: list[State]) -> None:
        """Takes an entry out of some states: a fork may lack what another has."""
        state = self.rng.choice(states)
        for key in self.rng.sample(sorted(state), min(len(state), 2)):
            if key[0] != "m.room.create":
                del state[key]


def history(seed: object, version: RoomVersion, steps: int = 30) -> History:
    """The whole story that a seed stands for."""
    history = History(seed, version)
    history.begin()
    for _ in range(steps):
        history.step()
    history.end()
    return history
