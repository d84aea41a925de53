"""Attacks by a malicious server, and that they have no effect.

Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu, #server-access-control-lists-acls, #authentication
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.database import Transaction
from homeserver.federation.event import Event, parse_event
from homeserver.federation.identifiers import EventID, ServerName
from homeserver.federation.request_auth import build_authorization
from homeserver.federation.signing import SigningKey
from homeserver.rooms.storage import Status, find_stored_by_id
from tests.support.federation import Federation, create_room, send_state, send_text, state_of, sync, texts
from tests.support.homeservers import Client, Server, now_ms
from tests.support.stranger import Joined, Stranger

MALLORY = ServerName("mallory.example")


async def _room(federation: Federation, **body: Any) -> tuple[Server, Client, Stranger, Joined]:
    """A room of alice at a.example that a user of a stranger has joined."""
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", **body)
    mallory = Stranger(federation.network, MALLORY)
    return a, alice, mallory, await mallory.join("a.example", room_id, "mallory")


async def _status(server: Server, event_id: str) -> int | None:
    stored = await server.read(find_stored_by_id, event_id)
    return None if stored is None else stored.status


async def _send_rejected(server: Server, mallory: Stranger, event: Event) -> None:
    """Sends an event that is rejected, which is not an error. Spec: server-server-api/#rejection"""
    assert await mallory.send(server.name, event.event_id[1:9], [event.pdu]) == {event.event_id: {}}
    assert await _status(server, event.event_id) == Status.REJECTED


@pytest.mark.parametrize("version", ["1", "4", "8", "11", "12"])
async def test_honest_event_is_accepted(federation: Federation, version: str) -> None:
    a, alice, mallory, room = await _room(federation, room_version=version)
    event = room.text("hello")
    assert await mallory.send("a.example", "1", [event.pdu]) == {event.event_id: {}}
    assert await texts(alice, room.room_id) == ["hello"]


