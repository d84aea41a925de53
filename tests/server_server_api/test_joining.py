"""Joining and leaving rooms. Spec: server-server-api/#joining-rooms, #leaving-rooms-rejecting-invites"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.config import FederationSection
from homeserver.federation.event import parse_event
from homeserver.federation.identifiers import ServerName
from homeserver.federation.room_versions import ROOM_VERSIONS
from tests.support.federation import (
    Federation,
    create_room,
    invite,
    join,
    membership_in,
    send_state,
    send_text,
    state_of,
    sync,
    texts,
    until,
    wait_text,
)
from tests.support.stranger import FakeRoom, Stranger

CAROL = ServerName("c.example")


async def test_a_user_of_another_server_joins_and_both_can_talk(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", name="Tea")
    await send_text(alice, room_id, "before")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "hello")
    await wait_text(bob, room_id, "hello")
    await send_text(bob, room_id, "hi")
    await wait_text(alice, room_id, "hi")
    assert (await texts(alice, room_id))[-2:] == ["hello", "hi"]
    assert await state_of(alice, room_id) == await state_of(bob, room_id)


async def test_first_sync_after_the_join_has_the_whole_state(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", name="Tea")
    since = (await sync(bob))["next_batch"]
    await join(bob, room_id, "a.example")
    room = (await sync(bob, since))["rooms"]["join"][room_id]
    known = [*room["state"]["events"], *room["timeline"]["events"]]
    assert {(event["type"], event["state_key"]): event["event_id"] for event in known} == await state_of(alice, room_id)
    assert room["timeline"]["limited"] is True
    assert room["summary"]["m.joined_member_count"] == 2


async def test_the_members_at_the_start_of_the_timeline_are_those_before_our_join(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    start = (await sync(bob))["rooms"]["join"][room_id]["timeline"]["prev_batch"]
    members = await bob.ok("GET", f"rooms/{quote(room_id)}/members?at={start}")
    assert [event["state_key"] for event in members["chunk"]] == [alice.user_id]


async def test_two_users_of_a_server_can_join_at_once(federation: Federation) -> None:
    federation.network.latency_s = 0.1
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice = await a.register("alice")
    guests = [await b.register(name) for name in ("bob", "carol", "dave")]
    room_id = await create_room(alice, preset="public_chat")
    async with trio.open_nursery() as nursery:
        for guest in guests:
            nursery.start_soon(join, guest, room_id, "a.example")
    handshakes = [each for each in federation.network.exchanges if "/send_join/" in each.path]
    assert len(handshakes) == 1  # the others found their server in the room already
    for guest in guests:
        await send_text(guest, room_id, f"{guest.user_id} is here")
        await wait_text(alice, room_id, f"{guest.user_id} is here")
    assert await state_of(alice, room_id) == await state_of(guests[2], room_id)


async def test_servers_are_tried_in_turn(federation: Federation) -> None:
    """The founder's server is away: another lets carol in, and vouches for the keys by which the room was signed."""
    a, b = await federation.start("a.example"), await federation.start("b.example")
    c = await federation.start("c.example", federation=FederationSection(trusted_key_servers=("b.example",)))
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="public_chat", room_version="11")
    await join(bob, room_id, "a.example")
    federation.network.leave("a.example")
    await join(carol, room_id, "nowhere.example", "a.example", "b.example")
    await send_text(carol, room_id, "found you")
    await wait_text(bob, room_id, "found you")


async def test_a_join_through_one_resident_reaches_all(federation: Federation) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await join(carol, room_id, "b.example")

    async def known() -> bool:
        return ("m.room.member", carol.user_id) in await state_of(alice, room_id)

    await until(known)
    await carol.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    since = (await sync(alice))["next_batch"]
    asked = [each for each in federation.network.exchanges if each.origin == "c.example" and each.destination == a.name]
    assert not any("/send_join/" in each.path for each in asked)
    assert since


