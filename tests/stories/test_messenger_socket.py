"""An evening over one connection each: Ada at a.example, Carl at c.example, and a train through a tunnel.

Read it from top to bottom. Both use the WebSocket, as the page to talk in does: no request is made beside it.
"""

from __future__ import annotations

from typing import Any

import trio

from homeserver.socket_client import SocketClient, open_socket_client
from tests.support.federation import Federation
from tests.support.sockets import Line


async def _said(client: SocketClient, heard: list[str]) -> None:
    async for event in client.events():
        if event.type == "m.room.message":
            heard.append(f"{event.sender.partition(':')[0][1:]}: {event.body}")


async def _until(heard: list[str], text: str) -> None:
    with trio.fail_after(3600):
        while text not in heard:  # noqa: ASYNC110
            await trio.sleep(0.2)


async def _invitation(client: SocketClient) -> str:
    async for answer in client.syncs():
        rooms: dict[str, Any] = answer.get("rooms", {}).get("invite", {})
        if rooms:
            return next(iter(rooms))
    raise AssertionError


async def test_an_evening_over_one_connection_each(federation: Federation) -> None:
    a, c = await federation.start("a.example"), await federation.start("c.example")
    ada, carl = await a.register("ada"), await c.register("carl")
    line_of_ada, line_of_carl = Line(a, ada), Line(c, carl)
    heard_by_ada: list[str] = []
    heard_by_carl: list[str] = []
    async with (
        open_socket_client("https://a.example", str(ada.token), connect=line_of_ada.connect) as at_ada,
        open_socket_client("https://c.example", str(carl.token), connect=line_of_carl.connect) as at_carl,
    ):
        # Ada opens a conversation and asks Carl, whose server hears of it from hers. He sees it at once, and comes.
        body = {"preset": "private_chat", "invite": [carl.user_id], "is_direct": True}
        room_id = (await at_ada.call("create_room", body=body, repeat=True))["room_id"]
        assert await _invitation(at_carl) == room_id
        await at_carl.call("join_room_by_id", room_id, body={}, repeat=True)

        # From now on both listen. Nobody asks for anything, and what one says the other hears.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_said, at_ada, heard_by_ada)
            nursery.start_soon(_said, at_carl, heard_by_carl)
            await at_ada.send(room_id, "Is your train on time?")
            await _until(heard_by_carl, "ada: Is your train on time?")
            await at_carl.send(room_id, "It is! A tunnel is coming, though")
            await _until(heard_by_ada, "carl: It is! A tunnel is coming, though")

            # The tunnel: Carl's connection breaks in the middle, and stays broken. Ada goes on talking.
            line_of_carl.is_up = False
            await line_of_carl.cut()
            for number in range(1, 6):
                await at_ada.send(room_id, f"Platform {number}?")

            # He answers before there is light again. His client says it when it can, once.
            nursery.start_soon(at_carl.send, room_id, "Platform 4, in ten minutes")
            await trio.sleep(120)
            assert heard_by_carl[-1] != "ada: Platform 5?"
            line_of_carl.is_up = True
            await _until(heard_by_ada, "carl: Platform 4, in ten minutes")
            await _until(heard_by_carl, "carl: Platform 4, in ten minutes")
            nursery.cancel_scope.cancel()
        assert heard_by_ada == heard_by_carl == [
            "ada: Is your train on time?",
            "carl: It is! A tunnel is coming, though",
            *(f"ada: Platform {number}?" for number in range(1, 6)),
            "carl: Platform 4, in ten minutes",
        ]  # fmt: skip

    # a.example restarts. Ada's connection is closed with the hint to come back, and no word is lost on the way.
    assert at_ada.since is not None
    a.app.dispatch.drain()
    await federation.kill("a.example")
    a = await federation.start("a.example")
    line_of_ada = Line(a, ada)
    async with open_socket_client("https://c.example", str(carl.token), connect=line_of_carl.connect) as at_carl:
        await at_carl.send(room_id, "I am here")
    heard: list[str] = []
    async with (
        open_socket_client(
            "https://a.example", str(ada.token), since=at_ada.since, connect=line_of_ada.connect
        ) as at_ada,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_said, at_ada, heard)
        await _until(heard, "carl: I am here")
        nursery.cancel_scope.cancel()
    assert heard == ["carl: I am here"]
