"""Not in the spec: docs/status.md. Message status between servers, and what must hold of it whatever people do."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.config import Messages
from homeserver.federation.identifiers import ServerName
from homeserver.users.receipts import DELIVERED
from tests.client_server_api.test_message_status import catch_up, message_status, read, status_for
from tests.client_server_api.test_privacy import PRIVACY, befriend
from tests.support.federation import Federation, create_room, join, send_text, sync, until, wait_text
from tests.support.homeservers import Client
from tests.support.stranger import Stranger

RANKS = {"sent": 0, "delivered": 1, "read": 2}


async def test_a_group_across_servers_has_a_status(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    c = await federation.start("c.example")
    carol, dave = await c.register("carol"), await a.register("dave")
    room_id = await create_room(alice, preset="public_chat")
    for person in (bob, carol, dave):
        await join(person, room_id, "a.example")
    event_id = await send_text(alice, room_id, "Hello, all")
    for person in (bob, carol):
        await wait_text(person, room_id, "Hello, all")
    assert (await message_status(alice, room_id, event_id))["counts"] == {"sent": 3, "delivered": 0, "read": 0}

    for person in (bob, carol, dave):
        await catch_up(person)
    await read(carol, room_id, event_id)

    async def is_known(asker: Client) -> bool:
        counts = (await message_status(asker, room_id, event_id))["counts"]
        return bool(counts == {"sent": 0, "delivered": 2, "read": 1})

    for person in (alice, bob, carol, dave):  # all servers agree
        await until(lambda person=person: is_known(person))  # type: ignore[misc]


async def test_other_servers_get_receipts_by_the_spec(federation: Federation) -> None:
    """With `m.read`, which the spec requires: servers that do not know delivered receipts read the rest."""
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, preset="public_chat")
    event = (await carol.join("a.example", room_id, "carol")).text("hello")
    await carol.send("a.example", "1", [event.pdu])
    receipts = await receipts_at(carol, alice)
    ((users, kinds),) = [(each[room_id], list(each[room_id])) for each in receipts]
    assert kinds == ["m.read", DELIVERED] and users["m.read"] == {}
    receipt = users[DELIVERED][alice.user_id]
    assert receipt["event_ids"] == [event.event_id] and list(receipt["data"]) == ["ts"]


async def receipts_at(stranger: Stranger, reader: Client) -> list[Any]:
    """Returns the EDUs with receipts that reach a server while somebody receives what is there."""
    got: list[Any] = []

    async def take(body: Any) -> Any:
        got.extend(edu["content"] for edu in body.get("edus", ()) if "receipt" in edu["edu_type"])
        return {"pdus": {}}

    stranger.take = take
    await catch_up(reader)
    await trio.sleep(10)
    return got


@pytest.mark.parametrize(("audience", "has_friend"), [("nobody", False), ("friends", False), ("friends", True)])
async def test_servers_without_a_person_who_may_see_get_no_receipt(
    federation: Federation, audience: str, has_friend: bool
) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, preset="public_chat")
    room = await carol.join("a.example", room_id, "carol")
    await alice.ok("PUT", PRIVACY, json={"delivery": audience})
    if has_friend:
        await a.write(befriend, alice.user_id, carol.user("carol"))
    await carol.send("a.example", "1", [room.text("hello").pdu])
    assert bool(await receipts_at(carol, alice)) == has_friend


async def test_private_receipts_stay_at_home(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    event_id = await send_text(alice, room_id, "hello")
    await wait_text(bob, room_id, "hello")
    await read(bob, room_id, event_id, "m.read.private")
    await trio.sleep(60)
    for asker in (alice, bob):
        assert await status_for(asker, room_id, event_id, bob) == "sent"


@pytest.mark.parametrize(("members_max", "status"), [(100, "delivered"), (1, "sent")])
async def test_delivered_receipts_of_others_are_kept_unless_the_room_is_large(
    federation: Federation, members_max: int, status: str
) -> None:
    a = await federation.start("a.example", messages=Messages(delivery_members_max=members_max))
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, preset="public_chat")
    room = await carol.join("a.example", room_id, "carol")
    event_id = await send_text(alice, room_id, "hello")
    receipt = {"event_ids": [event_id], "data": {"ts": 1}}
    receipts = {room.user_id: receipt, alice.user_id: receipt}
    content = {room_id: {DELIVERED: receipts, "org.example.unknown": receipts}}
    await carol.send("a.example", "1", [], [{"edu_type": "m.receipt", "content": content}])
    answer = await message_status(alice, room_id, event_id)
    assert answer["status"] == status
    assert list(answer["recipients"]) == ([room.user_id] if status == "delivered" else [])
    assert (DELIVERED in str(await sync(alice))) == (status == "delivered")


class World:
    """Three people on two servers, in a room. They send, sync, acknowledge and read in any order."""

    def __init__(self, people: list[Client], room_id: str, chance: random.Random) -> None:
        self.people = people
        self.room_id = room_id
        self.chance = chance
        self.tokens: dict[str, str] = {}
        self.sent: list[tuple[Client, str]] = []
        self.seen: dict[tuple[str, str], dict[str, Any]] = {}

    async def act(self) -> None:
        person = self.chance.choice(self.people)
        what = self.chance.choice(("send", "sync", "sync", "read", "read privately", "wait", "hide"))
        if what == "send":
            self.sent.append((person, await send_text(person, self.room_id, f"message {len(self.sent)}")))
        elif what == "sync":
            self.tokens[person.user_id] = (await sync(person, self.tokens.get(person.user_id)))["next_batch"]
        elif what == "wait":
            await trio.sleep(self.chance.choice((0.1, limits.users.DELIVERED_INTERVAL_S, 60)))
        elif what == "hide" and person is self.people[-1]:
            await person.ok("PUT", PRIVACY, json={"delivery": "nobody"})
        elif what.startswith("read") and self.sent:
            event_id = self.chance.choice(self.sent)[1]
            kind = "m.read.private" if what == "read privately" else "m.read"
            path = f"rooms/{quote(self.room_id)}/receipt/{kind}/{quote(event_id)}"
            await person.post(path, json={})  # it may not have arrived yet

    async def check(self, asker: Client) -> None:
        for sender, event_id in self.sent:
            response = await asker.get(
                f"/_homeserver/client/v1/rooms/{quote(self.room_id)}/events/{quote(event_id)}/status"
            )
            if response.status_code != 200:
                continue
            answer = response.json()
            recipients = answer["recipients"]
            assert set(recipients) == {each.user_id for each in self.people if each is not sender}
            by_status = [each["status"] for each in recipients.values()]
            assert answer["counts"] == {status: by_status.count(status) for status in RANKS}
            assert answer["status"] == min(by_status, key=RANKS.__getitem__)
            for user_id, each in recipients.items():
                self._check_one(asker, event_id, user_id, each)

    def _check_one(self, asker: Client, event_id: str, user_id: str, now: dict[str, Any]) -> None:
        assert (now["delivered_ts"] is not None) == (now["status"] in ("delivered", "read"))
        assert (now["read_ts"] is not None) == (now["status"] == "read")
        if now["read_ts"] is not None:
            assert now["delivered_ts"] <= now["read_ts"]
        if user_id == self.people[-1].user_id:
            return  # hides at some point
        before = self.seen.get((asker.user_id, event_id + user_id))
        self.seen[asker.user_id, event_id + user_id] = now
        if before is not None:
            assert RANKS[now["status"]] >= RANKS[before["status"]]
            for key in ("delivered_ts", "read_ts"):
                assert (
                    before[key] is None
                    or now[key] == before[key]
                    or (key, before["status"]) == ("delivered_ts", "read")
                )


@pytest.mark.parametrize("seed", range(4))
async def test_a_status_never_goes_back(federation: Federation, seed: int) -> None:
    chance = random.Random(seed)
    a, b, alice, bob = await federation.start_two()
    carol = await b.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    for person in (bob, carol):
        await join(person, room_id, "a.example")
    await trio.sleep(60)  # until both servers know who is there
    world = World([alice, bob, carol], room_id, chance)
    for step in range(60):
        await world.act()
        if step % 3 == 0:
            await world.check(chance.choice(world.people))
    await trio.sleep(60)
    await carol.ok("PUT", PRIVACY, json={"delivery": "nobody"})
    for _, event_id in world.sent[-3:]:
        recipients = (await message_status(bob, room_id, event_id))["recipients"]
        assert recipients.get(carol.user_id, {"status": "sent"})["status"] == "sent"
