"""A room whose key was forgotten: nothing of its contents is left in any file, and it is still a valid room."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homeserver import Homeserver
from homeserver.client import Client
from homeserver.config import AtRest, SearchSection
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.compression import compress
from homeserver.errors import MatrixError
from homeserver.features import at_rest
from homeserver.features.search.feeding import merge, remove_deleted
from homeserver.federation.identifiers import RoomID
from homeserver.federation.redaction import redact
from homeserver.rooms.events import find_event
from homeserver.rooms.forgetting import forget_events, list_forgotten, list_unfinished, note_forgetting
from homeserver.rooms.storage import find_stored_by_id
from homeserver.testing import one_server, two_servers
from tests.support.archive import archive_all
from tests.support.consistency import check_consistency
from tests.support.engine import ENGINE
from tests.support.quiet import until_quiet

SECRETS = ("marzipan", "gingerbread", "nougat", "praline", "truffle", "caramel", "fudge")
"""Words of the room: a message, its name, its topic, a member's name, a reason, an edit, a reaction's key."""
OFF = AtRest(events=False, media=False, archive=False)


async def fill(alice: Client, bob: Client, **options: Any) -> tuple[RoomID, str]:
    """A room in which each of the secrets has been said, and the event with the first one."""
    room_id = await alice.create_room(name="The gingerbread house", topic="All about nougat", **options)
    await alice.invite(room_id, bob.user_id)
    await bob.join(room_id)
    name = {"membership": "join", "displayname": "Bob praline"}
    await bob.set_state(room_id, "m.room.member", name, state_key=bob.user_id)
    event_id = await alice.send(room_id, "I like marzipan.")
    edited = await alice.send(room_id, "Something else.")
    edit = {"msgtype": "m.text", "body": "* caramel", "m.new_content": {"msgtype": "m.text", "body": "caramel"}}
    await alice.send(room_id, {**edit, "m.relates_to": {"rel_type": "m.replace", "event_id": edited}})
    annotation = {"rel_type": "m.annotation", "event_id": event_id, "key": "fudge"}
    await bob.send(room_id, {"m.relates_to": annotation}, event_type="m.reaction")
    body = {"user_id": f"@carol:{alice.user_id.partition(':')[2]}", "reason": "truffle"}
    await alice.call("invite_user", room_id, body=body)
    return room_id, event_id


def found_in(folder: Path) -> set[tuple[str, str]]:
    """Each secret that a file holds, with the file's name."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {(name, secret) for name, data in files.items() for secret in SECRETS if secret.encode() in data}


async def find(client: Client, word: str) -> list[str]:
    """The IDs of the events that a search finds."""
    body = {"search_categories": {"room_events": {"search_term": word}}}
    found = (await client.call("search", body=body))["search_categories"]["room_events"]
    return [each["result"]["event_id"] for each in found["results"]]


async def forget(hs: Homeserver, room_id: str) -> None:
    await at_rest.forget_room(hs.resources, RoomID(room_id), lambda done, of: None)
    assert hs.resources.search is not None
    await remove_deleted(hs.resources.database, hs.resources.search, hs.resources.stream.position)


async def register(hs: Homeserver) -> tuple[Client, Client]:
    await hs.register("carol")
    return await hs.register("alice"), await hs.register("bob")


@pytest.mark.parametrize("engine", ["whoosh", "fts5"])
async def test_sealed_contents_are_in_no_file_but_in_an_index_on_fts5(tmp_path: Path, engine: str) -> None:
    async with one_server("a.example", folder=tmp_path, search=SearchSection(engine=engine)) as hs:
        alice, bob = await register(hs)
        _, event_id = await fill(alice, bob)
        assert await find(alice, "marzipan") == [event_id]
        assert hs.resources.search is not None
        await hs.resources.search.call("store")
        assert {name for name, _ in found_in(tmp_path) if "search" not in name} == set()
        assert bool(found_in(tmp_path)) == (engine == "fts5")


