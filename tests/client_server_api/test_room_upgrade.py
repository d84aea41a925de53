"""Spec: client-server-api/#room-upgrades"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.build import Draft
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.append import append_local
from homeserver.users.push_rules import store_rule
from tests.support.homeservers import Client, Server
from tests.support.people import (
    act,
    create,
    get_state,
    invite,
    join,
    leave,
    membership,
    messages,
    path_of,
    public_room,
    room_in,
    send,
    set_state,
    state,
    sync,
)
from tests.support.rows import row

Json = dict[str, Any]


async def upgrade(client: Client, room_id: str, version: str = "12", **body: Any) -> str:
    answer = await client.ok("POST", path_of(room_id, "upgrade"), json={"new_version": version, **body})
    return str(answer["replacement_room"])


async def refuse(client: Client, room_id: str, version: str = "12", **body: Any) -> tuple[int, str]:
    return await client.refused("POST", path_of(room_id, "upgrade"), json={"new_version": version, **body})


async def rooms_and_state(client: Client, room_id: str) -> tuple[Any, Any]:
    """The rooms of a user and the state of one of them: nothing of it may change when an upgrade fails."""
    joined = await client.ok("GET", "joined_rooms")
    return sorted(joined["joined_rooms"]), {
        key: event["event_id"] for key, event in (await state(client, room_id)).items()
    }


async def test_a_room_can_be_upgraded_to_every_version(server: Server) -> None:
    alice = await server.register("alice")
    for version in ROOM_VERSIONS:
        with row(version):
            old = await create(alice, room_version="9", name="Tea")
            last = await send(alice, old, "the end")
            new = await upgrade(alice, old, version)
            content = await get_state(alice, new, "m.room.create")
            assert content["room_version"] == version
            assert content.get("creator") == (alice.user_id if int(version) < 11 else None)
            tombstone = (await state(alice, old))["m.room.tombstone", ""]
            assert tombstone["content"]["replacement_room"] == new
            assert content["predecessor"]["room_id"] == old
            # From version 12 on the room's ID, which the tombstone has, is not known before the create event.
            assert content["predecessor"]["event_id"] == (tombstone["event_id"] if int(version) < 12 else last)
            assert (await get_state(alice, new, "m.room.name"))["name"] == "Tea"
            await send(alice, new, "a new beginning")


async def test_a_room_of_every_version_can_be_upgraded(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    for version in ROOM_VERSIONS:
        with row(version):
            old = await public_room(alice, bob, room_version=version)
            new = await upgrade(alice, old, "11")
            await join(bob, new)
            levels = await get_state(bob, new, "m.room.power_levels")
            assert levels["users"] == {alice.user_id: 100}


async def test_the_recommended_state_is_copied(server: Server) -> None:
    alice = await server.register("alice")
    contents = {
        "m.room.server_acl": {"allow": ["*"], "deny": ["evil.example"]},
        "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2"},
        "m.room.avatar": {"url": "mxc://test.example/abc"},
        "m.room.topic": {"topic": "Leaves"},
        "m.room.guest_access": {"guest_access": "forbidden"},
        "m.room.history_visibility": {"history_visibility": "joined"},
        "m.room.join_rules": {"join_rule": "knock"},
    }
    initial = [{"type": kind, "content": content} for kind, content in contents.items()]
    old = await create(alice, room_version="10", name="Tea", initial_state=initial)
    await set_state(alice, old, "org.example.widget", {"url": "x"}, "w")
    new = await upgrade(alice, old)
    for kind, content in contents.items():
        assert await get_state(alice, new, kind) == content
    assert await get_state(alice, new, "m.room.name") == {"name": "Tea"}
    # events outside the Matrix namespace may depend on their sender
    assert ("org.example.widget", "w") not in await state(alice, new)


async def test_a_space_stays_a_space_and_a_closed_room_closed(server: Server) -> None:
    alice = await server.register("alice")
    old = await create(alice, creation_content={"type": "m.space", "m.federate": False, "org.example": 1})
    content = await get_state(alice, await upgrade(alice, old), "m.room.create")
    assert content["type"] == "m.space"
    assert content["m.federate"] is False
    assert "org.example" not in content


async def test_join_rules_that_the_version_does_not_know_become_invite(server: Server) -> None:
    alice = await server.register("alice")
    rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": "!a:test.example"}]}
    old = await create(alice, room_version="10", initial_state=[{"type": "m.room.join_rules", "content": rules}])
    assert await get_state(alice, await upgrade(alice, old, "9"), "m.room.join_rules") == rules
    old = await create(alice, room_version="10", initial_state=[{"type": "m.room.join_rules", "content": rules}])
    assert await get_state(alice, await upgrade(alice, old, "7"), "m.room.join_rules") == {"join_rule": "invite"}


async def test_power_levels_are_copied(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob, room_version="9")
    levels = await get_state(alice, old, "m.room.power_levels")
    levels |= {"users": {alice.user_id: 100, bob.user_id: "60"}, "kick": "55", "events": {"m.room.name": 70}}
    await set_state(alice, old, "m.room.power_levels", levels)
    ten = await get_state(alice, await upgrade(alice, old, "10"), "m.room.power_levels")
    assert ten["users"] == {alice.user_id: 100, bob.user_id: 60}
    assert (ten["kick"], ten["events"]) == (55, {"m.room.name": 70})
    # creators of version 12 have unlimited power, and no level
    twelve = await get_state(alice, await upgrade(alice, old, "12"), "m.room.power_levels")
    assert twelve["users"] == {bob.user_id: 60}


async def test_creators_with_unlimited_power_get_a_level_in_older_versions(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    override = {"users": {carol.user_id: 120}}
    old = await create(
        alice, room_version="12", creation_content={"additional_creators": [bob.user_id]},
        power_level_content_override=override,
    )  # fmt: skip
    levels = await get_state(alice, await upgrade(alice, old, "11"), "m.room.power_levels")
    assert levels["users"] == {alice.user_id: 120, bob.user_id: 120, carol.user_id: 120}


async def test_members_other_than_the_creator_may_upgrade(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob, room_version="10")
    levels = await get_state(alice, old, "m.room.power_levels")
    levels["users"][bob.user_id] = 50
    levels["events"]["m.room.tombstone"] = 50
    await set_state(alice, old, "m.room.power_levels", levels)
    new = await upgrade(bob, old, "11")
    assert (await get_state(bob, new, "m.room.power_levels"))["users"] == {alice.user_id: 100, bob.user_id: 50}
    # bob may not change the levels of the old room, so they stay
    assert await get_state(alice, old, "m.room.power_levels") == levels


async def test_additional_creators_can_be_given(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    old = await create(alice, room_version="12", creation_content={"additional_creators": [carol.user_id]})
    new = await upgrade(alice, old, additional_creators=[bob.user_id, bob.user_id, alice.user_id])
    assert (await get_state(alice, new, "m.room.create"))["additional_creators"] == [bob.user_id]
    # those of the old room are not copied
    assert "additional_creators" not in await get_state(alice, await upgrade(alice, new), "m.room.create")
    # versions before 12 ignore them
    older = await upgrade(alice, new, "11", additional_creators=["nonsense"])
    assert "additional_creators" not in await get_state(alice, older, "m.room.create")
    before = await rooms_and_state(alice, new)
    assert await refuse(alice, new, additional_creators=["nonsense"]) == (400, "M_INVALID_PARAM")
    assert await refuse(alice, new, additional_creators=[7]) == (400, "M_BAD_JSON")
    assert await rooms_and_state(alice, new) == before


async def test_bans_are_copied(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob)
    await act(alice, old, "ban", bob, reason="spilled the tea")
    await act(alice, old, "ban", "@spam:evil.example")
    new = await upgrade(alice, old)
    assert await membership(alice, new, "@spam:evil.example") == "ban"
    content = await get_state(alice, new, "m.room.member", bob.user_id)
    assert content == {"membership": "ban", "reason": "spilled the tea"}
    assert await bob.refused("POST", f"join/{quote(new)}", json={}) == (403, "M_FORBIDDEN")


async def test_if_there_are_too_many_bans_the_latest_are_copied(server: Server) -> None:
    alice = await server.register("alice")
    old = await create(alice)
    spammers = [f"@spam{number}:evil.example" for number in range(limits.UPGRADE_BANS_MAX + 2)]

    def ban_all(tx: Transaction) -> None:
        for user_id in spammers:
            append_local(tx, Draft(old, alice.user_id, "m.room.member", {"membership": "ban"}, state_key=user_id))

    await server.write(ban_all)
    new = await state(alice, await upgrade(alice, old))
    banned = {key for (_, key), event in new.items() if event["content"].get("membership") == "ban"}
    assert banned == {*spammers[2:]}


async def test_aliases_and_the_directory_entry_move(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await create(alice, visibility="public", room_alias_name="tea")
    await alice.ok("PUT", f"directory/room/{quote('#chai:test.example')}", json={"room_id": old})
    content = {"alias": "#tea:test.example", "alt_aliases": ["#chai:test.example"]}
    await set_state(alice, old, "m.room.canonical_alias", content)
    new = await upgrade(alice, old)
    for alias in ("#tea:test.example", "#chai:test.example"):
        assert (await bob.ok("GET", f"directory/room/{quote(alias)}"))["room_id"] == new
    assert (await alice.ok("GET", path_of(old, "aliases")))["aliases"] == []
    assert await get_state(alice, new, "m.room.canonical_alias") == content
    assert await get_state(alice, old, "m.room.canonical_alias") == {}
    listed = (await alice.ok("GET", "publicRooms"))["chunk"]
    assert [room["room_id"] for room in listed] == [new]


async def test_inviting_and_speaking_are_restricted_in_the_old_room(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    old = await public_room(alice, bob)
    await upgrade(alice, old)
    levels = await get_state(bob, old, "m.room.power_levels")
    assert (levels["events_default"], levels["invite"]) == (50, 50)
    body = {"msgtype": "m.text", "body": "anyone here?"}
    refusal = await bob.refused("PUT", path_of(old, "send", "m.room.message", "t"), json=body)
    assert refusal == (403, "M_FORBIDDEN")
    assert await bob.refused("POST", path_of(old, "invite"), json={"user_id": carol.user_id}) == (403, "M_FORBIDDEN")


async def test_levels_above_everyones_are_raised_and_higher_ones_are_not_lowered(server: Server) -> None:
    alice = await server.register("alice")
    old = await create(alice, power_level_content_override={"users_default": 60, "events_default": 80, "invite": 0})
    await upgrade(alice, old)
    levels = await get_state(alice, old, "m.room.power_levels")
    assert (levels["events_default"], levels["invite"]) == (80, 61)


async def test_only_members_who_may_send_a_tombstone_upgrade(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    old = await public_room(alice, bob, room_alias_name="tea")
    before = await rooms_and_state(alice, old)
    assert await refuse(bob, old) == (403, "M_FORBIDDEN")
    assert await refuse(carol, old) == (403, "M_FORBIDDEN")
    assert await refuse(carol, "!nowhere:test.example") == (403, "M_FORBIDDEN")
    assert await refuse(alice, old, "no such version") == (400, "M_UNSUPPORTED_ROOM_VERSION")
    assert await rooms_and_state(alice, old) == before
    assert (await bob.ok("GET", "joined_rooms"))["joined_rooms"] == [old]
    assert (await bob.ok("GET", f"directory/room/{quote('#tea:test.example')}"))["room_id"] == old


async def test_an_upgrade_that_fails_halfway_leaves_nothing_behind(server: Server) -> None:
    """Here the old room's state has a number that rooms of the new version do not accept."""
    alice = await server.register("alice")
    old = await create(alice, room_version="5", room_alias_name="tea")
    topic = {"topic": "Tea", "org.example.strength": 2.5}
    await server.write(append_local, Draft(old, alice.user_id, "m.room.topic", topic, state_key=""))
    before = await rooms_and_state(alice, old)
    assert await refuse(alice, old, "12") == (400, "M_INVALID_ROOM_STATE")
    assert await refuse(alice, old, "11") == (400, "M_INVALID_ROOM_STATE")
    assert await rooms_and_state(alice, old) == before
    assert (await alice.ok("GET", f"directory/room/{quote('#tea:test.example')}"))["room_id"] == old


