"""Spec: server-server-api/#send-to-device-messaging"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.config import FederationSection, RateLimitsSection
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.features.to_device import FEATURE, note_received
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.users.encryption.outbox import insert_edu
from tests.support.federation import Federation, create_room, join, send_text, sync, texts, until
from tests.support.homeservers import Client, Server
from tests.support.stranger import Stranger

MALLORY = ServerName("mallory.example")
numbers = itertools.count()


async def send(sender: Client, recipients: Sequence[tuple[str, str]], **content: Any) -> None:
    messages: dict[str, dict[str, Any]] = {}
    for user_id, device_id in recipients:
        messages.setdefault(user_id, {})[device_id] = content
    await sender.ok("PUT", f"sendToDevice/org.example.key/{next(numbers)}", json={"messages": messages})


@dataclass
class Device:
    """A device that syncs as clients do, and keeps what it is told."""

    client: Client
    since: str | None = None
    got: list[Any] = field(default_factory=list)

    async def sync(self, timeout: int = 0) -> None:
        answer = await sync(self.client, self.since, timeout)
        self.since = answer["next_batch"]
        self.got += [event["content"]["n"] for event in answer.get("to_device", {}).get("events", [])]

    async def wait_for(self, n: object) -> None:
        async def is_there() -> bool:
            await self.sync()
            return n in self.got

        await until(is_there, f"{n}", seconds=48 * 3600)


def count_outgoing(tx: Transaction) -> int:
    return len(tx.all("SELECT 1 FROM to_device_outbox"))


def count_inbox(tx: Transaction) -> int:
    return len(tx.all("SELECT 1 FROM to_device_inbox"))


async def two(federation: Federation) -> tuple[Server, Server, Client, Device]:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    return a, b, await a.register("alice"), Device(await b.register("bob"))


async def test_a_message_reaches_a_device_of_another_server(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    tablet = Device(await b.log_in("bob"))
    await send(alice, [(bob.client.user_id, bob.client.device_id)], n=1)
    await bob.wait_for(1)
    answer = await sync(bob.client)  # initial: acknowledges nothing
    await send(alice, [(bob.client.user_id, "*")], n=2)
    await tablet.wait_for(2)
    await bob.wait_for(2)
    assert (bob.got, tablet.got) == ([1, 2], [2])
    assert "to_device" not in answer or answer["to_device"]["events"][0]["sender"] == alice.user_id


async def test_delivered_messages_are_deleted(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    await send(alice, [(bob.client.user_id, bob.client.device_id)], n=1)
    await bob.wait_for(1)
    await bob.sync()
    await trio.sleep(10)
    assert await a.read(count_outgoing) == 0
    assert await b.read(count_inbox) == 0


async def test_a_request_stores_one_row_per_server_not_per_device(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    recipients = [(f"@u{n}:gone.example", f"D{m}") for n in range(10) for m in range(10)]
    await send(alice, [*recipients, ("@x:lost.example", "*")], n=1)
    assert await a.read(count_outgoing) == 2


async def test_messages_survive_a_long_outage_and_restarts_in_order(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    recipient = [(bob.client.user_id, bob.client.device_id)]
    federation.network.cut("a.example", "b.example")
    count = 2 * limits.peers.CATCH_UP_DURABLE_EDUS + 7
    for n in range(count):
        await send(alice, recipient, n=n)
        if n == count // 2:
            await federation.kill("a.example")
            a = await federation.start("a.example")
            alice = a.with_token(alice.token)
            await trio.sleep(24 * 3600)
    federation.network.heal()
    await bob.wait_for(count - 1)
    assert bob.got == list(range(count))
    await trio.sleep(10)
    assert await a.read(count_outgoing) == 0


async def test_keys_arrive_before_the_events_that_they_decrypt(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob.client, room_id, "a.example")
    federation.network.cut("a.example", "b.example")
    for n in range(60):
        await send(alice, [(bob.client.user_id, bob.client.device_id)], n=n)
        await send_text(alice, room_id, f"event {n}")
    await trio.sleep(3600)
    federation.network.heal()

    async def has_events() -> list[str]:
        return [text for text in await texts(bob.client, room_id) if text.startswith("event")]

    await until(has_events)
    await bob.sync()
    assert bob.got == list(range(60))


async def test_lost_requests_and_responses_neither_lose_nor_repeat_messages(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    federation.network.loss = 0.4
    for n in range(40):
        await send(alice, [(bob.client.user_id, bob.client.device_id)], n=n)
        await trio.sleep(1)
        await bob.sync()
    federation.network.loss = 0
    await bob.wait_for(39)
    assert bob.got == list(range(40))


async def test_a_crash_after_sending_does_not_repeat_messages(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    for n in range(10):
        await send(alice, [(bob.client.user_id, bob.client.device_id)], n=n)
        await bob.wait_for(n)
        await federation.kill("a.example")  # before it has stored what has arrived
        a = await federation.start("a.example")
        alice = a.with_token(alice.token)
    await trio.sleep(60)
    await bob.sync()
    assert bob.got == list(range(10))


async def test_large_messages_are_split_into_edus_of_an_accepted_size(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    text = "x" * 60_000
    recipients = [(bob.client.user_id, bob.client.device_id)]
    more = [(f"@u{n}:b.example", "D") for n in range(10)]
    await send(alice, [*more, *recipients], n=1, text=text)
    assert await a.read(count_outgoing) == 11
    await bob.wait_for(1)


def fill(tx: Transaction, server: str, size_bytes: int, sender: str = "@x:a.example") -> int:
    """Fills an outbox with a user's messages to unknown users. Returns how many were dropped."""
    count = limits.peers.OUTBOX_BYTES_MAX // size_bytes + 2
    content = {"sender": "@x:a.example", "type": "a", "message_id": "x", "messages": {}, "text": "x" * size_bytes}
    return sum(insert_edu(tx, ServerName(server), UserID(sender), to_json(content)) for _ in range(count))


