"""Ephemeral data between servers: typing, receipts and presence. Spec: server-server-api/#edus"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import trio

from homeserver.federation.identifiers import ServerName
from homeserver.limits.peers import EDU_PARTS_MAX
from tests.support.federation import Federation, create_room, join, send_text, sync, until, wait_text
from tests.support.homeservers import Client
from tests.support.stranger import Stranger


async def _ephemeral(client: Client, room_id: str) -> dict[str, Any]:
    room = (await sync(client)).get("rooms", {}).get("join", {}).get(room_id, {})
    return {event["type"]: event["content"] for event in room.get("ephemeral", {}).get("events", [])}


async def _two(federation: Federation) -> tuple[Client, Client, str]:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    return alice, bob, room_id


async def test_typing_is_visible_on_the_other_server(federation: Federation) -> None:
    alice, bob, room_id = await _two(federation)
    path = f"rooms/{quote(room_id)}/typing/{quote(bob.user_id)}"
    await bob.ok("PUT", path, json={"typing": True, "timeout": 30000})

    async def typing() -> bool:
        return (await _ephemeral(alice, room_id)).get("m.typing", {}).get("user_ids") == [bob.user_id]

    await until(typing)
    await bob.ok("PUT", path, json={"typing": False})

    async def silent() -> bool:
        return not (await _ephemeral(alice, room_id)).get("m.typing", {}).get("user_ids")

    await until(silent)


async def test_typing_from_before_a_restart_is_ended_on_other_servers(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    room_id = await create_room(alice, preset="public_chat", invite=[bob.user_id])
    await join(bob, room_id, "a.example")
    path = f"rooms/{quote(room_id)}/typing/{quote(bob.user_id)}"
    await bob.ok("PUT", path, json={"typing": True, "timeout": 30000})
    await federation.kill("a.example")
    alice.server = await federation.start("a.example")
    answer = await sync(alice)
    assert (await _ephemeral(alice, room_id))["m.typing"] == {"user_ids": [bob.user_id]}
    await trio.sleep(31)
    room = (await sync(alice, since=answer["next_batch"]))["rooms"]["join"][room_id]
    assert {"type": "m.typing", "content": {"user_ids": []}} in room["ephemeral"]["events"]


async def test_a_receipt_reaches_the_other_server_even_after_an_outage(federation: Federation) -> None:
    alice, bob, room_id = await _two(federation)
    event_id = await send_text(alice, room_id, "read this")
    await wait_text(bob, room_id, "read this")
    federation.network.cut("a.example", "b.example")
    await bob.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", json={})
    await trio.sleep(600)
    federation.network.heal()

    async def read() -> bool:
        receipts = (await _ephemeral(alice, room_id)).get("m.receipt", {})
        return bob.user_id in receipts.get(event_id, {}).get("m.read", {})

    await until(read, seconds=3600)


async def test_receipts_beyond_the_limit_are_ignored(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    event_id = await send_text(alice, room_id, "read this")
    carol = Stranger(federation.network, ServerName("c.example"))
    room = await carol.join("a.example", room_id, "carol")
    receipts = {"m.read": {room.user_id: {"event_ids": [event_id], "data": {"ts": 5}}}}
    others = {f"!{number}:nowhere.example": receipts for number in range(EDU_PARTS_MAX)}
    await carol.send("a.example", "1", edus=[{"edu_type": "m.receipt", "content": {**others, room_id: receipts}}])
    assert "m.receipt" not in await _ephemeral(alice, room_id)
    others = {f"!{number}:nowhere.example": {"m.read": {"@x:y.example": receipts["m.read"][room.user_id]}}
              for number in range(EDU_PARTS_MAX)}  # fmt: skip
    await carol.send("a.example", "2", edus=[{"edu_type": "m.receipt", "content": {**others, room_id: receipts}}])
    assert room.user_id in (await _ephemeral(alice, room_id))["m.receipt"][event_id]["m.read"]


async def test_a_slow_server_gets_the_latest_of_several_waiting_edus(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, preset="public_chat")
    await carol.join("a.example", room_id, "carol")
    first, last = await send_text(alice, room_id, "first"), await send_text(alice, room_id, "last")
    await trio.sleep(60)
    got: dict[str, list[Any]] = {"m.typing": [], "m.receipt": [], "m.presence": []}

    async def take_slowly(body: Any) -> Any:
        for edu in body.get("edus", ()):
            got[edu["edu_type"]].append(edu["content"])
        await trio.sleep(20)
        return {"pdus": {}}

    carol.take = take_slowly
    await send_text(alice, room_id, "this is on its way meanwhile")
    await trio.sleep(1)
    for number in range(5):
        typing = {"typing": number % 2 == 0, "timeout": 30000}
        await alice.ok("PUT", f"rooms/{quote(room_id)}/typing/{quote(alice.user_id)}", json=typing)
        await alice.ok("PUT", f"presence/{quote(alice.user_id)}/status",
                       json={"presence": "online", "status_msg": f"status {number}"})  # fmt: skip
        await trio.sleep(1)
    for event_id in (first, last):
        await alice.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", json={})
        await trio.sleep(1)
    in_main = {"thread_id": "main"}
    await alice.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(last)}", json=in_main)
    await trio.sleep(25)
    assert [each["typing"] for each in got["m.typing"]] == [True]
    assert [each["push"][0]["status_msg"] for each in got["m.presence"]] == ["status 4"]
    receipts = [each[room_id]["m.read"][alice.user_id] for each in got["m.receipt"]]
    assert [(each["event_ids"], each["data"].get("thread_id")) for each in receipts] == [
        ([last], None),
        ([last], "main"),
    ]


async def test_presence_is_visible_on_the_other_server(federation: Federation) -> None:
    alice, bob, room_id = await _two(federation)
    path = f"presence/{quote(bob.user_id)}/status"
    await bob.ok("PUT", path, json={"presence": "online", "status_msg": "drinking tea"})

    async def seen() -> bool:
        answer = await alice.get(f"presence/{quote(bob.user_id)}/status")
        return answer.status_code == 200 and answer.json().get("status_msg") == "drinking tea"

    await until(seen)


async def test_presence_of_a_joining_user_is_visible_on_the_other_server(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    since = (await sync(alice))["next_batch"]
    await sync(bob)
    await join(bob, room_id, "a.example")

    async def seen() -> bool:
        events = (await sync(alice, since)).get("presence", {}).get("events", [])
        return any(each["sender"] == bob.user_id and each["content"]["presence"] == "online" for each in events)

    await until(seen, seconds=60)


async def test_servers_cannot_send_edus_for_users_of_other_servers(federation: Federation) -> None:
    alice, bob, room_id = await _two(federation)
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    room = await mallory.join("a.example", room_id, "mallory")
    event_id = await send_text(alice, room_id, "hello")
    receipt = {"event_ids": [event_id], "data": {"ts": 1}}
    edus = [
        {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": bob.user_id, "typing": True}},
        {"edu_type": "m.receipt", "content": {room_id: {"m.read": {bob.user_id: receipt}}}},
        {"edu_type": "m.presence", "content": {"push": [{"user_id": bob.user_id, "presence": "unavailable"}]}},
        {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": room.user_id, "typing": True}},
        {"edu_type": "m.nonsense", "content": {}},
        {"edu_type": "m.typing"},
        "nonsense",
    ]
    await mallory.send("a.example", "1", [], edus)
    seen = await _ephemeral(alice, room_id)
    assert seen["m.typing"]["user_ids"] == [room.user_id]
    assert "m.receipt" not in seen


async def test_typing_of_non_members_is_ignored(federation: Federation) -> None:
    alice, _, room_id = await _two(federation)
    stranger = Stranger(federation.network, ServerName("stranger.example"))
    typing = {"room_id": room_id, "user_id": stranger.user("nobody"), "typing": True}
    await stranger.send("a.example", "1", [], [{"edu_type": "m.typing", "content": typing}])
    assert not (await _ephemeral(alice, room_id)).get("m.typing", {}).get("user_ids")


async def test_receipts_must_name_the_thread_of_their_event(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, preset="public_chat")
    room = await carol.join("a.example", room_id, "carol")
    root = await send_text(alice, room_id, "root")
    content = {"body": "reply", "m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    path = f"rooms/{quote(room_id)}/send/m.room.message/reply"
    reply = (await alice.ok("PUT", path, json=content))["event_id"]

    def receipt(event_id: str, thread_id: str) -> dict[str, Any]:
        read = {"event_ids": [event_id], "data": {"ts": 1, "thread_id": thread_id}}
        return {"edu_type": "m.receipt", "content": {room_id: {"m.read": {room.user_id: read}}}}

    invented = [receipt(root, f"$t{number}") for number in range(50)]
    unknown = [receipt(f"$e{number}", root) for number in range(10)]
    await carol.send("a.example", "1", edus=[*unknown, receipt(root, root)])
    assert "m.receipt" not in await _ephemeral(alice, room_id)
    await carol.send("a.example", "2", edus=invented)
    told = (await _ephemeral(alice, room_id))["m.receipt"]
    assert told == {root: {"m.read": {room.user_id: {"ts": 1, "thread_id": "main"}}}}
    await carol.send("a.example", "3", edus=[receipt(reply, root)])
    events = (await sync(alice))["rooms"]["join"][room_id]["ephemeral"]["events"]
    threads = [each["m.read"][room.user_id]["thread_id"] for event in events for each in event["content"].values()]
    assert sorted(threads) == sorted(["main", root])
