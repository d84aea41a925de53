"""Spec: client-server-api/#push-notifications, push-gateway-api"""

from __future__ import annotations

import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.identifiers import EventID
from homeserver.rooms.storage import find_position
from tests.support.federation import Federation, until
from tests.support.gateway import Gateway
from tests.support.homeservers import Client, Server
from tests.support.people import Json, invite, join, path_of, public_room, redact, say, send, set_state
from tests.support.rows import row

INVALID = (400, "M_INVALID_PARAM")
ENCRYPTED = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x"}


async def set_pusher(client: Client, pusher: Json) -> None:
    assert await client.ok("POST", "pushers/set", json=pusher) == {}


async def pushers(client: Client) -> list[Json]:
    found: list[Json] = (await client.ok("GET", "pushers"))["pushers"]
    return found


async def keys(client: Client) -> list[str]:
    return [pusher["pushkey"] for pusher in await pushers(client)]


async def start(federation: Federation) -> tuple[Server, Gateway, Client, Client, str]:
    """A server with a room of alice and bob, and bob's phone behind a gateway."""
    server, gateway = await federation.start("a.example"), Gateway.on(federation.network)
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, name="Kitchen")
    await set_pusher(bob, gateway.pusher("phone"))
    return server, gateway, alice, bob, room_id