async def test_a_room_with_malformed_state_can_be_upgraded(server: Server) -> None:
    alice = await server.register("alice")
    old = await create(alice, room_version="9")
    levels = await get_state(alice, old, "m.room.power_levels")
    await set_state(alice, old, "m.room.power_levels", {**levels, "kick": " 50", "org.example": ["x"]})
    for kind in ("m.room.name", "m.room.join_rules", "m.room.canonical_alias", "m.room.server_acl"):
        path = path_of(old, "state", kind)
        await alice.request("PUT", path, json={"name": 7, "join_rule": [], "alias": None, "allow": 1})
    content = await get_state(alice, await upgrade(alice, old), "m.room.join_rules")
    assert content == {"join_rule": "invite"}


# --- what members take with them ---


async def arrange(client: Client, room_id: str, friend: str) -> None:
    """Tags the room, mutes it in both ways that clients use, and marks it as a direct chat."""
    room, user = quote(room_id, safe=""), quote(client.user_id, safe="")
    await client.ok("PUT", f"user/{user}/rooms/{room}/tags/m.favourite", json={"order": 0.5})
    await client.ok("PUT", f"user/{user}/account_data/m.direct", json={friend: [room_id, "!x:y"], "odd": 7})
    await client.ok("PUT", f"pushrules/global/room/{room}", json={"actions": ["notify"]})
    condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
    await client.ok("PUT", f"pushrules/global/override/{room}", json={"conditions": [condition], "actions": []})


