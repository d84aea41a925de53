"""Rooms whose events a policy server checks. Spec: server-server-api/#policy-servers"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.federation.hashing import signed_part
from homeserver.federation.identifiers import ServerName
from homeserver.federation.policy import POLICY_KEY_ID
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.signing import SigningKey, encode_base64, sign_json
from homeserver.remote.requests import ERRORS_OF_ACCOUNTS
from homeserver.rooms.events import find_event
from tests.support.federation import (
    Federation,
    create_room,
    invite,
    join,
    membership_in,
    send_text,
    state_of,
    sync,
    texts,
    until,
    wait_text,
)
from tests.support.homeservers import Client, Server
from tests.support.people import Json, path_of, set_state
from tests.support.stranger import Joined, Stranger

POLICY = ServerName("policy.example")
SIGN = ("POST", "/_matrix/policy/v1/sign")


@dataclass(slots=True)
class PolicyServer:
    """A policy server that refuses everything with the word "spam" in it. `asked`: the PDUs, in order.

    answer: what it answers instead.
    """

    stranger: Stranger
    version: str
    key: SigningKey = field(default_factory=lambda: SigningKey("policy_server", b"\5" * 32))
    asked: list[Json] = field(default_factory=list)
    answer: Any = None

    def __post_init__(self) -> None:
        self.stranger.answers[SIGN] = self._sign

    def _sign(self, uri: str, pdu: Json) -> Any:
        self.asked.append(pdu)
        if self.answer is not None:
            return self.answer
        if "spam" in str(pdu["content"]):
            return 400, {"errcode": "M_FORBIDDEN", "error": "The message appears to contain possible spam"}
        return sign_json(signed_part(pdu, ROOM_VERSIONS[self.version]), POLICY, self.key)["signatures"]

    def content(self, **other: Any) -> Json:
        """The content of m.room.policy."""
        return {"via": POLICY, "public_keys": {"ed25519": self.key.verify_key_base64}, **other}

    def kinds(self) -> list[str]:
        """The types of the events that it was asked about."""
        return [pdu["type"] for pdu in self.asked]


async def start(
    federation: Federation, version: str = "12"
) -> tuple[Server, Server, Client, Client, PolicyServer, Joined, str]:
    """alice and bob in a room with a policy server, each on their own server."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, "a.example")
    policy = PolicyServer(Stranger(federation.network, POLICY), version)
    joined = await policy.stranger.join("a.example", room_id, "police")
    await set_state(alice, room_id, "m.room.policy", policy.content())

    async def knows_policy() -> bool:
        return ("m.room.policy", "") in await state_of(bob, room_id)

    await until(knows_policy)
    return a, b, alice, bob, policy, joined, room_id


async def signatures_of(server: Server, event_id: str) -> Json:
    event = await server.read(find_event, event_id)
    assert event is not None
    signatures: Json = event.pdu["signatures"]
    return signatures


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
async def test_an_event_is_sent_with_the_signature_of_the_policy_server(federation: Federation, version: str) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation, version)
    assert "m.room.policy" not in policy.kinds()
    event_id = await send_text(alice, room_id, "tea")
    await wait_text(bob, room_id, "tea")
    assert policy.kinds()[-1] == "m.room.message"
    count = len(policy.asked)
    signatures = await signatures_of(b, event_id)
    assert signatures.keys() == {"a.example", POLICY}
    assert signatures[POLICY].keys() == {POLICY_KEY_ID}
    await set_state(bob, room_id, "m.room.member", {"membership": "join", "displayname": "Bobby"}, bob.user_id)
    await send_text(bob, room_id, "coffee")
    await wait_text(alice, room_id, "coffee")
    assert len(policy.asked) == count + 2  # nobody asks again about what is signed
    assert await state_of(alice, room_id) == await state_of(bob, room_id)


async def test_the_client_gets_the_error_of_the_policy_server(federation: Federation) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    path = path_of(room_id, "send", "m.room.message", "1")
    response = await alice.request("PUT", path, json={"msgtype": "m.text", "body": "spam"})
    assert response.status_code == 400
    assert response.json() == {"errcode": "M_FORBIDDEN", "error": "The message appears to contain possible spam"}
    policy.answer = 429, {"errcode": "M_LIMIT_EXCEEDED", "error": "Slowly", "retry_after_ms": 1500}
    response = await alice.request("PUT", path, json={"msgtype": "m.text", "body": "tea"})
    assert (response.status_code, response.json()["retry_after_ms"]) == (429, 1500)
    policy.answer = 404, {"errcode": "M_NOT_FOUND", "error": "Unknown room"}
    topic = path_of(room_id, "state", "m.room.topic", "")
    assert await alice.refused("PUT", topic, json={"topic": "tea"}) == (404, "M_NOT_FOUND")
    policy.answer = None
    await alice.ok("PUT", path, json={"msgtype": "m.text", "body": "tea"})
    assert await texts(alice, room_id) == ["tea"]


