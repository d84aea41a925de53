"""How much work a message takes: a regression that a clock would not show on a busy machine.

The figures are upper limits, as measured. If a change makes something cost more, and is worth it, it raises them here.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from homeserver import Client, Homeserver
from homeserver.database.batch import run_batch, run_read
from homeserver.federation.identifiers import RoomID
from homeserver.testing import one_server, two_servers
from tests.support.engine import ENGINE

PASSWORD = "a good password"

pytestmark = pytest.mark.skipif(ENGINE != "sqlite", reason="statements are counted where SQLite runs them")

_STATEMENTS = {"execute", "executemany"}
_ENCODES = {("orjson", "dumps"), ("_json", "encode"), ("msgspec", "encode")}
_DECODES = {("orjson", "loads"), ("msgspec", "decode"), ("zstandard", "decompress")}


class Work(trio.abc.Instrument):
    """What is done: reads and commits, each of which is a hop to a thread, statements, tasks, and the like."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.done["tasks"] += 1

    def note(self, frame: FrameType, event: str, called: object) -> None:
        if event == "call":
            if frame.f_code is run_read.__code__:
                self.done["reads"] += 1
            elif frame.f_code is run_batch.__code__:
                self.done["commits"] += 1
        elif event == "c_call":
            owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
            module = (getattr(called, "__module__", None) or type(owner).__module__ or "").partition(".")[0]
            if name in _STATEMENTS and isinstance(owner, sqlite3.Connection):
                self.done["statements"] += 1
            elif (module, name) in _ENCODES:
                self.done["encodes"] += 1
            elif (module, name) in _DECODES:
                self.done["decodes"] += 1
            elif name == "crypto_sign":
                self.done["signatures"] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    work = Work()
    trio.lowlevel.add_instrument(work)
    sys.setprofile(work.note)
    try:
        yield work.done
    finally:
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(work)


def check(done: Counter[str], **most: int) -> None:
    """Fails if more was done than this. What is not named may not be done at all."""
    more = {name: f"{number}, not {most.get(name, 0)}" for name, number in done.items() if number > most.get(name, 0)}
    assert not more, f"more work than before: {more}"


class Place:
    """A room with some messages and people, who are told all of it. All caches are warm."""

    def __init__(self, hs: Homeserver, room_id: RoomID, people: list[Client]) -> None:
        self._hs = hs
        self.room_id, self.people = room_id, people
        self._tokens: dict[Client, str] = {}
        self._since: dict[Client, str] = {}

    async def log_in(self, client: Client) -> None:
        body = {"type": "m.login.password", "user": client.user_id, "password": PASSWORD}
        answer = await self._request("POST", "login", "", {}, body)
        self._tokens[client] = answer["access_token"]

    async def sync(self, client: Client, timeout: int = 0) -> None:
        query = {"timeout": str(timeout), "set_presence": "offline"}
        if client in self._since:
            query["since"] = self._since[client]
        answer = await self._request("GET", "sync", self._tokens[client], query)
        self._since[client] = answer["next_batch"]

    async def _request(
        self, method: str, path: str, token: str, query: Mapping[str, str], body: object = None
    ) -> dict[str, Any]:
        """A request over HTTP, without the work of a client."""
        sent, parts = b"" if body is None else json.dumps(body).encode(), list[bytes]()
        messages = iter([{"type": "http.request", "body": sent, "more_body": False}])

        async def receive() -> dict[str, Any]:
            message = next(messages, None)
            if message is None:
                await trio.sleep_forever()
            assert message is not None
            return message

        async def send(message: MutableMapping[str, Any]) -> None:
            assert message.get("status", 200) == 200
            parts.append(message.get("body", b""))

        path = f"/_matrix/client/v3/{path}"
        headers = (
            [(b"authorization", b"Bearer " + token.encode())] if token else [(b"content-length", b"%d" % len(sent))]
        )
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "client": ("192.0.2.7", 4711), "server": ("test.example", 443), "scheme": "https", "headers": headers,
            "query_string": urlencode(query).encode(),
        }  # fmt: skip
        await self._hs.app(scope, receive, send)
        answer: dict[str, Any] = json.loads(b"".join(parts))
        return answer

    async def deliver(self, text: str) -> None:
        """The first one says something, and the others, who wait for it, get it."""
        async with trio.open_nursery() as nursery:
            for client in self.people[1:]:
                nursery.start_soon(self.sync, client, 30_000)
            await wait_all_tasks_blocked()
            await self.people[0].send(self.room_id, text)


