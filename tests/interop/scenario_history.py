"""History from the other side: long backfill, context, and events that are only fetched when asked for."""

from __future__ import annotations

import pytest

from tests.interop.clients import Client, wait_until
from tests.interop.servers import Server

Sides = tuple[Server, Server]

MESSAGES = 120


@pytest.mark.parametrize("version", ("12", "10", "1"))
def test_backfill(sides: Sides, version: str) -> None:
    """A user who joins late reads all earlier messages in order, on either side."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="public_chat")
    sent = [alice.send(room_id, f"message {number}") for number in range(MESSAGES)]
    alice.set_state(room_id, "m.room.topic", {"topic": "long"})
    bob.join(room_id, via=here)

    def messages() -> list[str]:
        return [event["event_id"] for event in bob.history(room_id) if event["type"] == "m.room.message"][::-1]

    wait_until("all messages", lambda: len(messages()) >= MESSAGES)
    assert messages() == sent
    oldest = bob.history(room_id)[-1]
    assert oldest["type"] == "m.room.create"
    # What each side says meanwhile is beside it, not lost.
    bob.send(room_id, "read it all")
    alice.wait_message(room_id, "read it all")


@pytest.mark.parametrize("visibility", ("invited", "joined", "shared", "world_readable"))
def test_history_visibility(sides: Sides, visibility: str) -> None:
    """Messages from before a user's join are visible or hidden, as the room's setting says."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    rule = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": visibility}}
    room_id = alice.create_room("11", preset="public_chat", initial_state=[rule])
    before = alice.send(room_id, "before")
    bob.join(room_id, via=here)
    alice.wait("joined", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    alice.send(room_id, "after")
    bob.wait_message(room_id, "after")
    seen = {event["event_id"] for event in bob.history(room_id)}
    assert (before in seen) == (visibility in ("shared", "world_readable"))


def test_context_around_an_event(sides: Sides) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="public_chat")
    sent = [alice.send(room_id, f"message {number}") for number in range(20)]
    bob.join(room_id, via=here)
    wait_until("history", lambda: set(sent) <= {event["event_id"] for event in bob.history(room_id)})
    context = bob.v3("GET", f"/rooms/{room_id}/context/{sent[10]}", limit=6)
    assert context["event"]["event_id"] == sent[10]
    before = [event["event_id"] for event in context["events_before"]]
    after = [event["event_id"] for event in context["events_after"]]
    assert before and set(before) <= set(sent[:10])
    assert after and set(after) <= set(sent[11:])
