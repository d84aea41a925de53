"""Server-sent events: sync answers over HTTP, as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from homeserver import limits
from homeserver.sync.event_stream import PATH
from tests.support.federation import create_room, send_text, sync
from tests.support.homeservers import Client, Server
from tests.support.sockets import connected


class Events:
    """A stream as a browser reads it."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._data = b""
        self.comments = 0

    async def next(self) -> tuple[str, dict[str, Any]] | None:
        """The id or the kind of the next event, and its data; None at the end."""
        while True:
            event, found, rest = self._data.partition(b"\n\n")
            if not found:
                data = await self._stream.receive_some()
                if not data:
                    return None
                self._data += data.replace(b"\r\n", b"")
                continue
            self._data = rest
            lines = [line for line in event.split(b"\n") if b"data: " in line or b"id: " in line or b"event: " in line]
            if len(lines) == 2:
                name = lines[0].split(b": ")[-1].decode()
                return name, json.loads(lines[1].partition(b"data: ")[2])
            self.comments += 1


@asynccontextmanager
async def listening(server: Server, client: Client, query: str = "", *headers: str) -> AsyncIterator[Events]:
    async with connected(server.app) as stream:
        lines = [f"GET {PATH}{query} HTTP/1.1", "host: x", f"authorization: Bearer {client.token}", "connection: close"]
        lines += [*headers, "", ""]
        await stream.send_all("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert b"content-type: text/event-stream" in head
        yield Events(stream)


def messages(answer: dict[str, Any], room_id: str) -> list[str]:
    events = answer["rooms"]["join"][room_id]["timeline"]["events"]
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


async def test_events_are_sync_answers_with_their_token_as_id(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    room_id = await create_room(alice)
    async with listening(homeserver, alice) as events:
        first = await events.next()
        assert first is not None
        assert first[0] == first[1]["next_batch"] and room_id in first[1]["rooms"]["join"]
        await send_text(alice, room_id, "one")
        second = await events.next()
        assert second is not None and messages(second[1], room_id) == ["one"]


async def test_last_event_id_resumes_where_the_client_was(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    room_id = await create_room(alice)
    since = (await sync(alice))["next_batch"]
    await send_text(alice, room_id, "one")
    async with listening(homeserver, alice, f"?since={since}") as events:
        told = await events.next()
        assert told is not None and messages(told[1], room_id) == ["one"]
    await send_text(alice, room_id, "two")
    async with listening(homeserver, alice, f"?since={since}", f"last-event-id: {told[0]}") as events:
        told = await events.next()
        assert told is not None and messages(told[1], room_id) == ["two"]


async def test_a_quiet_stream_sends_comments_and_ends_after_some_minutes(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    since = (await sync(alice))["next_batch"]
    began = trio.current_time()
    async with listening(homeserver, alice, f"?since={since}&set_presence=offline") as events:
        while await events.next() is not None:  # the user becomes idle meanwhile
            pass
        assert events.comments > 10
        assert limits.websocket.EVENT_STREAM_SECONDS_MAX <= trio.current_time() - began < 1000


async def test_a_stream_says_when_its_token_ends(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with listening(homeserver, alice) as events:
        await events.next()
        await alice.ok("POST", "logout", json={})
        last = await events.next()
        assert last is not None and (last[0], last[1]["errcode"]) == ("error", "M_UNKNOWN_TOKEN")
        assert await events.next() is None


async def test_a_stopping_server_ends_its_streams(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    async with listening(homeserver, alice) as events:
        await events.next()
        homeserver.app.dispatch.drain()
        assert await events.next() is None


async def test_a_wrong_token_of_the_stream_is_refused_before_it_begins(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert (await alice.get(f"{PATH}?since=nonsense")).json()["errcode"] == "M_INVALID_PARAM"
    assert (await Client(homeserver).get(PATH)).status_code == 401


async def test_streams_that_begin_at_once_are_limited_as_well(homeserver: Server) -> None:
    """A stream begins when its client takes the head of the answer; until then it holds nothing but its place."""
    alice = await homeserver.register("alice")
    most = limits.websocket.EVENT_STREAMS_PER_USER_MAX
    taken, refused, begun = trio.Event(), 0, 0

    async def listen() -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal refused, begun
            if message["type"] == "http.response.start":
                await taken.wait()
            refused += b"M_LIMIT_EXCEEDED" in message.get("body", b"")
            begun += b"next_batch" in message.get("body", b"")

        headers = [(b"authorization", f"Bearer {alice.token}".encode())]
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "scheme": "https", "path": PATH, "headers": headers,
            "raw_path": PATH.encode(), "query_string": b"", "client": ("192.0.2.66", 666),
            "server": ("test.example", 443), "extensions": {},
        }  # fmt: skip
        await homeserver.app(scope, trio.sleep_forever, send)

    async with trio.open_nursery() as nursery:
        for _ in range(most + 10):
            nursery.start_soon(listen)
        await trio.sleep(1)
        taken.set()
        await trio.sleep(1)
        assert (begun, refused) == (most, 10)
        nursery.cancel_scope.cancel()
    await trio.sleep(1)
    async with listening(homeserver, alice) as events:  # those that ended make room
        assert await events.next() is not None
