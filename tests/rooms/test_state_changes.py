"""The stream key STATE_CHANGES is woken by all that its tails read: of the user directory, of friends, of guests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio

from homeserver.database import Transaction
from homeserver.rooms.guests import lets_guests_in
from homeserver.rooms.heads import STATE_CHANGES
from homeserver.rooms.member_changes import list_members_changed, list_rooms_changed, list_rooms_with_member_changes
from homeserver.users.profile import RENAMES
from tests.support.federation import Federation, federation, wait_text
from tests.support.federation import join as join_via
from tests.support.homeservers import Client, Server, homeserver, homeservers
from tests.support.people import act, create, join, leave, public_room, redact, send, server, set_state

__all__ = ["federation", "homeserver", "homeservers", "server"]


def _list_changes(tx: Transaction, since: int) -> list[Any]:
    """Returns what the tails of friends and of the user directory would find after a position."""
    upto = tx.position
    rooms = list_rooms_with_member_changes(tx, since)
    members = [nid for room_nid in rooms for nid in list_members_changed(tx, room_nid, since, upto)]
    return [*members, *list_rooms_changed(tx, since, upto)]


def _list_open_to_guests(tx: Transaction) -> set[str]:
    rooms = tx.names(tx.values("SELECT room_nid FROM rooms")).values()
    return {room_id for room_id in rooms if lets_guests_in(tx, room_id)}


@asynccontextmanager
async def checked(server: Server) -> AsyncIterator[list[bool]]:
    """After each commit: fails if there is something that nobody was woken for. Yields when the key was woken."""
    database, stream, woken = server.hs.database, server.hs.stream, list[bool]()

    async def check() -> None:
        position, is_open = stream.position, await database.read(_list_open_to_guests)
        async with stream.subscribe() as subscription:
            while True:
                since, position = position, await subscription.wait(position)
                changes, was_open = await database.read(_list_changes, since), is_open
                is_open = await database.read(_list_open_to_guests)
                woken.append(stream.has_news((STATE_CHANGES,), since))
                assert woken[-1] or not changes, f"{changes} after {since}"
                assert woken[-1] or was_open == is_open, f"guests after {since}"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check)
        yield woken
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def test_plain_messages_wake_no_tail_of_states(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    since = server.hs.stream.position
    event_id = await send(alice, room_id)
    await bob.ok("POST", f"rooms/{room_id}/receipt/m.read/{event_id}", json={})
    await bob.ok("PUT", f"rooms/{room_id}/typing/{bob.user_id}", json={"typing": True, "timeout": 5000})
    await redact(alice, room_id, event_id)
    assert not server.hs.stream.has_news((STATE_CHANGES, RENAMES), since)
    assert server.hs.stream.position > since


@pytest.mark.parametrize("seed", range(4))
async def test_every_change_of_a_state_or_a_membership_wakes_the_key(server: Server, seed: int) -> None:
    random = Random(seed)
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob)
    states: list[str] = []

    async def change_state() -> None:
        kind, content = random.choice(
            [
                ("m.room.join_rules", {"join_rule": random.choice(["public", "invite"])}),
                ("m.room.history_visibility", {"history_visibility": random.choice(["world_readable", "shared"])}),
                ("m.room.guest_access", {"guest_access": random.choice(["can_join", "forbidden"])}),
                ("m.room.topic", {"topic": f"{random.random()}"}),
            ]
        )
        states.append(await set_state(alice, room_id, kind, content))

    async def redact_state() -> None:
        if states:
            await redact(alice, room_id, states.pop())

    async def move(client: Client) -> None:
        await client.request("POST", f"rooms/{room_id}/{random.choice(['join', 'leave'])}", json={})

    async def kick() -> None:
        await alice.request("POST", f"rooms/{room_id}/kick", json={"user_id": bob.user_id})

    async def ask() -> None:
        await alice.request("POST", f"rooms/{room_id}/invite", json={"user_id": carol.user_id})

    async def rename() -> None:
        since = server.hs.stream.position
        await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": f"Bob {random.random()}"})
        assert server.hs.stream.has_news((RENAMES,), since)

    async def say() -> None:
        await send(alice, room_id)

    actions: list[Callable[[], Awaitable[None]]] = [
        change_state, change_state, redact_state, lambda: move(bob), lambda: move(carol), kick, ask, rename, say,
    ]  # fmt: skip
    async with checked(server) as woken:
        for _ in range(40):
            await random.choice(actions)()
    assert any(woken)


async def test_states_that_come_from_other_servers_wake_the_key(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    carol, dave = await a.register("carol"), await b.register("dave")
    room_id = await create(alice, preset="public_chat")
    async with checked(a) as woken, checked(b) as woken_there:
        await join_via(bob, room_id, "a.example")
        await join(carol, room_id)
        await set_state(alice, room_id, "m.room.power_levels", {"users": {bob.user_id: 100}})
        await send(alice, room_id, "all here")
        await wait_text(bob, room_id, "all here")
        federation.network.cut("a.example", "b.example")
        await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
        await act(bob, room_id, "ban", carol)
        await join_via(dave, room_id, "b.example")
        await set_state(bob, room_id, "m.room.join_rules", {"join_rule": "invite"})
        await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "forbidden"})
        await leave(carol, room_id)
        federation.network.heal()
        await send(alice, room_id, "from a")
        await send(bob, room_id, "from b")
        await wait_text(bob, room_id, "from a")
        await wait_text(alice, room_id, "from b")
        await act(bob, room_id, "unban", carol)
        await leave(bob, room_id)
        await trio.sleep(60)
    for each in (woken, woken_there):
        assert any(each)
