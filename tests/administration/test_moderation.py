"""The admin API that puts users into rooms, gives them power, and deletes what was said."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.archive import archive_all
from tests.support.federation import Federation, federation
from tests.support.federation import join as join_through
from tests.support.homeservers import Client, Server
from tests.support.people import create, invite, join, messages, public_room, say, send, state, texts

__all__ = ["federation"]

V1 = "/_synapse/admin/v1"
Json = dict[str, Any]


@pytest.fixture
async def bob(server: Server) -> Client:
    return await server.register("bob")


async def wait_for(boss: Client, path: str) -> Json:
    while True:
        told = await boss.ok("GET", path)
        if told["status"] not in ("active", "scheduled"):
            return told
        await trio.sleep(0.5)


async def test_administrators_put_users_into_rooms(boss: Client, alice: Client, bob: Client) -> None:
    open_room = await public_room(alice, room_alias_name="tea")
    for name in (open_room, "#tea:test.example"):
        assert await boss.ok("POST", f"{V1}/join/{quote(name, safe='')}", json={"user_id": bob.user_id}) == {
            "room_id": open_room
        }
    private = await create(alice)
    path = f"{V1}/join/{quote(private, safe='')}"
    assert await boss.refused("POST", path, json={"user_id": bob.user_id}) == (403, "M_FORBIDDEN")
    await invite(alice, private, boss)
    await join(boss, private)
    await alice.ok("PUT", f"rooms/{quote(private)}/state/m.room.power_levels", json={"invite": 0, "users": {}})
    await boss.ok("POST", path, json={"user_id": bob.user_id})
    assert private in (await bob.ok("GET", "joined_rooms"))["joined_rooms"]
    for user_id, error in (
        ("@x:elsewhere.example", (400, "M_INVALID_PARAM")),
        ("@x:test.example", (404, "M_NOT_FOUND")),
    ):
        assert await boss.refused("POST", path, json={"user_id": user_id}) == error
    assert (await boss.refused("POST", f"{V1}/join/%21unknown%3Atest.example", json={"user_id": bob.user_id}))[0] == 404


async def test_administrators_give_power_over_rooms(boss: Client, alice: Client, bob: Client) -> None:
    for version in ("11", "12"):
        room_id = await create(alice, room_version=version)
        path = f"{V1}/rooms/{quote(room_id, safe='')}/make_room_admin"
        assert await boss.ok("POST", path, json={"user_id": bob.user_id}) == {}
        levels = (await state(alice, room_id))["m.room.power_levels", ""]["content"]
        assert levels["users"][bob.user_id] >= 100
        await join(bob, room_id)  # is invited
        await boss.ok("POST", path)
        await join(boss, room_id)
    assert await boss.refused("POST", path, json={"user_id": "@x:elsewhere.example"}) == (400, "M_INVALID_PARAM")
    assert await boss.refused("POST", f"{V1}/rooms/%21unknown%3Atest.example/make_room_admin") == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("is_archived", [False, True])
async def test_old_messages_are_purged(
    server: Server, boss: Client, alice: Client, bob: Client, is_archived: bool
) -> None:
    room_id = await public_room(alice, bob)
    await say(alice, room_id, "old 1", "old 2")
    await trio.sleep(10)
    event_id = (await say(bob, room_id, "new"))[0]
    if is_archived:
        await archive_all(server.hs)
    path = f"{V1}/purge_history/{quote(room_id, safe='')}"
    told = await boss.ok("POST", f"{path}/{quote(event_id, safe='')}", json={})  # local events stay
    assert (await wait_for(boss, f"{V1}/purge_history_status/{told['purge_id']}"))["status"] == "complete"
    assert texts((await messages(bob, room_id))["chunk"]) == ["new", "old 2", "old 1"]
    told = await boss.ok("POST", path, json={"delete_local_events": True, "purge_up_to_event_id": event_id})
    assert await wait_for(boss, f"{V1}/purge_history_status/{told['purge_id']}") == {"status": "complete"}
    assert texts((await messages(bob, room_id))["chunk"]) == ["new"]
    tasks = (await boss.ok("GET", f"{V1}/scheduled_tasks?action_name=purge_history&status=complete"))["scheduled_tasks"]
    assert [each["resource_id"] for each in tasks] == [room_id, room_id]
    assert (await boss.ok("GET", f"{V1}/scheduled_tasks?status=failed"))["scheduled_tasks"] == []
    assert await boss.refused("POST", path, json={}) == (400, "M_MISSING_PARAM")
    assert await boss.refused("POST", path, json={"purge_up_to_ts": -1}) == (400, "M_INVALID_PARAM")
    assert await boss.refused("POST", f"{path}/$unknown", json={}) == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", f"{V1}/purge_history_status/unknown") == (404, "M_NOT_FOUND")


async def test_only_messages_of_other_servers_are_purged_unless_it_is_asked_for(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    await a.write(store_account_flags, alice.user_id, AccountFlags(is_admin=True))
    room_id = await public_room(alice)
    await join_through(bob, room_id, "a.example")
    await say(alice, room_id, "ours")
    await say(bob, room_id, "theirs")
    await trio.sleep(10)
    body = {"purge_up_to_ts": a.hs.now_ms()}
    await alice.ok("POST", f"{V1}/purge_history/{quote(room_id, safe='')}", json=body)
    await trio.sleep(5)
    assert texts((await messages(alice, room_id))["chunk"]) == ["ours"]


async def test_messages_of_a_user_are_redacted(server: Server, boss: Client, alice: Client, bob: Client) -> None:
    room_id, other = await public_room(alice, bob), await public_room(alice, bob)
    await say(bob, room_id, *(f"spam {number}" for number in range(50)))
    await say(alice, room_id, "ham")
    await say(bob, other, "spam too")
    body: Json = {"rooms": [room_id], "reason": "spam", "limit": 30}
    told = await boss.ok("POST", f"{V1}/user/{bob.user_id}/redact", json=body)
    done = await wait_for(boss, f"{V1}/user/redact_status/{told['redact_id']}")
    assert done == {"status": "completed", "failed_redactions": {}}
    left = [text for text in texts((await messages(alice, room_id, limit=200))["chunk"]) if text]
    assert left == ["ham", *(f"spam {number}" for number in reversed(range(20)))]
    told = await boss.ok("POST", f"{V1}/user/{bob.user_id}/redact", json={"rooms": []})
    await wait_for(boss, f"{V1}/user/redact_status/{told['redact_id']}")
    for room in (room_id, other):
        assert set(texts((await messages(alice, room, limit=200))["chunk"])) <= {"", "ham"}


async def test_redactions_that_are_not_allowed_are_listed(boss: Client, alice: Client, bob: Client) -> None:
    room_id = await public_room(alice, bob)
    (event_id,) = await say(bob, room_id, "spam")
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    told = await boss.ok("POST", f"{V1}/user/{bob.user_id}/redact", json={"rooms": [room_id]})
    done = await wait_for(boss, f"{V1}/user/redact_status/{told['redact_id']}")
    assert list(done["failed_redactions"]) == [event_id]
    for body in ({"rooms": [], "limit": 0}, {"rooms": [], "after_ts": -1}, {"rooms": ["x"]}):
        assert (await boss.refused("POST", f"{V1}/user/{bob.user_id}/redact", json=body))[0] == 400, body
    nobody = await boss.refused("POST", f"{V1}/user/@x:test.example/redact", json={"rooms": []})
    assert nobody == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", f"{V1}/user/redact_status/unknown") == (404, "M_NOT_FOUND")


async def test_other_servers_are_listed_and_tried_again(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    await a.write(store_account_flags, alice.user_id, AccountFlags(is_admin=True))
    room_id = await public_room(alice)
    await join_through(bob, room_id, "a.example")
    listed = await alice.ok("GET", f"{V1}/federation/destinations")
    assert (listed["total"], listed["destinations"][0]["destination"], listed["destinations"][0]["failure_ts"]) == (
        1, "b.example", None,
    )  # fmt: skip
    rooms = await alice.ok("GET", f"{V1}/federation/destinations/b.example/rooms")
    assert (rooms["total"], rooms["rooms"][0]["room_id"]) == (1, room_id)
    reset = f"{V1}/federation/destinations/b.example/reset_connection"
    assert await alice.refused("POST", reset) == (400, "M_UNKNOWN")
    federation.network.cut("a.example", "b.example")
    await send(alice, room_id, "lost?")
    await trio.sleep(60)
    shown = await alice.ok("GET", f"{V1}/federation/destinations/b.example")
    assert shown["failure_ts"] and shown["retry_interval"] and shown["retry_last_ts"]
    federation.network.heal()
    await alice.ok("POST", reset, json={})
    await trio.sleep(20)
    assert "lost?" in texts((await messages(bob, room_id))["chunk"])
    assert (await alice.ok("GET", f"{V1}/federation/destinations/b.example"))["failure_ts"] is None
    for path in ("unknown.example", "unknown.example/rooms"):
        assert await alice.refused("GET", f"{V1}/federation/destinations/{path}") == (404, "M_NOT_FOUND")
    for query in ("limit=0", "from=-1", "order_by=x"):
        refused = await alice.refused("GET", f"{V1}/federation/destinations?{query}")
        assert refused == (400, "M_INVALID_PARAM"), query
