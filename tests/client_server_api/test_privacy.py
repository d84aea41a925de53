"""Not in the spec: docs/status.md. What a person lets others see, and who may invite them."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.database import Transaction
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import UserID
from homeserver.rooms.append import append_local
from tests.client_server_api.test_status import OURS, status_of
from tests.support.homeservers import Client, Server
from tests.support.people import create, invite, path_of, public_room, sync
from tests.support.rows import row
from tests.support.sliding import slide, window

PRIVACY = f"{OURS}/privacy"
EVERYONE = {"status": "everyone", "friend_requests": "everyone", "invites": "everyone", "delivery": "everyone"}
DATA = "user/{}/account_data/org.homeserver.privacy"


def befriend(tx: Transaction, user_id: UserID, friend: UserID) -> None:
    tx.run(
        "INSERT INTO friends (user_nid, friend_nid, state, room_nid, since_ms, position)"
        " VALUES (?, ?, 'friend', 0, 1, ?)",
        tx.intern(user_id),
        tx.intern(friend),
        tx.next_position(user_id),
    )


async def test_everyone_may_see_everything_by_default(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.ok("GET", PRIVACY) == EVERYONE


async def test_settings_that_are_not_named_stay(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.ok("PUT", PRIVACY, json={"status": "friends"}) == {**EVERYONE, "status": "friends"}
    expected = {**EVERYONE, "status": "friends", "invites": "shared_room"}
    assert await alice.ok("PUT", PRIVACY, json={"invites": "shared_room"}) == expected
    assert await alice.ok("GET", PRIVACY) == expected


async def test_settings_are_account_data(server: Server) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", PRIVACY, json={"delivery": "nobody"})
    path = DATA.format(alice.user_id)
    assert await alice.ok("GET", path) == {**EVERYONE, "delivery": "nobody"}
    await alice.ok("PUT", path, json={"status": "nobody"})
    assert await alice.ok("GET", PRIVACY) == {**EVERYONE, "status": "nobody"}


async def test_unknown_audiences_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", PRIVACY, json={"status": "nobody"})
    for body in [
        {"status": "shared_room"},
        {"status": None},
        {"invites": ["everyone"]},
        {"friend_requests": "friends"},
        {"delivery": "Nobody"},
        {"delivery": 0},
    ]:
        with row(body):
            assert await alice.refused("PUT", PRIVACY, json=body) == (400, "M_INVALID_PARAM")
            assert await alice.refused("PUT", DATA.format(alice.user_id), json=body) == (400, "M_BAD_JSON")
            assert await alice.ok("GET", PRIVACY) == {**EVERYONE, "status": "nobody"}


@pytest.mark.parametrize("content", [b'{"status": "contacts"}', b'{"status":', b"[]"])
async def test_settings_that_cannot_be_read_count_as_nobody(server: Server, content: bytes) -> None:
    """Another server may have written them, before this one took over its accounts."""
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    await bob.ok("PUT", PRIVACY, json={})

    def break_it(tx: Transaction) -> None:
        nids = (tx.find(bob.user_id), tx.find("org.homeserver.privacy"))
        tx.run("UPDATE account_data SET content = ? WHERE user_nid = ? AND type_nid = ?", content, *nids)

    await server.write(break_it)
    assert await status_of(server, bob, alice) is None
    assert presence_in(await sync(alice), bob) == []
    assert await bob.ok("PUT", PRIVACY, json={"status": "everyone"}) == {
        "status": "everyone", "friend_requests": "nobody", "invites": "nobody", "delivery": "nobody",
    }  # fmt: skip


async def test_unknown_settings_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.refused("PUT", PRIVACY, json={"stauts": "nobody"}) == (400, "M_INVALID_PARAM")


async def test_a_hidden_status_is_seen_by_its_owner_only(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await bob.ok("PUT", PRIVACY, json={"status": "nobody"})
    assert await status_of(server, bob, alice) is None
    own = await status_of(server, bob, bob)
    assert own is not None and own.online


async def test_friends_see_a_status_that_is_for_friends(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await bob.ok("PUT", PRIVACY, json={"status": "friends"})
    await server.write(befriend, bob.user_id, alice.user_id)
    assert await status_of(server, bob, alice) is not None
    assert await status_of(server, bob, carol) is None


# Presence


def presence_in(answer: dict[str, Any], person: Client) -> list[str]:
    """The states of somebody's presence in a sync, oldest first."""
    events = answer.get("presence", {}).get("events", [])
    return [each["content"]["presence"] for each in events if each["sender"] == person.user_id]


