"""Long polls that are answered together get what each of them would get alone."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from homeserver.api.filters import parse_filter
from homeserver.authenticate import Requester
from homeserver.encoding import to_json
from homeserver.features import FEATURES
from homeserver.rooms.timeline import parse_sync_token
from homeserver.sync.answer import body_of, compute
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.sections import Sections
from tests.support.homeservers import Client, Server, homeserver, homeservers
from tests.support.people import public_room, redact, send, server, set_state, sync

__all__ = ["homeserver", "homeservers", "server"]

FILTERS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {},
    "carol": {"room": {"timeline": {"limit": 2}}},
    "dave": {"room": {"timeline": {"not_senders": ["@alice:test.example"]}}},
    "erin": {"room": {"timeline": {"unread_thread_notifications": True}}},
}


class Poll:
    """A client that always waits for news. answers: what it got, each with the token from which it had asked."""

    def __init__(self, server: Server, client: Client, filter_: dict[str, Any]) -> None:
        self._server, self._filter = server, filter_
        self.client = client
        self.since: str | None = None
        self.answers: list[tuple[str, dict[str, Any]]] = []

    async def run(self) -> None:
        while True:
            asked = self.since
            answer = await sync(self.client, asked, filter=self._filter, timeout=30_000, set_presence="offline")
            self.since = answer["next_batch"]
            if asked is not None:
                self.answers.append((asked, answer))

    async def compute(self, asked: str) -> dict[str, Any]:
        """Returns what a client that asks now, and does not wait, is answered alone."""
        requester = Requester(self.client.user_id, self.client.device_id)
        since = parse_sync_token(asked)
        request = SyncRequest(
            requester, since.position, parse_filter(self._filter), queue_since=since.queue, set_presence="offline"
        )
        hs = self._server.hs
        known = (Sections.of(FEATURES), request, hs.database.generation, ToldMembers())
        answer = await hs.database.read(compute, *known)
        shown: dict[str, Any] = orjson.loads(to_json(body_of(hs, answer)))
        return shown


def _without_points(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without the points where its timelines begin: several mean the same if nothing lies between them."""
    for room in answer.get("rooms", {}).get("join", {}).values():
        room.get("timeline", {}).pop("prev_batch", None)
    return answer


@pytest.mark.parametrize("seed", range(3))
async def test_long_polls_tell_what_each_client_would_be_told_alone(server: Server, seed: int) -> None:
    random = Random(seed)
    clients = {name: await server.register(name) for name in FILTERS}
    everyone, alice = list(clients.values()), clients["alice"]
    rooms = [await public_room(alice, *everyone[1:]), await public_room(clients["bob"], *everyone[2:4])]
    elsewhere = await public_room(await server.register("mallory"))  # whose messages concern none of them
    mallory = await server.log_in("mallory")
    polls = [Poll(server, client, FILTERS[name]) for name, client in clients.items()]
    polls.append(Poll(server, await server.log_in("bob"), {}))
    sent: list[tuple[str, str]] = []

    async def do_something() -> None:
        client, room_id = random.choice(everyone), random.choice(rooms)
        what = random.choice(["say"] * 8 + ["read", "type", "name", "redact", "move", "ignore", "rules", "thread"])
        if what == "say" or not sent:
            mentioned = random.choice([{}, {}, {"m.mentions": {"user_ids": [random.choice(everyone).user_id]}}])
            content = {"msgtype": "m.text", "body": "hello", **mentioned}
            path = f"rooms/{room_id}/send/m.room.message/{random.random()}"
            response = await client.request("PUT", path, json=content)
            if response.status_code == 200:
                sent.append((room_id, response.json()["event_id"]))
        elif what == "thread":
            of_room, root = random.choice(sent)
            relation = {"rel_type": "m.thread", "event_id": root}
            content = {"msgtype": "m.text", "body": "reply", "m.relates_to": relation}
            await client.request("PUT", f"rooms/{of_room}/send/m.room.message/{random.random()}", json=content)
        elif what == "read":
            of_room, event_id = random.choice(sent)
            await client.request("POST", f"rooms/{of_room}/receipt/m.read/{event_id}", json={})
        elif what == "type":
            body = {"typing": True, "timeout": 20_000}
            await client.request("PUT", f"rooms/{room_id}/typing/{client.user_id}", json=body)
        elif what == "name":
            await set_state(alice, rooms[0], "m.room.name", {"name": f"{random.random()}"})
        elif what == "redact":
            await redact(alice, rooms[0], random.choice([each for of, each in sent if of == rooms[0]] or ["$none"]))
        elif what == "move":
            await client.request("POST", f"rooms/{rooms[1]}/{random.choice(['join', 'leave'])}", json={})
        elif what == "ignore":
            ignored = {"ignored_users": {random.choice(everyone).user_id: {}} if random.random() < 0.5 else {}}
            await client.ok("PUT", f"user/{client.user_id}/account_data/m.ignored_user_list", json=ignored)
        else:
            actions = random.choice([[], ["notify"]])
            await client.ok("PUT", f"pushrules/global/room/{room_id}", json={"actions": actions})

    together = 0
    async with trio.open_nursery() as nursery:
        for poll in polls:
            nursery.start_soon(poll.run)
        await wait_all_tasks_blocked()
        for _ in range(60):
            if random.random() < 0.3:
                await send(mallory, elsewhere)
            for poll in polls:
                poll.answers.clear()
            await do_something()
            await wait_all_tasks_blocked()
            for poll in polls:
                if len(poll.answers) == 1:
                    ((asked, answer),) = poll.answers
                    assert _without_points(answer) == _without_points(await poll.compute(asked))
                    together += 1
        nursery.cancel_scope.cancel()
    assert together > 60
