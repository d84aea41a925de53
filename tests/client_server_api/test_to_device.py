"""Spec: client-server-api/#send-to-device-messaging"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.config import RateLimitsSection, Registration
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.users.devices import create_device
from homeserver.users.encryption.inbox import insert_message
from tests.support.engine import ENGINE
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.people import Json, sync
from tests.support.rows import row

numbers = itertools.count()


async def send(sender: Client, *recipients: Client | tuple[str, str], **content: Any) -> None:
    """Sends a message with this content to devices: of clients, or named by user and device ID."""
    messages: dict[str, dict[str, Any]] = {}
    for each in recipients:
        user_id, device_id = each if isinstance(each, tuple) else (each.user_id, each.device_id)
        messages.setdefault(user_id, {})[device_id] = content
    path = f"sendToDevice/org.example.key/{next(numbers)}"
    assert await sender.ok("PUT", path, json={"messages": messages}) == {}


def told(answer: Json) -> list[Any]:
    return [event["content"]["n"] for event in answer.get("to_device", {}).get("events", [])]


def count_rows(tx: Transaction) -> int:
    return len(tx.all("SELECT 1 FROM to_device_inbox"))


async def people(homeserver: Server) -> tuple[Client, Client, Client]:
    """Alice, and Bob with two devices."""
    alice, phone = await homeserver.register("alice"), await homeserver.register("bob")
    return alice, phone, await homeserver.log_in("bob")


async def test_a_message_reaches_the_device_it_is_addressed_to(homeserver: Server) -> None:
    alice, phone, laptop = await people(homeserver)
    await send(alice, phone, n=1)
    answer = await sync(phone)
    assert answer["to_device"] == {
        "events": [{"type": "org.example.key", "sender": alice.user_id, "content": {"n": 1}}]
    }
    assert "to_device" not in await sync(laptop)
    assert "to_device" not in await sync(alice)


async def test_a_message_wakes_a_waiting_sync(homeserver: Server) -> None:
    alice, phone, laptop = await people(homeserver)
    since = (await sync(phone))["next_batch"]
    answers: list[Json] = []

    async def wait() -> None:
        answers.append(await sync(phone, since, timeout=30_000))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        await send(alice, phone, n=1)
    assert told(answers[0]) == [1]
    assert trio.current_time() - start < 5


async def test_a_star_addresses_every_device_not_listed(homeserver: Server) -> None:
    alice, phone, laptop = await people(homeserver)
    await send(alice, (phone.user_id, "*"), n=1)
    body = {"messages": {phone.user_id: {"*": {"n": 2}, phone.device_id: {"n": 3}}}}
    await alice.ok("PUT", "sendToDevice/org.example.key/both", json=body)
    assert (told(await sync(phone)), told(await sync(laptop))) == ([1, 3], [1, 2])


async def test_a_message_to_oneself_arrives(homeserver: Server) -> None:
    _, phone, laptop = await people(homeserver)
    await send(phone, (phone.user_id, "*"), n=1)
    assert (told(await sync(phone)), told(await sync(laptop))) == ([1], [1])


async def test_messages_to_unknown_devices_are_ignored(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    await send(alice, (phone.user_id, "NONE"), ("@nobody:test.example", "*"), ("@nobody:test.example", "D"), n=1)
    await send(alice, (phone.user_id, "a\0b"), n=1)
    assert await alice.ok("PUT", "sendToDevice/org.example.key/empty", json={"messages": {}}) == {}
    assert await homeserver.read(count_rows) == 0


async def test_a_message_is_kept_until_a_token_shows_that_it_has_arrived(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    before = (await sync(phone))["next_batch"]
    await send(alice, phone, n=1)
    for _ in range(2):  # the answer may be lost on its way
        answer = await sync(phone, before)
        assert told(answer) == [1]
    assert told(await sync(phone)) == [1]
    assert told(await sync(phone, answer["next_batch"])) == []
    assert await homeserver.read(count_rows) == 0
    assert told(await sync(phone, before)) == []


async def test_a_token_does_not_acknowledge_later_messages(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    await send(alice, phone, n=1)
    token = (await sync(phone))["next_batch"]
    await send(alice, phone, n=2)
    assert told(await sync(phone, token)) == [2]
    assert told(await sync(phone, token)) == [2]


async def test_many_messages_are_split_over_several_answers_in_order(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    count = 2 * limits.users.TO_DEVICE_PER_ANSWER_MAX + 30
    for n in range(count):
        await send(alice, phone, n=n)
    answer = await sync(phone)
    got = [told(answer)]
    while len(got) < 4:
        answer = await sync(phone, answer["next_batch"], timeout=30_000 if len(got) < 3 else 0)
        got.append(told(answer))
    most = limits.users.TO_DEVICE_PER_ANSWER_MAX
    assert [len(each) for each in got] == [most, most, 30, 0]
    assert list(itertools.chain(*got)) == list(range(count))
    assert "." not in answer["next_batch"]
    assert await homeserver.read(count_rows) == 0


async def test_other_news_of_a_truncated_answer_is_not_repeated(homeserver: Server) -> None:
    alice, phone, laptop = await people(homeserver)
    since = (await sync(phone))["next_batch"]
    await phone.ok("PUT", f"user/{phone.user_id}/account_data/org.example.a", json={"a": 1})
    for n in range(limits.users.TO_DEVICE_PER_ANSWER_MAX + 1):
        await send(alice, phone, n=n)
    first = await sync(phone, since)
    assert "account_data" in first and len(told(first)) == limits.users.TO_DEVICE_PER_ANSWER_MAX
    second = await sync(phone, first["next_batch"])
    assert "account_data" not in second and len(told(second)) == 1
    path = f"rooms/{await homeserver.make_room(phone)}/messages?dir=b&from={first['next_batch']}"
    assert "chunk" in await phone.ok("GET", path)  # it is a token like any other


async def test_large_messages_are_split_over_several_answers(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    for n in range(40):
        await send(alice, phone, n=n, text="x" * 60_000)
    answer = await sync(phone)
    got = told(answer)
    assert len(got) < 40
    while more := told(answer := await sync(phone, answer["next_batch"])):
        got += more
    assert got == list(range(40))


async def test_a_repeated_request_sends_nothing(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    tablet = await homeserver.log_in("alice")

    async def put(sender: Client, n: int, event_type: str = "org.example.key") -> None:
        messages = {phone.user_id: {phone.device_id: {"n": n}}}
        assert await sender.ok("PUT", f"sendToDevice/{event_type}/same", json={"messages": messages}) == {}

    await put(alice, 1)
    await put(alice, 1)
    await put(alice, 2)  # another body, the same request
    await put(tablet, 3)
    await put(alice, 4, "org.example.other")
    assert told(await sync(phone)) == [1, 3, 4]


async def test_simultaneous_repeated_requests_send_once(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    body = {"messages": {phone.user_id: {phone.device_id: {"n": 1}}}}
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(lambda: alice.ok("PUT", "sendToDevice/org.example.key/1", json=body))
    assert told(await sync(phone)) == [1]


async def test_only_the_latest_requests_are_remembered(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    for _ in range(limits.users.TO_DEVICE_REQUESTS_KEPT + 5):
        await send(alice, phone, n=1)
    rows = await homeserver.read(lambda tx: tx.values("SELECT number FROM to_device_requests"))
    assert len(rows) == limits.users.TO_DEVICE_REQUESTS_KEPT


async def test_deleting_a_device_deletes_its_messages(homeserver: Server) -> None:
    alice, phone, laptop = await people(homeserver)
    await send(alice, (phone.user_id, "*"), n=1)
    await send(phone, alice, n=2)
    await phone.ok("POST", "logout")
    assert told(await sync(laptop)) == [1]
    rows = await homeserver.read(lambda tx: tx.values("SELECT device_id FROM to_device_inbox"))
    assert set(rows) == {alice.device_id, laptop.device_id}
    assert await homeserver.read(lambda tx: tx.values("SELECT number FROM to_device_requests")) == [1]
    again = await homeserver.log_in("bob", device_id=phone.device_id)
    assert told(await sync(again)) == []


def fill(tx: Transaction, client: Client, count: int, size_bytes: int) -> int:
    """Puts messages into an inbox; returns how many were dropped."""
    contents = (to_json({"n": n, "text": "x" * size_bytes}) for n in range(count))
    return sum(insert_message(tx, client.user_id, client.device_id, client.user_id, "a", each) for each in contents)


BAD_VALUES = [("content", b"{"), ("content", b"[]"), ("content", 5), ("type", b"\xff"), ("sender", b"bob")]


@pytest.mark.skipif(ENGINE != "sqlite", reason="PostgreSQL does not take values of another type")
@pytest.mark.parametrize(("column", "value"), BAD_VALUES)
async def test_a_damaged_message_stops_neither_the_sync_nor_the_others(
    homeserver: Server, column: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    alice, phone, _ = await people(homeserver)
    for n in range(3):
        await send(alice, phone, n=n)

    def damage(tx: Transaction) -> None:
        middle = tx.values("SELECT position FROM to_device_inbox ORDER BY position")[1]
        tx.run(f"UPDATE to_device_inbox SET {column} = ? WHERE position = ?", value, middle)

    await homeserver.write(damage)
    answer = await sync(phone)
    assert told(answer) == [0, 2]
    assert any("message is damaged" in record.message for record in caplog.records)
    assert told(await sync(phone, answer["next_batch"])) == []
    assert await homeserver.read(count_rows) == 0


@pytest.mark.parametrize("size_bytes", [0, 1 << 20])
async def test_a_full_inbox_drops_its_oldest_messages(
    homeserver: Server, caplog: pytest.LogCaptureFixture, size_bytes: int
) -> None:
    alice, phone, laptop = await people(homeserver)
    most = limits.users.INBOX_BYTES_MAX // size_bytes if size_bytes else limits.users.INBOX_MESSAGES_MAX
    await send(alice, laptop, n=0)
    dropped = await homeserver.write(fill, phone, most + 3, size_bytes)
    assert dropped == (4 if size_bytes else 3)  # each has a few bytes more
    await send(alice, phone, n="last")
    answer = await sync(phone)
    got = told(answer)
    while more := told(answer := await sync(phone, answer["next_batch"])):
        got += more
    assert got == [*range(4, most + 3), "last"]
    assert told(await sync(laptop)) == [0]
    if not size_bytes:
        assert 'homeserver_to_device_dropped_total{queue="inbox"} 1' in homeserver.hs.metrics.text()
        assert any("a queue is full" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, (400, "M_BAD_JSON")),
        ([], (400, "M_BAD_JSON")),
        ({"@bob:test.example": []}, (400, "M_BAD_JSON")),
        ({"@bob:test.example": {"D": "text"}}, (400, "M_BAD_JSON")),
        ({"@bob:test.example": {"D": None}}, (400, "M_BAD_JSON")),
        ({"bob": {"D": {}}}, (400, "M_INVALID_PARAM")),
        ({"": {}}, (400, "M_INVALID_PARAM")),
        ({"@b\0b:test.example": {"D": {}}}, (400, "M_INVALID_PARAM")),
        ({"@bob:" + "x" * 300: {"D": {}}}, (400, "M_INVALID_PARAM")),
        ({"@bob:test.example": {"D" * 300: {}}}, (400, "M_INVALID_PARAM")),
        ({"@bob:test.example": {"D": {"text": "x" * 70_000}}}, (413, "M_TOO_LARGE")),
        ({"@bob:test.example": {str(n): {} for n in range(1_001)}}, (413, "M_TOO_LARGE")),
    ],
)
async def test_a_request_with_a_malformed_part_is_refused_as_a_whole(
    homeserver: Server, messages: object, expected: tuple[int, str]
) -> None:
    alice, phone, _ = await people(homeserver)
    if isinstance(messages, dict):
        messages = (
            {phone.user_id: {phone.device_id: {"n": 1}}, **messages}
            if "@bob:test.example" not in messages
            else messages
        )
    path = "sendToDevice/org.example.key/1"
    assert await alice.refused("PUT", path, json={"messages": messages}) == expected
    assert await homeserver.read(count_rows) == 0
    await alice.ok("PUT", path, json={"messages": {phone.user_id: {phone.device_id: {"n": 2}}}})
    assert told(await sync(phone)) == [2]


async def test_malformed_paths_are_refused(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    body = {"messages": {phone.user_id: {phone.device_id: {"n": 1}}}}
    for path in ["a%00b/1", "a/1%002", "x" * 256 + "/1", "a/" + "x" * 256]:
        with row(path):
            status, errcode = await alice.refused("PUT", f"sendToDevice/{path}", json=body)
            assert (status, errcode) == (400, "M_INVALID_PARAM")


def add_devices(tx: Transaction, client: Client, count: int) -> None:
    for number in range(count):
        create_device(tx, client.user_id, f"D{number}", None)


async def test_a_star_cannot_fill_the_disk_with_one_request(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    await homeserver.write(add_devices, phone, limits.users.TO_DEVICE_POSTED_BYTES_MAX // 60_000 + 1)
    body = {"messages": {phone.user_id: {"*": {"n": "x" * 60_000}}}}
    assert await alice.refused("PUT", "sendToDevice/a/1", json=body) == (413, "M_TOO_LARGE")
    assert await homeserver.read(count_rows) == 0


async def test_the_number_of_devices_addressed_by_one_request_is_limited(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    each = limits.DEVICES_PER_USER_MAX - 1
    users = [bob, *[await homeserver.register(f"u{n}") for n in range(limits.users.TO_DEVICE_POSTED_MAX // each)]]
    for user in users:
        await homeserver.write(add_devices, user, each)
    body = {"messages": {user.user_id: {"*": {}} for user in users}}
    assert await alice.refused("PUT", "sendToDevice/a/1", json=body) == (413, "M_TOO_LARGE")
    assert await homeserver.read(count_rows) == 0


async def test_any_content_is_delivered_unchanged(homeserver: Server) -> None:
    alice, phone, _ = await people(homeserver)
    contents = [{}, {"n": 1.5}, {"n": [None, True, {"": "\0"}]}, {"n": "é\u2028😀"}, {"n": -(2**53) + 1}, {"type": 5}]
    for n, content in enumerate(contents):
        body = {"messages": {phone.user_id: {phone.device_id: content}}}
        await alice.ok("PUT", f"sendToDevice/a/{n}", json=body)
    assert [event["content"] for event in (await sync(phone))["to_device"]["events"]] == contents


async def test_guests_may_send_to_device_messages(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    answer = await server.anonymous.ok("POST", "register?kind=guest", json={})
    bob = await server.register("bob")
    await send(server.with_token(answer["access_token"]), bob, n=1)
    assert told(await sync(bob)) == [1]


async def test_sending_is_rate_limited(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    alice = await server.register("alice")
    statuses = [(await alice.put(f"sendToDevice/a/{n}", json={"messages": {}})).status_code for n in range(520)]
    assert statuses[:500] == [200] * 500 and 429 in statuses


async def test_a_star_cannot_fill_the_disk_with_many_requests(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    alice, phone, _ = await people(server)
    await server.write(add_devices, phone, 130)
    body = {"messages": {phone.user_id: {"*": {"n": "x" * 60_000}}}}
    statuses = [(await alice.put(f"sendToDevice/a/{n}", json=body)).status_code for n in range(12)]
    assert statuses == [200] * 9 + [429] * 3, "a burst of 64 MiB, at 7.6 MiB a request"
    assert (await phone.put("sendToDevice/a/1", json=body)).status_code == 200, "others are not limited by that"
