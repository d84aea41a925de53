"""Residents of bad will: what a server may tell us of a room that we enter, or of one that we are invited to.

Spec: server-server-api/#joining-rooms, #inviting-to-a-room
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.federation.event import Event, parse_event
from homeserver.federation.identifiers import ServerName
from tests.support.federation import (
    Federation,
    create_room,
    join,
    membership_in,
    send_text,
    state_of,
    sync,
    wait_text,
)
from tests.support.storage import full_disk
from tests.support.stranger import Change, FakeRoom, Stranger


async def _fake(federation: Federation, version: str = "12") -> tuple[Any, Any, FakeRoom]:
    b = await federation.start("b.example")
    bob = await b.register("bob")
    return b, bob, FakeRoom(Stranger(federation.network, ServerName("mallory.example")), version)


@pytest.mark.parametrize("version", ["11", "12"])
async def test_a_room_of_an_honest_stranger_can_be_joined(federation: Federation, version: str) -> None:
    b, bob, fake = await _fake(federation, version)
    sent = fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)
    assert len(sent) == 1
    assert ("m.room.join_rules", "") in await state_of(bob, str(fake.room_id))
    await send_text(bob, str(fake.room_id), "nobody here?")


async def test_a_full_disk_is_not_blamed_on_the_resident_server(federation: Federation) -> None:
    """The answer is put aside on the disk before it is known to be good."""
    _, bob, fake = await _fake(federation)
    fake.serve(bob.user_id)
    with full_disk():
        path = f"join/{quote(str(fake.room_id))}?via=mallory.example"
        assert await bob.refused("POST", path, json={}) == (503, "M_UNKNOWN")
    fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "m.room.power_levels"},
        {"room_id": "!other:mallory.example"},
        {"sender": "@carol:b.example"},
        {"state_key": "@carol:b.example"},
        {"content": {"membership": "leave"}},
        {"content": None},
        {"depth": -1},
        {"depth": "deep"},
        {"prev_events": None},
        {"prev_events": ["$x"] * 21},
        {"auth_events": [5]},
    ],
)
async def test_a_template_for_something_else_is_not_signed(federation: Federation, changes: dict[str, Any]) -> None:
    _, bob, fake = await _fake(federation)
    sent = fake.serve(bob.user_id, template=lambda answer: fake.template(bob.user_id, **changes))
    path = f"join/{quote(str(fake.room_id))}?via=mallory.example"
    assert await bob.refused("POST", path, json={}) == (502, "M_UNKNOWN")
    assert sent == []


async def test_only_the_position_of_a_template_in_the_graph_is_signed(federation: Federation) -> None:
    _, bob, fake = await _fake(federation)
    extra = {"membership": "join", "displayname": "I am a fool", "org.example.debt": 1000}
    sent = fake.serve(
        bob.user_id, template=lambda answer: fake.template(bob.user_id, content=extra, redacts="$x", extra="signed")
    )
    await join(bob, str(fake.room_id), fake.server.name)
    assert sent[0]["content"] == {"membership": "join", "displayname": "bob"}
    assert sent[0].keys() == {
        "type", "room_id", "sender", "state_key", "content", "depth", "prev_events", "auth_events", "origin_server_ts",
        "hashes", "signatures",
    }  # fmt: skip


async def test_a_room_of_an_unknown_version_cannot_be_joined(federation: Federation) -> None:
    _, bob, fake = await _fake(federation)
    fake.serve(bob.user_id, template=lambda answer: {**answer, "room_version": "org.example.99"})
    path = f"join/{quote(str(fake.room_id))}?via=mallory.example"
    assert (await bob.refused("POST", path, json={}))[0] == 400


def _without(kind: str) -> Change:
    def change(answer: Any) -> Any:
        return {**answer, "state": [pdu for pdu in answer["state"] if pdu["type"] != kind], "auth_chain": []}

    return change


def _forged(answer: Any) -> Any:
    def forge(pdu: Any) -> Any:
        return {**pdu, "depth": pdu["depth"] + 1}

    return {**answer, "state": [forge(pdu) for pdu in answer["state"]], "auth_chain": []}


@pytest.mark.parametrize(
    "change",
    [
        _without("m.room.create"),
        _forged,
        lambda answer: {**answer, "state": None, "auth_chain": None},
        lambda answer: {**answer, "state": [{}, 5, None], "auth_chain": [[]]},
        lambda answer: [],
        lambda answer: (500, {"errcode": "M_UNKNOWN", "error": "No."}),
    ],
    ids=["no create event", "wrong signatures", "nothing", "nonsense", "a list", "an error"],
)
async def test_a_malformed_answer_to_a_join_is_refused(federation: Federation, change: Change) -> None:
    b, bob, fake = await _fake(federation)
    fake.serve(bob.user_id, answer=change)
    path = f"join/{quote(str(fake.room_id))}?via=mallory.example"
    status, _ = await bob.refused("POST", path, json={})
    assert status == 502
    assert membership_in(await sync(bob), str(fake.room_id)) is None
    # Once the stranger has come to its senses it is as if nothing had been.
    fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)
    assert membership_in(await sync(bob), str(fake.room_id)) == "join"


async def test_state_that_its_auth_events_do_not_allow_is_left_out(federation: Federation) -> None:
    """The resident claims a topic by someone who is not in the room, and levels by someone without power."""
    b, bob, fake = await _fake(federation)
    create, member, levels, _ = fake.events
    good = list(fake.events)
    topic = fake.say("m.room.topic", {"topic": "lies"}, auth=[create, levels], sender=fake.server.user("nobody"))
    forged = fake.say(
        "m.room.power_levels", {"users": {fake.server.user("x"): 100}}, auth=[create, levels],
        sender=fake.server.user("x"),
    )  # fmt: skip
    fake.events = good

    def lie(answer: Any) -> Any:
        state = [pdu for pdu in answer["state"] if pdu["type"] != "m.room.power_levels"]
        return {**answer, "state": [*state, topic.pdu, forged.pdu]}

    fake.serve(bob.user_id, answer=lie)
    path = f"join/{quote(str(fake.room_id))}?via=mallory.example"
    response = await bob.post(path, json={})
    if response.status_code == 200:
        state = await state_of(bob, str(fake.room_id))
        assert ("m.room.topic", "") not in state
        assert state.get(("m.room.power_levels", "")) != forged.event_id


async def test_our_own_events_in_the_state_must_be_signed_by_us(federation: Federation) -> None:
    b, bob, fake = await _fake(federation)
    carol = await b.register("carol")
    create, member, levels, rules = fake.events
    fake.say("m.room.member", {"membership": "join"}, auth=[create, levels, rules], state_key=carol.user_id,
             sender=carol.user_id)  # fmt: skip
    fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)
    assert membership_in(await sync(carol), str(fake.room_id)) is None
    assert ("m.room.member", carol.user_id) not in await state_of(bob, str(fake.room_id))


# Invites


def _invite(fake: FakeRoom, target: str, **content: Any) -> Event:
    create, member, levels, rules = fake.events[:4]
    return fake.say(
        "m.room.member", {"membership": "invite", **content}, auth=[create, member, levels, rules], state_key=target
    )


async def _send(fake: FakeRoom, invite: Event, **changes: Any) -> tuple[int, Any]:
    place = f"{quote(str(fake.room_id), safe='')}/{quote(invite.event_id, safe='')}"
    body = {
        "event": invite.pdu,
        "room_version": fake.version.id,
        "invite_room_state": [fake.events[0].pdu],
        **changes,
    }
    return await fake.server.put("b.example", f"/_matrix/federation/v2/invite/{place}", body)


async def test_an_invite_of_an_honest_stranger_is_accepted(federation: Federation) -> None:
    _, bob, fake = await _fake(federation)
    status, answer = await _send(fake, _invite(fake, bob.user_id))
    assert status == 200
    assert answer["event"]["signatures"].keys() == {"mallory.example", "b.example"}
    assert membership_in(await sync(bob), str(fake.room_id)) == "invite"


async def test_older_events_do_not_retract_an_invite(federation: Federation) -> None:
    """An invite does not come in the queue that other events come in: an unban may be overtaken by it."""
    _, bob, fake = await _fake(federation)
    create, member, levels = fake.events[:3]
    ban = fake.say("m.room.member", {"membership": "ban"}, auth=[create, member, levels], state_key=bob.user_id)
    unban = fake.say(
        "m.room.member", {"membership": "leave"}, auth=[create, member, levels, ban], state_key=bob.user_id
    )
    invite = _invite(fake, bob.user_id)
    assert (await _send(fake, invite))[0] == 200
    await fake.server.send("b.example", "late", [unban.pdu])
    assert membership_in(await sync(bob), str(fake.room_id)) == "invite"

    revoked = fake.say(
        "m.room.member", {"membership": "leave"}, auth=[create, member, levels, invite], state_key=bob.user_id
    )
    await fake.server.send("b.example", "revoked", [revoked.pdu])
    assert membership_in(await sync(bob), str(fake.room_id)) is None


async def test_an_invite_is_signed_only_for_our_user_and_by_theirs(federation: Federation) -> None:
    _, bob, fake = await _fake(federation)
    create, member, levels, rules = fake.events
    others = [
        fake.say("m.room.member", {"membership": "join"}, auth=[create], state_key=bob.user_id, sender=bob.user_id),
        fake.say("m.room.member", {"membership": "ban"}, auth=[create, levels, member], state_key=bob.user_id),
        fake.say("m.room.power_levels", {"membership": "invite"}, auth=[create], state_key=bob.user_id),
        _invite(fake, "@bob:elsewhere.example"),
        fake.say("m.room.member", {"membership": "invite"}, auth=[create], state_key=bob.user_id, sender="@x:y.org"),
    ]
    for event in others:
        status, answer = await _send(fake, event)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM"), event
    status, answer = await _send(fake, _invite(fake, "@nobody:b.example"))
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    status, answer = await _send(fake, _invite(fake, bob.user_id), room_version="org.example.99")
    assert (status, answer["errcode"]) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert answer["room_version"] == "org.example.99"
    event = _invite(fake, bob.user_id)
    forged = {**event.pdu, "signatures": {"mallory.example": {fake.server.key.key_id: "A" * 86}}}
    status, answer = await _send(fake, event, event=forged)
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    assert membership_in(await sync(bob), str(fake.room_id)) is None


async def test_the_state_of_an_unknown_room_in_an_invite_must_be_signed(federation: Federation) -> None:
    _, bob, fake = await _fake(federation)
    event = _invite(fake, bob.user_id)
    create = fake.events[0].pdu
    stripped = {"type": "m.room.name", "state_key": "", "sender": fake.creator, "content": {"name": "Your bank"}}
    for state in (None, [], [fake.events[3].pdu], [create, stripped], [create, {**create, "depth": 9}]):
        status, answer = await _send(fake, event, invite_room_state=state)
        assert (status, answer["errcode"]) in ((400, "M_INVALID_PARAM"), (400, "M_MISSING_PARAM")), state
    assert membership_in(await sync(bob), str(fake.room_id)) is None


async def test_the_stripped_state_of_an_invite_is_limited(federation: Federation) -> None:
    """Each event of it may be another server's, whose keys we would have to ask for."""
    _, bob, fake = await _fake(federation)
    event = _invite(fake, bob.user_id)
    create = fake.events[0]
    told = [create.pdu]
    for number in range(60):
        signatures = {f"s{number}.example": {"ed25519:1": "A" * 86}}
        told.append({**fake.events[1].pdu, "sender": f"@x:s{number}.example", "signatures": signatures})
    status, answer = await _send(fake, event, invite_room_state=told)
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    asked = {each.destination for each in federation.network.exchanges if each.origin == "b.example"}
    assert asked <= {"mallory.example"}


