"""Spec: client-server-api/#user-directory"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.database import Transaction
from homeserver.features.user_directory import PEOPLE_PER_WRITE
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.append import append_local
from homeserver.users.accounts import create_user
from homeserver.users.directory_words import are_found, words_of, words_of_person
from tests.support.federation import until
from tests.support.homeservers import Client, Server
from tests.support.people import act, create, invite, join, leave, public_room, set_state


async def search(client: Client, term: str, **body: Any) -> list[str]:
    """The user IDs that a search finds, in its order."""
    answer = await client.ok("POST", "user_directory/search", json={"search_term": term, **body})
    return [result["user_id"] for result in answer["results"]]


async def rename(client: Client, name: str) -> None:
    await client.ok("PUT", f"profile/{client.user_id}/displayname", json={"displayname": name})


async def private_room(creator: Client, *members: Client) -> str:
    room_id = await create(creator, preset="private_chat", invite=[member.user_id for member in members])
    for member in members:
        await join(member, room_id)
    return room_id


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("Karl-Heinz Müller", "müll"),
        ("Karl-Heinz Müller", "MULLER karl"),
        ("Karl-Heinz Müller", "heinz"),
        ("STRASSE", "straße"),
        ("Ελένη Παπαδοπούλου", "παπα"),
        ("Алексей Йогов", "АЛЕК"),
        ("田中太郎", "田中"),
        ("田中太郎", "太郎"),
        ("カタカナ", "ｶﾀ"),
        ("김철수", "김철"),
        ("محمد علي", "علي"),
        ("प्रिया शर्मा", "शर्"),
        ("𝓕𝓪𝓷𝓬𝔂", "fancy"),
        ("İlker", "ilker"),
        ("🦊 Fox", "🦊"),
        ("O'Brien", "brien"),
        ("whoever", "lo"),  # of the localpart
    ],
)
def test_people_are_found_by_the_beginning_of_words_in_any_script(name: str, term: str) -> None:
    assert are_found(words_of(term), words_of_person("lo.cal", name))


@pytest.mark.parametrize(("name", "term"), [("Müller", "ller"), ("Anna Berg", "anna x"), ("a" * 256, "b")])
def test_other_people_are_not_found(name: str, term: str) -> None:
    assert not are_found(words_of(term), words_of_person("lo.cal", name))


async def test_people_who_share_a_room_find_each_other(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await rename(bob, "Robert Sørensen")
    await private_room(alice, bob)
    assert await search(alice, "rob") == await search(alice, "sør rob") == await search(alice, "BO") == [bob.user_id]
    assert await search(alice, "@bob") == await search(alice, "@bob:test.ex") == [bob.user_id]
    assert await search(alice, "@bob:other.example") == []
    assert await search(bob, "alice") == [alice.user_id]
    assert await search(carol, "rob") == await search(alice, "carol") == []
    assert await search(alice, "alice") == [], "people do not search for themselves"


async def test_members_of_public_and_world_readable_rooms_are_found_by_all(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(bob)
    assert await search(alice, "bob") == [bob.user_id]
    await set_state(bob, room_id, "m.room.join_rules", {"join_rule": "invite"})
    assert await search(alice, "bob") == [], "the room is closed now"
    await set_state(bob, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    await join_private(bob, carol, room_id)
    assert await search(alice, "bob") == [bob.user_id] and await search(alice, "carol") == [carol.user_id]
    await set_state(bob, room_id, "m.room.history_visibility", {"history_visibility": "shared"})
    assert await search(alice, "bob") == [] and await search(carol, "bob") == [bob.user_id]


async def join_private(inviter: Client, member: Client, room_id: str) -> None:
    await invite(inviter, room_id, member)
    await join(member, room_id)


async def test_only_members_are_found(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await private_room(alice, bob)
    await invite(alice, room_id, carol)
    assert await search(carol, "bob") == await search(alice, "carol") == [], "an invited user is not in the room"
    await leave(bob, room_id)
    assert await search(alice, "bob") == await search(bob, "alice") == []
    await join_private(alice, bob, room_id)
    assert await search(alice, "bob") == [bob.user_id]
    await act(alice, room_id, "ban", bob)
    assert await search(alice, "bob") == []


async def test_new_names_and_pictures_are_shown_at_once(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    await rename(bob, "Robert")
    assert await search(alice, "robert") == [bob.user_id]
    await rename(bob, "Bertha")
    avatar = "mxc://test.example/picture"
    await bob.ok("PUT", f"profile/{bob.user_id}/avatar_url", json={"avatar_url": avatar})
    assert await search(alice, "robert") == []
    answer = await alice.ok("POST", "user_directory/search", json={"search_term": "bert"})
    shown = {"user_id": bob.user_id, "display_name": "Bertha", "avatar_url": avatar}
    assert answer == {"results": [shown], "limited": False}
    await bob.ok("DELETE", f"profile/{bob.user_id}/displayname")
    assert await search(alice, "bertha") == [] and await search(alice, "bob") == [bob.user_id]


async def test_local_users_appear_with_their_profile_not_a_name_in_one_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await set_state(bob, room_id, "m.room.member", {"membership": "join", "displayname": "Nickname"}, bob.user_id)
    assert await search(alice, "nickname") == [] and await search(alice, "bob") == [bob.user_id]
    await rename(bob, "Nickname")
    assert await search(alice, "nickname") == [bob.user_id]


async def test_the_answer_is_limited(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    for number in range(4):
        await join(await server.register(f"bob{number}"), room_id)
    body = {"search_term": "bob", "limit": 3}
    answer = await alice.ok("POST", "user_directory/search", json=body)
    assert len(answer["results"]) == 3 and answer["limited"] is True
    answer = await alice.ok("POST", "user_directory/search", json={**body, "limit": 4})
    assert len(answer["results"]) == 4 and answer["limited"] is False
    answer = await alice.ok("POST", "user_directory/search", json={**body, "limit": 0})
    assert answer == {"results": [], "limited": True}


async def test_exact_names_come_first_then_people_in_a_common_room(server: Server) -> None:
    alice, ann, anna, annika = [await server.register(name) for name in ("alice", "ann", "anna", "annika")]
    await public_room(anna, ann)
    await private_room(alice, annika)
    assert await search(alice, "anna") == [anna.user_id]
    assert await search(alice, "ann") == [ann.user_id, annika.user_id, anna.user_id]


async def test_a_deactivated_user_is_not_found(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await public_room(alice, bob, carol)
    assert await search(alice, "bob") == [bob.user_id]
    for client, erase in ((bob, False), (carol, True)):
        body = {"auth": client.password_auth(), "erase": erase}
        await client.ok("POST", "account/deactivate", json=body)
    assert await search(alice, "bob") == await search(alice, "carol") == []
    assert await server.read(_count_words, bob.user_id) == await server.read(_count_words, carol.user_id) == 0


async def test_nonsense_finds_no_users(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    for term in ("", " ", "@", "@:", "%", "_", "*", "' OR 1=1 --", "\u0000", "\u202e", "x" * 256):
        assert await search(alice, term) == []
    for body in ({}, {"search_term": 7}, {"search_term": "x" * 257}, {"search_term": "b", "limit": -1}):
        assert (await alice.refused("POST", "user_directory/search", json=body))[0] == 400
    assert (await server.anonymous.refused("POST", "user_directory/search", json={"search_term": "bob"}))[0] == 401


async def test_a_large_room_is_indexed_as_a_whole(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await server.write(_fill, room_id, PEOPLE_PER_WRITE + 1)
    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite"})

    async def is_indexed() -> bool:  # many people are indexed in the background
        last = await server.read(_count_words, f"@member{PEOPLE_PER_WRITE}:test.example")
        return last > 0 and not await server.read(_count_words_in_open_rooms)

    await until(is_indexed)
    answer = await alice.ok("POST", "user_directory/search", json={"search_term": "member", "limit": 100})
    assert len(answer["results"]) == 100 and answer["limited"] is True
    assert await search(alice, f"member{PEOPLE_PER_WRITE}") == [f"@member{PEOPLE_PER_WRITE}:test.example"]


def _fill(tx: Transaction, room_id: RoomID, members: int) -> None:
    for number in range(members):
        user_id = UserID(f"@member{number}:test.example")
        create_user(tx, user_id)
        append_local(tx, Draft(room_id, user_id, "m.room.member", {"membership": "join"}, state_key=user_id))


def _count_words(tx: Transaction, user_id: str) -> int:
    (count,) = tx.values("SELECT COUNT(*) FROM directory_words WHERE user_nid = ?", tx.find(user_id))
    return int(count)


def _count_words_in_open_rooms(tx: Transaction) -> int:
    (count,) = tx.values("SELECT COUNT(*) FROM directory_words WHERE scope = 0")
    return int(count)
