"""Rooms that forked: every verdict and every resolved state on the way, ours and Synapse's, must be the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.state_resolution import Missing, resolve
from tests.differential.conftest import Effort
from tests.differential.differences import Difference, Report
from tests.differential.histories import History, State, history
from tests.differential.oracle_client import Oracle


def named(states: Sequence[State]) -> list[list[EventID]]:
    """States as the oracle wants them."""
    return [sorted(state.values()) for state in states]


def ranks(events: Mapping[EventID, Event]) -> dict[EventID, int]:
    """The order in which the events came about, which a server has as the order of storing."""
    return {event_id: number for number, event_id in enumerate(events)}


def question(story: History, states: Sequence[State], *, stored: bool) -> dict[str, Any]:
    return {"op": "resolve", "states": named(states), "events": [*story.events], "stored": stored}


def ask_history(oracle: Oracle, story: History, *, stored: bool) -> tuple[list[Any], list[Any]]:
    """Synapse's verdicts and resolutions for all that came up."""
    pdus = {event_id: event.pdu for event_id, event in (story.events | story.refused).items()}
    calls: list[dict[str, Any]] = [
        {"op": "auth", "event": verdict.event.event_id, "state": [*verdict.state.values()]}
        for verdict in story.verdicts
    ]
    resolutions = [question(story, resolution.states, stored=stored) for resolution in story.resolutions]
    answers = oracle.ask(story.version.id, pdus, calls + resolutions)
    return answers[: len(calls)], answers[len(calls) :]


def shrink_states(oracle: Oracle, story: History, states: Sequence[State]) -> list[State]:
    """Fewer and smaller states that are still resolved differently."""
    current = [dict(state) for state in states]

    def differs(smaller: list[State]) -> bool:
        ours = resolve(story.version, smaller, story.events)
        pdus = {event_id: event.pdu for event_id, event in story.events.items()}
        (theirs,) = oracle.ask(story.version.id, pdus, [question(story, smaller, stored=True)])
        return not isinstance(ours, Missing) and sorted(ours.values()) != theirs

    for number in reversed(range(len(current))):
        fewer = current[:number] + current[number + 1 :]
        if len(fewer) > 1 and differs(fewer):
            current = fewer
    for key in sorted({key for state in current for key in state if key[0] != "m.room.create"}):
        without = [{each: event_id for each, event_id in state.items() if each != key} for state in current]
        if differs(without):
            current = without
    return current


def explain(story: History, states: Sequence[State], event_ids: Sequence[EventID]) -> dict[str, Any]:
    """All that a resolution depends on: the states, and the events in their auth chains."""
    below = {event_id for state in states for event_id in state.values()}
    stack = [*below]
    while stack:
        for auth_id in story.events[stack.pop()].auth_events:
            if auth_id not in below:
                below.add(auth_id)
                stack.append(auth_id)
    events = {
        event_id: event.pdu for event_id, event in story.events.items() if event_id in below or event_id in event_ids
    }
    return {
        "states": [{" ".join(key): event_id for key, event_id in state.items()} for state in states],
        "events": events,
    }


def compare_history(oracle: Oracle, report: Report, story: History, seed: object, *, stored: bool) -> None:
    """Every verdict and every resolution of a history, ours and Synapse's."""
    version = story.version
    verdicts, resolutions = ask_history(oracle, story, stored=stored)
    for verdict, theirs in zip(story.verdicts, verdicts, strict=True):
        found = Difference("verdict", version.id, seed, verdict.allowed, theirs, verdict.event.pdu)
        report.compare(found, same=verdict.allowed == (theirs is True))
    for resolution, theirs in zip(story.resolutions, resolutions, strict=True):
        ours = sorted(resolution.resolved.values())
        material: Any = None
        if ours != theirs:
            material = explain(story, shrink_states(oracle, story, resolution.states), ours)
        report.compare(Difference("resolved state", version.id, seed, ours, theirs, material), same=ours == theirs)


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_history(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report()
    for seed in effort.seeds(50):
        compare_history(oracle, report, history(seed, version), seed, stored=False)
    report.conclude()


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_long_history(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    """Longer auth chains and mainlines; Synapse has the events in its storage."""
    report = Report()
    for seed in effort.seeds(3):
        compare_history(oracle, report, history(f"long {seed}", version, steps=150), f"long {seed}", stored=True)
    report.conclude()


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_resolution_depends_on_the_states_alone(effort: Effort, version: RoomVersion) -> None:
    """Neither on their order nor on how the auth chains are walked. (Ours alone.)"""
    report = Report()
    for seed in effort.seeds(10):
        story = history(seed, version)
        for resolution in story.resolutions:
            backwards = resolve(version, resolution.states[::-1], story.events)
            ranked = resolve(version, resolution.states, story.events, rank=ranks(story.events))
            for about, other in (("order of states", backwards), ("rank", ranked)):
                found = Difference(about, version.id, seed, resolution.resolved, other, resolution.states)
                report.compare(found, same=other == resolution.resolved)
    report.conclude()
