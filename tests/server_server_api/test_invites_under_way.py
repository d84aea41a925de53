"""Invitations in the moments between being sent, shown and placed in the room, and servers that never answer one.

Spec: server-server-api/#inviting-to-a-room, client-server-api/#post_matrixclientv3createroom
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.federation.build import countersign
from homeserver.federation.event import parse_event
from homeserver.federation.identifiers import ServerName
from homeserver.federation.room_versions import ROOM_VERSIONS
from tests.support.federation import (
    Federation,
    body_of,
    create_room,
    invite,
    join,
    membership_in,
    send_text,
    sync,
    until,
    wait_text,
)
from tests.support.stranger import FakeRoom, Joined, Stranger

MALLORY = ServerName("mallory.example")


def signing(carol: Stranger, content: dict[str, Any]) -> dict[str, Any]:
    """Returns an honest server's response to an invite."""
    event = parse_event(content["event"], ROOM_VERSIONS[content["room_version"]])
    return {"event": countersign(event, carol.name, carol.key).pdu}


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_a_join_waits_until_its_invitation_is_stored(federation: Federation, version: str) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, room_version=version)
    joined: list[Joined] = []

    async def show_before_answering(uri: str, content: Any) -> Any:
        async def accept() -> None:
            joined.append(await carol.join("a.example", room_id, "carol"))

        federation.nursery.start_soon(accept)
        await trio.sleep(3)
        assert not joined
        return signing(carol, content)

    carol.take_invite = show_before_answering
    await invite(alice, room_id, carol.user("carol"))

    async def is_in() -> bool:
        answer = await alice.ok("GET", f"rooms/{quote(room_id)}/joined_members")
        return carol.user("carol") in answer["joined"]

    await until(is_in, seconds=5)


async def test_a_join_waiting_for_an_unsigned_invitation_is_answered_eventually(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, room_version="10")
    answers: list[Any] = []

    async def never_answer(uri: str, content: Any) -> Any:
        place = f"{quote(room_id, safe='')}/{quote(carol.user('carol'), safe='')}"
        answers.append(await carol.get("a.example", f"/_matrix/federation/v1/make_join/{place}?ver=10"))
        await trio.sleep_forever()

    carol.take_invite = never_answer
    start = trio.current_time()
    path = f"rooms/{quote(room_id)}/invite"
    assert await alice.refused("POST", path, json={"user_id": carol.user("carol")}) == (502, "M_UNKNOWN")
    assert trio.current_time() - start < 30
    ((status, answer),) = answers
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")


async def test_an_invited_user_who_is_refused_at_first_can_join(federation: Federation) -> None:
    """An inviting server that does not wait for its own invitation, as others do not."""
    b = await federation.start("b.example")
    bob = await b.register("bob")
    fake = FakeRoom(Stranger(federation.network, MALLORY))
    create, member, levels, rules = fake.events[:4]
    invitation = fake.say(
        "m.room.member", {"membership": "invite"}, auth=[create, member, levels, rules], state_key=bob.user_id
    )
    place = f"{quote(str(fake.room_id), safe='')}/{quote(invitation.event_id, safe='')}"
    body = {"event": invitation.pdu, "room_version": "12", "invite_room_state": [create.pdu]}
    assert (await fake.server.put("b.example", f"/_matrix/federation/v2/invite/{place}", body))[0] == 200
    refusals = 0

    def serve(uri: str, content: Any) -> Any:
        nonlocal refusals
        refusals += 1
        if refusals < 4:
            return 403, {"errcode": "M_FORBIDDEN", "error": "You are not invited."}
        return fake.template(bob.user_id, auth_events=[each.event_id for each in (levels, invitation, rules)])

    fake.serve(bob.user_id)
    path = f"/_matrix/federation/v1/make_join/{quote(str(fake.room_id), safe='')}/{quote(bob.user_id, safe='')}"
    fake.server.answers["GET", path] = serve
    await join(bob, str(fake.room_id), MALLORY)
    assert membership_in(await sync(bob), str(fake.room_id)) == "join"


async def test_an_uninvited_user_is_refused_at_once(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="private_chat")
    start = trio.current_time()
    assert (await bob.request("POST", f"join/{quote(room_id)}?via=a.example", json={})).status_code == 403
    assert trio.current_time() - start < 0.1


class Silent:
    """Servers that take every request and answer none. `asked`: how often each was."""

    def __init__(self, federation: Federation, count: int) -> None:
        self.names = [f"silent{number}.example" for number in range(count)]
        self.asked = dict.fromkeys(self.names, 0)
        for name in self.names:
            federation.network.join(name, self._app(name))

    def _app(self, name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.asked[name] += 1
            await trio.sleep_forever()

        return app


async def test_a_room_is_created_even_if_its_invitations_fail(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    silent = Silent(federation, 20)
    invited = [f"@{who}:{name}" for name in silent.names for who in ("x", "y")]
    federation.network.leave("gone.example")
    start = trio.current_time()
    response = await alice.request(
        "POST", "createRoom", json={"invite": [*invited, "@z:gone.example", bob.user_id], "room_alias_name": "tea"}
    )
    assert response.status_code == 200
    assert trio.current_time() - start <= 15
    room_id = body_of(response)["room_id"]
    assert membership_in(await sync(bob), room_id) == "invite"
    await join(bob, room_id)
    await send_text(bob, room_id, "here I am")
    await wait_text(alice, room_id, "here I am")
    assert set(silent.asked.values()) == {1}
    assert (await alice.ok("GET", f"directory/room/{quote('#tea:a.example')}"))["room_id"] == room_id


async def test_an_invitation_to_a_slow_server_still_arrives(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))

    async def sign_late(uri: str, content: Any) -> Any:
        await trio.sleep(15)
        return signing(carol, content)

    carol.take_invite = sign_late
    room_id = await create_room(alice, invite=[carol.user("carol")])

    async def invited() -> bool:
        path = f"rooms/{quote(room_id)}/state/m.room.member/{quote(carol.user('carol'))}"
        return (await alice.request("GET", path)).status_code == 200

    await until(invited, seconds=30)


async def test_a_room_with_many_invited_servers_is_usable(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    others = [Stranger(federation.network, ServerName(f"s{number}.example")) for number in range(60)]
    for other in others:
        other.take_invite = lambda uri, content, other=other: signing(other, content)
    room_id = await create_room(alice, invite=[*(other.user("x") for other in others), bob.user_id])
    members = await alice.ok("GET", f"rooms/{quote(room_id)}/members?membership=invite")
    assert len(members["chunk"]) == 61
    await join(bob, room_id)
    await send_text(bob, room_id, "there you are")
    await wait_text(alice, room_id, "there you are")


async def test_a_join_skips_silent_servers(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    silent = Silent(federation, 4)
    start = trio.current_time()
    await join(bob, room_id, *silent.names, "a.example")
    assert trio.current_time() - start < 15
    start = trio.current_time()
    via = "&".join(f"via={name}" for name in silent.names)
    nowhere = quote("!nowhere:silent0.example")
    assert (await bob.request("POST", f"join/{nowhere}?{via}", json={})).status_code >= 400
    assert trio.current_time() - start < 45
