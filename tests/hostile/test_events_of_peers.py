"""Events that no honest server sends, rightly signed: every field of a PDU replaced by what it must not be.

The room goes on, on our server and on an honest one, and nobody's sync breaks.
Spec: server-server-api/#pdus, #checks-performed-on-receipt-of-a-pdu, client-server-api/#size-limits
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.federation.build import sign_event
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import InvalidEvent
from homeserver.federation.identifiers import ServerName
from homeserver.federation.room_versions import ROOM_VERSIONS
from tests.hostile.values import WRONG
from tests.support.federation import Federation, create_room, join, send_text, sync, texts, until
from tests.support.homeservers import Client
from tests.support.stranger import Joined, Stranger

MALLORY = ServerName("mallory.example")
FIELDS = (
    "type", "content", "sender", "room_id", "origin_server_ts", "depth", "prev_events", "auth_events", "hashes",
    "signatures", "state_key", "redacts", "event_id", "unsigned", "origin", "membership", "org.example.more",
)  # fmt: skip
# Strings with surrogates are not JSON: the tests of bodies send them.
VALUES = (*(value for value in WRONG if value != "\ud800"), 2**63 - 1, -(2**63), 2**64 - 1, "\0" * 300, ["$x"] * 30)


def mutants(room: Joined, version: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a description of each change and the changed PDU, hashed and signed if it has a canonical form."""
    for field, value in itertools.product(FIELDS, VALUES):
        good = room.text(f"{field} {str(value)[:20]!r}")
        room.last = room.state["m.room.member", room.user_id]
        pdu = {**good.pdu, field: value}
        if field not in ("hashes", "signatures"):
            pdu = signed(room.server, pdu, version) or pdu
        yield f"{field}: {str(value)[:30]!r}", pdu


def signed(server: Stranger, pdu: dict[str, Any], version: str) -> dict[str, Any] | None:
    """Returns the PDU with a correct hash and signature, None if it has no canonical form."""
    bare = {key: value for key, value in pdu.items() if key not in ("hashes", "signatures")}
    try:
        return sign_event(bare, ROOM_VERSIONS[version], server.name, server.key)
    except (InvalidEvent, NotCanonical, ValueError, TypeError, AttributeError, KeyError):
        return None


async def assert_well(room_id: str, here: Client, there: Client) -> None:
    """Both servers still have the room, and hear one another in it."""
    text = f"still here after {room_id}"
    await send_text(here, room_id, text)

    async def heard() -> bool:
        return text in await texts(there, room_id)

    await until(heard, text)
    place = quote(room_id)
    for client in (here, there):
        await sync(client)
        for path in ("state", "members", "joined_members", "messages?dir=b&limit=1000"):
            await client.ok("GET", f"rooms/{place}/{path}")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("version", ["1", "3", "5", "6", "10", "11", "12"])
async def test_any_field_of_an_event_may_be_wrong(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, "a.example")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    changed = list(mutants(room, version))
    for start in range(0, len(changed), 50):
        pdus = [pdu for _, pdu in changed[start : start + 50]]
        body = {"origin": MALLORY, "origin_server_ts": 1, "pdus": pdus, "edus": []}
        status, answer = await mallory.put("a.example", f"/_matrix/federation/v1/send/{start}", body)
        if status != 200:
            for what, pdu in changed[start : start + 50]:  # which of them?
                body["pdus"] = [pdu]
                status, answer = await mallory.put("a.example", f"/_matrix/federation/v1/send/x{what}", body)
                assert status == 200, f"{what}: {status} {answer}"
    await assert_well(room_id, alice, bob)
    honest = room.text("honest")
    assert await mallory.send("a.example", "honest", [honest.pdu]) == {honest.event_id: {}}


