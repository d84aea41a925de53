"""Spec: client-server-api/#client-config, #room-tagging"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.encoding import to_json
from tests.support.homeservers import Client, Server
from tests.support.rows import row

ROOM = "!726s6s6q:example.com"


async def sync(client: Client, since: str = "", **query: Any) -> dict:
    parameters = {"since": since, **query} if since else query
    return await client.ok("GET", "sync", params=parameters)


async def test_global_account_data_is_stored_and_returned(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/account_data/org.example.config"
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    for content in ({"a": [1, 2.5, None, "ü"]}, {}):
        assert await alice.ok("PUT", path, json=content) == {}
        assert await alice.ok("GET", path) == content


async def test_room_data_is_separate_from_global_data(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/rooms/{ROOM}/account_data/org.example.config"
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.config", json={"in": "global"})
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    await alice.ok("PUT", path, json={"in": "room"})
    assert await alice.ok("GET", path) == {"in": "room"}


async def test_users_cannot_read_the_account_data_of_others(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    for path in (
        f"user/{alice.user_id}/account_data/org.example.a",
        f"user/{alice.user_id}/rooms/{ROOM}/account_data/org.example.a",
        f"user/{alice.user_id}/rooms/{ROOM}/tags/u.x",
    ):
        assert await bob.refused("PUT", path, json={}) == (403, "M_FORBIDDEN")
    for path in (
        f"user/{alice.user_id}/account_data/org.example.a",
        f"user/{alice.user_id}/rooms/{ROOM}/account_data/org.example.a",
        f"user/{alice.user_id}/rooms/{ROOM}/tags",
    ):
        assert await bob.refused("GET", path) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("data_type", ["m.fully_read", "m.push_rules"])
async def test_types_managed_by_the_server_cannot_be_written(homeserver: Server, data_type: str) -> None:
    alice = await homeserver.register("alice")
    for path in (f"user/{alice.user_id}/account_data", f"user/{alice.user_id}/rooms/{ROOM}/account_data"):
        assert await alice.refused("PUT", f"{path}/{data_type}", json={}) == (405, "M_BAD_JSON")


async def test_content_must_be_an_object(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/account_data/org.example.a"
    for content, errcode in [(b"", "M_NOT_JSON"), (b"nope", "M_NOT_JSON"), (b"[]", "M_BAD_JSON"), (b"7", "M_BAD_JSON")]:
        with row(content, errcode):
            assert await alice.refused("PUT", path, content=content) == (400, errcode)
            assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")


async def test_malformed_ids_in_the_path_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/rooms/@notaroomid:example.org/account_data/org.example.a"
    assert await alice.refused("PUT", path, json={}) == (400, "M_INVALID_PARAM")
    assert await alice.refused("GET", path) == (400, "M_INVALID_PARAM")
    assert await alice.refused("GET", "user/alice/account_data/org.example.a") == (400, "M_INVALID_PARAM")


async def test_sync_returns_a_change_of_global_data_once(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.a", json={"n": 1})
    first = await sync(alice)
    assert {"type": "org.example.a", "content": {"n": 1}} in first["account_data"]["events"]
    assert "account_data" not in await sync(alice, first["next_batch"])
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.b", json={"n": 2})
    later = await sync(alice, first["next_batch"])
    assert later["account_data"]["events"] == [{"type": "org.example.b", "content": {"n": 2}}]


async def test_a_waiting_sync_returns_at_once(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    first = await sync(alice, set_presence="offline")
    answers: list[dict] = []

    async def wait() -> None:
        answers.append(await sync(alice, first["next_batch"], timeout=30_000, set_presence="offline"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.a", json={"n": 1})
    assert trio.current_time() - began < 6
    assert answers[0]["account_data"]["events"] == [{"type": "org.example.a", "content": {"n": 1}}]


async def test_sync_returns_room_data_with_its_room(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    room_id = await homeserver.make_room(alice)
    await alice.ok("PUT", f"user/{alice.user_id}/rooms/{room_id}/account_data/org.example.a", json={"n": 1})
    event = {"type": "org.example.a", "content": {"n": 1}}
    first = await sync(alice)
    assert event in first["rooms"]["join"][room_id]["account_data"]["events"]
    await alice.ok("PUT", f"user/{alice.user_id}/rooms/{room_id}/tags/u.work", json={"order": 0.5})
    later = await sync(alice, first["next_batch"])
    tags = {"type": "m.tag", "content": {"tags": {"u.work": {"order": 0.5}}}}
    assert later["rooms"]["join"][room_id]["account_data"]["events"] == [tags]
    assert room_id not in (await sync(bob)).get("rooms", {}).get("join", {})


async def test_sync_returns_all_data_of_a_newly_joined_room(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    room_id = await homeserver.make_room(alice)
    await bob.ok("PUT", f"user/{bob.user_id}/rooms/{room_id}/account_data/org.example.a", json={"n": 1})
    first = await sync(bob)
    assert room_id not in first.get("rooms", {}).get("join", {})
    await homeserver.join(bob, room_id)
    later = await sync(bob, first["next_batch"])
    event = {"type": "org.example.a", "content": {"n": 1}}
    assert later["rooms"]["join"][room_id]["account_data"]["events"] == [event]


async def test_room_tags_are_set_listed_and_deleted(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/rooms/{ROOM}/tags"
    assert await alice.ok("GET", path) == {"tags": {}}
    await alice.ok("PUT", f"{path}/m.favourite", json={"order": 0.1, "org.example": True})
    await alice.ok("PUT", f"{path}/u.W%C3%B6rk%2Fplay", json={})
    await alice.ok("PUT", f"{path}/m.favourite", json={"order": 1})
    assert await alice.ok("GET", path) == {"tags": {"m.favourite": {"order": 1}, "u.Wörk/play": {}}}
    await alice.ok("DELETE", f"{path}/m.favourite")
    await alice.ok("DELETE", f"{path}/none")
    assert await alice.ok("GET", path) == {"tags": {"u.Wörk/play": {}}}
    data = await alice.ok("GET", f"user/{alice.user_id}/rooms/{ROOM}/account_data/m.tag")
    assert data == {"tags": {"u.Wörk/play": {}}}


async def test_the_account_data_of_a_user_has_a_maximum_size(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    path = f"user/{alice.user_id}/account_data"
    big = {"x": "x" * (1 << 19)}
    statuses = [(await alice.put(f"{path}/k{number}", json=big)).status_code for number in range(40)]
    kept = statuses.count(200)
    assert kept * len(to_json(big)) <= limits.users.ACCOUNT_DATA_BYTES_MAX < (kept + 1) * len(to_json(big))
    assert statuses == [200] * kept + [413] * (40 - kept)
    refusal = (413, "M_TOO_LARGE")
    assert await alice.refused("PUT", f"user/{alice.user_id}/rooms/{ROOM}/account_data/k", json=big) == refusal
    assert (await alice.ok("GET", f"{path}/k0")) == big
    await alice.ok("PUT", f"{path}/k0", json={})  # what makes it less is always allowed
    await alice.ok("PUT", f"{path}/new", json=big)
    assert await alice.refused("PUT", f"{path}/k0", json=big) == refusal
    await bob.ok("PUT", f"user/{bob.user_id}/account_data/k", json=big)


async def test_type_names_have_a_maximum_length(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/account_data/"
    await alice.ok("PUT", path + "x" * 255, json={})
    assert await alice.refused("PUT", path + "x" * 256, json={}) == (400, "M_INVALID_PARAM")


async def test_malformed_tag_content_written_by_a_client_is_tolerated(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/rooms/{ROOM}"
    await alice.ok("PUT", f"{path}/account_data/m.tag", json={"tags": 7})
    assert await alice.ok("GET", f"{path}/tags") == {"tags": {}}
    await alice.ok("PUT", f"{path}/tags/u.a", json={})
    assert await alice.ok("GET", f"{path}/tags") == {"tags": {"u.a": {}}}


async def test_malformed_tags_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/rooms/{ROOM}/tags"
    for tag, content, errcode in [
        ("u.a", {"order": "0.5"}, "M_BAD_JSON"),
        ("u.a", {"order": True}, "M_BAD_JSON"),
        ("u.a", {"order": None}, "M_BAD_JSON"),
        ("u.a", {"order": 1.5}, "M_INVALID_PARAM"),
        ("u.a", {"order": -0.1}, "M_INVALID_PARAM"),
        ("u.a", [], "M_BAD_JSON"),
        ("u." + "ü" * 127, {}, "M_INVALID_PARAM"),
        ("u.a", {"org.example": "x" * 1024}, "M_INVALID_PARAM"),
    ]:
        with row(tag, content, errcode):
            assert await alice.refused("PUT", f"{path}/{tag}", json=content) == (400, errcode)
            assert await alice.ok("GET", path) == {"tags": {}}


async def test_deeply_nested_json_is_refused_unparsed(homeserver: Server) -> None:
    """Decoding a megabyte of them would take a second, during which no other request is answered."""
    alice = await homeserver.register("alice")
    brackets = b'{"a": [' + b",".join([b"[[[[[[[[]]]]]]]]"] * 60_000) + b"]}"
    headers = {"authorization": f"Bearer {alice.token}"}
    for method, path in (("PUT", "account_data/org.example"), ("POST", "filter")):
        url = f"/_matrix/client/v3/user/{alice.user_id}/{path}"
        response = await homeserver.http.request(method, url, content=brackets, headers=headers)
        assert (response.status_code, response.json()["errcode"]) == (413, "M_TOO_LARGE")
    in_a_string = {"a": "[" * 500_000, 'quo"te\\': "{" * 100_000}
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example", json=in_a_string)
    assert await alice.ok("GET", f"user/{alice.user_id}/account_data/org.example") == in_a_string
