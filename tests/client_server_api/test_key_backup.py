"""Spec: client-server-api/#server-side-key-backups"""

from __future__ import annotations

import tracemalloc
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver import limits
from homeserver.database import Transaction
from homeserver.features.key_backup.storage import Key, find_version, list_deletions, store_keys
from homeserver.federation.identifiers import RoomID
from tests.support.federation import until
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.rows import row

ALGORITHM = "m.megolm_backup.v1.curve25519-aes-sha2"
AUTH_DATA = {"public_key": "abcdefg", "signatures": {}}
ROOM, OTHER = "!tea:test.example", "!coffee:elsewhere.example"


def key(index: int = 0, forwarded: int = 0, verified: bool = False, text: str = "secret") -> dict[str, Any]:
    data = {"ephemeral": "base64", "ciphertext": text, "mac": "base64"}
    return {
        "first_message_index": index,
        "forwarded_count": forwarded,
        "is_verified": verified,
        "session_data": data,
    }


async def make_version(client: Client, **auth_data: Any) -> str:
    body = {"algorithm": ALGORITHM, "auth_data": {**AUTH_DATA, **auth_data}}
    return (await client.ok("POST", "room_keys/version", json=body))["version"]


def path(version: str, *parts: str) -> str:
    return "/".join(["room_keys/keys", *(quote(part, safe="") for part in parts)]) + f"?version={version}"


async def put(client: Client, version: str, sessions: dict[str, Any], room_id: str = ROOM) -> dict[str, Any]:
    return await client.ok("PUT", path(version, room_id), json={"sessions": sessions})


async def get_all(client: Client, version: str) -> dict[str, Any]:
    return (await client.ok("GET", path(version)))["rooms"]


# Versions


