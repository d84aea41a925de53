"""Files that administrators take out of service or delete, in the formats that tools for Synapse expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.features import media
from tests.media import images
from tests.media.servers import V1, V3, blob_keys, upload
from tests.support.homeservers import Client, NoWire, Server, config_for_tests, running

GONE = (404, "M_NOT_FOUND")
BASES = ("/_homeserver/admin/v1", "/_synapse/admin/v1")
PICTURE = images.encoded(images.gradient(200, 200), "PNG")


@pytest.fixture
async def boss(server: Server) -> Client:
    client = await server.register("boss")
    await server.write(store_account_flags, client.user_id, AccountFlags(is_admin=True))
    return client


async def assert_gone(client: Client, place: str) -> None:
    for path in (f"download/{place}", f"download/{place}/name.png", f"thumbnail/{place}?width=32&height=32"):
        assert await client.refused("GET", f"{V1}/{path}") == GONE
        assert await client.server.anonymous.refused("GET", f"{V3}/{path}") == GONE


@pytest.mark.parametrize("base", BASES)
async def test_quarantined_files_are_not_served_until_they_are_put_back(
    server: Server, alice: Client, boss: Client, base: str
) -> None:
    place = await upload(alice, PICTURE, "image/png")
    await alice.get(f"{V1}/thumbnail/{place}?width=32&height=32")
    assert await boss.ok("POST", f"{base}/media/quarantine/{place}") == {}
    await assert_gone(alice, place)
    info = (await boss.ok("GET", f"{base}/media/{place}"))["media_info"]
    assert (info["quarantined_by"], info["media_length"]) == (boss.user_id, len(PICTURE))
    assert await boss.ok("POST", f"{base}/media/unquarantine/{place}") == {}
    assert (await alice.get(f"{V1}/download/{place}")).content == PICTURE
    assert (await boss.ok("GET", f"{base}/media/{place}"))["media_info"]["quarantined_by"] is None


async def test_quarantined_public_files_are_not_served_without_a_token_either(server: Server, boss: Client) -> None:
    uri = await media.upload(server.hs, boss.user_id, PICTURE, "image/png", is_public=True)
    assert (await server.anonymous.get(f"{V3}/download/{uri[6:]}")).content == PICTURE
    await boss.ok("POST", f"{BASES[0]}/media/quarantine/{uri[6:]}")
    await assert_gone(boss, uri[6:])


async def test_copies_of_quarantined_content_are_not_served(alice: Client, bob: Client, boss: Client) -> None:
    place, copy = await upload(alice, PICTURE, "image/png"), await upload(bob, PICTURE, "image/png")
    await boss.ok("POST", f"{BASES[0]}/media/quarantine/{place}")
    await assert_gone(bob, copy)
    await assert_gone(bob, await upload(bob, PICTURE, "image/png"))
    assert (await bob.get(f"{V1}/download/{await upload(bob, PICTURE[:-1])}")).content == PICTURE[:-1]
    await boss.ok("POST", f"{BASES[0]}/media/unquarantine/{copy}")
    assert (await alice.get(f"{V1}/download/{place}")).content == PICTURE


async def test_uris_may_be_quarantined_before_they_have_content(alice: Client, boss: Client) -> None:
    uri = (await alice.ok("POST", "/_matrix/media/v1/create"))["content_uri"][6:]
    await boss.ok("POST", f"{BASES[0]}/media/quarantine/{uri}")
    await alice.ok("PUT", f"{V3}/upload/{uri}", content=b"x")
    await assert_gone(alice, uri)


@pytest.mark.parametrize("base", BASES)
async def test_administrators_delete_files(server: Server, alice: Client, boss: Client, base: str) -> None:
    place = await upload(alice, PICTURE, "image/png")
    media_id = place.partition("/")[2]
    assert await boss.ok("DELETE", f"{base}/media/{place}") == {"deleted_media": [media_id], "total": 1}
    await assert_gone(alice, place)
    assert await blob_keys(server) == []
    assert await boss.refused("DELETE", f"{base}/media/{place}") == GONE
    assert await boss.refused("GET", f"{base}/media/{place}") == GONE


@pytest.mark.parametrize("base", BASES)
async def test_administrators_list_and_delete_the_files_of_a_user(
    server: Server, alice: Client, bob: Client, boss: Client, base: str
) -> None:
    ids = [(await upload(alice, b"a%d" % number, filename=f"{number}.txt")).partition("/")[2] for number in range(3)]
    kept = await upload(bob, b"b")
    path = f"{base}/users/{alice.user_id}/media"
    first = await boss.ok("GET", f"{path}?limit=2&dir=f")
    assert [each["media_id"] for each in first["media"]] == ids[:2]
    shown = first["media"][0]
    assert (first["total"], shown["upload_name"], shown["media_type"]) == (3, "0.txt", "text/plain")
    rest = await boss.ok("GET", f"{path}?limit=2&dir=f&from={first['next_token']}")
    assert [each["media_id"] for each in rest["media"]] == ids[2:] and "next_token" not in rest
    newest = await boss.ok("GET", path)
    assert [each["media_id"] for each in newest["media"]] == ids[::-1]
    by_name = await boss.ok("GET", f"{path}?order_by=upload_name&dir=b")
    assert [each["media_id"] for each in by_name["media"]] == ids[::-1]
    deleted = await boss.ok("DELETE", path)
    assert (sorted(deleted["deleted_media"]), deleted["total"]) == (sorted(ids), 3)
    assert await boss.ok("GET", path) == {"media": [], "total": 0}
    assert len(await blob_keys(server)) == 1
    assert (await bob.get(f"{V1}/download/{kept}")).content == b"b"
    for query in ("limit=0", "order_by=x", "from=-1", "from=x", f"from={2**60}"):
        assert (await boss.refused("GET", f"{path}?{query}"))[0] == 400


@pytest.mark.parametrize(
    "path", ["/_homeserver/admin/v1/users/{}/media/quarantine", "/_synapse/admin/v1/user/{}/media/quarantine"]
)
async def test_all_files_of_a_user_can_be_quarantined(alice: Client, bob: Client, boss: Client, path: str) -> None:
    places = [await upload(alice, b"a%d" % number) for number in range(3)]
    kept = await upload(bob, b"b")
    assert await boss.ok("POST", path.format(alice.user_id)) == {"num_quarantined": 3}
    assert await boss.ok("POST", path.format(alice.user_id)) == {"num_quarantined": 0}
    for place in places:
        assert await alice.refused("GET", f"{V1}/download/{place}") == GONE
    assert (await bob.get(f"{V1}/download/{kept}")).content == b"b"


async def test_only_administrators_manage_media(server: Server, alice: Client, boss: Client) -> None:
    place = await upload(boss, PICTURE, "image/png")
    for base in BASES:
        for method, path in (
            ("POST", f"media/quarantine/{place}"),
            ("POST", f"media/unquarantine/{place}"),
            ("GET", f"media/{place}"),
            ("DELETE", f"media/{place}"),
            ("GET", f"users/{boss.user_id}/media"),
            ("DELETE", f"users/{boss.user_id}/media"),
            ("POST", f"{'users' if 'homeserver' in base else 'user'}/{boss.user_id}/media/quarantine"),
            ("POST", "purge_media_cache?before_ts=9999999999999"),
            ("GET", f"{'rooms' if 'homeserver' in base else 'room'}/!a:test.example/media"),
            ("POST", f"{'rooms' if 'homeserver' in base else 'room'}/!a:test.example/media/quarantine"),
        ):
            assert await alice.refused(method, f"{base}/{path}") == (403, "M_FORBIDDEN"), path
            assert await server.anonymous.refused(method, f"{base}/{path}") == (401, "M_MISSING_TOKEN"), path
    assert (await alice.get(f"{V1}/download/{place}")).content == PICTURE


@pytest.mark.parametrize(
    ("listed", "quarantined"),
    [
        ("/_homeserver/admin/v1/rooms/{}/media", "/_homeserver/admin/v1/rooms/{}/media/quarantine"),
        ("/_synapse/admin/v1/room/{}/media", "/_synapse/admin/v1/room/{}/media/quarantine"),
    ],
)
async def test_all_files_of_a_room_can_be_quarantined(tmp_path: Path, listed: str, quarantined: str) -> None:
    async with running(config_for_tests("test.example", tmp_path), wire=NoWire()) as server:
        await _quarantine_a_room(server, listed, quarantined)


async def _quarantine_a_room(server: Server, listed: str, quarantined: str) -> None:
    alice, boss = await server.register("alice"), await server.register("boss")
    await server.write(store_account_flags, boss.user_id, AccountFlags(is_admin=True))
    room_id = (await alice.ok("POST", "createRoom", json={}))["room_id"]
    places = [await upload(alice, b"a%d" % number) for number in range(3)]
    for number, content in enumerate(
        (
            {"msgtype": "m.image", "body": "mxc://test.example/body", "url": f"mxc://{places[0]}"},
            {"msgtype": "m.video", "body": "b", "url": 7, "info": {"thumbnail_url": f"mxc://{places[1]}"}},
            {"msgtype": "m.file", "body": "b", "url": "mxc://other.example/abc", "info": []},
            {"msgtype": "m.file", "body": "b", "url": "mxc://other.example/../abc"},
        )
    ):
        await alice.ok("PUT", f"rooms/{room_id}/send/m.room.message/{number}", json=content)
    found = await boss.ok("GET", listed.format(room_id))
    assert sorted(found["local"]) == sorted(f"mxc://{place}" for place in places[:2])
    assert found["remote"] == ["mxc://other.example/abc"]
    assert await boss.ok("POST", quarantined.format(room_id)) == {"num_quarantined": 3}
    assert await alice.refused("GET", f"{V1}/download/{places[0]}") == GONE
    assert (await alice.get(f"{V1}/download/{places[2]}")).content == b"a2"


@pytest.mark.parametrize("base", BASES)
async def test_old_and_large_files_can_be_deleted_except_avatars(tmp_path: Path, base: str) -> None:
    async with running(config_for_tests("test.example", tmp_path), wire=NoWire()) as server:
        alice, boss = await server.register("alice"), await server.register("boss")
        await server.write(store_account_flags, boss.user_id, AccountFlags(is_admin=True))
        avatar, of_room, large, small = [await upload(alice, b"x" * size) for size in (11, 12, 13, 10)]
        await alice.ok("PUT", f"profile/{alice.user_id}/avatar_url", json={"avatar_url": f"mxc://{avatar}"})
        room_id = (await alice.ok("POST", "createRoom", json={}))["room_id"]
        await alice.ok("PUT", f"rooms/{room_id}/state/m.room.avatar", json={"url": f"mxc://{of_room}"})
        path, now = f"{base}/media/delete", server.hs.now_ms() + 1
        assert (await boss.ok("POST", f"{path}?before_ts=1"))["total"] == 0
        deleted = await boss.ok("POST", f"{path}?before_ts={now}&size_gt=10")
        assert deleted == {"deleted_media": [large.partition("/")[2]], "total": 1}
        assert (await alice.get(f"{V1}/download/{small}")).content == b"x" * 10
        assert (await boss.ok("POST", f"{path}?before_ts={now}&keep_profiles=false"))["total"] == 3
        for place in (avatar, of_room, small):
            assert await alice.refused("GET", f"{V1}/download/{place}") == GONE
        assert await alice.refused("POST", f"{path}?before_ts={now}") == (403, "M_FORBIDDEN")
        assert await boss.refused("POST", path) == (400, "M_MISSING_PARAM")


async def test_protected_files_are_not_quarantined(alice: Client, boss: Client) -> None:
    places = [await upload(alice, b"a%d" % number) for number in range(2)]
    media_id = places[0].partition("/")[2]
    assert await boss.ok("POST", f"/_synapse/admin/v1/media/protect/{media_id}") == {}
    path = f"/_synapse/admin/v1/user/{alice.user_id}/media/quarantine"
    assert await boss.ok("POST", path) == {"num_quarantined": 1}
    shown = (await boss.ok("GET", f"/_synapse/admin/v1/media/{places[0]}"))["media_info"]
    assert (shown["safe_from_quarantine"], shown["quarantined_by"]) == (True, None)
    assert (await alice.get(f"{V1}/download/{places[0]}")).content == b"a0"
    await boss.ok("POST", f"/_synapse/admin/v1/media/unprotect/{media_id}")
    assert await boss.ok("POST", path) == {"num_quarantined": 1}


async def test_statistics_say_how_much_users_have_uploaded(alice: Client, bob: Client, boss: Client) -> None:
    await upload(alice, b"12345")
    await upload(alice, b"123")
    await upload(bob, b"1")
    path = "/_synapse/admin/v1/statistics/users/media"
    usage = await boss.ok("GET", f"{path}?order_by=media_length&dir=b")
    assert (usage["total"], usage["users"][0]) == (
        2, {"user_id": alice.user_id, "displayname": "alice", "media_count": 2, "media_length": 8},
    )  # fmt: skip
    assert (await boss.ok("GET", f"{path}?search_term=BOB"))["total"] == 1
    assert (await boss.ok("GET", f"{path}?until_ts=1"))["users"] == []
    page = await boss.ok("GET", f"{path}?limit=1")
    assert (page["users"][0]["user_id"], page["next_token"]) == (alice.user_id, 1)
    for query in ("limit=0", "from=-1", "from_ts=-1", f"until_ts={2**70}", "order_by=x"):
        assert await boss.refused("GET", f"{path}?{query}") == (400, "M_INVALID_PARAM"), query
