"""No rule ever raises, whatever the events hold: it allows or it rejects."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.federation.auth_events import StateKey, select_auth_keys_of
from homeserver.federation.auth_rules import Rejection, check, check_auth_events, may_apply_redaction
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.pdu_checks import check_hash, check_signatures, required_signatures, signing_keys_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.state_resolution import Missing, resolve
from tests.federation.json_values import PROPERTY, lenient_values
from tests.federation.json_values import versions as any_version
from tests.federation.rooms_for_tests import ALICE, ALL, BOB, CAROL, new_room
from tests.support.examples import share_of_examples

FEW = settings(PROPERTY, max_examples=share_of_examples(0.4))

TYPES = [
    "m.room.create",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.third_party_invite",
    "m.room.redaction",
    "m.room.aliases",
    "m.room.topic",
]
WORDS = [ALICE, BOB, "join", "invite", "leave", "ban", "knock", "public", "restricted", "token", "100", "12", "$x"]

values = lenient_values | st.sampled_from(WORDS)
nested_keys = st.sampled_from([*WORDS, "signed", "mxid", "token", "signatures", "public_key"])
nested = st.recursive(values, lambda inner: st.dictionaries(nested_keys, inner), max_leaves=6)
contents = st.dictionaries(
    st.sampled_from(
        [
            "membership",
            "third_party_invite",
            "join_authorised_via_users_server",
            "join_rule",
            "room_version",
            "creator",
            "additional_creators",
            "m.federate",
            "users",
            "users_default",
            "events",
            "notifications",
            "ban",
            "kick",
            "invite",
            "redact",
            "state_default",
            "events_default",
            "public_key",
            "public_keys",
            "redacts",
        ]
    ),
    nested | st.lists(nested, max_size=3),
    max_size=8,
)
state_keys = st.none() | st.sampled_from(["", ALICE, BOB, CAROL, "alpha.test", "token"])

ROOMS = {version.id: new_room(version) for version in ALL}


@st.composite
def hostile_events(draw: st.DrawFn, version: RoomVersion) -> Event:
    room = ROOMS[version.id]
    event = room.build(
        draw(st.sampled_from([ALICE, BOB])),
        "m.room.topic",
        {},
        prev=draw(st.sampled_from([[], room.last, [room.state["m.room.create", ""]]])),
    )
    pdu = {**event.pdu, "type": draw(st.sampled_from(TYPES)), "content": draw(contents)}
    state_key = draw(state_keys)
    if state_key is not None:
        pdu["state_key"] = state_key
    pdu |= draw(st.dictionaries(st.sampled_from(["redacts", "signatures", "hashes", "unsigned"]), nested, max_size=2))
    return trusted_event(pdu, version, event.event_id)


@st.composite
def states(draw: st.DrawFn, version: RoomVersion) -> dict[StateKey, Event]:
    """A usual state but for some hostile events."""
    state = dict(ROOMS[version.id].state)
    for event in draw(st.lists(hostile_events(version), max_size=3)):
        if event.is_state:
            state[event.key] = event
    return state


cases = any_version.flatmap(lambda version: st.tuples(hostile_events(version), states(version)))


@PROPERTY
@given(cases)
def test_the_auth_rules_survive_hostile_content(case: tuple[Event, dict[StateKey, Event]]) -> None:
    event, state = case
    answers: list[Any] = [check(event, state), check_auth_events(event, list(state.values()), frozenset())]
    assert all(answer is None or (isinstance(answer, Rejection) and answer.reason) for answer in answers)
    assert all(isinstance(part, str) for key in select_auth_keys_of(event) for part in key)
    for target in state.values():
        assert may_apply_redaction(event, target, state) in (True, False)


@PROPERTY
@given(cases)
def test_the_pdu_checks_survive_hostile_content(case: tuple[Event, dict[StateKey, Event]]) -> None:
    event, _ = case
    assert all(isinstance(server, str) for server in required_signatures(event))
    assert all(isinstance(part, str) for key in signing_keys_of(event) for part in key)
    answer = check_signatures(event, {})
    assert (answer is None) == (not required_signatures(event)) or isinstance(answer, Rejection)
    assert check_hash(event).event_id == event.event_id


@FEW
@given(any_version.flatmap(lambda version: st.lists(states(version), min_size=2, max_size=2)))
def test_state_resolution_survives_hostile_content(drawn: list[dict[StateKey, Event]]) -> None:
    version = drawn[0]["m.room.create", ""].version
    events: dict[EventID, Event] = dict(ROOMS[version.id].events)
    maps = []
    for number, state in enumerate(drawn):
        named = {}
        for key, event in state.items():
            # Under IDs of their own, since the hostile ones were all made from the same event.
            event_id = event.event_id if event.event_id in events else EventID(f"$hostile{number}{key}")
            events.setdefault(event_id, trusted_event(event.pdu, version, event_id))
            named[key] = event_id
        maps.append(named)
    resolved = resolve(version, maps, events)
    assert not isinstance(resolved, Missing)
    assert resolved == resolve(version, maps[::-1], events)