async def assert_arranged(client: Client, old: str, new: str, friend: str) -> None:
    user = quote(client.user_id, safe="")
    tags = await client.ok("GET", f"user/{user}/rooms/{quote(new, safe='')}/tags")
    assert tags == {"tags": {"m.favourite": {"order": 0.5}}}
    assert await client.ok("GET", f"user/{user}/account_data/m.direct") == {friend: [old, "!x:y", new], "odd": 7}
    rule = await client.ok("GET", f"pushrules/global/room/{quote(new, safe='')}")
    assert rule["actions"] == ["notify"]
    rule = await client.ok("GET", f"pushrules/global/override/{quote(new, safe='')}")
    assert rule["conditions"] == [{"kind": "event_match", "key": "room_id", "pattern": new}]


async def test_members_keep_their_settings(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob)
    await arrange(alice, old, bob.user_id)
    await arrange(bob, old, alice.user_id)
    since = (await sync(bob))["next_batch"]
    new = await upgrade(alice, old)
    await assert_arranged(alice, old, new, bob.user_id)
    assert await bob.refused("GET", f"pushrules/global/room/{quote(new, safe='')}") == (404, "M_NOT_FOUND")
    await join(bob, new)
    await assert_arranged(bob, old, new, alice.user_id)
    answer = await sync(bob, since)
    kinds = {event["type"] for event in room_in(answer, new)["account_data"]["events"]}
    assert kinds == {"m.tag"}
    assert {"m.direct", "m.push_rules"} <= {event["type"] for event in answer["account_data"]["events"]}