@asynccontextmanager
async def opened(members: int) -> AsyncIterator[Place]:
    async with one_server() as hs:
        people = [await hs.register(f"user{number}", PASSWORD) for number in range(members)]
        room_id = await people[0].create_room(preset="public_chat")
        for client in people[1:]:
            await client.join(room_id)
        place = Place(hs, room_id, people)
        for client in people:
            await place.log_in(client)
            await place.sync(client)
        for number in range(3):
            await place.deliver(f"{number}")
        await wait_all_tasks_blocked()
        yield place


async def test_a_message_takes_a_commit_and_a_few_statements(virtual_clock: None) -> None:
    async with opened(10) as place:
        with counted() as done:
            await place.people[0].send(place.room_id, "hello")
            await wait_all_tasks_blocked()  # the tails that follow every message have read it
        check(done, commits=2, reads=2, statements=38, encodes=8, decodes=10, signatures=1)


async def test_a_sync_without_news_takes_no_read(virtual_clock: None) -> None:
    async with opened(10) as place:
        await place.sync(place.people[1])
        with counted() as done:
            await place.sync(place.people[1])
        check(done, encodes=1)


async def test_a_sync_with_a_message_takes_one_read(virtual_clock: None) -> None:
    async with opened(10) as place:
        await place.sync(place.people[1])
        await place.people[0].send(place.room_id, "hello")
        await wait_all_tasks_blocked()
        with counted() as done:
            await place.sync(place.people[1])
        check(done, reads=1, statements=30, encodes=3, decodes=1)


async def test_a_message_to_many_who_wait_takes_one_read_and_is_encoded_once(virtual_clock: None) -> None:
    works = []
    for members in (10, 30):
        async with opened(members) as place:
            with counted() as done:
                await place.deliver("hello")
            works.append(done)
    few, many = works
    each = Counter({name: round((many[name] - few[name]) / 20, 1) for name in many})
    check(few, commits=2, reads=3, statements=60, encodes=48, decodes=11, signatures=1, tasks=9)
    check(each, encodes=4, tasks=1)  # the task is the test's


async def test_a_message_for_one_device_costs_those_nothing_who_wait_for_others(virtual_clock: None) -> None:
    async with opened(10) as place:
        alice, bob, *others = place.people
        async with trio.open_nursery() as nursery:
            for client in others:
                nursery.start_soon(place.sync, client, 30_000)
            await wait_all_tasks_blocked()
            content = {"messages": {bob.user_id: {"*": {"a": 1}}}}
            await alice.call("send_to_device", "org.example", "txn", body=content)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == len(others)
            with counted() as done:
                await alice.send(place.room_id, "hello")
                await wait_all_tasks_blocked()
            assert not nursery.child_tasks
        check(done, commits=2, reads=3, statements=61, encodes=48, decodes=11, signatures=1)


async def test_a_message_to_another_server_takes_a_few_commits(virtual_clock: None) -> None:
    async with two_servers() as (a, b):
        alice, bob = await a.register("alice", PASSWORD), await b.register("bob", PASSWORD)
        room_id = await alice.create_room(preset="public_chat")
        await bob.join(room_id, via=("a.example",))
        for number in range(3):
            await alice.send(room_id, f"{number}")
            await trio.sleep(5)
        with counted() as done:
            await alice.send(room_id, "hello")
            await wait_all_tasks_blocked()
        assert (await bob.messages(room_id, limit=1))[0].body == "hello"
        check(
            done, commits=9, reads=8, statements=132, encodes=24, decodes=28, signatures=2, tasks=4
        )  # of both servers