@pytest.mark.parametrize(
    "answer",
    [
        {}, {POLICY: {}}, {POLICY: {POLICY_KEY_ID: "A" * 86}}, {POLICY: {POLICY_KEY_ID: 7}}, {POLICY: []}, [], 7,
        {"other.example": {POLICY_KEY_ID: "A" * 86}}, {POLICY: {POLICY_KEY_ID: "x" * 70_000}},
        (404, {"errcode": "M_UNRECOGNIZED", "error": "What?"}), (500, {}), (302, {}),
    ],
)  # fmt: skip
async def test_an_event_without_a_valid_signature_is_not_sent(federation: Federation, answer: Any) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    policy.answer = answer
    path = path_of(room_id, "send", "m.room.message", "1")
    assert await alice.refused("PUT", path, json={"body": "tea"}) == (502, "M_UNKNOWN")
    assert await texts(alice, room_id) == []


@pytest.mark.parametrize("errcode", sorted(ERRORS_OF_ACCOUNTS))
async def test_other_servers_cannot_log_a_client_out(federation: Federation, errcode: str) -> None:
    _, _, alice, _, policy, _, room_id = await start(federation)
    policy.answer = 403, {"errcode": errcode, "error": "Log in again"}
    path = path_of(room_id, "send", "m.room.message", "1")
    assert await alice.refused("PUT", path, json={"msgtype": "m.text", "body": "tea"}) == (502, "M_UNKNOWN")


async def test_a_room_whose_policy_server_is_away_can_be_left_and_do_without_it(federation: Federation) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    federation.network.leave(POLICY)
    path = path_of(room_id, "send", "m.room.message", "1")
    assert await alice.refused("PUT", path, json={"body": "tea"}) == (502, "M_UNKNOWN")
    before = trio.current_time()
    assert await alice.refused("PUT", path, json={"body": "tea"}) == (502, "M_UNKNOWN")
    assert trio.current_time() == before  # it is in back-off
    await bob.ok("POST", path_of(room_id, "leave"), json={})
    assert membership_in(await sync(bob), room_id) is None
    await set_state(alice, room_id, "m.room.policy", {})
    await send_text(alice, room_id, "tea")


async def test_events_that_are_not_signed_are_soft_failed(federation: Federation) -> None:
    """Unless the policy server signs them now: their server may not have asked, or with another key."""
    a, b, alice, bob, policy, room, room_id = await start(federation)
    mallory = await Stranger(federation.network, ServerName("mallory.example")).join("a.example", room_id, "mallory")
    results = await mallory.server.send("a.example", "1", [mallory.text("spam").pdu])
    assert list(results.values()) == [{}]
    assert policy.asked[-1]["content"]["body"] == "spam"
    assert await texts(alice, room_id) == []
    good = mallory.text("tea", after=[mallory.last.prev_events[0]])
    assert list((await mallory.server.send("a.example", "2", [good.pdu])).values()) == [{}]
    assert await texts(alice, room_id) == ["tea"]
    assert POLICY in await signatures_of(a, good.event_id)
    federation.network.leave(POLICY)
    late = mallory.text("late", after=[good])
    await mallory.server.send("a.example", "3", [late.pdu])
    assert await texts(alice, room_id) == ["tea"]
    forged = {**late.pdu, "signatures": {**late.pdu["signatures"], POLICY: {POLICY_KEY_ID: encode_base64(b"x" * 64)}}}
    await mallory.server.send("a.example", "4", [forged])
    assert await texts(alice, room_id) == ["tea"]


async def test_a_policy_server_may_be_the_server_of_the_sender(federation: Federation) -> None:
    """Its two signatures stand beside each other, and nobody looks for its policy key among the keys of the server."""
    a, b, alice, bob, policy, room, room_id = await start(federation)
    event = room.text("from the police")
    signatures = policy._sign("", event.pdu)
    pdu = {**event.pdu, "signatures": {POLICY: {**event.pdu["signatures"][POLICY], **signatures[POLICY]}}}
    policy.asked.clear()
    fetched = len(policy.stranger.asked)
    await policy.stranger.send("a.example", "1", [pdu])
    assert await texts(alice, room_id) == ["from the police"]
    assert policy.asked == []
    assert ("GET", "/_matrix/key/v2/server") not in policy.stranger.asked[fetched:]
    assert (await signatures_of(a, event.event_id))[POLICY].keys() == {policy.stranger.key.key_id, POLICY_KEY_ID}