async def test_an_index_from_before_there_was_a_key_is_sealed_and_one_whose_key_is_lost_is_made_again(
    tmp_path: Path,
) -> None:
    async with one_server("a.example", folder=tmp_path, at_rest=OFF) as hs:
        alice, bob = await register(hs)
        _, event_id = await fill(alice, bob)
        assert await find(alice, "marzipan") == [event_id]
    assert {name for name, _ in found_in(tmp_path) if "search" in name}
    async with one_server("a.example", folder=tmp_path) as hs:
        assert await find(await hs.log_in("alice"), "marzipan") == [event_id]
        assert hs.resources.search is not None
        await merge(hs.resources.search)
        assert not {name for name, _ in found_in(tmp_path) if "search" in name}
        await hs.resources.database.write(_lose_index_key)
    async with one_server("a.example", folder=tmp_path) as hs:
        assert await find(await hs.log_in("alice"), "marzipan") == [event_id]


def _lose_index_key(tx: Transaction) -> None:
    tx.run("UPDATE sealing_keys SET wrapped = NULL WHERE number IN (SELECT number FROM search_key)")


@pytest.mark.parametrize("sealed", [True, False])
async def test_contents_of_a_forgotten_room_are_in_no_file(tmp_path: Path, sealed: bool) -> None:
    """Also if some of it was stored before there were keys."""
    options: Any = {} if sealed else {"at_rest": OFF}
    async with one_server("a.example", folder=tmp_path, **options) as hs:
        alice, bob = await register(hs)
        room_id, event_id = await fill(alice, bob)
        kept_room, kept = await fill(alice, bob)
        assert set(await find(alice, "marzipan")) == {event_id, kept}
        await alice.call("redact_event", kept_room, kept, "t", body={})
        await forget(hs, kept_room)
        assert await find(alice, "marzipan") == [event_id]
    async with one_server("a.example", folder=tmp_path) as hs:
        alice, bob = await hs.log_in("alice"), await hs.log_in("bob")
        await forget(hs, room_id)
        assert found_in(tmp_path) == set()
        assert await find(alice, "marzipan") == []
        await hs.resources.database.read(check_consistency)
    assert found_in(tmp_path) == set()


async def test_contents_that_are_sealed_only_while_a_room_is_being_forgotten_are_forgotten_too() -> None:
    """They get the room's new key, which is not destroyed."""
    async with one_server() as hs:
        alice, bob = await register(hs)
        room_id, event_id = await fill(alice, bob)

        def lay_open(tx: Transaction) -> None:
            event = find_stored_by_id(tx, event_id)
            assert event is not None
            tx.run("UPDATE events SET content = ? WHERE position = ?", compress(event.content_json), event.position)
            tx.run("UPDATE sealing_backlog SET position = 0, upto = ?", tx.position)

        await hs.resources.database.write(lay_open)
        await at_rest.forget_room(hs.resources, RoomID(room_id), lambda done, of: None)
        assert (await alice.call("get_one_room_event", room_id, event_id))["content"] == {}


async def test_a_forgotten_room_looks_redacted_and_goes_on() -> None:
    async with one_server() as hs:
        alice, bob = await register(hs)
        room_id, event_id = await fill(alice, bob)
        algorithm = {"algorithm": "m.megolm.v1.aes-sha2"}
        await alice.set_state(room_id, "m.room.encryption", algorithm)
        other_room, other = await fill(alice, bob)
        await alice.sync()
        await at_rest.forget_room(hs.resources, room_id, lambda done, of: None)
        seen = {event.event_id: event for event in await alice.messages(room_id, limit=50)}
        assert all(event.content == {} for event in seen.values() if event.type in ("m.room.message", "m.reaction"))
        assert (await alice.call("get_one_room_event", room_id, event_id))["content"] == {}
        with contextlib.suppress(MatrixError):
            assert await alice.call("get_room_state_with_key", room_id, "m.room.name", "") == {}
        assert await alice.call("get_room_state_with_key", room_id, "m.room.encryption", "") == algorithm
        member = await alice.call("get_room_state_with_key", room_id, "m.room.member", bob.user_id)
        assert member == {"membership": "join"}
        shown = (await (await hs.log_in("alice", "NEW")).sync())["rooms"]["join"][room_id]
        assert not [secret for secret in SECRETS if secret in str(shown)]
        later = await bob.send(room_id, "Is anybody there?")
        assert (await alice.messages(room_id, limit=1))[0].event_id == later
        assert (await alice.messages(room_id, limit=1))[0].body == "Is anybody there?"
        assert (await alice.call("get_one_room_event", other_room, other))["content"]["body"] == "I like marzipan."