async def test_a_false_room_version_in_an_invite_is_corrected_by_the_join(federation: Federation) -> None:
    _, bob, fake = await _fake(federation, "11")
    impostor = FakeRoom(Stranger(federation.network, ServerName("impostor.example")), "10")
    impostor.room_id = fake.room_id
    lie = impostor.say("m.room.member", {"membership": "invite"}, auth=[], state_key=bob.user_id)
    status, _ = await _send(impostor, lie, invite_room_state=[])
    assert status == 200
    assert membership_in(await sync(bob), str(fake.room_id)) == "invite"
    fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)
    await send_text(bob, str(fake.room_id), "here")
    create = await bob.ok("GET", f"rooms/{quote(str(fake.room_id))}/state/m.room.create/")
    assert create["room_version"] == "11"


async def test_the_state_of_a_room_overrules_invites_once_we_are_in_it(federation: Federation) -> None:
    """Only what the room itself says of its members counts, once this server is in it."""
    b, bob, fake = await _fake(federation)
    fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)
    carol = await b.register("carol")
    impostor = FakeRoom(Stranger(federation.network, ServerName("impostor.example")))
    impostor.room_id = fake.room_id
    lie = impostor.say("m.room.member", {"membership": "invite"}, auth=[], state_key=carol.user_id)
    await _send(impostor, lie, invite_room_state=[fake.events[0].pdu])
    assert membership_in(await sync(carol), str(fake.room_id)) is None