@pytest.mark.parametrize(
    "content",
    [
        {"via": POLICY}, {"via": POLICY, "public_keys": {}}, {"via": POLICY, "public_keys": {"ed25519": 7}},
        {"via": 7, "public_keys": {"ed25519": "x"}}, {"via": "no name", "public_keys": {"ed25519": "x"}},
        {"via": "absent.example", "public_keys": {"ed25519": "x"}}, {},
    ],
)  # fmt: skip
async def test_a_room_without_a_valid_policy_has_no_policy_server(federation: Federation, content: Json) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    await set_state(alice, room_id, "m.room.policy", content)
    policy.asked.clear()
    await send_text(alice, room_id, "spam")
    await wait_text(bob, room_id, "spam")
    assert policy.asked == []


async def test_a_policy_server_that_leaves_the_room_is_not_asked_any_more(federation: Federation) -> None:
    a, b, alice, bob, policy, room, room_id = await start(federation)
    await alice.ok("POST", path_of(room_id, "kick"), json={"user_id": room.user_id})
    policy.asked.clear()
    await send_text(alice, room_id, "spam")
    assert policy.asked == []


async def test_invites_and_joins_across_servers_are_signed_too(federation: Federation) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    c = await federation.start("c.example")
    carol = await c.register("carol")
    policy.asked.clear()
    await invite(alice, room_id, carol.user_id)
    assert [pdu["content"]["membership"] for pdu in policy.asked] == ["invite"]
    event_id = (await state_of(alice, room_id))["m.room.member", carol.user_id]
    assert (await signatures_of(a, event_id)).keys() == {"a.example", "c.example", POLICY}
    await join(carol, room_id)
    assert [pdu["content"]["membership"] for pdu in policy.asked] == ["invite", "join"]
    event_id = (await state_of(alice, room_id))["m.room.member", carol.user_id]
    assert POLICY in await signatures_of(a, event_id)
    policy.answer = 400, {"errcode": "M_FORBIDDEN", "error": "No more people"}
    erin = await c.register("erin")
    path = path_of(room_id, "invite")
    assert await alice.refused("POST", path, json={"user_id": erin.user_id}) == (400, "M_FORBIDDEN")
    dave = await (await federation.start("d.example")).register("dave")
    assert await dave.refused("POST", f"join/{quote(room_id)}?via=a.example", json={}) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize(("version", "new_version"), [("10", "11"), ("12", "12")])
async def test_a_room_with_a_policy_server_can_be_upgraded(
    federation: Federation, version: str, new_version: str
) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation, version)
    policy.asked.clear()
    answer = await alice.ok("POST", path_of(room_id, "upgrade"), json={"new_version": new_version})
    assert policy.kinds() == ["m.room.tombstone", "m.room.power_levels"]
    tombstone = await alice.ok("GET", path_of(room_id, "state", "m.room.tombstone", ""))
    assert tombstone["replacement_room"] == answer["replacement_room"]
    create = await alice.ok("GET", path_of(answer["replacement_room"], "state", "m.room.create", ""))
    assert create["predecessor"]["room_id"] == room_id
    rooms = (await alice.ok("GET", "joined_rooms"))["joined_rooms"]
    assert sorted(rooms) == sorted([room_id, answer["replacement_room"]])  # and none of the undone attempts


async def test_a_repeated_request_in_a_room_with_a_policy_server_sends_one_event(federation: Federation) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    path = path_of(room_id, "send", "m.room.message", "1")
    answers = [await alice.ok("PUT", path, json={"body": "tea"}) for _ in range(2)]
    assert answers[0] == answers[1]
    assert await texts(alice, room_id) == ["tea"]
    events = (await sync(alice))["rooms"]["join"][room_id]["timeline"]["events"]
    assert events[-1]["unsigned"]["transaction_id"] == "1"


async def test_parallel_messages_are_all_sent_while_the_policy_server_thinks(federation: Federation) -> None:
    a, b, alice, bob, policy, _, room_id = await start(federation)
    federation.network.latency_s = 0.1

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(send_text, alice, room_id, f"tea {number}")
    await wait_text(bob, room_id, "tea 9")
    assert sorted(await texts(alice, room_id)) == [f"tea {number}" for number in range(10)]
    await send_text(alice, room_id, "the end")
    await wait_text(bob, room_id, "the end")
    assert await state_of(alice, room_id) == await state_of(bob, room_id)
