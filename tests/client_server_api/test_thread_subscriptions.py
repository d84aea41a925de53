"""Spec: MSC4306; MSC4308 for sliding sync"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import trio

from tests.support.homeservers import Client, Server
from tests.support.people import invite, join, leave, path_of, public_room, send, sync
from tests.support.rows import row
from tests.support.sliding import slide

PAGES = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions"
EXTENSION = "io.element.msc4308.thread_subscriptions"
RULE = "pushrules/global/postcontent/.io.element.msc4306.rule"
NOT_FOUND = (404, "M_NOT_FOUND")

Json = dict[str, Any]


def path_to(room_id: str, root: str) -> str:
    room, event = quote(room_id, safe=""), quote(root, safe="")
    return f"/_matrix/client/unstable/io.element.msc4306/rooms/{room}/thread/{event}/subscription"


async def subscribe(client: Client, room_id: str, root: str, cause: str | None = None) -> None:
    body = {} if cause is None else {"automatic": cause}
    assert await client.ok("PUT", path_to(room_id, root), json=body) == {}


async def unsubscribe(client: Client, room_id: str, root: str) -> None:
    assert await client.ok("DELETE", path_to(room_id, root)) == {}


async def reply(client: Client, room_id: str, root: str, body: str = "hello", **content: Any) -> str:
    relation = {"rel_type": "m.thread", "event_id": root}
    return str(await send(client, room_id, {"msgtype": "m.text", "body": body, "m.relates_to": relation, **content}))


async def is_automatic(client: Client, room_id: str, root: str) -> bool:
    return bool((await client.ok("GET", path_to(room_id, root)))["automatic"])


async def changes(client: Client, pos: str | None = None, limit: int = 100) -> tuple[Json, str]:
    answer = await slide(client, pos=pos, extensions={EXTENSION: {"enabled": True, "limit": limit}})
    return answer["extensions"].get(EXTENSION, {}), answer["pos"]


async def counts(client: Client, room_id: str) -> tuple[int, int]:
    told = (await sync(client))["rooms"]["join"][room_id]["unread_notifications"]
    return told["notification_count"], told["highlight_count"]


# Subscribing


async def test_a_user_subscribes_and_unsubscribes(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root = await send(alice, room_id)
    assert await alice.refused("GET", path_to(room_id, root)) == NOT_FOUND
    await unsubscribe(alice, room_id, root)
    await subscribe(alice, room_id, root)
    assert not await is_automatic(alice, room_id, root)
    assert await bob.refused("GET", path_to(room_id, root)) == NOT_FOUND
    await unsubscribe(alice, room_id, root)
    await unsubscribe(alice, room_id, root)
    assert await alice.refused("GET", path_to(room_id, root)) == NOT_FOUND


async def test_a_manual_subscription_takes_precedence(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    root = await send(alice, room_id)
    cause = await reply(alice, room_id, root)
    await subscribe(alice, room_id, root, cause)
    assert await is_automatic(alice, room_id, root)
    await subscribe(alice, room_id, root)
    assert not await is_automatic(alice, room_id, root)
    await subscribe(alice, room_id, root, cause)
    assert not await is_automatic(alice, room_id, root)


async def test_an_automatic_subscription_does_not_undo_a_later_decision(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root = await send(alice, room_id)
    before = await reply(bob, room_id, root)
    await subscribe(alice, room_id, root, before)
    await unsubscribe(alice, room_id, root)
    path = path_to(room_id, root)
    conflict = (409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
    for _ in range(2):
        assert await alice.refused("PUT", path, json={"automatic": before}) == conflict
    after = await reply(bob, room_id, root)
    await subscribe(alice, room_id, root, after)
    assert await is_automatic(alice, room_id, root)
    await unsubscribe(alice, room_id, root)
    await subscribe(alice, room_id, root)
    assert not await is_automatic(alice, room_id, root)


async def test_a_cause_is_part_of_the_thread(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    root, other = await send(alice, room_id), await send(alice, room_id)
    elsewhere = await reply(alice, room_id, other)
    for cause in (other, elsewhere):
        refused = await alice.refused("PUT", path_to(room_id, root), json={"automatic": cause})
        assert refused == (400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")
    assert await alice.refused("PUT", path_to(room_id, root), json={"automatic": "$unknown"}) == NOT_FOUND
    assert await alice.refused("PUT", path_to(room_id, root), json={"automatic": 7}) == (400, "M_BAD_JSON")


async def test_threads_that_the_user_does_not_see_do_not_exist(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, initial_state=[
        {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    ])  # fmt: skip
    root = await send(alice, room_id)
    unknown = path_to("!unknown:test.example", root)
    for method, body in (("PUT", {}), ("GET", None), ("DELETE", None)):
        assert await bob.refused(method, path_to(room_id, root), json=body) == NOT_FOUND
        assert await alice.refused(method, unknown, json=body) == NOT_FOUND
        assert await alice.refused(method, path_to(room_id, "$unknown"), json=body) == NOT_FOUND
    await invite(alice, room_id, bob)
    await join(bob, room_id)
    assert await bob.refused("PUT", path_to(room_id, root), json={}) == NOT_FOUND
    await leave(bob, room_id)
    assert await bob.refused("PUT", path_to(room_id, root), json={}) == NOT_FOUND


# Notifications


async def test_threads_notify_as_ever_until_a_user_follows_one(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root = await send(alice, room_id)
    await reply(alice, room_id, root)
    assert await counts(bob, room_id) == (2, 0)
    rules = (await bob.ok("GET", "pushrules/"))["global"]["postcontent"]
    assert [rule["enabled"] for rule in rules] == [False, False]


async def test_only_threads_that_a_user_follows_notify_afterwards(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    followed, other = await send(alice, room_id), await send(alice, room_id)
    await subscribe(bob, room_id, followed)
    rules = (await bob.ok("GET", "pushrules/"))["global"]["postcontent"]
    assert [rule["enabled"] for rule in rules] == [True, True]
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", other), json={})
    await reply(alice, room_id, followed)
    assert await counts(bob, room_id) == (1, 0)
    await reply(alice, room_id, other)
    assert await counts(bob, room_id) == (1, 0)
    await reply(alice, room_id, other, "bob?", **{"m.mentions": {"user_ids": [bob.user_id]}})
    assert await counts(bob, room_id) == (2, 1)
    await send(alice, room_id, "not in a thread")
    assert await counts(bob, room_id) == (3, 1)
    await unsubscribe(bob, room_id, followed)
    await reply(alice, room_id, followed)
    assert await counts(bob, room_id) == (3, 1)
    await trio.sleep(1)  # until the tail has judged all of them
    assert await counts(bob, room_id) == (3, 1)
    assert (await counts(carol, room_id))[0] == 7


async def test_a_followed_thread_notifies_in_a_muted_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root = await send(alice, room_id)
    await bob.ok("PUT", f"pushrules/global/room/{quote(room_id)}", json={"actions": []})
    await subscribe(bob, room_id, root)
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", root), json={})
    await send(alice, room_id)
    await reply(alice, room_id, root)
    assert await counts(bob, room_id) == (1, 0)


async def test_a_user_who_turns_the_rules_off_is_left_alone(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    root, other = await send(alice, room_id), await send(alice, room_id)
    await bob.ok("PUT", f"{RULE}.unsubscribed_thread/enabled", json={"enabled": False})
    await subscribe(bob, room_id, root)
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", other), json={})
    await reply(alice, room_id, other)
    assert await counts(bob, room_id) == (1, 0)
    assert await bob.ok("GET", f"{RULE}.unsubscribed_thread/enabled") == {"enabled": False}
    assert await bob.ok("GET", f"{RULE}.subscribed_thread/enabled") == {"enabled": True}


async def test_rules_of_this_kind_cannot_be_made(server: Server) -> None:
    alice = await server.register("alice")
    own = await alice.refused("PUT", "pushrules/global/postcontent/mine", json={"actions": []})
    assert own == (400, "M_INVALID_PARAM")


# Sliding sync


async def test_sliding_sync_tells_the_changes_of_every_device(server: Server) -> None:
    alice = await server.register("alice")
    phone = await server.log_in("alice")
    room_id = await public_room(alice)
    first, second = await send(alice, room_id), await send(alice, room_id)
    await subscribe(alice, room_id, first)
    told, pos = await changes(phone)
    stamp = told["subscribed"][room_id][first].pop("bump_stamp")
    assert told == {"subscribed": {room_id: {first: {"automatic": False}}}}
    told, pos = await changes(phone, pos)
    assert told == {}
    await unsubscribe(alice, room_id, first)
    await subscribe(alice, room_id, second, await reply(alice, room_id, second))
    told, pos = await changes(phone, pos)
    assert told["unsubscribed"][room_id].keys() == {first}
    assert told["unsubscribed"][room_id][first]["bump_stamp"] > stamp
    assert told["subscribed"][room_id][second]["automatic"] is True
    assert (await changes(phone, pos))[0] == {}


async def test_a_waiting_sliding_sync_is_woken(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    root = await send(alice, room_id)
    _, pos = await changes(alice)
    found: list[Json] = []

    async def wait() -> None:
        on = {EXTENSION: {"enabled": True}}
        found.append(await slide(alice, pos=pos, timeout=30_000, extensions=on))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        await subscribe(alice, room_id, root)
    assert found[0]["extensions"][EXTENSION]["subscribed"][room_id].keys() == {root}


async def test_an_extension_that_is_turned_on_later_tells_all(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    root = await send(alice, room_id)
    await subscribe(alice, room_id, root)
    pos = (await slide(alice))["pos"]
    told, _ = await changes(alice, pos)
    assert told["subscribed"][room_id].keys() == {root}


async def test_more_changes_than_an_answer_has_are_paginated(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    _, pos = await changes(alice)
    roots = [await send(alice, room_id) for _ in range(7)]
    for root in roots:
        await subscribe(alice, room_id, root)
    told, _ = await changes(alice, pos, limit=2)
    assert told["subscribed"][room_id].keys() == set(roots[5:])
    query = {"dir": "b", "from": told["prev_batch"], "to": pos, "limit": 3}
    page = await alice.ok("GET", PAGES, params=query)
    assert page["subscribed"][room_id].keys() == set(roots[2:5])
    page = await alice.ok("GET", PAGES, params={**query, "from": page["end"]})
    assert page["subscribed"][room_id].keys() == set(roots[:2])
    assert "end" not in page
    whole = await alice.ok("GET", PAGES, params={"dir": "b"})
    assert whole["subscribed"][room_id].keys() == set(roots)


async def test_malformed_pages_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for query in [
        {},
        {"dir": "f"},
        {"dir": "b", "limit": 0},
        {"dir": "b", "limit": -1},
        {"dir": "b", "from": "x"},
        {"dir": "b", "to": "t1" * 50},
        {"dir": "b", "from": "t" + "9" * 40},
    ]:
        with row(query):
            status, errcode = await alice.refused("GET", PAGES, params=query)
            assert (status, errcode) in ((400, "M_INVALID_PARAM"), (400, "M_MISSING_PARAM"))


async def test_the_end_of_an_account_deletes_its_subscriptions(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await subscribe(bob, room_id, await send(alice, room_id))
    await bob.ok("POST", "account/deactivate", json={"auth": bob.password_auth()})
    assert await server.read(lambda tx: tx.all("SELECT * FROM thread_subscriptions")) == []
