"""Content of events that is legal JSON and unkind: huge numbers, fractions, NUL, depth, size.

From room version 6 on an event has to be canonical JSON. Older rooms may hold more, and go on working with it in them.
Spec: appendices/#canonical-json, rooms/v6/#canonical-json, client-server-api/#size-limits
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.federation import Federation, create_room, join, sync, until
from tests.support.homeservers import Client

IRREGULAR: tuple[Any, ...] = (2**53, -(2**53), 2**63, 2**64, 10**30, 10**300, 0.5, 1e300, -0.0, 1e-7)
UNKIND: dict[str, Any] = {
    "nul": "a\0b", "empty": "", "": {"": ""}, "bidi": "\u202e\u2066", "line": "\u2028", "astral": "\U0010ffff",
    "nonchar": "\uffff\ufdd0", "zalgo": "e\u0301" * 500, "largest": 2**53 - 1, "smallest": -(2**53) + 1, "zero": 0,
    "__proto__": {"a": None}, "deep": [[[[[[[[[[{"a": [None, True, False]}]]]]]]]]]],
    "org.matrix.msc1767.text": 5, "m.relates_to": "nothing", "m.mentions": {"user_ids": "everyone"}, "body": 7,
    "msgtype": None, "url": {"a": "b"}, "m.new_content": [], "membership": "join",
}  # fmt: skip


async def send(client: Client, room_id: str, content: Any, event_type: str = "m.room.message") -> tuple[int, Any]:
    """Status and answer to an attempt to send the content as it is."""
    path = f"rooms/{quote(room_id)}/send/{quote(event_type, safe='')}/{abs(hash(repr(content)))}"
    answer = await client.request("PUT", path, content=json.dumps(content).encode())
    return answer.status_code, answer.json()


@pytest.mark.parametrize("number", IRREGULAR, ids=str)
async def test_numbers_outside_canonical_json_are_refused_in_current_room_versions(
    federation: Federation, number: float
) -> None:
    alice = await (await federation.start("a.example")).register("alice")
    room_id = await create_room(alice)
    for content in ({"n": number}, {"deep": [{"n": [number]}]}):
        status, answer = await send(alice, room_id, content)
        assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
        path = f"rooms/{quote(room_id)}/state/org.example.n/"
        assert await alice.refused("PUT", path, content=json.dumps(content).encode()) == (400, "M_BAD_JSON")
    assert await alice.ok("GET", f"rooms/{quote(room_id)}/joined_members")


@pytest.mark.parametrize("version", ["1", "5"])
async def test_old_room_versions_accept_any_number_and_every_answer_works(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    content = {"numbers": list(IRREGULAR)}
    status, answer = await send(alice, room_id, content, "org.example.numbers")
    assert status == 200, answer
    path = f"rooms/{quote(room_id)}/state/org.example.numbers/"
    assert (await alice.request("PUT", path, content=json.dumps(content).encode())).status_code == 200
    await join(bob, room_id, "a.example")
    late, answer = await send(alice, room_id, {"late": 10**30}, "org.example.numbers")
    assert late == 200
    place = quote(answer["event_id"], safe="")

    async def arrived() -> bool:
        return (await bob.get(f"rooms/{quote(room_id)}/event/{place}")).status_code == 200

    await until(arrived, "the event with a large number")
    for client in (alice, bob):
        # Clients get numbers beyond 64 bits as a double represents them, which is how they would parse them anyway.
        told = await client.ok("GET", path)
        assert [float(n) for n in told["numbers"]] == [float(n) for n in IRREGULAR]
        messages = await client.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=50")
        assert {"late": 10**30} in [event["content"] for event in messages["chunk"]]
        rooms = (await sync(client))["rooms"]["join"]
        assert {"late": 10**30} in [event["content"] for event in rooms[room_id]["timeline"]["events"]]
        await client.ok("GET", f"rooms/{quote(room_id)}/state")
        await client.ok("GET", f"rooms/{quote(room_id)}/context/{place}")
        fields = quote('{"event_fields":["content.late"]}')
        await client.ok("GET", f"sync?filter={fields}")


@pytest.mark.parametrize("version", ["1", "5", "6", "12"])
async def test_unusual_content_is_kept_unchanged(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, "a.example")
    for event_type in ("m.room.message", "m.reaction", "m.room.encrypted"):
        status, answer = await send(alice, room_id, UNKIND, event_type)
        assert status == 200, answer
        place = quote(answer["event_id"], safe="")

        async def arrived(place: str = place) -> bool:
            return (await bob.get(f"rooms/{quote(room_id)}/event/{place}")).status_code == 200

        await until(arrived, "the event")
        for client in (alice, bob):
            event = await client.ok("GET", f"rooms/{quote(room_id)}/event/{place}")
            assert event["content"] == UNKIND
            await sync(client)


async def test_events_are_accepted_up_to_the_maximum_size(federation: Federation) -> None:
    alice = await (await federation.start("a.example")).register("alice")
    room_id = await create_room(alice)
    status, answer = await send(alice, room_id, {"body": "x" * 64_000})
    assert status == 200, answer
    for content in ({"body": "x" * 65_536}, {"body": "\0" * 20_000}, {f"key{number}": 0 for number in range(8_000)}):
        status, answer = await send(alice, room_id, content)
        assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")


async def test_content_is_accepted_up_to_the_maximum_depth(federation: Federation) -> None:
    alice = await (await federation.start("a.example")).register("alice")
    room_id = await create_room(alice)
    for depth, status in ((90, 200), (99, 400), (5_000, 400)):
        text = '{"a":' + "[" * depth + "]" * depth + "}"
        path = f"rooms/{quote(room_id)}/send/m.room.message/{depth}"
        answer = await alice.request("PUT", path, content=text.encode())
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("event_type", "content"),
    [
        ("m.room.power_levels", {"users": {"@x:y": "fifty"}}),
        ("m.room.power_levels", {"users": []}),
        ("m.room.power_levels", {"events": {"m.room.name": 1.5}}),
        ("m.room.power_levels", {"ban": None}),
        ("m.room.power_levels", {"users_default": 2**60}),
        ("m.room.power_levels", {"users": {"not a user": 5}}),
        ("m.room.member", {"membership": 7}),
        ("m.room.member", {}),
        ("m.room.create", {"room_version": "12", "again": True}),
    ],
)
async def test_state_that_would_break_the_room_is_refused(
    federation: Federation, event_type: str, content: dict[str, Any]
) -> None:
    alice = await (await federation.start("a.example")).register("alice")
    for version in ("1", "9", "11", "12"):
        room_id = await create_room(alice, room_version=version)
        before = await alice.ok("GET", f"rooms/{quote(room_id)}/state")
        state_key = quote(alice.user_id) if event_type == "m.room.member" else ""
        path = f"rooms/{quote(room_id)}/state/{event_type}/{state_key}"
        answer = await alice.request("PUT", path, content=json.dumps(content).encode())
        if answer.status_code == 200:  # legal in an old version: then the room has to live with it
            assert version in ("1", "9")
            assert (await send(alice, room_id, {"body": "still here"}))[0] in (200, 403)
        else:
            assert answer.status_code in (400, 403)
            assert await alice.ok("GET", f"rooms/{quote(room_id)}/state") == before
            assert (await send(alice, room_id, {"body": "still here"}))[0] == 200


@pytest.mark.parametrize(
    ("event_type", "content"),
    [
        ("m.room.join_rules", {"join_rule": 7}),
        ("m.room.join_rules", {"join_rule": "restricted", "allow": [7, {"type": "m.room_membership", "room_id": 5}]}),
        ("m.room.history_visibility", {"history_visibility": []}),
        ("m.room.history_visibility", {}),
        ("m.room.guest_access", {"guest_access": {}}),
        ("m.room.canonical_alias", {"alias": 7, "alt_aliases": "x"}),
        ("m.room.server_acl", {"allow": "everyone", "deny": [7, None]}),
        ("m.room.server_acl", {"allow": [], "deny": ["*"], "allow_ip_literals": "no"}),
        ("m.room.name", {"name": ["x"]}),
        ("m.room.topic", {"topic": 5, "m.topic": {"m.text": [7]}}),
        ("m.room.avatar", {"url": 1}),
        ("m.room.encryption", {"algorithm": None}),
        ("m.room.tombstone", {"replacement_room": 5}),
        ("m.space.child", {"via": "x"}),
        ("m.room.third_party_invite", {"public_keys": "x"}),
        ("m.room.pinned_events", {"pinned": 5}),
    ],
)
async def test_a_room_with_malformed_state_still_answers_everything(
    federation: Federation, event_type: str, content: dict[str, Any]
) -> None:
    a, b, alice, bob = await federation.start_two()
    carol = await a.register("carol")
    room_id = await create_room(alice, preset="public_chat", visibility="public")
    place = quote(room_id)
    path = f"rooms/{place}/state/{event_type}/{'x' if event_type.startswith('m.space') else ''}"
    answer = await alice.request("PUT", path, content=json.dumps(content).encode())
    assert answer.status_code in (200, 400, 403), answer.text
    assert (await bob.post(f"join/{place}?via=a.example", {})).status_code in (200, 400, 403, 404)
    assert (await carol.post(f"join/{place}", {})).status_code in (200, 403)
    for client in (alice, bob, carol):
        for asked in ("members", "joined_members", "state", "messages?dir=b", "aliases"):
            assert (await client.get(f"rooms/{place}/{asked}")).status_code in (200, 403, 404)
        assert (await client.get("sync")).status_code == 200
        assert (await client.get("publicRooms?server=a.example")).status_code in (200, 403)
    await alice.ok("GET", f"sync?filter={quote(json.dumps({'room': {'state': {'lazy_load_members': True}}}))}")
    status, said = await send(alice, room_id, {"msgtype": "m.text", "body": "still here"})
    assert status == 200, said