async def test_failed_joins_have_fitting_errors(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    private = await create_room(alice)
    path = "join/{}?via=a.example"
    assert await bob.refused("POST", path.format(quote(private)), json={}) == (403, "M_FORBIDDEN")
    assert (await bob.refused("POST", path.format(quote("!unknown:a.example")), json={}))[0] == 404
    assert (await bob.refused("POST", "join/%23unknown:a.example", json={}))[0] == 404
    federation.network.leave("a.example")
    assert await bob.refused("POST", path.format(quote(private)), json={}) == (502, "M_UNKNOWN")
    public = await create_room(alice, preset="public_chat", creation_content={"m.federate": False})
    federation.network.join("a.example", a.app)
    assert await bob.refused("POST", path.format(quote(public)), json={}) == (403, "M_FORBIDDEN")


async def test_members_of_an_unfederated_room_cannot_invite_remote_users(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    unfederated = {"m.federate": False}
    room_id = await create_room(alice, creation_content=unfederated)
    path = f"rooms/{quote(room_id)}"
    assert await alice.refused("POST", f"{path}/invite", json={"user_id": bob.user_id}) == (403, "M_FORBIDDEN")
    state = f"{path}/state/m.room.member/{quote(bob.user_id)}"
    assert await alice.refused("PUT", state, json={"membership": "invite"}) == (403, "M_FORBIDDEN")
    body = {"creation_content": unfederated, "invite": [bob.user_id]}
    assert await alice.refused("POST", "createRoom", json=body) == (403, "M_FORBIDDEN")
    assert (await alice.ok("GET", "joined_rooms"))["joined_rooms"] == [room_id]
    assert membership_in(await sync(bob), room_id) is None
    carol = await a.register("carol")
    await invite(alice, room_id, carol.user_id)
    await join(carol, room_id)


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_deprecated_endpoints_are_served(federation: Federation, version: str) -> None:
    """Version 1 of send_join and send_leave answers with a pair."""
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    carol = Stranger(federation.network, CAROL)
    place, user = quote(room_id, safe=""), quote(carol.user("carol"), safe="")

    async def send(handshake: str) -> Any:
        versions = "&".join(f"ver={each}" for each in ROOM_VERSIONS)
        status, template = await carol.get(
            "a.example", f"/_matrix/federation/v1/make_{handshake}/{place}/{user}?{versions}"
        )
        assert status == 200, template
        pdu = {key: value for key, value in template["event"].items() if key != "origin"}
        if version == "1":
            pdu["event_id"] = f"${handshake}:{CAROL}"
        event = carol.sign(pdu, ROOM_VERSIONS[version])
        status, answer = await carol.put(
            "a.example", f"/_matrix/federation/v1/send_{handshake}/{place}/{quote(event.event_id, safe='')}", event.pdu
        )
        assert status == 200, answer
        return answer

    code, joined = await send("join")
    assert code == 200 and joined["state"] and joined["auth_chain"]
    assert ("m.room.member", carol.user("carol")) in await state_of(alice, room_id)
    assert await send("leave") == [200, {}]
    content = await alice.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{user}")
    assert content["membership"] == "leave"


async def test_make_join_returns_the_room_version(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", room_version="11")
    carol = Stranger(federation.network, CAROL)
    place = f"{quote(room_id, safe='')}/{quote(carol.user('carol'), safe='')}"
    for query in ("", "?ver=1&ver=12"):
        status, answer = await carol.get("a.example", f"/_matrix/federation/v1/make_join/{place}{query}")
        assert (status, answer["errcode"], answer["room_version"]) == (400, "M_INCOMPATIBLE_ROOM_VERSION", "11")
    other = f"{quote(room_id, safe='')}/{quote('@nobody:stranger.example', safe='')}"
    status, answer = await carol.get("a.example", f"/_matrix/federation/v1/make_join/{other}?ver=11")
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")


async def test_send_join_accepts_only_a_join_of_the_requesting_server(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    carol = Stranger(federation.network, CAROL)
    room = await carol.join("a.example", room_id, "carol")
    for event in (
        room.text("no join"),
        room.event("m.room.member", {"membership": "leave"}, state_key=room.user_id),
        room.event("m.room.member", {"membership": "join"}, state_key=carol.user("other")),
        room.event(
            "m.room.member",
            {"membership": "join"},
            state_key="@nobody:stranger.example",
            sender="@nobody:stranger.example",
        ),
    ):
        status, answer = await carol.send_join("a.example", event)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    join_again = room.event("m.room.member", {"membership": "join"}, state_key=room.user_id)
    uri = f"/_matrix/federation/v2/send_join/{quote(room_id, safe='')}/%24other"
    status, answer = await carol.put("a.example", uri, join_again.pdu)
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    uri = f"/_matrix/federation/v2/send_join/%21{'o' * 43}/{quote(join_again.event_id, safe='')}"
    status, answer = await carol.put("a.example", uri, join_again.pdu)
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")


async def test_a_banned_user_cannot_join(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await alice.ok("POST", f"rooms/{quote(room_id)}/ban", json={"user_id": bob.user_id})
    path = f"join/{quote(room_id)}?via=a.example"
    assert await bob.refused("POST", path, json={}) == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"rooms/{quote(room_id)}/unban", json={"user_id": bob.user_id})
    await join(bob, room_id, "a.example")
    assert membership_in(await sync(bob), room_id) == "join"


async def test_a_server_without_members_gets_no_more_events(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})

    async def gone() -> bool:
        content = await alice.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}")
        return bool(content["membership"] == "leave")

    await until(gone)
    count = len(federation.network.exchanges)
    await send_text(alice, room_id, "among ourselves")
    await send_state(alice, room_id, "m.room.topic", {"topic": "bob"})
    await trio.sleep(60)
    assert len(federation.network.exchanges) == count


async def test_messages_sent_during_a_join_arrive(federation: Federation) -> None:
    """The resident's first transaction meets the join at every step of it."""
    b = await federation.start("b.example")
    bob = await b.register("bob")
    carol = Stranger(federation.network, CAROL)
    for steps in range(40):
        await trio.sleep(1)  # or it would be the same room
        room = FakeRoom(carol)
        asked = trio.Event()

        def answer(given: Any, asked: trio.Event = asked) -> Any:
            asked.set()
            return given

        sent = room.serve(bob.user_id, answer=answer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join, bob, str(room.room_id), CAROL)
            await asked.wait()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            room.events.append(parse_event(sent[0], room.version))
            topic = room.say("m.room.topic", {"topic": "Welcome"}, auth=room.events[1:3])
            assert (await carol.send("b.example", str(steps), [topic.pdu])).get(topic.event_id, {}) == {}

        async def heard(room_id: str = str(room.room_id), event_id: str = topic.event_id) -> bool:
            return (await state_of(bob, room_id)).get(("m.room.topic", "")) == event_id

        await until(heard, "the topic is heard")