async def test_a_message_reaches_the_gateway(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    event_id = await send(alice, room_id, "hello")
    await until(gateway.has("phone", 1))
    (told,) = gateway.told
    (device,) = told["devices"]
    assert device["pushkey_ts"] > 0
    assert device["tweaks"] == {"sound": "default"}
    assert (device["app_id"], device["pushkey"], device["data"]) == ("org.example.app", "phone", {})
    assert told == {
        "devices": [device],
        "event_id": event_id, "room_id": room_id, "type": "m.room.message", "sender": alice.user_id,
        "sender_display_name": "alice", "room_name": "Kitchen", "prio": "high",
        "content": {"msgtype": "m.text", "body": "hello"}, "counts": {"unread": 1},
    }  # fmt: skip
    await send(bob, room_id)
    await trio.sleep(10)
    assert gateway.events("phone") == [event_id]


async def test_an_app_may_ask_for_ids_only(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    await set_pusher(bob, gateway.pusher("phone", format="event_id_only", own={"a": 1}))
    event_id = await send(alice, room_id)
    await until(gateway.has("phone", 1))
    (told,) = gateway.told
    assert told.keys() == {"event_id", "room_id", "counts", "devices"}
    assert told["event_id"] == event_id
    assert told["devices"][0]["data"] == {"format": "event_id_only", "own": {"a": 1}}


async def test_encrypted_events_and_invitations_are_pushed_too(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    encrypted = await send(alice, room_id, ENCRYPTED, kind="m.room.encrypted")
    other = await public_room(alice, name="Garden")
    await invite(alice, other, bob)
    await until(gateway.has("phone", 2))
    first, second = gateway.told
    assert (first["event_id"], first["type"], first["prio"]) == (encrypted, "m.room.encrypted", "high")
    assert (second["type"], second["user_is_target"], second["room_name"]) == ("m.room.member", True, "Garden")


async def test_the_badge_follows_what_is_read(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    other = await public_room(alice, bob)
    *_, last = await say(alice, room_id, "1", "2")
    await send(alice, other)
    await until(gateway.has("phone", 3))
    assert [told["counts"]["unread"] for told in gateway.told][-1] == 3
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", last), json={})

    async def is_told() -> bool:
        return "event_id" not in gateway.told[-1]

    await until(is_told)
    assert gateway.told[-1]["counts"] == {"unread": 1}


async def test_an_unreachable_gateway_loses_nothing_and_delays_no_other(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    dead = Gateway.on(federation.network, "dead.example")
    carol = await server.register("carol")
    await join(carol, room_id)
    await set_pusher(carol, dead.pusher("tablet"))
    federation.network.leave("dead.example")
    first = await send(alice, room_id)
    await until(gateway.has("phone", 1), seconds=2)
    await federation.kill("a.example")
    server = await federation.start("a.example")
    alice = await server.log_in("alice")
    second = await send(alice, room_id)
    await until(gateway.has("phone", 2), seconds=2)
    federation.network.join("dead.example", dead.app)
    dead.status = 502
    await trio.sleep(600)
    assert 1 < dead.attempts < 20
    dead.status = 200
    await until(dead.has("tablet", 2))
    assert dead.events("tablet") == gateway.events("phone") == [first, second]


async def test_an_event_that_cannot_be_read_holds_up_no_other(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    gateway.status = 503
    damaged, whole = await say(alice, room_id, "damaged", "whole")
    await server.write(_damage, damaged)
    await server.read(_empty_caches)
    gateway.status = 200
    await until(gateway.has("phone", 1), seconds=3600)
    assert gateway.events("phone") == [whole]


def _damage(tx: Transaction, event_id: EventID) -> None:
    tx.run("UPDATE events SET content = ? WHERE position = ?", b"\x01" + b"\xff" * 40, find_position(tx, event_id))


def _empty_caches(tx: Transaction) -> None:
    tx._cache.caches._by_name.clear()


async def test_old_read_and_redacted_events_are_not_pushed(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    gateway.status = 503
    await say(alice, room_id, "old")
    await trio.sleep(limits.users.PUSH_AGE_MS / 1000 + 3600)
    (read,) = await say(alice, room_id, "read")
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", read), json={})
    redacted, last = await say(alice, room_id, "redacted", "last")
    await redact(alice, room_id, redacted)
    gateway.status = 200
    await until(gateway.has("phone", 1))
    assert gateway.events("phone") == [last]


async def test_refused_notifications_are_not_sent_again(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    gateway.status = 400
    await send(alice, room_id)
    await trio.sleep(60)
    assert gateway.attempts == 1
    gateway.status = 200
    event_id = await send(alice, room_id)
    await until(gateway.has("phone", 1))
    assert gateway.events("phone") == [event_id]


async def test_a_rejected_key_deletes_its_pusher(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    await set_pusher(bob, gateway.pusher("tablet"))
    gateway.rejected = ["phone", 7]  # type: ignore[list-item]
    await send(alice, room_id)

    async def is_gone() -> bool:
        return await keys(bob) == ["tablet"]

    await until(is_gone)


async def test_a_muted_room_is_silent(federation: Federation) -> None:
    server, gateway, alice, bob, room_id = await start(federation)
    other = await public_room(alice, bob)
    await bob.ok("PUT", f"pushrules/global/room/{room_id}", json={"actions": []})
    await send(alice, room_id)
    event_id = await send(alice, other)
    await until(gateway.has("phone", 1))
    assert gateway.events("phone") == [event_id]


async def test_a_user_of_another_server_is_notified_by_their_own(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    gateway = Gateway.on(federation.network)
    room_id = await public_room(alice)
    await bob.ok("POST", f"join/{room_id}?via=a.example", json={})
    await set_pusher(bob, gateway.pusher("phone"))
    event_id = await send(alice, room_id)
    await until(gateway.has("phone", 1))
    assert gateway.events("phone") == [event_id]


async def test_pushers_are_listed_changed_and_deleted(server: Server) -> None:
    gateway = Gateway("push.example")
    alice, bob = await server.register("alice"), await server.register("bob")
    await set_pusher(alice, {**gateway.pusher("phone"), "profile_tag": "x"})
    (pusher,) = await pushers(alice)
    expected = {**gateway.pusher("phone"), "profile_tag": "x"}
    del expected["append"]
    assert pusher == expected
    await set_pusher(alice, {**gateway.pusher("phone"), "lang": "de"})
    assert [pusher["lang"] for pusher in await pushers(alice)] == ["de"]
    assert await pushers(bob) == []
    await set_pusher(alice, {"app_id": "org.example.app", "pushkey": "phone", "kind": None})
    assert await pushers(alice) == []
    await set_pusher(alice, {"app_id": "org.example.app", "pushkey": "phone", "kind": None})


async def test_a_key_moves_to_the_user_who_set_it_last(server: Server) -> None:
    gateway = Gateway("push.example")
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await set_pusher(alice, gateway.pusher("phone"))
    await set_pusher(bob, gateway.pusher("phone", append=True))
    assert (await keys(alice), await keys(bob)) == (["phone"], ["phone"])
    await set_pusher(carol, gateway.pusher("phone"))
    assert (await keys(alice), await keys(bob), await keys(carol)) == ([], [], ["phone"])


async def test_deleting_a_device_deletes_its_pushers(server: Server) -> None:
    gateway = Gateway("push.example")
    alice = await server.register("alice")
    phone = await server.log_in("alice")
    await set_pusher(alice, gateway.pusher("laptop"))
    await set_pusher(phone, gateway.pusher("phone"))
    await phone.ok("POST", "logout")
    assert await keys(alice) == ["laptop"]


async def test_malformed_pushers_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for change, refusal in [
        ({"kind": "email"}, INVALID),
        ({"kind": "carrier pigeon"}, INVALID),
        ({"lang": None}, (400, "M_MISSING_PARAM")),
        ({"data": {}}, (400, "M_MISSING_PARAM")),
        ({"data": {"url": 7}}, INVALID),
        ({"data": {"url": "http://push.example/_matrix/push/v1/notify"}}, INVALID),
        ({"data": {"url": "https://push.example/"}}, INVALID),
        ({"data": {"url": "https://a:b@push.example/_matrix/push/v1/notify"}}, INVALID),
        ({"data": {"url": "https://[::1/_matrix/push/v1/notify"}}, INVALID),
        ({"pushkey": "x" * 513}, INVALID),
        ({"app_id": "x" * 65}, INVALID),
        ({"lang": "x" * 9000}, (413, "M_TOO_LARGE")),
        ({"pushkey": None}, (400, "M_BAD_JSON")),
        ({"append": "yes"}, (400, "M_BAD_JSON")),
    ]:
        with row(change, refusal):
            assert (
                await alice.refused("POST", "pushers/set", json={**Gateway("push.example").pusher("a"), **change})
                == refusal
            )
            assert await pushers(alice) == []


async def test_the_number_of_pushers_of_a_user_is_limited(server: Server) -> None:
    gateway, alice = Gateway("push.example"), await server.register("alice")
    for number in range(limits.users.PUSHERS_MAX):
        await set_pusher(alice, gateway.pusher(f"phone {number}"))
    refusal = await alice.refused("POST", "pushers/set", json=gateway.pusher("another"))
    assert refusal == (403, "M_USER_LIMIT_EXCEEDED")
    await set_pusher(alice, gateway.pusher("phone 0"))


async def test_pushers_require_an_access_token(server: Server) -> None:
    assert await server.anonymous.refused("GET", "pushers") == (401, "M_MISSING_TOKEN")
    assert await server.anonymous.refused("GET", "notifications") == (401, "M_MISSING_TOKEN")
    assert await server.anonymous.refused("POST", "pushers/set", json={}) == (401, "M_MISSING_TOKEN")


async def test_notifications_are_listed(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id, other = await public_room(alice, bob), await public_room(alice, bob)
    first, second = await say(alice, room_id, "1", "2")
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", first), json={})
    mention = {"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [bob.user_id]}}
    third = await send(alice, other, mention)
    await set_state(alice, other, "m.room.topic", {"topic": "nothing"})
    page = await bob.ok("GET", "notifications", params={"limit": 2})
    shown = [(each["event"]["event_id"], each["room_id"], each["read"]) for each in page["notifications"]]
    assert shown == [(third, other, False), (second, room_id, False)]
    page = await bob.ok("GET", "notifications", params={"from": page["next_token"]})
    assert [(each["event"]["event_id"], each["read"]) for each in page["notifications"]] == [(first, True)]
    assert "next_token" not in page
    page = await bob.ok("GET", "notifications", params={"only": "highlight"})
    assert [each["event"]["event_id"] for each in page["notifications"]] == [third]
    assert {"set_tweak": "highlight"} in page["notifications"][0]["actions"]
    assert (await alice.ok("GET", "notifications"))["notifications"] == []
    assert await bob.refused("GET", "notifications", params={"from": "x"}) == INVALID