async def test_a_server_that_is_gone_does_not_fill_the_disk(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, alice, bob = await two(federation)
    federation.network.cut("a.example", "b.example")
    assert await a.write(fill, "b.example", (4 << 20) - 1_000) == 2
    for n in range(5):
        await send(alice, [(bob.client.user_id, bob.client.device_id)], n=n, text="x" * 60_000)
    rows = await a.read(lambda tx: tx.all("SELECT LENGTH(content) FROM to_device_outbox"))
    assert sum(row[0] for row in rows) <= limits.peers.OUTBOX_BYTES_MAX + (4 << 20)
    await a.write(lambda tx: tx.run("DELETE FROM to_device_outbox WHERE LENGTH(content) > 1000000"))  # takes too long
    federation.network.heal()
    await bob.wait_for(4)
    assert bob.got == list(range(5))
    assert 'homeserver_to_device_dropped_total{queue="outbox"} 1' in a.hs.metrics.text()
    assert any("a queue is full" in record.message for record in caplog.records)


# What peers send


def edu(sender: str, recipient: Client, n: object, message_id: str = "m1", **changes: Any) -> dict[str, Any]:
    messages = {recipient.user_id: {recipient.device_id: {"n": n}}}
    content = {"sender": sender, "type": "org.example.key", "message_id": message_id, "messages": messages}
    return {"edu_type": "m.direct_to_device", "content": {**content, **changes}}


async def with_mallory(federation: Federation) -> tuple[Server, Device, Stranger]:
    a = await federation.start("a.example")
    return a, Device(await a.register("alice")), Stranger(federation.network, MALLORY)


async def test_a_repeated_message_is_ignored(federation: Federation) -> None:
    a, alice, mallory = await with_mallory(federation)
    other = Stranger(federation.network, ServerName("other.example"))
    await mallory.send("a.example", "1", edus=[edu(mallory.user("m"), alice.client, 1)] * 2)
    await mallory.send("a.example", "2", edus=[edu(mallory.user("m"), alice.client, 1)])
    await other.send("a.example", "1", edus=[edu(other.user("m"), alice.client, 2)])  # its IDs are its own
    await mallory.send("a.example", "3", edus=[edu(mallory.user("m"), alice.client, 3, "m2")])
    await alice.sync()
    assert alice.got == [1, 2, 3]


async def test_only_the_latest_message_ids_are_remembered(federation: Federation) -> None:
    a, alice, mallory = await with_mallory(federation)

    def note(tx: Transaction) -> None:
        for number in range(limits.peers.TO_DEVICE_IDS_KEPT + 3):
            note_received(tx, MALLORY, f"m{number}")

    await a.write(note)
    assert len(await a.read(lambda tx: tx.all("SELECT 1 FROM to_device_received"))) == limits.peers.TO_DEVICE_IDS_KEPT
    await mallory.send("a.example", "1", edus=[edu(mallory.user("m"), alice.client, 1, "m1")])
    await mallory.send("a.example", "2", edus=[edu(mallory.user("m"), alice.client, 2, "m100")])
    await alice.sync()
    assert alice.got == [1]


async def test_messages_that_a_peer_may_not_send_are_ignored(federation: Federation) -> None:
    a, alice, mallory = await with_mallory(federation)
    ours, theirs = alice.client, mallory.user("m")
    bad = [
        edu(ours.user_id, ours, 0, "a"),
        edu("@x:third.example", ours, 0, "b"),
        edu("mallory", ours, 0, "c"),
        edu(theirs, ours, 0, "d", messages=[]),
        edu(theirs, ours, 0, "e", messages={ours.user_id: []}),
        edu(theirs, ours, 0, "f", messages={ours.user_id: {ours.device_id: "text"}}),
        edu(theirs, ours, 0, "g", messages={"@nobody:a.example": {"*": {"n": 0}}, "@x:third.example": {"D": {}}}),
        edu(theirs, ours, 0, "h", messages={ours.user_id: {"NONE": {"n": 0}, "a\0b": {"n": 0}}}),
        edu(theirs, ours, 0, "i", type="a\0b"),
        edu(theirs, ours, 0, "j", type=5),
        edu(theirs, ours, 0, "k", type="x" * 300),
        edu(theirs, ours, 0, "x" * 300),
        edu(theirs, ours, 0, "l", messages={ours.user_id: {str(n): {} for n in range(1001)} | {"*": {"n": 0}}}),
        {"edu_type": "m.direct_to_device", "content": {}},
    ]
    await mallory.send("a.example", "1", edus=[*bad, edu(theirs, ours, 1, "m\0")])
    await alice.sync()
    assert alice.got == [1]
    ids = await a.read(lambda tx: tx.all("SELECT 1 FROM to_device_received"))
    assert len(ids) == 1  # messages that nobody gets leave nothing behind


async def test_a_peer_that_floods_an_inbox_drops_its_own_messages_only(federation: Federation) -> None:
    a, alice, mallory = await with_mallory(federation)
    other = Stranger(federation.network, ServerName("other.example"))
    bob = await a.register("bob")
    await other.send("a.example", "1", edus=[edu(other.user("m"), alice.client, "from another server")])
    await send(bob, [(alice.client.user_id, alice.client.device_id)], n="from this server")
    text = "x" * 200_000
    for batch in range(10):
        edus = [edu(mallory.user(f"m{n}"), alice.client, text, f"{batch} {n}") for n in range(20)]
        await mallory.send("a.example", f"{batch}", edus=edus)
    assert await a.read(count_inbox) <= limits.users.INBOX_BYTES_MAX // len(text) + 2
    assert 'homeserver_to_device_dropped_total{queue="inbox"}' in a.hs.metrics.text()
    await alice.sync()
    assert alice.got[:2] == ["from another server", "from this server"]
    assert await a.read(list_sizes) == await a.read(list_sizes_counted)
    while len(alice.got) < limits.users.INBOX_BYTES_MAX // len(text):
        await alice.sync()
        assert await a.read(list_sizes) == await a.read(list_sizes_counted)


async def test_a_peer_stores_only_so_much_at_a_time_and_sends_the_rest_later(federation: Federation) -> None:
    a = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=True))
    alice, mallory = Device(await a.register("alice")), Stranger(federation.network, MALLORY)
    most_kib, _ = FEATURE.limits["federation_to_device_kib"]
    a.hs.rate_limits.charge("federation_to_device_kib", MALLORY, a.hs.now_ms(), most_kib)
    edus = [edu(mallory.user("m"), alice.client, f"{n}" * 200_000, f"{n}") for n in range(2)]
    transaction = {"origin": MALLORY, "origin_server_ts": a.hs.now_ms(), "pdus": [], "edus": edus}
    for stored in range(3):
        status, answer = await mallory.put("a.example", "/_matrix/federation/v1/send/1", transaction)
        assert (status, await a.read(count_inbox)) == (429 if stored < 2 else 200, stored)
        await trio.sleep(answer.get("retry_after_ms", 0) / 1000)
    await alice.sync()
    assert [text[0] for text in alice.got] == ["0", "1"]


