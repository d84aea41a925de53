"""State resolution against ruma's scenarios, in all the ways that tests/data/state-resolution.json is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.state_resolution import Missing, resolve

SCENARIOS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "state-resolution.json").read_text()
)
BATCHES = [scenario for scenario in SCENARIOS if scenario["input"] == "batches"]
STATE_MAPS = [scenario for scenario in SCENARIOS if scenario["input"] == "state_maps"]

State = dict[tuple[str, str], EventID]


def name_of(scenario: dict[str, Any]) -> str:
    return str(scenario["name"])


def read_events(pdus: list[dict[str, Any]]) -> tuple[RoomVersion, dict[EventID, Event]]:
    version = ROOM_VERSIONS[pdus[0]["content"]["room_version"]]
    events = [trusted_event({"depth": 0, **pdu}, version, EventID(pdu["event_id"])) for pdu in pdus]
    return version, {event.event_id: event for event in events}


def expected_state(scenario: dict[str, Any]) -> State:
    return {(entry["type"], entry["state_key"]): entry["event_id"] for entry in scenario["expected"]}


def resolved(version: RoomVersion, states: list[State], events: dict[EventID, Event], ranked: bool) -> State:
    rank = {event_id: number for number, event_id in enumerate(events)} if ranked else None
    state = resolve(version, states, events, rank=rank)
    assert not isinstance(state, Missing)
    return state


def resolve_batch(
    version: RoomVersion, before: State | None, batch: list[dict[str, Any]], events: dict[EventID, Event], ranked: bool
) -> State:
    """Every PDU forms a state of its own, since nothing is known about which belong together."""
    states: list[State] = [] if before is None else [before]
    states += [{events[pdu["event_id"]].key: pdu["event_id"]} for pdu in batch]
    return resolved(version, states, events, ranked)


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("scenario", BATCHES, ids=name_of)
def test_vectors_are_resolved_event_by_event(scenario: dict[str, Any], ranked: bool) -> None:
    version, events = read_events([pdu for batch in scenario["batches"] for pdu in batch])
    after: dict[EventID, State] = {}
    waiting = list(events.values())
    while waiting:
        event = next(event for event in waiting if all(before in after for before in event.prev_events))
        waiting.remove(event)
        before = resolved(version, [after[event_id] for event_id in event.prev_events], events, ranked)
        # As in ruma, the event is not checked beforehand: state resolution decides whether it is allowed.
        after[event.event_id] = resolved(version, [before, {**before, event.key: event.event_id}], events, ranked)
    cited = {event_id for event in events.values() for event_id in event.prev_events}
    ends = [after[event_id] for event_id in events if event_id not in cited]
    assert resolved(version, ends, events, ranked) == expected_state(scenario)


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("scenario", BATCHES, ids=name_of)
def test_vectors_are_resolved_batch_by_batch(scenario: dict[str, Any], ranked: bool) -> None:
    version, events = read_events([pdu for batch in scenario["batches"] for pdu in batch])
    state: State | None = None
    for batch in scenario["batches"]:
        state = resolve_batch(version, state, batch, events, ranked)
    assert state == expected_state(scenario)


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("scenario", BATCHES, ids=name_of)
def test_vectors_are_resolved_at_once(scenario: dict[str, Any], ranked: bool) -> None:
    pdus = [pdu for batch in scenario["batches"] for pdu in batch]
    version, events = read_events(pdus)
    assert resolve_batch(version, None, pdus, events, ranked) == expected_state(scenario)


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("scenario", STATE_MAPS, ids=name_of)
def test_vectors_of_state_maps_are_resolved(scenario: dict[str, Any], ranked: bool) -> None:
    version, events = read_events(scenario["pdus"])
    states = [{events[event_id].key: event_id for event_id in state} for state in scenario["state_maps"]]
    assert resolved(version, states, events, ranked) == expected_state(scenario)
    assert resolved(version, states[::-1], events, ranked) == expected_state(scenario)


def test_all_scenarios_are_present() -> None:
    assert len(BATCHES) == 9
    assert len(STATE_MAPS) == 4