@pytest.mark.parametrize("version", ["1", "5", "6", "12"])
@pytest.mark.parametrize("kind", ["send_join", "send_leave", "send_knock", "invite"])
async def test_any_field_of_a_handshake_may_be_wrong(federation: Federation, version: str, kind: str) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    member = {"membership": {"send_join": "join", "send_leave": "leave", "send_knock": "knock"}.get(kind, "invite")}
    state_key = alice.user_id if kind == "invite" else room.user_id
    begin = ("1", "5", "6", "12").index(version)  # each API gets every other change, and the others of the next version
    for number, (field, value) in enumerate(itertools.product(FIELDS, VALUES), begin):
        event = room.event("m.room.member", member, state_key=state_key)
        room.last = room.state["m.room.member", room.user_id]
        pdu = {**event.pdu, field: value}
        pdu = signed(mallory, pdu, version) or pdu
        body = {"room_version": version, "event": pdu, "invite_room_state": value} if kind == "invite" else pdu
        place = f"{quote(room_id, safe='')}/{quote(event.event_id, safe='')}"
        api = "v1" if kind == "send_knock" or number % 2 else "v2"
        path = f"/_matrix/federation/{api}/{kind}/{place}"
        status, answer = await mallory.put_past_the_network(a, path, pdu if api == "v1" else body)
        assert status < 500, f"{field}: {str(value)[:30]!r}: {status} {answer}"
    await sync(alice)
    await send_text(alice, room_id, "still here")


async def test_any_field_of_a_transaction_may_be_wrong(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", room_id, "mallory")
    good = {"origin": MALLORY, "origin_server_ts": 1, "pdus": [room.text("x").pdu], "edus": []}
    for number, (field, value) in enumerate(itertools.product([*good, "more"], VALUES)):
        path = f"/_matrix/federation/v1/send/t{number}"
        status, answer = await mallory.put("a.example", path, {**good, field: value})
        assert status in (200, 400), f"{field}: {value!r}: {status} {answer}"
        if status == 400:
            assert answer["errcode"] in ("M_BAD_JSON", "M_INVALID_PARAM")
    for field in good:
        status, answer = await mallory.put(
            "a.example", f"/_matrix/federation/v1/send/without-{field}", {k: v for k, v in good.items() if k != field}
        )
        assert status in (200, 400)
    await sync(alice)


EDUS: dict[str, dict[str, Any]] = {
    "m.typing": {"room_id": "!r", "user_id": "@mallory:mallory.example", "typing": True},
    "m.receipt": {"!r": {"m.read": {"@mallory:mallory.example": {"data": {"ts": 1}, "event_ids": ["$x"]}}}},
    "m.presence": {"push": [{"user_id": "@mallory:mallory.example", "presence": "online", "last_active_ago": 1}]},
    "m.direct_to_device": {"sender": "@mallory:mallory.example", "type": "x", "message_id": "1", "messages": {}},
    "m.device_list_update": {"user_id": "@mallory:mallory.example", "device_id": "D", "stream_id": 1, "prev_id": []},
    "m.signing_key_update": {"user_id": "@mallory:mallory.example"},
    "org.example.unknown": {"a": 1},
}


@pytest.mark.parametrize("edu_type", EDUS)
async def test_any_field_of_an_edu_may_be_wrong(federation: Federation, edu_type: str) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, MALLORY)
    await mallory.join("a.example", room_id, "mallory")
    base = {key.replace("!r", room_id): value for key, value in EDUS[edu_type].items()}
    base = {key: room_id if value == "!r" else value for key, value in base.items()}
    edus: list[Any] = [{"edu_type": edu_type, "content": {**base, key: value}} for key in base for value in VALUES]
    edus += [{"edu_type": edu_type, "content": value} for value in VALUES]
    edus += [{"edu_type": value, "content": base} for value in VALUES] + [{"edu_type": edu_type}, {}, *VALUES]
    for user_id in ("@alice:a.example", "@x:other.example", "@nobody", ""):
        edus.append({"edu_type": edu_type, "content": {**base, "user_id": user_id, "sender": user_id}})
    for start in range(0, len(edus), 100):
        await mallory.send("a.example", f"edus{start}", edus=edus[start : start + 100])
    await sync(alice)
    await mallory.send("a.example", "good", edus=[{"edu_type": edu_type, "content": base}])
    await sync(alice)