async def test_backups_can_be_created_read_changed_and_deleted(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await alice.refused("GET", "room_keys/version") == (404, "M_NOT_FOUND")
    version = await make_version(alice)
    expected = {"algorithm": ALGORITHM, "auth_data": AUTH_DATA, "count": 0, "etag": "0", "version": version}
    assert await alice.ok("GET", "room_keys/version") == expected
    assert await alice.ok("GET", f"room_keys/version/{version}") == expected
    update = {"algorithm": ALGORITHM, "auth_data": {**AUTH_DATA, "signatures": {"@a:b": {}}}, "version": version}
    assert await alice.ok("PUT", f"room_keys/version/{version}", json=update) == {}
    assert (await alice.ok("GET", "room_keys/version"))["auth_data"] == update["auth_data"]
    assert await alice.ok("DELETE", f"room_keys/version/{version}") == {}
    assert await alice.ok("DELETE", f"room_keys/version/{version}") == {}
    assert await alice.refused("GET", "room_keys/version") == (404, "M_NOT_FOUND")


async def test_the_newest_version_is_current_and_version_numbers_are_not_reused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    first, second = await make_version(alice), await make_version(alice)
    assert first != second
    assert (await alice.ok("GET", "room_keys/version"))["version"] == second
    await alice.ok("DELETE", f"room_keys/version/{second}")
    assert (await alice.ok("GET", "room_keys/version"))["version"] == first
    assert await make_version(alice) not in (first, second)


async def test_users_cannot_see_the_backups_of_others(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    version = await make_version(alice)
    await put(alice, version, {"s": key()})
    for method, where in (
        ("GET", "room_keys/version"),
        ("GET", f"room_keys/version/{version}"),
        ("DELETE", f"room_keys/version/{version}"),
        ("GET", path(version)),
        ("GET", path(version, ROOM)),
        ("GET", path(version, ROOM, "s")),
        ("DELETE", path(version)),
        ("DELETE", path(version, ROOM)),
        ("DELETE", path(version, ROOM, "s")),
    ):
        assert await bob.refused(method, where) == (404, "M_NOT_FOUND")
    assert await bob.refused("PUT", path(version, ROOM, "s"), json=key()) == (404, "M_NOT_FOUND")
    assert await get_all(alice, version) == {ROOM: {"sessions": {"s": key()}}}


@pytest.mark.parametrize("version", ["7", "0", "-1", "x", "1.0", "9" * 40, "١"])
async def test_an_unknown_version_is_not_found(homeserver: Server, version: str) -> None:
    alice = await homeserver.register("alice")
    await make_version(alice)
    version = quote(version, safe="%")
    update = {"algorithm": ALGORITHM, "auth_data": AUTH_DATA}
    assert await alice.refused("GET", f"room_keys/version/{version}") == (404, "M_NOT_FOUND")
    assert await alice.refused("DELETE", f"room_keys/version/{version}") == (404, "M_NOT_FOUND")
    assert await alice.refused("PUT", f"room_keys/version/{version}", json=update) == (404, "M_NOT_FOUND")
    for parts in ((), (ROOM,), (ROOM, "s")):
        assert await alice.refused("GET", path(version, *parts)) == (404, "M_NOT_FOUND")
        assert await alice.refused("DELETE", path(version, *parts)) == (404, "M_NOT_FOUND")
    assert await alice.refused("PUT", path(version), json={"rooms": {}}) == (404, "M_NOT_FOUND")


async def test_a_malformed_version_is_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await make_version(alice) == "1"
    for body, errcode in [
        ({}, "M_MISSING_PARAM"),
        ({"algorithm": ALGORITHM}, "M_MISSING_PARAM"),
        ({"algorithm": "rot13", "auth_data": {}}, "M_BAD_JSON"),
        ({"algorithm": ALGORITHM, "auth_data": []}, "M_BAD_JSON"),
        ({"algorithm": ALGORITHM, "auth_data": {}, "version": 1}, "M_BAD_JSON"),
        ({"algorithm": ALGORITHM, "auth_data": {}, "version": "2"}, "M_INVALID_PARAM"),
    ]:
        with row(body, errcode):
            assert await alice.refused("PUT", "room_keys/version/1", json=body) == (400, errcode)
            assert (await alice.ok("GET", "room_keys/version"))["auth_data"] == AUTH_DATA


async def test_the_size_of_auth_data_and_the_number_of_versions_are_limited(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    large = {"algorithm": ALGORITHM, "auth_data": {"a": "x" * limits.users.KEY_BACKUP_AUTH_DATA_BYTES_MAX}}
    assert await alice.refused("POST", "room_keys/version", json=large) == (413, "M_TOO_LARGE")
    for _ in range(limits.users.KEY_BACKUP_VERSIONS_MAX):
        await make_version(alice)
    body = {"algorithm": ALGORITHM, "auth_data": {}}
    assert await alice.refused("POST", "room_keys/version", json=body) == (403, "M_USER_LIMIT_EXCEEDED")
    await alice.ok("DELETE", "room_keys/version/1")
    await make_version(alice)


# Keys


async def test_keys_are_stored_and_read_by_session_by_room_or_all_at_once(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    assert await get_all(alice, version) == {}
    assert await alice.ok("GET", path(version, ROOM)) == {"sessions": {}}
    assert await alice.refused("GET", path(version, ROOM, "a")) == (404, "M_NOT_FOUND")
    assert await alice.ok("PUT", path(version, ROOM, "a"), json=key(1)) == {"etag": "1", "count": 1}
    assert await put(alice, version, {"b": key(2), "c/ü": key(3)}) == {"etag": "2", "count": 3}
    rooms = {ROOM: {"sessions": {"d": key(4)}}, OTHER: {"sessions": {"a": key(5)}}}
    assert await alice.ok("PUT", path(version), json={"rooms": rooms}) == {"etag": "3", "count": 5}
    of_room = {"a": key(1), "b": key(2), "c/ü": key(3), "d": key(4)}
    assert await alice.ok("GET", path(version, ROOM, "c/ü")) == key(3)
    assert await alice.ok("GET", path(version, ROOM)) == {"sessions": of_room}
    assert await get_all(alice, version) == {ROOM: {"sessions": of_room}, OTHER: {"sessions": {"a": key(5)}}}
    current = await alice.ok("GET", "room_keys/version")
    assert (current["count"], current["etag"]) == (5, "3")


@pytest.mark.parametrize(
    ("old", "new", "is_replaced"),
    [
        (key(5, 5, False), key(9, 9, True), True),
        (key(9, 9, True), key(5, 5, False), False),
        (key(5, 5, True), key(4, 9, True), True),
        (key(5, 5, True), key(6, 0, True), False),
        (key(5, 5), key(5, 4), True),
        (key(5, 5), key(5, 6), False),
        (key(5, 5, text="old"), key(5, 5, text="new"), False),
    ],
)
async def test_the_better_key_is_kept(homeserver: Server, old: Any, new: Any, is_replaced: bool) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    before = await put(alice, version, {"s": old})
    after = await put(alice, version, {"s": new})
    assert await alice.ok("GET", path(version, ROOM, "s")) == (new if is_replaced else old)
    assert after["count"] == 1
    assert (after["etag"] != before["etag"]) == is_replaced


metadata = st.builds(Key, st.integers(0, 2), st.integers(0, 2), st.booleans(), st.just(b"{}"))


@settings(max_examples=50)
@given(metadata, metadata, metadata)
def test_comparing_keys_is_a_consistent_order(one: Key, two: Key, three: Key) -> None:
    assert not one.is_better_than(one)
    assert not (one.is_better_than(two) and two.is_better_than(one))
    if one.is_better_than(two) and two.is_better_than(three):
        assert one.is_better_than(three)


async def test_keys_can_be_added_to_the_current_version_only(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    first, second = await make_version(alice), await make_version(alice)
    for parts, body in (
        ((), {"rooms": {ROOM: {"sessions": {"s": key()}}}}),
        ((ROOM,), {"sessions": {"s": key()}}),
        ((ROOM, "s"), key()),
    ):
        response = await alice.put(path(first, *parts), json=body)
        assert response.status_code == 403
        assert (response.json()["errcode"], response.json()["current_version"]) == ("M_WRONG_ROOM_KEYS_VERSION", second)
    assert await get_all(alice, first) == {}
    await alice.ok("DELETE", f"room_keys/version/{second}")
    assert await alice.refused("PUT", path(second, ROOM, "s"), json=key()) == (404, "M_NOT_FOUND")
    await put(alice, first, {"s": key()})


async def test_keys_are_deleted_by_session_by_room_or_all_at_once(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    for room_id in (ROOM, OTHER):
        await put(alice, version, {name: key() for name in "abc"}, room_id)
    assert (await alice.ok("DELETE", path(version, ROOM, "a")))["count"] == 5
    before = await alice.ok("GET", "room_keys/version")
    assert await alice.ok("DELETE", path(version, ROOM, "a")) == {"count": 5, "etag": before["etag"]}
    assert (await alice.ok("DELETE", path(version, OTHER)))["count"] == 2
    assert (await get_all(alice, version)).keys() == {ROOM}
    assert (await alice.ok("DELETE", path(version)))["count"] == 0
    assert await get_all(alice, version) == {}
    assert (await put(alice, version, {"a": key()}))["count"] == 1


async def test_deleting_a_version_deletes_its_keys_even_after_a_crash(homeservers: Homeservers) -> None:
    homeserver = await homeservers.start()
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    await put(alice, version, {f"{number}": key() for number in range(50)})
    await alice.ok("DELETE", f"room_keys/version/{version}")

    def count(tx: Transaction) -> int:
        return len(tx.all("SELECT session_id FROM key_backup_keys")) + len(list_deletions(tx))

    async def nothing_is_left() -> bool:
        return await homeserver.read(count) == 0

    await until(nothing_is_left)


def broken(**changes: Any) -> dict[str, Any]:
    return {**key(), **changes}


async def test_a_malformed_key_stores_nothing(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    for session, errcode in [
        (broken(first_message_index="0"), "M_BAD_JSON"),
        (broken(first_message_index=-1), "M_BAD_JSON"),
        (broken(first_message_index=2**53), "M_BAD_JSON"),
        (broken(first_message_index=0.5), "M_BAD_JSON"),
        (broken(forwarded_count=None), "M_BAD_JSON"),
        (broken(is_verified=1), "M_BAD_JSON"),
        (broken(session_data="x"), "M_BAD_JSON"),
        (broken(session_data={"a": "x" * limits.users.KEY_BACKUP_SESSION_BYTES_MAX}), "M_TOO_LARGE"),
        ({"first_message_index": 0}, "M_MISSING_PARAM"),
        ([], "M_BAD_JSON"),
    ]:
        with row(session, errcode):
            status = 413 if errcode == "M_TOO_LARGE" else 400
            rooms = {ROOM: {"sessions": {"a": key(), "s": session}}}
            for parts, body in (((), {"rooms": rooms}), ((ROOM,), rooms[ROOM]), ((ROOM, "s"), session)):
                assert await alice.refused("PUT", path(version, *parts), json=body) == (status, errcode)
            assert (await alice.ok("GET", "room_keys/version"))["count"] == 0


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b"])
async def test_room_and_session_ids_are_checked(homeserver: Server, name: str) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    rooms = [{ROOM: {"sessions": {name: key()}}}, {name: {"sessions": {"s": key()}}}]
    for each in rooms:
        status, errcode = await alice.refused("PUT", path(version), json={"rooms": each})
        assert (status, errcode) in ((400, "M_INVALID_PARAM"), (400, "M_NOT_JSON"), (400, "M_BAD_JSON"))
    assert await get_all(alice, version) == {}


async def test_a_version_is_required(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for parts in ((), (ROOM,), (ROOM, "s")):
        where = path("", *parts).partition("?")[0]
        assert await alice.refused("GET", where) == (400, "M_MISSING_PARAM")
        assert await alice.refused("DELETE", where) == (400, "M_MISSING_PARAM")


async def test_the_total_size_of_a_users_backups_is_limited(homeserver: Server) -> None:
    """The totals are set by hand, since it takes hundreds of megabytes to fill a backup."""
    alice = await homeserver.register("alice")
    await put(alice, await make_version(alice), {"s": key()})
    version = await make_version(alice)
    size_bytes = limits.users.KEY_BACKUP_BYTES_MAX - 100
    await homeserver.write(lambda tx: tx.run("UPDATE key_backup_versions SET bytes = ? WHERE version = 1", size_bytes))
    body = {"sessions": {"s": key(text="x" * 200)}}
    assert await alice.refused("PUT", path(version, ROOM), json=body) == (403, "M_USER_LIMIT_EXCEEDED")
    assert (await alice.ok("GET", "room_keys/version"))["count"] == 0
    await alice.ok("DELETE", "room_keys/version/1")
    await put(alice, version, body["sessions"])
    await put(alice, version, {"s": key(verified=True, text="y")})


async def test_small_keys_do_not_get_around_the_limit(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    await put(alice, version, {"s": key()})
    count = limits.users.KEY_BACKUP_BYTES_MAX // 500
    await homeserver.write(lambda tx: tx.run("UPDATE key_backup_versions SET keys = ?, bytes = 0", count))
    empty = {**key(), "session_data": {}}
    body = {"sessions": {"x" * 255: empty}}
    assert await alice.refused("PUT", path(version, ROOM), json=body) == (403, "M_USER_LIMIT_EXCEEDED")


# Large backups


def fill(tx: Transaction, client: Client, rooms: int, each: int) -> None:
    version = find_version(tx, client.user_id)
    assert version is not None
    data = b'{"ciphertext":"' + b"x" * 600 + b'"}'
    for room in range(rooms):
        keys = {f"{number:06}": Key(number, 0, True, data) for number in range(each)}
        version = store_keys(tx, version, {RoomID(f"!{room:03}:test.example"): keys})


@pytest.mark.parametrize(("rooms", "each"), [(1, 1250), (1250, 1), (5, 250), (2, 500), (1, 500), (3, 700)])
async def test_a_backup_is_complete_wherever_its_pages_are_cut(homeserver: Server, rooms: int, each: int) -> None:
    alice = await homeserver.register("alice")
    version = await make_version(alice)
    await homeserver.write(fill, alice, rooms, each)
    found = await get_all(alice, version)
    assert len(found) == rooms
    assert {len(room["sessions"]) for room in found.values()} == {each}
    of_room = await alice.ok("GET", path(version, next(iter(found))))
    assert len(of_room["sessions"]) == each


async def test_reading_a_large_backup_needs_the_memory_of_one_page(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await make_version(alice)
    await homeserver.write(fill, alice, 20, 1_000)  # 14 MB of JSON
    size_bytes = 0
    tracemalloc.start()
    try:
        async with homeserver.http.stream(
            "GET", f"/_matrix/client/v3/{path('1')}", headers={"authorization": f"Bearer {alice.token}"}
        ) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_bytes():
                size_bytes += len(chunk)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size_bytes > 13_000_000
    assert peak_bytes < 40_000_000
    assert (await alice.ok("DELETE", path("1", "!000:test.example")))["count"] == 19_000
