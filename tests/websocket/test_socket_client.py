"""The Python client: it connects again by itself, and loses and repeats nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from homeserver.errors import MatrixError
from homeserver.socket_client import ANSWERS_WAITING_MAX, ConnectionLost, SocketClient, open_socket_client
from tests.support.federation import create_room, join, send_text
from tests.support.homeservers import Client, Server
from tests.support.sockets import Line


@asynccontextmanager
async def opened(server: Server, user: Client, **options: Any) -> AsyncIterator[tuple[SocketClient, Line]]:
    line = Line(server, user)
    with trio.fail_after(3600):
        async with open_socket_client("https://x", str(user.token), connect=line.connect, **options) as client:
            yield client, line


async def test_the_client_calls_operations_and_raises_their_errors(homeserver: Server) -> None:
    async with opened(homeserver, await homeserver.register("alice")) as (client, _):
        room_id = (await client.call("create_room", body={"name": "Tea"}, repeat=True))["room_id"]
        event_id = await client.send(room_id, "hello")
        page = await client.call("get_room_events", room_id, query={"dir": "b", "limit": 1})
        assert page["chunk"][0]["event_id"] == event_id
        with pytest.raises(MatrixError) as refused:
            await client.call("get_room_state", "!nowhere:test.example")
        assert refused.value.errcode == "M_FORBIDDEN"


async def test_events_come_once_each_and_in_order_however_often_the_line_is_cut(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    seen: list[str] = []
    async with opened(homeserver, bob, filter={"room": {"timeline": {"limit": 3}}}) as (client, line):

        async def listen() -> None:
            async for event in client.events():
                if event.type == "m.room.message":
                    seen.append(event.body)

        async def wait_connected(connections: int) -> None:
            while client.connections < connections:  # noqa: ASYNC110
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            expected = []
            cuts = 0
            for number in range(40):
                if number % 7 == 3:
                    await wait_connected(1 + cuts)
                    await line.cut()
                    line.is_up = False
                    cuts += 1
                if number % 7 == 5:
                    line.is_up = True
                expected.append(f"message {number}")
                await send_text(alice, room_id, expected[-1])
                await trio.sleep(0.3 if number % 2 else 0)
            line.is_up = True
            await wait_connected(1 + cuts)
            while len(seen) < 40:  # noqa: ASYNC110
                await trio.sleep(1)
            await trio.sleep(120)
            nursery.cancel_scope.cancel()
        assert seen == expected
        assert client.connections == 1 + cuts


async def test_answers_that_a_program_does_not_take_are_limited_and_none_is_missed(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    async with opened(homeserver, bob) as (client, _):
        syncs = client.syncs()
        await anext(syncs)
        expected = [f"message {number}" for number in range(ANSWERS_WAITING_MAX + 10)]
        for text in expected:
            await send_text(alice, room_id, text)
            await trio.testing.wait_all_tasks_blocked()
        assert client.waiting == ANSWERS_WAITING_MAX
        assert (await client.call("get_token_owner"))["user_id"] == bob.user_id
        assert client.connections == 1
        seen: list[str] = []
        while len(seen) < len(expected):
            rooms = (await anext(syncs))["rooms"]["join"]
            seen += [event["content"]["body"] for event in rooms[room_id]["timeline"]["events"]]
        assert seen == expected
        assert client.connections == 2


async def test_a_message_that_is_repeated_on_a_new_connection_is_sent_once(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    room_id = await create_room(alice)
    async with opened(homeserver, alice) as (client, line):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(client.send, room_id, f"message {number}")
            await trio.testing.wait_all_tasks_blocked()
            await line.cut()
        page = await client.call("get_room_events", room_id, query={"dir": "b", "limit": 100}, repeat=True)
        sent = sorted(each["content"]["body"] for each in page["chunk"] if each["type"] == "m.room.message")
        assert sent == sorted(f"message {number}" for number in range(20))


async def test_a_call_that_may_not_be_repeated_says_that_the_connection_is_lost(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with opened(homeserver, alice) as (client, line):
        await client.call("get_token_owner", repeat=True)

        async def wait() -> None:
            with pytest.raises(ConnectionLost):
                await client.call("sync_events", query={"timeout": 60_000, "since": since})

        since = (await client.call("sync_events"))["next_batch"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            await line.cut()


async def test_a_client_whose_token_ends_raises_the_error(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    with pytest.RaisesGroup(MatrixError, allow_unwrapped=True, flatten_subgroups=True):
        async with opened(homeserver, alice) as (client, _):
            await client.call("get_token_owner", repeat=True)
            await alice.ok("POST", "logout", json={})
            await trio.sleep(60)


async def test_acknowledged_to_device_messages_are_deleted_and_others_come_again(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")

    async def send(number: int) -> None:
        content = {"messages": {bob.user_id: {bob.device_id: {"number": number}}}}
        await alice.ok("PUT", f"sendToDevice/org.example/{number}", json=content)

    def numbers(answer: dict[str, Any]) -> list[int]:
        return [event["content"]["number"] for event in answer.get("to_device", {}).get("events", [])]

    async with opened(homeserver, bob) as (client, _):
        syncs = client.syncs()
        first = await anext(syncs)
        await send(1)
        assert numbers(await anext(syncs)) == [1]
        acknowledged = client.since
        await send(2)
        assert numbers(await anext(syncs)) == [2]  # which acknowledges the first
        await trio.sleep(5)
    async with opened(homeserver, bob, since=first["next_batch"]) as (client, _):
        assert numbers(await anext(client.syncs())) == [2]
    async with opened(homeserver, bob, since=acknowledged) as (client, _):
        assert numbers(await anext(client.syncs())) == [2]