async def test_settings_come_along_with_a_join_by_a_state_event(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob)
    await arrange(bob, old, alice.user_id)
    new = await upgrade(alice, old)
    await set_state(bob, new, "m.room.member", {"membership": "join"}, bob.user_id)
    await assert_arranged(bob, old, new, alice.user_id)


async def test_settings_of_the_new_room_are_not_overwritten(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob)
    await arrange(bob, old, alice.user_id)
    new = await upgrade(alice, old)
    await join(bob, new)
    room, user = quote(new, safe=""), quote(bob.user_id, safe="")
    await bob.ok("DELETE", f"user/{user}/rooms/{room}/tags/m.favourite")
    await bob.ok("PUT", f"pushrules/global/room/{room}", json={"actions": []})
    await leave(bob, new)
    await join(bob, new)
    assert await bob.ok("GET", f"user/{user}/rooms/{room}/tags") == {"tags": {}}
    assert (await bob.ok("GET", f"pushrules/global/room/{room}"))["actions"] == []


async def test_a_room_that_the_old_one_does_not_name_is_not_a_replacement(server: Server) -> None:
    alice, mallory = await server.register("alice"), await server.register("mallory")
    old = await public_room(alice, mallory)
    await arrange(alice, old, mallory.user_id)
    predecessor = {"predecessor": {"room_id": old, "event_id": "$x"}}
    fake = await create(mallory, preset="public_chat", creation_content=predecessor)
    await join(alice, fake)
    path = f"user/{quote(alice.user_id)}/rooms/{quote(fake, safe='')}/tags"
    assert await alice.ok("GET", path) == {"tags": {}}


async def test_a_full_account_joins_without_its_push_rules(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await public_room(alice, bob)
    await arrange(bob, old, alice.user_id)

    def fill(tx: Transaction) -> None:
        for number in range(limits.users.PUSH_RULES_MAX - 2):
            store_rule(tx, bob.user_id, "content", str(number), {"pattern": "x", "actions": []})

    await server.write(fill)
    new = await upgrade(alice, old)
    await join(bob, new)
    assert await bob.refused("GET", f"pushrules/global/room/{quote(new, safe='')}") == (404, "M_NOT_FOUND")
    tags = await bob.ok("GET", f"user/{quote(bob.user_id)}/rooms/{quote(new, safe='')}/tags")
    assert tags == {"tags": {"m.favourite": {"order": 0.5}}}


async def test_invited_members_follow_into_a_private_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    old = await create(alice, invite=[bob.user_id])
    await join(bob, old)
    new = await upgrade(alice, old)
    await invite(alice, new, bob)
    await join(bob, new)
    assert (await messages(bob, new))["chunk"]
