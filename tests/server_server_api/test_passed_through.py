"""What only clients understand: ban lists, image packs, polls. It goes to other servers and comes back unchanged.

Spec: client-server-api/#moderation-policy-lists, #image-packs, MSC3381, MSC3930
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.support.federation import Federation, create_room, join, sync, until
from tests.support.gateway import Gateway
from tests.support.homeservers import Client
from tests.support.people import Json, path_of, send, set_state

RULE = {"entity": "@*:spam.example", "reason": "spam", "recommendation": "m.ban"}
IMAGES = {"wave": {"url": "mxc://a.example/x", "body": "Wave", "usage": ["emoticon"], "info": {"w": 64, "h": 64}}}
PACK = {"images": IMAGES, "pack": {"display_name": "Faces", "avatar_url": "mxc://a.example/y", "usage": ["sticker"]}}


async def two_in_a_room(federation: Federation) -> tuple[Client, Client, str]:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    return alice, bob, room_id


async def wait_for_event(client: Client, room_id: str, event_id: str) -> Json:
    """Returns the event, once the client has got it."""

    async def get() -> Any:
        response = await client.request("GET", path_of(room_id, "event", event_id))
        return response.json() if response.status_code == 200 else None

    event: Json = await until(get)
    return event


@pytest.mark.parametrize(
    ("kind", "state_key", "content"),
    [
        ("m.policy.rule.user", "rule:@*:spam.example", RULE),
        ("m.policy.rule.server", "rule:*.spam.example", {**RULE, "entity": "*.spam.example"}),
        ("m.policy.rule.room", "", {**RULE, "recommendation": "org.example.shadow", "x": [1, None, {"y": True}]}),
        ("m.policy.rule.user", "lifted", {}),
        ("m.room.image_pack", "", PACK),
        ("m.room.image_pack", "faces", {"images": {}}),
    ],
)  # fmt: skip
async def test_state_that_only_clients_understand_is_kept(
    federation: Federation, kind: str, state_key: str, content: Json
) -> None:
    alice, bob, room_id = await two_in_a_room(federation)
    event_id = await set_state(alice, room_id, kind, content, state_key)
    event = await wait_for_event(bob, room_id, event_id)
    assert (event["type"], event["state_key"], event["content"]) == (kind, state_key, content)
    assert await bob.ok("GET", path_of(room_id, "state", kind, state_key)) == content


async def test_image_packs_in_account_data_are_kept(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    stored = {"m.image_pack": PACK, "m.image_pack.rooms": {"rooms": {"!x:a.example": {"": {}, "faces": {}}}}}
    for kind, content in stored.items():
        path = f"user/{quote(alice.user_id)}/account_data/{kind}"
        await alice.ok("PUT", path, json=content)
        assert await alice.ok("GET", path) == content
    told = {event["type"]: event["content"] for event in (await sync(alice))["account_data"]["events"]}
    assert {kind: told[kind] for kind in stored} == stored


async def test_a_poll_is_kept_and_its_votes_are_bundled(federation: Federation) -> None:
    alice, bob, room_id = await two_in_a_room(federation)
    answers = [{"m.id": "tea", "m.text": [{"body": "Tea"}]}, {"m.id": "coffee", "m.text": [{"body": "Coffee"}]}]
    question = {"m.text": [{"body": "Tea or coffee?"}]}
    start = {"m.text": [{"body": "Tea or coffee?"}], "m.poll": {"question": question, "answers": answers}}
    poll = await send(alice, room_id, start, kind="m.poll.start")
    assert (await wait_for_event(bob, room_id, poll))["content"] == start
    relation = {"rel_type": "m.reference", "event_id": poll}
    vote = {"m.relates_to": relation, "m.selections": ["tea"]}
    vote_id = await send(bob, room_id, vote, kind="m.poll.response")
    assert (await wait_for_event(alice, room_id, vote_id))["content"] == vote
    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/relations/{quote(poll)}/m.reference/m.poll.response"
    assert [event["event_id"] for event in (await alice.ok("GET", path))["chunk"]] == [vote_id]
    end = {"m.relates_to": relation, "m.text": [{"body": "Tea"}], "m.poll.results": {"tea": 1}}
    end_id = await send(alice, room_id, end, kind="m.poll.end")
    assert (await wait_for_event(bob, room_id, end_id))["content"] == end
    shown = await alice.ok("GET", path_of(room_id, "event", poll))
    assert [each["event_id"] for each in shown["unsigned"]["m.relations"]["m.reference"]["chunk"]] == [vote_id, end_id]


@pytest.mark.parametrize("members", [2, 3])
async def test_polls_notify_and_votes_do_not(federation: Federation, members: int) -> None:
    a, gateway = await federation.start("a.example"), Gateway.on(federation.network)
    alice, bob, carol = await a.register("alice"), await a.register("bob"), await a.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    for client in (bob, carol)[: members - 1]:
        await join(client, room_id)
    await bob.ok("POST", "pushers/set", json=gateway.pusher("phone"))
    start = await send(alice, room_id, {"m.poll": {}}, kind="m.poll.start")
    await send(alice, room_id, {"m.selections": ["tea"]}, kind="m.poll.response")
    end = await send(alice, room_id, {"m.poll.results": {}}, kind="m.poll.end")
    await until(gateway.has("phone", 2))
    assert gateway.events("phone") == [start, end]
    tweaks = [told["devices"][0].get("tweaks", {}) for told in gateway.of("phone") if "event_id" in told]
    assert tweaks == [{"sound": "default"} if members == 2 else {}] * 2