async def test_a_room_with_a_lost_block_is_forgotten_all_the_same() -> None:
    async with one_server() as hs:
        alice, bob = await register(hs)
        room_id, event_id = await fill(alice, bob)
        resources = hs.resources
        await until_quiet()
        await archive_all(resources)
        (blob,) = await resources.database.read(lambda tx: tx.values("SELECT blob FROM archive_blocks"))
        data = await resources.blobs.get(blob)
        await resources.blobs.delete(blob)
        resources.database.drop_caches()
        await forget(hs, room_id)
        keys = await resources.database.read(
            lambda tx: tx.values("SELECT wrapped FROM sealing_keys WHERE room_nid IS NOT NULL AND is_current = 0")
        )
        assert keys == [None]
        await resources.blobs.put(blob, data)  # as somebody who had taken it away could
        with pytest.raises(DatabaseDamaged, match="the key of its room was forgotten"):
            await alice.call("get_one_room_event", room_id, event_id)
        await bob.send(room_id, "Is anybody there?")


async def test_an_invited_user_is_still_invited_to_a_forgotten_room() -> None:
    async with one_server() as hs:
        alice, bob = await register(hs)
        room_id, _ = await fill(alice, bob)
        await at_rest.forget_room(hs.resources, room_id, lambda done, of: None)
        carol = await hs.log_in("carol")
        invite = (await carol.sync())["rooms"]["invite"][room_id]
        assert "gingerbread" not in str(invite) and "truffle" not in str(invite)
        types = {event["type"] for event in invite["invite_state"]["events"]}
        assert {"m.room.create", "m.room.member"} <= types
        await carol.join(room_id)


async def test_forgetting_twice_forgets_what_came_between() -> None:
    async with one_server() as hs:
        alice, bob = await register(hs)
        room_id, _ = await fill(alice, bob)
        await at_rest.forget_room(hs.resources, room_id, lambda done, of: None)
        later = await alice.send(room_id, "And now?")
        await at_rest.forget_room(hs.resources, room_id, lambda done, of: None)
        assert (await alice.call("get_one_room_event", room_id, later))["content"] == {}
        await hs.resources.database.read(check_consistency)


async def test_other_servers_get_valid_events_of_a_forgotten_room() -> None:
    async with two_servers() as (a, b):
        alice, dora = await a.register("alice"), await b.register("dora")
        room_id = await alice.create_room(name="The gingerbread house", preset="public_chat")
        event_ids = [await alice.send(room_id, f"marzipan {number}") for number in range(3)]
        wholes = [await a.resources.database.read(find_event, event_id) for event_id in event_ids]
        await at_rest.forget_room(a.resources, room_id, lambda done, of: None)
        await dora.join(room_id, via=("a.example",))  # the state is checked event by event
        await alice.send(room_id, "after")
        seen = {event.event_id: event for event in await dora.messages(room_id, limit=30)}
        for whole in wholes:
            assert whole is not None
            held = await a.resources.database.read(find_event, whole.event_id)
            assert held is not None and held.pdu == redact(whole.pdu, whole.version)
            assert whole.event_id not in seen or seen[whole.event_id].content == {}
        assert "after" in [event.body for event in seen.values() if event.content]


async def test_archived_events_are_forgotten(tmp_path: Path) -> None:
    async with one_server("a.example", folder=tmp_path) as hs:
        alice, bob = await register(hs)
        room_id, event_id = await fill(alice, bob)
        await alice.call("redact_event", room_id, await alice.send(room_id, "oops"), "t", body={"reason": "nougat"})
        await alice.send(room_id, "last")
        assert (await archive_all(hs.resources)).events > 3
        shown = await alice.messages(room_id, limit=50)
        await forget(hs, room_id)
        assert found_in(tmp_path) == set()
        again = await alice.messages(room_id, limit=50)
        assert [event.event_id for event in again] == [event.event_id for event in shown]
        assert (await alice.call("get_one_room_event", room_id, event_id))["content"] == {}
        await hs.resources.database.read(check_consistency)
        await alice.send(room_id, "later")
        assert (await archive_all(hs.resources)).events > 3
        assert (await alice.call("get_one_room_event", room_id, event_id))["content"] == {}