async def test_an_event_with_a_wrong_signature_is_dropped(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    event = room.text("hello")
    forged = {**event.pdu, "signatures": {MALLORY: {mallory.key.key_id: "A" * 86}}}
    results = await mallory.send("a.example", "1", [forged])
    assert "signature" in results[event.event_id]["error"]
    unsigned = {**event.pdu, "signatures": {}}
    assert "not signed" in (await mallory.send("a.example", "2", [unsigned]))[event.event_id]["error"]
    other_key = {**event.pdu, "signatures": {MALLORY: {"ed25519:unknown": "A" * 86}}}
    assert "not signed" in (await mallory.send("a.example", "3", [other_key]))[event.event_id]["error"]
    assert await _status(a, event.event_id) is None
    assert await texts(alice, room.room_id) == []


async def test_a_forged_event_of_our_own_user_is_dropped(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    event = room.text("I am alice", sender=alice.user_id)
    assert "not signed" in (await mallory.send("a.example", "1", [event.pdu]))[event.event_id]["error"]
    both = {**event.pdu, "signatures": {**event.pdu["signatures"], "a.example": {"ed25519:test": "A" * 86}}}
    assert "error" in (await mallory.send("a.example", "2", [both]))[event.event_id]
    assert await texts(alice, room.room_id) == []


async def test_an_event_with_a_wrong_hash_is_redacted(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    event = room.text("hello")
    changed = {**event.pdu, "content": {"msgtype": "m.text", "body": "something else"}}
    assert await mallory.send("a.example", "1", [changed]) == {event.event_id: {}}
    assert await texts(alice, room.room_id) == [""]


@pytest.mark.parametrize(
    "change",
    [
        {"depth": -1},
        {"depth": "1"},
        {"prev_events": "none"},
        {"prev_events": ["$x"] * 21},
        {"auth_events": ["$x"] * 11},
        {"content": []},
        {"sender": "nobody"},
        {"type": 5},
        {"type": "x" * 256},
        {"origin_server_ts": 1.5},
        {"content": {"big": 2**53}},
        {"content": {"body": "x" * 65536}},
    ],
)
async def test_malformed_events_are_dropped(federation: Federation, change: dict[str, Any]) -> None:
    a, alice, mallory, room = await _room(federation)
    good, event = room.text("hello"), room.text("bad")
    good.pdu["prev_events"], event.pdu["prev_events"] = good.pdu["prev_events"], good.pdu["prev_events"]
    results = await mallory.send("a.example", "1", [{**event.pdu, **change}, good.pdu])
    assert results == {good.event_id: {}}
    assert await texts(alice, room.room_id) == ["hello"]


async def test_an_event_of_a_non_member_is_rejected(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    event = room.text("hello", sender=mallory.user("other"))
    await _send_rejected(a, mallory, event)
    assert await texts(alice, room.room_id) == []


async def test_state_set_without_power_is_rejected(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    before = await state_of(alice, room.room_id)
    content = {"users": {room.user_id: 100}}
    event = room.event("m.room.power_levels", content, state_key="")
    await _send_rejected(a, mallory, event)
    after = room.text("after the coup")  # follows a rejected event, which is not its own fault
    assert await mallory.send("a.example", "2", [after.pdu]) == {after.event_id: {}}
    assert await state_of(alice, room.room_id) == before


async def test_a_forged_membership_is_rejected(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    for target, membership in ((alice.user_id, "leave"), (alice.user_id, "ban"), ("@nobody:stranger.example", "join")):
        event = room.event(
            "m.room.member",
            {"membership": membership},
            state_key=target,
            auth=[("m.room.power_levels", ""), ("m.room.member", room.user_id), ("m.room.member", target)],
        )
        await _send_rejected(a, mallory, event)
    content = await alice.ok("GET", f"rooms/{quote(room.room_id)}/state/m.room.member/{quote(alice.user_id)}")
    assert content["membership"] == "join"


async def test_a_banned_users_event_that_cites_the_past_is_soft_failed(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    await alice.ok("POST", f"rooms/{quote(room.room_id)}/ban", json={"user_id": room.user_id})
    event = room.text("you cannot ban me")  # follows the join, as if the ban had not reached mallory
    await mallory.send("a.example", "1", [event.pdu])
    assert await _status(a, event.event_id) == Status.SOFT_FAILED
    assert await texts(alice, room.room_id) == []
    await send_text(alice, room.room_id, "peace")
    stored = await a.read(find_stored_by_id, event.event_id)
    assert stored is not None
    extremities = await a.read(lambda tx: tx.values("SELECT count(*) FROM rooms"))
    assert extremities == [1]


async def test_state_of_another_room_cannot_be_smuggled_in(federation: Federation) -> None:
    """Mallory has a room of their own in which they have all power, and cites its events in ours."""
    a, alice, mallory, room = await _room(federation)
    own_room = await create_room(alice, preset="public_chat")
    own = await mallory.join("a.example", own_room, "mallory")
    await send_state(
        alice, own_room, "m.room.power_levels", {"users": {own.user_id: 100}, "events_default": 0, "state_default": 50}
    )
    levels = (await state_of(alice, own_room))["m.room.power_levels", ""]
    status, answer = await mallory.get("a.example", f"/_matrix/federation/v1/event/{quote(levels)}")
    assert status == 200
    room.state["m.room.power_levels", ""] = parse_event(answer["pdus"][0], own.version)
    event = room.event("m.room.topic", {"topic": "owned"}, state_key="")
    await _send_rejected(a, mallory, event)
    following = room.event("m.room.topic", {"topic": "owned"}, state_key="", after=[own.last])
    assert "error" in (await mallory.send("a.example", "2", [following.pdu]))[following.event_id]
    assert ("m.room.topic", "") not in await state_of(alice, room.room_id)


async def test_lies_about_the_state_change_nothing(federation: Federation) -> None:
    """An event after an ancestor that mallory will not show, and a state before it in which they have power."""
    a, alice, mallory, room = await _room(federation)
    before = await state_of(alice, room.room_id)
    seen = room.last
    forged = room.event("m.room.power_levels", {"users": {room.user_id: 100}}, state_key="", after=[seen])
    room.state["m.room.power_levels", ""] = forged
    event = room.event("m.room.topic", {"topic": "owned"}, state_key="", after=[seen, EventID("$" + "x" * 43)])
    place = quote(room.room_id, safe="")
    state_ids = [each.event_id for each in room.state.values()]
    mallory.answers["POST", f"/_matrix/federation/v1/get_missing_events/{place}"] = {"events": []}
    mallory.answers["GET", f"/_matrix/federation/v1/state_ids/{place}"] = {
        "pdu_ids": state_ids,
        "auth_chain_ids": state_ids,
    }
    mallory.answers["GET", f"/_matrix/federation/v1/event/{quote(forged.event_id, safe='')}"] = {"pdus": [forged.pdu]}
    mallory.answers["GET", f"/_matrix/federation/v1/event_auth/{place}/{quote(event.event_id, safe='')}"] = {
        "auth_chain": [each.pdu for each in room.state.values()]
    }
    await _send_rejected(a, mallory, event)
    assert await state_of(alice, room.room_id) == before


async def test_a_gap_that_nobody_can_close_does_not_block_the_room(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    last = room.last
    results = {}
    lost = room.text("lost", after=[EventID("$" + "y" * 43)])

    async def send_lost() -> None:
        results.update(await mallory.send("a.example", "1", [lost.pdu]))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_lost)
        await trio.sleep(0.01)
        await send_text(alice, room.room_id, "we go on")
    assert results == {lost.event_id: {}}  # it is kept until what comes before it can be had
    good = room.text("me too", after=[last])
    assert await mallory.send("a.example", "2", [good.pdu]) == {good.event_id: {}}
    assert await texts(alice, room.room_id) == ["we go on", "me too"]
    assert trio.current_time() - start < 300


async def test_slow_gaps_do_not_delay_other_events_of_a_transaction(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    last = room.last
    lost = [room.text("lost", after=[EventID("$" + str(number) * 43)]) for number in range(8)]
    good = room.text("good", after=[last])

    async def later(uri: str, content: Any) -> Any:
        await trio.sleep(15)
        return {"events": [], "pdu_ids": [lost[0].event_id], "auth_chain_ids": []}

    path = f"{quote(room.room_id, safe='')}"
    mallory.answers["POST", f"/_matrix/federation/v1/get_missing_events/{path}"] = later
    mallory.answers["GET", f"/_matrix/federation/v1/state_ids/{path}"] = later
    start = trio.current_time()
    pdus = [event.pdu for event in (*lost, good)]
    assert (await mallory.send("a.example", "1", pdus))[good.event_id] == {}
    assert trio.current_time() - start < 3
    assert await texts(alice, room.room_id) == ["good"]


async def test_full_state_requests_are_limited_per_peer(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    a.hs.rate_limits.enabled = True
    uri = f"/_matrix/federation/v1/state/{quote(room.room_id, safe='')}?event_id={quote(room.last.event_id, safe='')}"
    statuses = [(await mallory.get("a.example", uri))[0] for _ in range(60)]
    assert set(statuses) == {200, 429}
    event = room.text("still here")
    assert await mallory.send("a.example", "1", [event.pdu]) == {event.event_id: {}}


async def test_an_oversized_transaction_is_refused(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    body = {"origin": MALLORY, "origin_server_ts": now_ms(), "pdus": [room.text("x").pdu] * 51}
    status, answer = await mallory.put("a.example", "/_matrix/federation/v1/send/1", body)
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
    edus = [{"edu_type": "m.typing", "content": {}}] * 101
    body = {"origin": MALLORY, "origin_server_ts": now_ms(), "pdus": [], "edus": edus}
    status, answer = await mallory.put("a.example", "/_matrix/federation/v1/send/2", body)
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")


async def test_a_transaction_of_another_origin_is_refused(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    body = {"origin": "b.example", "origin_server_ts": now_ms(), "pdus": []}
    status, answer = await mallory.put("a.example", "/_matrix/federation/v1/send/1", body)
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_repeated_transaction_is_processed_once(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    event, other = room.text("hello"), room.text("other")
    first = await mallory.send("a.example", "same", [event.pdu])
    assert await mallory.send("a.example", "same", [other.pdu]) == first
    assert await texts(alice, room.room_id) == ["hello"]


async def test_a_server_denied_by_the_acl_is_refused(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    acl = {"allow": ["*"], "deny": ["mallory.*"], "allow_ip_literals": False}
    await send_state(alice, room.room_id, "m.room.server_acl", acl)
    event = room.text("hello")
    assert "ACL" in (await mallory.send("a.example", "1", [event.pdu]))[event.event_id]["error"]
    typing = {"room_id": room.room_id, "user_id": room.user_id, "typing": True}
    await mallory.send("a.example", "2", [], [{"edu_type": "m.typing", "content": typing}])
    ephemeral = (await sync(alice))["rooms"]["join"][room.room_id].get("ephemeral", {"events": []})["events"]
    assert [each for each in ephemeral if each["content"].get("user_ids")] == []
    place = quote(room.room_id, safe="")
    user, last = quote(room.user_id, safe=""), quote(room.last.event_id, safe="")
    for method, path, content in (
        ("GET", f"v1/make_join/{place}/{user}?ver=12", None),
        ("GET", f"v1/make_leave/{place}/{user}", None),
        ("GET", f"v1/make_knock/{place}/{user}?ver=12", None),
        ("PUT", f"v1/send_join/{place}/{last}", event.pdu),
        ("PUT", f"v2/send_join/{place}/{last}", event.pdu),
        ("PUT", f"v1/send_leave/{place}/{last}", event.pdu),
        ("PUT", f"v2/send_leave/{place}/{last}", event.pdu),
        ("PUT", f"v1/send_knock/{place}/{last}", event.pdu),
        ("GET", f"v1/state/{place}?event_id={last}", None),
        ("GET", f"v1/state_ids/{place}?event_id={last}", None),
        ("GET", f"v1/backfill/{place}?v={last}&limit=10", None),
        ("GET", f"v1/event_auth/{place}/{last}", None),
        ("POST", f"v1/get_missing_events/{place}", {"earliest_events": [], "latest_events": [room.last.event_id]}),
    ):
        status, answer = await mallory.request("a.example", method, f"/_matrix/federation/{path}", content)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), (path, answer)


async def test_a_redacted_acl_denies_everyone(federation: Federation) -> None:
    """Nobody is in its `allow` any more."""
    a, alice, mallory, room = await _room(federation)
    acl = await send_state(alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["x.example"]})
    event = room.text("allowed")
    assert await mallory.send("a.example", "1", [event.pdu]) == {event.event_id: {}}
    await alice.ok("PUT", f"rooms/{quote(room.room_id)}/redact/{quote(acl)}/1", json={})
    event = room.text("not allowed")
    assert "ACL" in (await mallory.send("a.example", "2", [event.pdu]))[event.event_id]["error"]


async def test_a_server_that_was_never_in_the_room_reads_nothing(federation: Federation) -> None:
    a, alice, mallory, room = await _room(federation)
    stranger = Stranger(federation.network, ServerName("stranger.example"))
    place, last = quote(room.room_id, safe=""), quote(room.last.event_id, safe="")
    for method, path, content in (
        ("GET", f"v1/state/{place}?event_id={last}", None),
        ("GET", f"v1/state_ids/{place}?event_id={last}", None),
        ("GET", f"v1/backfill/{place}?v={last}&limit=10", None),
        ("GET", f"v1/backfill/{place}?v=%24unknown&limit=10", None),
        ("GET", f"v1/event_auth/{place}/{last}", None),
        ("GET", f"v1/event/{last}", None),
        ("GET", f"v1/timestamp_to_event/{place}?ts=0&dir=f", None),
        ("POST", f"v1/get_missing_events/{place}", {"earliest_events": [], "latest_events": [room.last.event_id]}),
        ("POST", f"v1/get_missing_events/{place}", {"earliest_events": [], "latest_events": []}),
    ):
        status, answer = await stranger.request("a.example", method, f"/_matrix/federation/{path}", content)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), (path, answer)
    for method, path, content in (
        ("GET", "v1/event/%24unknown", None),
        ("GET", f"v1/state/!unknown:a.example?event_id={last}", None),
    ):
        status, answer = await stranger.request("a.example", method, f"/_matrix/federation/{path}", content)
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), (path, answer)


async def test_badly_signed_requests_are_refused(federation: Federation) -> None:
    a = await federation.start("a.example")
    mallory = Stranger(federation.network, MALLORY)
    uri, name = "/_matrix/federation/v1/query/profile?user_id=@alice:a.example", ServerName("a.example")
    stranger_key = SigningKey("stranger", bytes(32))
    for header in (
        "",
        "Bearer token",
        "X-Matrix",
        'X-Matrix origin="mallory.example",key="ed25519:stranger",sig=""',
        build_authorization("GET", uri, MALLORY, ServerName("b.example"), mallory.key, None),
        build_authorization("PUT", uri, MALLORY, name, mallory.key, None),
        build_authorization("GET", uri + "&more", MALLORY, name, mallory.key, None),
        build_authorization("GET", uri, MALLORY, name, stranger_key, None),
        build_authorization("GET", uri, MALLORY, name, SigningKey("unknown", bytes(32)), None),
        build_authorization("GET", uri, ServerName("nowhere.example"), name, stranger_key, None),
        build_authorization("GET", uri, name, name, a.hs.signing_key, None),
    ):
        headers = {"authorization": header} if header else {}
        status, answer = await mallory.request("a.example", "GET", uri, headers=headers)
        assert (status, answer["errcode"]) == (401, "M_UNAUTHORIZED"), header
    status, _ = await mallory.get("a.example", uri)
    assert status == 404  # there is no alice, but mallory may ask
    asked = [path for method, path in mallory.asked if path == "/_matrix/key/v2/server"]
    assert len(asked) <= 2  # wrong keys do not make us ask again and again


async def test_a_request_signed_with_the_key_of_another_server_is_refused(federation: Federation) -> None:
    await federation.start("a.example")
    mallory = Stranger(federation.network, MALLORY)
    mallory.answers["GET", "/_matrix/key/v2/server"] = Stranger(
        federation.network, ServerName("stranger.example")
    ).key_response("", None)
    status, answer = await mallory.get("a.example", "/_matrix/federation/v1/query/profile?user_id=@a:a.example")
    assert (status, answer["errcode"]) == (401, "M_UNAUTHORIZED")


async def test_an_event_that_cannot_be_processed_does_not_block_the_others(federation: Federation) -> None:
    """However processing one event fails, the rest of the transaction is received, and its sender can continue."""
    a, alice, mallory, room = await _room(federation)
    harmless, first = room.event("org.example.poison", {}), room.text("first")
    poison = room.event("org.example.poison", {}, after=[first])
    last = room.text("last", after=[first])
    await mallory.send("a.example", "0", [harmless.pdu])

    def set_trap(tx: Transaction) -> None:
        poisonous = tx.find("org.example.poison")
        tx.run(f"CREATE UNIQUE INDEX trap ON events (type_nid) WHERE type_nid = {poisonous}")

    await a.write(set_trap)
    results = await mallory.send("a.example", "1", [first.pdu, poison.pdu, last.pdu])
    assert results[poison.event_id] == {"error": "Something unexpected happened."}
    assert results[first.event_id] == results[last.event_id] == {}
    assert await texts(alice, room.room_id) == ["first", "last"]


async def test_a_room_that_cannot_be_read_does_not_block_the_others(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    a, alice, mallory, room = await _room(federation)
    other = await mallory.join("a.example", await create_room(alice, preset="public_chat"), "mallory")

    def damage(tx: Transaction) -> None:
        tx.run("UPDATE rooms SET version = 'broken' WHERE room_nid = ?", tx.find(room.room_id))

    await a.write(damage)
    await federation.kill("a.example")
    a = await federation.start("a.example")
    lost, good = room.text("lost"), other.text("good")
    assert (await mallory.send("a.example", "1", [lost.pdu, good.pdu]))[good.event_id] == {}
    assert await texts(a.with_token(alice.token), other.room_id) == ["good"]
    assert 'homeserver_parked_items_total{lane="inbound"} 1' in a.hs.metrics.text()
    assert "event not received: something unexpected happened" in [record.message for record in caplog.records]
