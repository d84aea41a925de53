"""What a client can do over its WebSocket."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio_websocket import ConnectionRejected

from homeserver.config import WebsocketSection
from homeserver.http.asgi import WEBSOCKET_PATH
from tests.support.federation import create_room, join, send_text, sync
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.sockets import Socket, open_socket


def messages(answer: dict[str, Any], room_id: str) -> list[str]:
    events = answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("timeline", {}).get("events", [])
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


async def start(socket: Socket, since: str | None = None, **fields: Any) -> dict[str, Any]:
    """Starts the push and returns the first answer; without `since` the initial one."""
    await socket.send({"id": "sync", "op": "sync", **({} if since is None else {"since": since}), **fields})
    return await socket.next_push()


async def test_a_client_authenticates_with_a_header_or_with_its_first_message(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with open_socket(homeserver, alice) as socket:
        assert (await socket.call("get_token_owner"))["body"]["user_id"] == alice.user_id
    async with open_socket(homeserver) as socket:
        await socket.send({"op": "authenticate", "token": alice.token})
        assert (await socket.call("get_token_owner"))["body"]["user_id"] == alice.user_id


async def test_a_wrong_token_in_the_header_is_refused_like_any_request(homeserver: Server) -> None:
    nobody = Client(homeserver, token="nonsense")
    with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True) as refused:
        async with open_socket(homeserver, nobody):
            pass
    rejected = refused.value.exceptions[0]
    while isinstance(rejected, BaseExceptionGroup):
        rejected = rejected.exceptions[0]
    assert isinstance(rejected, ConnectionRejected)
    assert rejected.status_code == 401
    assert json.loads(rejected.body or b"")["errcode"] == "M_UNKNOWN_TOKEN"


@pytest.mark.parametrize(
    "first",
    [{"op": "ping", "id": 1}, {"op": "authenticate", "token": "nonsense"}, {"op": "authenticate"}, {"ack": "s1"}, {}],
    ids=str,
)
async def test_anything_else_before_authentication_closes_with_4001(homeserver: Server, first: Any) -> None:
    async with open_socket(homeserver) as socket:
        await socket.send(first)
        assert await socket.until_closed() == 4001


async def test_a_client_that_does_not_authenticate_is_closed_with_4001(homeserver: Server) -> None:
    async with open_socket(homeserver) as socket:
        assert await socket.until_closed() == 4001


async def test_a_ping_is_answered(homeserver: Server) -> None:
    async with open_socket(homeserver, await homeserver.register("alice")) as socket:
        assert await socket.call("ping") == {"id": 1, "status": 200, "body": {}}


async def test_operations_are_called_by_name_and_answered_with_the_id_of_the_call(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with open_socket(homeserver, alice) as socket:
        room_id = (await socket.call("create_room", body={"name": "Tea"}))["body"]["room_id"]
        content = {"msgtype": "m.text", "body": "Grüße 🍵"}
        await socket.send({"id": "a", "op": "send_message", "path": [room_id, "m.room.message", "t1"], "body": content})
        await socket.send({"id": "b", "op": "get_room_state_with_key", "path": [room_id, "m.room.name", ""]})
        assert (await socket.answer_to("b"))["body"] == {"name": "Tea"}
        assert (await socket.answer_to("a"))["status"] == 200
        page = await socket.call("get_room_events", room_id, query={"dir": "b", "limit": 1})
        assert page["body"]["chunk"][0]["content"] == content


async def test_errors_have_the_status_and_body_of_http(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with open_socket(homeserver, alice) as socket:
        over_http = await alice.get("rooms/!nowhere:test.example/state")
        refused = await socket.call("get_room_state", "!nowhere:test.example")
        assert (refused["status"], refused["body"]) == (over_http.status_code, over_http.json())
        assert (await socket.call("no_such_operation"))["body"]["errcode"] == "M_UNRECOGNIZED"
        assert (await socket.call("get_room_state"))["body"] == {
            "errcode": "M_INVALID_PARAM", "error": "The path of get_room_state takes room_id.",
        }  # fmt: skip
        assert (await socket.call("send_transaction", "t1", body={}))["status"] == 404
        assert (await socket.call("ping", path="nonsense"))["body"]["errcode"] == "M_BAD_JSON"


async def test_the_push_begins_with_an_initial_sync_and_goes_on_with_all_news(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    async with open_socket(homeserver, bob) as socket:
        first = await start(socket)
        assert room_id in first["rooms"]["join"]
        for text in ("one", "two"):
            await send_text(alice, room_id, text)
            assert messages(await socket.next_push(), room_id) == [text]


async def test_a_push_with_since_tells_what_the_client_has_missed_and_nothing_else(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    since = (await sync(bob))["next_batch"]
    async with open_socket(homeserver, bob) as socket:
        await socket.send({"op": "sync", "since": since})
        assert (await socket.call("ping"))["status"] == 200
        assert socket.pushed == []
        await send_text(alice, room_id, "one")
        answer = await socket.next_push()
        assert messages(answer, room_id) == ["one"]
    await send_text(alice, room_id, "two")
    async with open_socket(homeserver, bob) as socket:
        assert messages(await start(socket, answer["next_batch"]), room_id) == ["two"]


async def test_a_device_that_is_logged_out_is_closed_with_4001(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with open_socket(homeserver, alice) as socket:
        await start(socket)
        await alice.ok("POST", "logout", json={})
        assert await socket.until_closed() == 4001


async def test_sockets_that_are_turned_off_or_too_many_are_refused(homeservers: Homeservers) -> None:
    off = await homeservers.start("off.example", websocket=WebsocketSection(enabled=False))
    assert (await (await off.register("alice")).get(WEBSOCKET_PATH)).status_code == 404
    few = await homeservers.start("few.example", websocket=WebsocketSection(connections_max=1))
    alice = await few.register("alice")
    assert (await alice.get(WEBSOCKET_PATH)).status_code == 426
    async with open_socket(few, alice) as socket:
        with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True):
            async with open_socket(few, alice):
                pass
        assert (await socket.call("ping"))["status"] == 200


async def test_a_stopping_server_answers_what_it_has_and_closes_with_1012(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with open_socket(homeserver, alice) as socket:
        await start(socket)
        homeserver.app.dispatch.drain()
        await trio.lowlevel.checkpoint()
        assert await socket.until_closed() == 1012


async def test_sockets_work_through_the_asgi_door_of_an_embedding_program(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    to_server, from_client = trio.open_memory_channel[Any](10)
    to_client, from_server = trio.open_memory_channel[Any](10)
    scope = {
        "type": "websocket", "path": WEBSOCKET_PATH, "raw_path": WEBSOCKET_PATH.encode(), "query_string": b"",
        "headers": [(b"authorization", f"Bearer {alice.token}".encode())], "client": ("192.0.2.1", 1), "extensions": {},
    }  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(homeserver.app, scope, from_client.receive, to_client.send)
        await to_server.send({"type": "websocket.connect"})
        assert (await from_server.receive())["type"] == "websocket.accept"
        await to_server.send({"type": "websocket.receive", "text": '{"op":"ping","id":1}'})
        answer = await from_server.receive()
        assert answer == {"type": "websocket.send", "text": '{"id":1,"status":200,"body":{}}'}
        await to_server.send({"type": "websocket.receive", "bytes": b"{}"})
        closed = await from_server.receive()
        assert (closed["type"], closed["code"]) == ("websocket.close", 1007)


async def test_the_asgi_door_refuses_a_wrong_token_and_other_paths(homeserver: Server) -> None:
    for path, token in ((WEBSOCKET_PATH, "nonsense"), ("/_matrix/client/versions", "")):
        told: list[Any] = []

        async def send(message: Any, told: list[Any] = told) -> None:
            told.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        scope = {
            "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())], "client": None,
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        await homeserver.app(scope, receive, send)
        assert told[0]["status"] in (401, 404)
