"""Sockets of a server that was restored from a backup, or whose clock is wrong: nothing is missed or hangs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.client_server_api.test_sync_tokens import again, back_up, restore, started
from tests.support.federation import Federation, create_room, join, send_text
from tests.support.homeservers import Client, Server, now_ms
from tests.support.people import public_room, say, sync
from tests.support.sockets import Socket, open_socket
from tests.websocket.test_event_stream import listening
from tests.websocket.test_event_stream import messages as streamed_messages
from tests.websocket.test_sessions import messages, start

HOUR_S, YEAR_S = 3600, 365 * 24 * 3600


@pytest.mark.usefixtures("homeservers")
@pytest.mark.parametrize("passed", [False, True], ids=["at once", "when the stream has passed the token"])
async def test_a_socket_that_resumes_from_before_a_restore_misses_nothing(tmp_path: Path, passed: bool) -> None:
    async with started(tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await public_room(alice, bob)
        await say(alice, room_id, "before")
    back_up(tmp_path)
    async with started(tmp_path) as server:
        alice, bob = again(server, alice, bob)
        async with open_socket(server, bob) as socket:
            await start(socket)
            await say(alice, room_id, *(f"lost {number}" for number in range(10)))
            lost = (await socket.next_push())["next_batch"]
    restore(tmp_path)
    async with started(tmp_path) as server:
        alice, bob = again(server, alice, bob)
        await say(alice, room_id, "after")
        if passed:
            await say(alice, room_id, *(f"more {number}" for number in range(12)))
        async with open_socket(server, bob) as socket:
            answer = await start(socket, lost)
            room = answer["rooms"]["join"][room_id]
            assert room["timeline"]["limited"], "the client must fetch what lies between the two histories"
            assert messages(answer, room_id)[-1] == ("more 11" if passed else "after")
            assert "lost" not in str(answer)
            await say(alice, room_id, "news")
            assert messages(await socket.next_push(), room_id) == ["news"]


@pytest.mark.usefixtures("homeservers")
async def test_an_ack_from_before_a_restore_acknowledges_nothing(tmp_path: Path) -> None:
    """A token of the lost history deletes nothing that came after the restore, and tells nothing as delivered."""
    async with started(tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
    back_up(tmp_path)
    async with started(tmp_path) as server:
        alice, bob = again(server, alice, bob)
        await public_room(alice, bob)
        lost = (await sync(bob))["next_batch"]
    restore(tmp_path)
    async with started(tmp_path) as server:
        alice, bob = again(server, alice, bob)
        message = {"messages": {bob.user_id: {"*": {"number": 1}}}}
        await alice.ok("PUT", "sendToDevice/org.example.hello/t1", json=message)
        async with open_socket(server, bob) as socket:
            answer = await start(socket)
            assert [each["content"] for each in answer["to_device"]["events"]] == [{"number": 1}]
            await socket.send({"ack": lost})
            assert (await socket.call("ping"))["status"] == 200
        answer = await sync(bob)
        assert [each["content"] for each in answer["to_device"]["events"]] == [{"number": 1}]


@pytest.mark.usefixtures("homeservers")
async def test_an_event_stream_resumes_from_before_a_restore(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        alice = await server.register("alice")
        room_id = await public_room(alice)
    back_up(tmp_path)
    async with started(tmp_path) as server:
        (alice,) = again(server, alice)
        await say(alice, room_id, *(f"lost {number}" for number in range(10)))
        lost = (await sync(alice))["next_batch"]
    restore(tmp_path)
    async with started(tmp_path) as server:
        (alice,) = again(server, alice)
        await say(alice, room_id, "after")
        async with listening(server, alice, "", f"last-event-id: {lost}") as events:
            told = await events.next()
            assert told is not None and streamed_messages(told[1], room_id)[-1] == "after"


@dataclass
class Clock:
    """The time of day as the server sees it."""

    offset_s: float = 0

    def __call__(self) -> int:
        return now_ms() + round(self.offset_s * 1000)


async def _two_people(federation: Federation, clock: Clock) -> tuple[Server, Client, Client, str]:
    server = await federation.start("a.example", clock=clock)
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    return server, alice, bob, room_id


async def _heard(socket: Socket, room_id: str, text: str) -> str:
    """Waits for the push with this message, which is the next one of the room. Returns its token."""
    with trio.fail_after(60):
        while not (found := messages(answer := await socket.next_push(), room_id)):
            pass
    assert found == [text]
    return str(answer["next_batch"])


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S])
async def test_an_open_socket_outlives_a_jump_of_the_clock(federation: Federation, jump_s: int) -> None:
    clock = Clock()
    server, alice, bob, room_id = await _two_people(federation, clock)
    async with open_socket(server, bob) as socket:
        await start(socket)
        await send_text(alice, room_id, "before")
        await _heard(socket, room_id, "before")
        clock.offset_s = jump_s
        await trio.sleep(20)
        await send_text(alice, room_id, "wrong")
        await _heard(socket, room_id, "wrong")
        assert (await socket.call("ping"))["status"] == 200
        clock.offset_s = 0
        await trio.sleep(20)
        await send_text(alice, room_id, "right again")
        await _heard(socket, room_id, "right again")


@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
async def test_delivery_over_a_socket_is_told_despite_a_jump_of_the_clock(federation: Federation, jump_s: int) -> None:
    clock = Clock()
    server, alice, bob, room_id = await _two_people(federation, clock)
    async with open_socket(server, bob) as socket:
        await start(socket)
        for offset_s, text in ((jump_s, "wrong"), (0, "right again")):
            clock.offset_s = offset_s
            event_id = await send_text(alice, room_id, text)
            await socket.send({"ack": await _heard(socket, room_id, text)})
            await trio.sleep(5)
            path = f"/_homeserver/client/v1/rooms/{room_id}/events/{event_id}/status"
            assert (await alice.ok("GET", path))["status"] == "delivered", text


@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
async def test_sockets_are_limited_and_silent_ones_given_up_as_usual_after_a_jump(
    federation: Federation, jump_s: int
) -> None:
    clock = Clock()
    server, _, bob, _ = await _two_people(federation, clock)
    async with open_socket(server) as socket:  # not authenticated yet
        clock.offset_s = jump_s
        assert await socket.until_closed() == 4001
    async with open_socket(server, bob) as socket:
        clock.offset_s = 0
        assert (await socket.call("get_token_owner"))["body"]["user_id"] == bob.user_id