async def test_a_user_who_floods_an_inbox_drops_their_own_messages_only(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, bob, eve = Device(await a.register("alice")), await a.register("bob"), await a.register("eve")
    recipient = [(alice.client.user_id, alice.client.device_id)]
    await send(bob, recipient, n="a key")
    text = "x" * 60_000
    for n in range(limits.users.INBOX_BYTES_MAX // len(text) + 10):
        await send(eve, recipient, n=n, text=text)
    await alice.sync()
    assert alice.got[0] == "a key"
    assert await a.read(list_sizes) == await a.read(list_sizes_counted)


async def test_a_user_who_floods_an_outbox_drops_their_own_messages_only(federation: Federation) -> None:
    a, b, alice, bob = await two(federation)
    eve = await a.register("eve")
    recipient = [(bob.client.user_id, bob.client.device_id)]
    federation.network.cut("a.example", "b.example")
    await send(alice, recipient, n="a key")

    def flood(tx: Transaction) -> int:
        dropped = fill(tx, "b.example", (4 << 20) - 1_000, eve.user_id)
        # They still count, but are not sent: that would take too long.
        tx.run("DELETE FROM to_device_outbox WHERE LENGTH(content) > 1000000")
        return dropped

    assert await a.write(flood) == 2
    await send(eve, recipient, n="from eve")
    federation.network.heal()
    await bob.wait_for("from eve")
    assert bob.got == ["a key", "from eve"]


@pytest.mark.parametrize("is_known", [False, True])
async def test_wrong_sizes_of_a_queue_stop_nobody_for_long(federation: Federation, is_known: bool) -> None:
    a = await federation.start("a.example")
    alice, bob = Device(await a.register("alice")), await a.register("bob")
    recipient = [(alice.client.user_id, alice.client.device_id)]
    await send(bob, recipient, n=1)
    await a.write(damage_sizes, bob.user_id if is_known else None)
    await send(bob, recipient, n=2)
    await send(bob, recipient, n=3)
    await alice.sync()
    assert alice.got[-1] == 3
    await alice.sync()
    assert await a.read(list_sizes) == []


def damage_sizes(tx: Transaction, holder: str | None) -> None:
    nid = 0 if holder is None else tx.intern(holder)
    tx.run("UPDATE to_device_queue_sizes SET bytes = ?, messages = 7 WHERE holder_nid IN (0, ?)", 1 << 40, nid)
    if holder is None:
        tx.run("DELETE FROM to_device_queue_sizes WHERE holder_nid <> 0")


def list_sizes(tx: Transaction) -> list[Any]:
    return tx.all("SELECT holder_nid, messages, bytes FROM to_device_queue_sizes ORDER BY holder_nid")


def list_sizes_counted(tx: Transaction) -> list[Any]:
    """Returns the expected sizes of the only inbox."""
    rows = tx.all("SELECT holder_nid, LENGTH(content) FROM to_device_inbox")
    return [
        (nid, len(sizes), sum(sizes))
        for nid in sorted({0, *(row[0] for row in rows)})
        if (sizes := [size for of, size in rows if nid in (0, of)])
    ]


async def test_without_federation_nothing_is_queued_for_other_servers(federation: Federation) -> None:
    a = await federation.start("a.example", federation=FederationSection(enabled=False))
    alice = await a.register("alice")
    await send(alice, [("@bob:b.example", "*"), (alice.user_id, "*")], n=1)
    assert (await a.read(count_outgoing), await a.read(count_inbox)) == (0, 1)


async def test_messages_to_invented_servers_are_limited(federation: Federation) -> None:
    a = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=True))
    alice = await a.register("alice")
    for start in (0, 60):
        messages = {f"@x:gone{n}.example": {"*": {}} for n in range(start, start + 60)}
        answer = await alice.put(f"sendToDevice/a/{start}", json={"messages": messages})
        assert answer.status_code == (429 if start else 200)
    again = {f"@x:gone{n}.example": {"*": {}} for n in range(60)}
    assert (await alice.put("sendToDevice/a/again", json={"messages": again})).status_code == 200
