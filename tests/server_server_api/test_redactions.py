"""Redactions that other servers send. Spec: rooms/v3/#handling-redactions"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeserver.federation.identifiers import ServerName
from tests.support.federation import Federation, create_room, send_text, sync
from tests.support.homeservers import Client, Server
from tests.support.stranger import Joined, Stranger


async def redacting(federation: Federation, version: str) -> tuple[Server, Client, Joined]:
    """A room of ours, its creator, and a user of another server without any power in it."""
    a = await federation.start("a.example")
    alice = await a.register("alice")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    return a, alice, await mallory.join("a.example", room_id, "mallory")


def redaction_of(joined: Joined, target: str, version: str, **content: Any) -> Any:
    if version == "10":
        return joined.event("m.room.redaction", content, redacts=target)  # type: ignore[arg-type]
    return joined.event("m.room.redaction", {**content, "redacts": target})


async def shown(client: Client, room_id: str, since: str | None = None) -> dict[str, Any]:
    """The events that a sync and a page of history show, by event id."""
    timeline = (await sync(client, since)).get("rooms", {}).get("join", {}).get(room_id, {}).get("timeline", {})
    page = await client.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    return {event["event_id"]: event for event in (*timeline.get("events", ()), *page["chunk"])}


async def event_of(client: Client, room_id: str, event_id: str) -> Any:
    return await client.ok("GET", f"rooms/{quote(room_id)}/event/{quote(event_id)}")


@pytest.mark.parametrize("version", ["10", "12"])
async def test_a_redaction_by_a_powerless_user_is_neither_applied_nor_shown(
    federation: Federation, version: str
) -> None:
    _, alice, joined = await redacting(federation, version)
    message = await send_text(alice, joined.room_id, "important")
    since = (await sync(alice))["next_batch"]
    redaction = redaction_of(joined, message, version)
    own = joined.text("my own")
    of_own = redaction_of(joined, own.event_id, version)
    sent = [redaction, own, of_own]
    results = await joined.server.send("a.example", "1", [each.pdu for each in sent])
    assert results == {each.event_id: {} for each in sent}
    assert (await event_of(alice, joined.room_id, message))["content"]["body"] == "important"
    for told in (await shown(alice, joined.room_id, since), await shown(alice, joined.room_id)):
        assert redaction.event_id not in told
        assert of_own.event_id in told
        assert told[own.event_id]["content"] == {}


@pytest.mark.parametrize("version", ["10", "12"])
async def test_a_redaction_received_before_its_event_is_shown_with_it(federation: Federation, version: str) -> None:
    _, alice, joined = await redacting(federation, version)
    late = joined.text("late")
    redaction = redaction_of(joined, late.event_id, version)
    after = joined.text("next", after=[redaction])
    joined.server.answers["POST", f"/_matrix/federation/v1/get_missing_events/{quote(joined.room_id, safe='')}"] = {
        "events": []
    }
    prefix = f"/_matrix/federation/v1/state_ids/{quote(joined.room_id, safe='')}"
    known = [event.event_id for event in joined.state.values()]
    joined.server.answers["GET", prefix] = {"pdu_ids": known, "auth_chain_ids": known}
    await joined.server.send("a.example", "1", [redaction.pdu])
    assert redaction.event_id not in await shown(alice, joined.room_id)
    since = (await sync(alice))["next_batch"]
    await joined.server.send("a.example", "2", [late.pdu])
    event = await event_of(alice, joined.room_id, late.event_id)
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == redaction.event_id
    told = await shown(alice, joined.room_id, since)
    assert told[late.event_id]["content"] == {}
    assert redaction.event_id in told
    await joined.server.send("a.example", "3", [after.pdu])
    assert after.event_id in await shown(alice, joined.room_id)


@pytest.mark.parametrize("version", ["10", "12"])
async def test_clients_see_what_was_redacted_not_what_the_redaction_claims(
    federation: Federation, version: str
) -> None:
    _, alice, joined = await redacting(federation, version)
    message = await send_text(alice, joined.room_id, "important")
    own = joined.text("my own")
    if version == "10":
        lying = redaction_of(joined, own.event_id, version, redacts=message)
    else:
        honest = redaction_of(joined, own.event_id, version)
        lying = joined.server.sign({**honest.pdu, "redacts": message, "signatures": {}}, joined.version)
    await joined.server.send("a.example", "1", [own.pdu, lying.pdu])
    told = (await shown(alice, joined.room_id))[lying.event_id]
    assert told["redacts"] == told["content"]["redacts"] == own.event_id