async def test_a_slow_resident_delays_nothing_but_its_room(federation: Federation) -> None:
    _, bob, fake = await _fake(federation)
    room = await fake.server.join("b.example", await create_room(bob, preset="public_chat"), "mallory")
    fake.serve(bob.user_id)
    let_in, taken, goes_on = fake.server.take_join, trio.Event(), trio.Event()
    assert let_in is not None

    async def let_in_late(uri: str, content: Any) -> Any:
        answer = let_in(uri, content)
        fake.events.append(parse_event(content, fake.version))
        taken.set()
        await goes_on.wait()
        return answer

    fake.server.take_join = let_in_late
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, bob, str(fake.room_id), fake.server.name)
        await taken.wait()
        elsewhere = room.text("elsewhere")
        early = fake.say("m.room.message", {"body": "welcome"}, auth=fake.events[1:3])
        with trio.fail_after(1):
            results = await fake.server.send("b.example", "1", [early.pdu, elsewhere.pdu])
        assert results[elsewhere.event_id] == {}
        goes_on.set()
    await wait_text(bob, str(fake.room_id), "welcome")


@pytest.mark.parametrize("key", [("org.example.nul\0", ""), ("org.example", "nul\0"), ("org.example", "\0" * 255)])
async def test_state_that_cannot_be_stored_does_not_prevent_a_join(
    federation: Federation, key: tuple[str, str]
) -> None:
    b, bob, fake = await _fake(federation)
    fake.say(key[0], {}, auth=fake.events[1:3], state_key=key[1])
    fake.serve(bob.user_id)
    await join(bob, str(fake.room_id), fake.server.name)
    assert key not in await state_of(bob, str(fake.room_id))
    await send_text(bob, str(fake.room_id), "let in")