async def test_an_interrupted_forgetting_is_finished_at_the_next_start(tmp_path: Path) -> None:
    async with one_server("a.example", folder=tmp_path) as hs:
        room_id, event_id = await fill(*await register(hs))
        room_nid = await hs.resources.database.write(note_forgetting, room_id)
        await hs.resources.database.write(forget_events, room_nid)
        assert (await (await hs.log_in("alice")).call("get_one_room_event", room_id, event_id))["content"] != {}
    async with one_server("a.example", folder=tmp_path) as hs:
        await at_rest.finish_interrupted(hs.resources)
        position = hs.resources.stream.position
        assert await hs.resources.database.read(list_forgotten, 0, position) == [room_nid]
        alice = await hs.log_in("alice")
        assert (await alice.call("get_one_room_event", room_id, event_id))["content"] == {}


async def test_an_unknown_room_is_not_forgotten() -> None:
    async with one_server() as hs:
        with pytest.raises(MatrixError, match="knows no room"):
            await at_rest.forget_room(hs.resources, RoomID("!nothing:a.example"), lambda done, of: None)


# --- damaged rows ---

DAMAGES: dict[str, Callable[[Any], Any]] = {
    "a seal that is broken": lambda value: bytes(value)[:-1] + bytes([bytes(value)[-1] ^ 1]),
    "half a value": lambda value: bytes(value)[: len(bytes(value)) // 2],
    "nothing": lambda value: b"",
    "bytes of something else": lambda value: b"\x00something",
}
if ENGINE == "sqlite":  # PostgreSQL has no texts in columns of bytes
    DAMAGES["a text"] = lambda value: "something"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("column", ["content", "envelope"])
@pytest.mark.parametrize("sealed", [True, False])
async def test_damaged_events_do_not_keep_a_room_from_being_forgotten(
    tmp_path: Path, column: str, damage: str, sealed: bool
) -> None:
    """Neither of messages nor of state. What can be read is redacted, and nothing of the rest is left."""
    options: Any = {} if sealed else {"at_rest": OFF}
    async with one_server("a.example", folder=tmp_path, **options) as hs:
        alice, bob = await register(hs)
        room_id, event_id = await fill(alice, bob)
        await hs.resources.database.write(_damage_events, room_id, column, DAMAGES[damage])
        hs.resources.database.drop_caches()
        await forget(hs, room_id)
        assert await hs.resources.database.read(list_unfinished) == []
        assert (await alice.call("get_joined_rooms"))["joined_rooms"] == [room_id]
        await alice.send(room_id, "A new beginning")
    assert {secret for _, secret in found_in(tmp_path)} == set()


def _damage_events(tx: Transaction, room_id: str, column: str, damage: Callable[[Any], Any]) -> None:
    """Damages a message, a reaction, and the room's name and topic."""
    for name in ("m.room.message", "m.reaction", "m.room.name", "m.room.topic"):
        row = tx.one(
            f"SELECT position, {column} FROM events WHERE room_nid = ? AND type_nid = ? ORDER BY position LIMIT 1",
            tx.find(room_id), tx.find(name),
        )  # fmt: skip
        assert row is not None
        tx.run(f"UPDATE events SET {column} = ? WHERE position = ?", damage(row[1]), row[0])


async def test_a_damaged_invitation_does_not_keep_a_room_from_being_forgotten(tmp_path: Path) -> None:
    async with one_server("a.example", folder=tmp_path) as hs:
        alice, bob = await register(hs)
        room_id, _ = await fill(alice, bob)

        def damage(tx: Transaction) -> None:
            tx.run("UPDATE memberships SET stripped = ? WHERE stripped IS NOT NULL", b"\x00gingerbread")

        await hs.resources.database.write(damage)
        await forget(hs, room_id)
        assert await hs.resources.database.read(list_unfinished) == []
    assert {secret for _, secret in found_in(tmp_path)} == set()
