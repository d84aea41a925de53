"""Spec: client-server-api/#typing-notifications"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import limits
from tests.support.homeservers import Client, Server
from tests.support.people import ephemeral, invite, join, leave, path_of, public_room, sync
from tests.support.rows import row

FORBIDDEN = (403, "M_FORBIDDEN")


async def types(client: Client, room_id: str, typing: bool = True, **body: Any) -> None:
    path = path_of(room_id, "typing", client.user_id)
    assert await client.ok("PUT", path, json={"typing": typing, **body}) == {}


def typing_in(answer: dict[str, Any], room_id: str) -> list[str] | None:
    """Returns the typing users in a sync answer, None if it does not mention typing."""
    content = ephemeral(answer, room_id, "m.typing")
    return None if content is None else list(content["user_ids"])


async def test_members_are_told_who_starts_and_stops_typing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    answer = await sync(alice)
    assert typing_in(answer, room_id) is None
    await types(bob, room_id)
    answer = await sync(alice, answer["next_batch"])
    assert typing_in(answer, room_id) == [bob.user_id]
    await types(alice, room_id)
    answer = await sync(alice, answer["next_batch"])
    assert typing_in(answer, room_id) == sorted([alice.user_id, bob.user_id])
    await types(bob, room_id, False)
    answer = await sync(alice, answer["next_batch"])
    assert typing_in(answer, room_id) == [alice.user_id]
    assert typing_in(await sync(alice, answer["next_batch"]), room_id) is None


async def test_an_initial_sync_says_who_is_typing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await types(bob, room_id)
    assert typing_in(await sync(alice), room_id) == [bob.user_id]


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"timeout": 5_000}, 5),
        ({}, limits.TYPING_TIMEOUT_MS_DEFAULT // 1000),
        ({"timeout": 10**12}, limits.TYPING_TIMEOUT_MS_MAX // 1000),
    ],
)
async def test_typing_ends_after_its_timeout(server: Server, body: dict[str, Any], seconds: int) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await types(bob, room_id, **body)
    answer = await sync(alice)
    assert typing_in(answer, room_id) == [bob.user_id]
    began = trio.current_time()
    answer = await sync(alice, answer["next_batch"], timeout=limits.TYPING_TIMEOUT_MS_MAX * 2, set_presence="offline")
    while typing_in(answer, room_id) is None:
        answer = await sync(alice, answer["next_batch"], timeout=600_000, set_presence="offline")
    assert typing_in(answer, room_id) == []
    assert seconds - 1 <= trio.current_time() - began <= seconds + 1


async def test_typing_can_be_extended(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    for _ in range(4):
        await types(bob, room_id, timeout=10_000)
        await trio.sleep(8)
        assert typing_in(await sync(alice), room_id) == [bob.user_id]
    await trio.sleep(3)
    assert not typing_in(await sync(alice), room_id)


async def test_a_waiting_sync_returns_at_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    since = (await sync(alice, set_presence="offline"))["next_batch"]
    answers: list[dict[str, Any]] = []

    async def wait() -> None:
        answers.append(await sync(alice, since, timeout=60_000, set_presence="offline"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        await types(bob, room_id)
    assert trio.current_time() - began < 6
    assert typing_in(answers[0], room_id) == [bob.user_id]


async def test_users_outside_the_room_are_not_told(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(alice, bob, dave)
    await invite(alice, room_id, carol)
    await leave(dave, room_id)
    since = {client.user_id: (await sync(client))["next_batch"] for client in (carol, dave)}
    await types(bob, room_id)
    for client in (carol, dave):
        assert typing_in(await sync(client, since[client.user_id]), room_id) is None


async def test_leaving_the_room_ends_typing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await types(bob, room_id)
    await leave(bob, room_id)
    answer = await sync(alice)
    assert not typing_in(answer, room_id)
    await types(alice, room_id)
    assert typing_in(await sync(alice, answer["next_batch"]), room_id) == [alice.user_id]


async def test_remaining_members_see_typing_end_when_a_member_leaves(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    await types(bob, room_id)
    await types(carol, room_id)
    answer = await sync(alice)
    assert typing_in(answer, room_id) == [bob.user_id, carol.user_id]
    await leave(bob, room_id)
    answer = await sync(alice, answer["next_batch"])
    assert typing_in(answer, room_id) == [carol.user_id]
    await alice.ok("POST", path_of(room_id, "kick"), json={"user_id": carol.user_id})
    answer = await sync(alice, answer["next_batch"])
    assert typing_in(answer, room_id) == []


async def test_a_returning_member_is_not_typing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await types(bob, room_id)
    answer = await sync(alice)
    await leave(bob, room_id)
    await join(bob, room_id)
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bobby"})
    answer = await sync(alice, answer["next_batch"])
    assert typing_in(answer, room_id) == []
    assert typing_in(await sync(bob), room_id) in (None, [])
    await types(bob, room_id)
    assert typing_in(await sync(alice, answer["next_batch"]), room_id) == [bob.user_id]
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bob"})
    assert typing_in(await sync(alice), room_id) == [bob.user_id]


async def test_only_members_may_type_and_only_for_themselves(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(alice, bob)
    await invite(alice, room_id, dave)
    await leave(bob, room_id)
    for client in (bob, carol, dave):
        path = path_of(room_id, "typing", client.user_id)
        assert await client.refused("PUT", path, json={"typing": True}) == FORBIDDEN
    assert await carol.refused("PUT", path_of(room_id, "typing", alice.user_id), json={"typing": True}) == FORBIDDEN
    path = path_of("!unknown:test.example", "typing", alice.user_id)
    assert await alice.refused("PUT", path, json={"typing": True}) == FORBIDDEN
    assert await server.anonymous.refused("PUT", path, json={"typing": True}) == (401, "M_MISSING_TOKEN")
    assert not typing_in(await sync(alice), room_id)


async def test_malformed_bodies_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    for body, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"timeout": 1000}, "M_MISSING_PARAM"),
        ({"typing": "true"}, "M_BAD_JSON"),
        ({"typing": 1}, "M_BAD_JSON"),
        ({"typing": None}, "M_BAD_JSON"),
        ({"typing": True, "timeout": "1000"}, "M_BAD_JSON"),
        ({"typing": True, "timeout": 1.5}, "M_BAD_JSON"),
        ({"typing": True, "timeout": []}, "M_BAD_JSON"),
        ([], "M_BAD_JSON"),
    ]:
        with row(body, errcode):
            assert await alice.refused("PUT", path_of(room_id, "typing", alice.user_id), json=body) == (400, errcode)
            assert await alice.refused("PUT", path_of(room_id, "typing", "alice"), json={"typing": True}) == (
                400,
                "M_INVALID_PARAM",
            )
            assert typing_in(await sync(alice), room_id) is None
