"""Several whole homeservers in one process, joined by a fake network, and servers that are made of nothing but a key.

    async def test_something(federation):
        a, b, alice, bob = await federation.start_two()
        c = await federation.start("c.example")

They are stopped and started again on their files; what they answer one another is held to the spec.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from homeserver.config import FederationSection
from homeserver.feature import Feature
from homeserver.features import FEATURES
from homeserver.federation.identifiers import EventID, RoomID, ServerName
from homeserver.server import Homeserver, all_schemas
from homeserver.testing import FakeNetwork
from tests.support.archive import prepare_archive
from tests.support.contract import check_federation_response
from tests.support.engine import DATABASE_FILE, make_file
from tests.support.homeservers import Client, Homeservers, Server, config_for_tests, now_ms


@dataclass(slots=True)
class _Running:
    scope: trio.CancelScope
    ended: trio.Event


@dataclass(slots=True)
class Federation:
    """The servers of one test and the network between them."""

    nursery: trio.Nursery
    folder: Path
    network: FakeNetwork = field(default_factory=FakeNetwork)
    _running: dict[str, _Running] = field(default_factory=dict)

    async def start(
        self, name: str, *, clock: Callable[[], int] = now_ms, features: Sequence[Feature] = FEATURES, **sections: Any
    ) -> Server:
        """A homeserver that others reach under this name; again, with what it has stored, if it ran before."""
        sections.setdefault("federation", FederationSection())
        config = config_for_tests(name, self.folder, **sections)
        server: Server = await self.nursery.start(self._run, config, clock, features)
        return server

    async def start_two(self) -> tuple[Server, Server, Client, Client]:
        """a.example with the user alice, and b.example with bob."""
        a, b = await self.start("a.example"), await self.start("b.example")
        return a, b, await a.register("alice"), await b.register("bob")

    async def kill(self, name: str) -> None:
        """Kills the server: nothing that is under way is finished."""
        self.network.leave(name)
        running = self._running.pop(name)
        running.scope.cancel()
        await running.ended.wait()

    async def _run(
        self,
        config: Any,
        clock: Callable[[], int],
        features: Sequence[Feature],
        *,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        name = config.server_name
        with trio.CancelScope() as scope:
            running = self._running[name] = _Running(scope, trio.Event())
            try:
                async with running_homeserver(config, self.network, clock, features) as server:
                    task_status.started(server)
                    await trio.sleep_forever()
            finally:
                running.ended.set()


@asynccontextmanager
async def running_homeserver(
    config: Any,
    network: FakeNetwork,
    clock: Callable[[], int] = now_ms,
    features: Sequence[Feature] = FEATURES,
) -> AsyncIterator[Server]:
    """A homeserver on the network, as long as the context lasts."""
    if config.database.url == DATABASE_FILE:
        make_file(config.data_path(DATABASE_FILE.removeprefix("sqlite:")), all_schemas(features))
    wire = network.wire_for(config.server_name)
    async with Homeserver(config, wire=wire, now_ms=clock, inline_database=True, features=features) as homeserver:
        prepare_archive(homeserver.resources)
        network.join(config.server_name, checked(homeserver.app))
        transport = httpx.ASGITransport(homeserver.app, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url=f"https://{config.server_name}") as http:
            yield Server(homeserver.resources, homeserver.app, http)


def checked(app: Any) -> Any:
    """The app, with an AssertionError for an answer to another server that is not as the spec says."""

    async def check(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        status, body = 0, b""

        async def listen(message: MutableMapping[str, Any]) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
            await send(message)

        await app(scope, receive, listen)
        path = scope["raw_path"].decode()
        if scope["query_string"]:
            path += "?" + scope["query_string"].decode()
        check_federation_response(scope["method"], path, status, body)

    return check


async def until(condition: Callable[[], Awaitable[Any]], what: str = "", *, seconds: float = 2 * 3600) -> Any:
    """Waits until the condition is true, and returns its value. An hour of virtual time costs little."""
    pause_s = 0.02
    with trio.move_on_after(seconds):
        while True:
            answer = await condition()
            if answer:
                return answer
            await trio.sleep(pause_s)
            pause_s = min(1.2 * pause_s, 60)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


# What people do


async def create_room(client: Client, **body: Any) -> RoomID:
    return RoomID((await client.ok("POST", "createRoom", json=body))["room_id"])


async def send_text(client: Client, room_id: str, text: str) -> EventID:
    txn_id = quote(f"{text}-{trio.current_time()}", safe="")
    path = f"rooms/{quote(room_id)}/send/m.room.message/{txn_id}"
    return EventID((await client.ok("PUT", path, json={"msgtype": "m.text", "body": text}))["event_id"])


async def send_state(client: Client, room_id: str, event_type: str, content: Any, state_key: str = "") -> EventID:
    path = f"rooms/{quote(room_id)}/state/{event_type}/{quote(state_key, safe='')}"
    return EventID((await client.ok("PUT", path, json=content))["event_id"])


async def join(client: Client, room: str, *via: str) -> RoomID:
    query = "&".join(f"via={server}" for server in via)
    return RoomID((await client.ok("POST", f"join/{quote(room)}?{query}", json={}))["room_id"])


async def invite(client: Client, room_id: str, user_id: str) -> None:
    await client.ok("POST", f"rooms/{quote(room_id)}/invite", json={"user_id": user_id})


async def sync(client: Client, since: str | None = None, timeout: int = 0) -> dict[str, Any]:
    query = f"timeout={timeout}" + (f"&since={since}" if since else "")
    answer: dict[str, Any] = await client.ok("GET", f"sync?{query}")
    return answer


async def texts(client: Client, room_id: str, limit: int = 100) -> list[str]:
    """The messages of the room that the client sees, oldest first."""
    answer = await client.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit={limit}")
    events = answer["chunk"][::-1]
    return [event["content"].get("body", "") for event in events if event["type"] == "m.room.message"]


async def wait_text(client: Client, room_id: str, text: str) -> None:
    """Waits until the client sees the message."""

    async def seen() -> bool:
        return text in await texts(client, room_id)

    await until(seen, f"{client.user_id} sees {text!r}")


async def state_of(client: Client, room_id: str) -> dict[tuple[str, str], Any]:
    """The state that the client sees: (type, state_key) → event id."""
    events = await client.ok("GET", f"rooms/{quote(room_id)}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


def membership_in(answer: dict[str, Any], room_id: str) -> str | None:
    """The section of a /sync answer that the room is in."""
    rooms = answer.get("rooms", {})
    return next((kind for kind in ("join", "invite", "knock", "leave") if room_id in rooms.get(kind, {})), None)


def body_of(response: httpx.Response) -> Any:
    return json.loads(response.content)


@pytest.fixture
async def federation(homeservers: Homeservers, tmp_path: Path) -> AsyncIterator[Federation]:
    """`a = await federation.start("a.example")`"""
    async with trio.open_nursery() as nursery:
        yield Federation(nursery, tmp_path)
        nursery.cancel_scope.cancel()


__all__ = ["Federation", "ServerName", "federation"]