async def test_presence_of_a_hidden_person_is_not_in_syncs(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    await sync(bob)
    assert presence_in(await sync(alice), bob) == ["online"]
    await bob.ok("PUT", PRIVACY, json={"status": "nobody"})
    first = await sync(alice)
    assert presence_in(first, bob) == []
    await bob.ok("PUT", f"presence/{bob.user_id}/status", json={"presence": "online", "status_msg": "here"})
    assert presence_in(await sync(alice, first["next_batch"]), bob) == []
    path = f"presence/{bob.user_id}/status"
    assert await alice.ok("GET", path) == {"presence": "offline"}
    assert (await bob.ok("GET", path))["presence"] == "online"


async def test_a_person_who_hides_is_offline_for_others_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    await sync(bob)
    since = (await sync(alice))["next_batch"]
    await bob.ok("PUT", PRIVACY, json={"status": "friends"})
    answer = await sync(alice, since)
    assert presence_in(answer, bob) == ["offline"]
    await bob.ok("PUT", f"presence/{bob.user_id}/status", json={"presence": "unavailable"})
    answer = await sync(alice, answer["next_batch"])
    assert presence_in(answer, bob) == []
    await bob.ok("PUT", PRIVACY, json={"status": "everyone"})
    assert presence_in(await sync(alice, answer["next_batch"]), bob) == ["unavailable"]


# Invitations


async def test_invitations_are_accepted_from_the_audience_only(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    await public_room(bob, carol)
    await server.write(befriend, bob.user_id, dave.user_id)
    for audience, accepted in {
        "everyone": (alice, carol, dave),
        "shared_room": (carol,),
        "friends": (dave,),
        "nobody": (),
    }.items():
        await bob.ok("PUT", PRIVACY, json={"invites": audience})
        for inviter in (alice, carol, dave):
            room_id = await create(inviter)
            answers = [
                await inviter.post(path_of(room_id, "invite"), json={"user_id": bob.user_id}),
                await inviter.put(
                    path_of(room_id, "state", "m.room.member", bob.user_id), json={"membership": "invite"}
                ),
                await inviter.post("createRoom", json={"invite": [bob.user_id]}),
            ]
            for answer in answers:
                if inviter in accepted:
                    assert answer.status_code == 200 or "already" in answer.text
                else:
                    error = f"{bob.user_id} does not accept this invitation."
                    assert (answer.status_code, answer.json()) == (403, {"errcode": "M_FORBIDDEN", "error": error})


async def test_friend_requests_have_an_audience_of_their_own(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    request = {"creation_content": {"org.homeserver.friend": True}}
    await bob.ok("PUT", PRIVACY, json={"invites": "nobody"})
    await invite(alice, await create(alice, **request), bob)
    assert len((await sync(bob))["rooms"]["invite"]) == 1
    await bob.ok("PUT", PRIVACY, json={"invites": "everyone", "friend_requests": "nobody"})
    await invite(alice, await create(alice), bob)
    assert await alice.refused("POST", "createRoom", json={**request, "invite": [bob.user_id]}) == (403, "M_FORBIDDEN")


async def test_people_who_take_no_friend_requests_cannot_be_asked(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await bob.ok("PUT", PRIVACY, json={"friend_requests": "shared_room"})
    path = f"{OURS}/friends/{bob.user_id}"
    assert await alice.refused("PUT", path, json={}) == (403, "M_FORBIDDEN")
    await public_room(alice, bob)
    assert (await alice.ok("PUT", path, json={}))["state"] == "outgoing"


async def test_new_friends_see_a_status_that_is_for_friends(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    await bob.ok("PUT", PRIVACY, json={"status": "friends"})
    await sync(bob)
    since = (await sync(alice))["next_batch"]
    await alice.ok("PUT", f"{OURS}/friends/{bob.user_id}", json={})
    assert presence_in(await sync(alice, since), bob) == []
    await bob.ok("PUT", f"{OURS}/friends/{alice.user_id}", json={})
    answer = await sync(alice, since)
    assert presence_in(answer, bob) == ["online"]
    await bob.ok("DELETE", f"{OURS}/friends/{alice.user_id}")
    assert presence_in(await sync(alice, answer["next_batch"]), bob) == ["offline"]


async def test_an_invitation_that_could_not_be_refused_is_hidden(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    await bob.ok("PUT", PRIVACY, json={"invites": "friends"})
    # as if it had come as an event of a room that this server is in
    draft = Draft(room_id, alice.user_id, "m.room.member", {"membership": "invite"}, state_key=bob.user_id)
    await server.write(append_local, draft)
    assert "rooms" not in await sync(bob)
    assert (await slide(bob, lists={"all": window()}))["rooms"] == {}
    await server.write(befriend, bob.user_id, alice.user_id)
    assert room_id in (await sync(bob))["rooms"]["invite"]


async def test_an_ignored_person_does_not_learn_that_from_inviting(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    path = f"user/{bob.user_id}/account_data/m.ignored_user_list"
    await bob.ok("PUT", path, json={"ignored_users": {alice.user_id: {}}})
    await invite(alice, await create(alice), bob)
    assert "rooms" not in await sync(bob)
    assert await status_of(server, bob, alice) is not None
