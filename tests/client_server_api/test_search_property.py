"""A search finds exactly what a user would find by reading every room and looking for the words."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from homeserver.search.query import parse_query
from homeserver.search.words import Stemmers
from tests.client_server_api.test_search import search, server
from tests.support.homeservers import Client, Server
from tests.support.people import Json, all_messages, create, join, leave, redact, send, set_state

__all__ = ["server"]  # with either engine

STEMMERS = Stemmers()
WORDS = ("kettle", "kettles", "blue", "東京", "qwen3.6", "get_user")
QUERIES = ("kettle", "blue kettle", '"blue kettle"', "kett*", "京", "qwen", "getuser", "blue 3.6")
VISIBILITIES = ("world_readable", "shared", "joined")


@dataclass
class World:
    """Two rooms, and users who come and go."""

    people: list[Client]
    rooms: list[str]
    chance: random.Random
    was_in: set[tuple[str, str]] = field(default_factory=set)
    is_in: set[tuple[str, str]] = field(default_factory=set)
    sent: dict[str, list[tuple[Client, str]]] = field(default_factory=dict)

    async def act(self) -> None:
        person, room_id = self.chance.choice(self.people), self.chance.choice(self.rooms)
        if (room_id, person.user_id) not in self.is_in:
            await join(person, room_id)
            self.is_in.add((room_id, person.user_id))
            self.was_in.add((room_id, person.user_id))
            return
        what = self.chance.choices(("say", "edit", "redact", "leave", "hide", "topic"), (12, 4, 2, 2, 1, 1))[0]
        text = " ".join(self.chance.choices(WORDS, k=self.chance.randint(1, 3)))
        sent = self.sent.setdefault(room_id, [])
        own = [event_id for sender, event_id in sent if sender is person]
        if what == "edit" and own:
            new = {"msgtype": "m.text", "body": text}
            relation = {"rel_type": "m.replace", "event_id": self.chance.choice(own)}
            content = {**new, "body": f"* {text}", "m.new_content": new, "m.relates_to": relation}
            sent.append((person, await send(person, room_id, content)))
        elif what == "redact" and own:
            await redact(person, room_id, self.chance.choice(own))
        elif what == "leave" and person is not self.people[0]:
            await leave(person, room_id)
            self.is_in.discard((room_id, person.user_id))
        elif what == "hide":
            content = {"history_visibility": self.chance.choice(VISIBILITIES)}
            await set_state(self.people[0], room_id, "m.room.history_visibility", content)
        elif what == "topic":
            await set_state(self.people[0], room_id, "m.room.topic", {"topic": text})
        else:
            sent.append((person, await send(person, room_id, text)))

    async def read(self, person: Client) -> dict[str, str]:
        """Returns what each event says that the user may see, by its ID."""
        texts: dict[str, str] = {}
        for room_id in self.rooms:
            if (room_id, person.user_id) in self.was_in:
                for event in await all_messages(person, room_id, limit=100):
                    if (text := shown_text(event)) is not None:
                        texts[event["event_id"]] = text
        return texts


def shown_text(event: Json) -> str | None:
    """Returns what a client shows of an event; None if it has no text, or is an edit."""
    content = event["content"]
    if event["type"] == "m.room.topic":
        return str(content.get("topic"))
    if event["type"] != "m.room.message" or "body" not in content:
        return None
    if content.get("m.relates_to", {}).get("rel_type") == "m.replace":
        return None
    edit = event["unsigned"].get("m.relations", {}).get("m.replace")
    return str((content if edit is None else edit["content"]["m.new_content"])["body"])


@pytest.mark.parametrize("seed", range(2))
async def test_searches_find_what_reading_everything_finds(server: Server, seed: int) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    rooms = [str(await create(alice, preset="public_chat")) for _ in range(2)]
    world = World([alice, bob, carol], rooms, random.Random(seed))
    world.is_in = {(room_id, alice.user_id) for room_id in rooms}
    world.was_in = set(world.is_in)
    for step in range(80):
        await world.act()
        if step % 20:
            continue
        for person in world.people:
            texts = await world.read(person)
            for query in QUERIES:
                parsed = parse_query(query, STEMMERS)
                wanted = {event_id for event_id, text in texts.items() if parsed.find(text, STEMMERS) is not None}
                for order_by in ("recent", "rank"):
                    assert await find_all(person, query, order_by) == wanted, (step, person.user_id, query)


async def find_all(person: Client, query: str, order_by: str) -> set[str]:
    """Returns the events of all pages, after a check that none is repeated and that the last count is true."""
    found: list[str] = []
    token: str | None = None
    while True:
        page = await search(person, query, order_by=order_by, filter={"limit": 4}, next_batch=token)
        found += [result["result"]["event_id"] for result in page["results"]]
        token = page.get("next_batch")
        if token is None:
            break
    assert len(found) == len(set(found)) == page["count"]
    return set(found)
