"""Work that was under way when the server was killed is finished after the next start, without a new request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import trio

from homeserver import limits
from homeserver.config import Registration
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.rooms.heads import get_head, state_content
from homeserver.rooms.membership import list_joined_rooms
from tests.support.federation import Federation, create_room, join, send_state, sync, until
from tests.support.homeservers import Client, Server

NAME = "a.example"
ROOMS = 8 * limits.users.PROFILE_ROOMS_PER_WRITE
"""Many times what one write gets through with."""


async def start_again(federation: Federation, *clients: Client, **sections: Any) -> tuple[Server, list[Client]]:
    """Kills the server, starts it on what it left, and gives its clients back, who know nothing of it."""
    await federation.kill(NAME)
    server = await federation.start(NAME, **sections)
    return server, [Client(server, client.token, client.user_id, client.device_id) for client in clients]


async def begin(request: Callable[[], Awaitable[Any]], is_begun: Callable[[], Awaitable[bool]]) -> None:
    """Returns during a request, whose client no longer waits for it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        while not await is_begun():
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_deactivated_user_leaves_the_remaining_rooms_after_a_crash(federation: Federation) -> None:
    server = await federation.start(NAME)
    alice, bob = await server.register("alice"), await server.register("bob")
    rooms = [await server.make_room(bob, alice) for _ in range(ROOMS)]

    async def stays(server: Server) -> int:
        return len(await server.read(list_joined_rooms, alice.user_id))

    async def has_begun() -> bool:
        return await stays(server) < ROOMS

    await begin(partial(alice.post, "account/deactivate", {"auth": alice.password_auth()}), has_begun)
    assert await stays(server) > 0
    again, (bob,) = await start_again(federation, bob)

    async def has_left() -> bool:
        return await stays(again) == 0

    await until(has_left)
    members = await bob.ok("GET", f"rooms/{quote(rooms[-1])}/joined_members")
    assert list(members["joined"]) == [bob.user_id]


async def test_a_new_display_name_reaches_the_remaining_rooms_after_a_crash(federation: Federation) -> None:
    server = await federation.start(NAME)
    alice = await server.register("alice")
    for _ in range(ROOMS):
        await server.make_room(alice)

    async def told(server: Server) -> int:
        return await server.read(_count_rooms_told, alice.user_id, "Al")

    async def has_begun() -> bool:
        return await told(server) > 0

    path = f"profile/{quote(alice.user_id)}/displayname"
    await begin(partial(alice.put, path, {"displayname": "Al"}), has_begun)
    assert await told(server) < ROOMS
    again, _ = await start_again(federation)

    async def is_told() -> bool:
        return await told(again) == ROOMS

    await until(is_told)


def _count_rooms_told(tx: Transaction, user_id: UserID, name: str) -> int:
    contents = [
        state_content(tx, get_head(tx, room_id).state_root, "m.room.member", user_id) or {}
        for room_id in list_joined_rooms(tx, user_id)
    ]
    return sum(content.get("displayname") == name for content in contents)


async def test_typing_ends_after_a_crash(federation: Federation) -> None:
    server = await federation.start(NAME)
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await server.make_room(alice, bob)
    path = f"rooms/{quote(room_id)}/typing/{quote(bob.user_id)}"
    await bob.ok("PUT", path, json={"typing": True, "timeout": 20_000})
    since = (await sync(alice))["next_batch"]
    _, (alice,) = await start_again(federation, alice)
    begun = trio.current_time()
    answer = await sync(alice, since, timeout=60_000)
    assert answer["rooms"]["join"][room_id]["ephemeral"]["events"][0]["content"] == {"user_ids": []}
    assert trio.current_time() - begun < 21


async def test_online_users_go_offline_after_a_crash(federation: Federation) -> None:
    server = await federation.start(NAME)
    alice, bob = await server.register("alice"), await server.register("bob")
    await server.make_room(alice, bob)
    await sync(bob)
    _, (alice,) = await start_again(federation, alice)

    async def offline() -> bool:
        status = await alice.ok("GET", f"presence/{quote(bob.user_id)}/status")
        return bool(status["presence"] == "offline")

    assert not await offline()
    await until(offline)


async def test_guests_are_removed_from_a_closed_room_after_a_crash(federation: Federation) -> None:
    open_to_guests = {"registration": Registration(enabled=True, guests=True)}
    server = await federation.start(NAME, **open_to_guests)
    alice = await server.register("alice")
    answer = await server.anonymous.ok("POST", "register?kind=guest", json={})
    guest = Client(server, answer["access_token"], answer["user_id"], answer["device_id"])
    room_id = await create_room(alice, preset="public_chat")
    await send_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"})
    await join(guest, room_id)
    await send_state(alice, room_id, "m.room.guest_access", {"guest_access": "forbidden"})
    _, (alice,) = await start_again(federation, alice, **open_to_guests)

    async def alone() -> bool:
        members = await alice.ok("GET", f"rooms/{quote(room_id)}/joined_members")
        return list(members["joined"]) == [alice.user_id]

    await until(alone)
