"""A tea society's old conversation goes into the archive, and nobody notices, on either of its two servers."""

from __future__ import annotations

import pytest
import trio

from homeserver.config import Retention
from homeserver.database import Transaction
from homeserver.features.archive import DAY_MS, delete_leftovers, expire_old
from homeserver.features.search.feeding import catch_up
from homeserver.rooms.archive.blocks import list_blocks
from homeserver.rooms.expiring import Purged
from homeserver.rooms.purging import estimate_purge, purge_room
from homeserver.rooms.retention import lifetime
from homeserver.rooms.timeline import list_by_timestamp
from homeserver.users.accounts import store_admin
from tests.support.archive import archive_all
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, invite, join, send_text
from tests.support.homeservers import Client, Server


async def _page_all(client: Client, room_id: str, limit: int = 7) -> list[str]:
    """The bodies of all messages, newest first, page by page."""
    bodies: list[str] = []
    start = ""
    while True:
        page = await client.ok("GET", f"rooms/{room_id}/messages?dir=b&limit={limit}{start}")
        bodies += [each["content"].get("body", "") for each in page["chunk"] if each["type"] == "m.room.message"]
        if "end" not in page:
            return bodies
        start = f"&from={page['end']}"


def _rows(tx: Transaction) -> int:
    return len(tx.values("SELECT position FROM events WHERE state_key_nid IS NULL"))


async def test_an_archived_conversation_is_read_searched_answered_and_redacted(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    await join(bob, room_id, a.name)
    away = (await bob.ok("GET", "sync"))["next_batch"]
    sent = [await send_text(alice, room_id, f"tea number {number}") for number in range(40)]
    await trio.sleep(60)
    expected = [f"tea number {number}" for number in reversed(range(40))]
    for server in (a, b):
        await archive_all(server.hs)
        assert await server.read(_rows) == 1

    # Both paginate back through it, open a message in the middle, and find it by a word and by its time.
    assert await _page_all(alice, room_id) == await _page_all(bob, room_id) == expected
    context = await bob.ok("GET", f"rooms/{room_id}/context/{sent[20]}?limit=4")
    assert [each["content"]["body"] for each in context["events_before"]] == ["tea number 19", "tea number 18"]
    body = {"search_categories": {"room_events": {"search_term": "number 13"}}}
    found = (await alice.ok("POST", "search", json=body))["search_categories"]["room_events"]
    assert [each["result"]["event_id"] for each in found["results"]] == [sent[13]]

    # A client that was away is told the newest, and pages through the rest.
    news = await bob.ok("GET", f"sync?since={away}")
    timeline = news["rooms"]["join"][room_id]["timeline"]
    assert timeline["limited"]
    assert timeline["events"][-1]["event_id"] == sent[-1]

    # They react to and answer what is archived; the counts are on the old message.
    relation = {"rel_type": "m.thread", "event_id": sent[3]}
    thread = {"msgtype": "m.text", "body": "I remember", "m.relates_to": relation}
    await bob.ok("PUT", f"rooms/{room_id}/send/m.room.message/t1", json=thread)
    await trio.sleep(60)
    for server in (a, b):
        await archive_all(server.hs)
    old = await alice.ok("GET", f"rooms/{room_id}/event/{sent[3]}")
    assert old["unsigned"]["m.relations"]["m.thread"]["latest_event"]["content"]["body"] == "I remember"

    # Alice takes a message back. The blocks of both servers are written again, and the old ones are deleted.
    before = {server.name: await _blobs(server) for server in (a, b)}
    await alice.ok("PUT", f"rooms/{room_id}/redact/{sent[5]}/r1", json={})
    await trio.sleep(60)
    for client, server in ((alice, a), (bob, b)):
        assert (await client.ok("GET", f"rooms/{room_id}/event/{sent[5]}"))["content"] == {}
        await delete_leftovers(server.hs)
        now = await _blobs(server)
        assert not before[server.name] & now
        for blob in now:
            assert b"number 5" not in await server.hs.blobs.get(blob)

    # A third server joins, and gets the archived past of the room.
    c = await federation.start("c.example")
    carol = await c.register("carol")
    await invite(alice, room_id, carol.user_id)
    await join(carol, room_id, a.name)
    assert len(await _page_all(carol, room_id, 20)) == 41


async def _blobs(server: Server) -> set[str]:
    return {key async for key, _ in server.hs.blobs.list("archive")}


async def test_retries_after_archiving_are_recognised(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice)
    path = f"rooms/{room_id}/send/m.room.message/once"
    first = await alice.ok("PUT", path, json={"msgtype": "m.text", "body": "tea"})
    await send_text(alice, room_id, "more tea")
    await archive_all(a.hs)
    assert await a.read(_rows) == 1
    assert await alice.ok("PUT", path, json={"msgtype": "m.text", "body": "tea"}) == first


async def test_a_damaged_block_is_named_and_does_not_spoil_other_pages(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    quiet, room_id = await create_room(alice), await create_room(alice)
    for room in (quiet, room_id):
        sent = [await send_text(alice, room, f"tea {number}") for number in range(12)]
    await archive_all(a.hs)
    (block,) = await a.read(lambda tx: list_blocks(tx, tx.find(room_id)))
    a.hs.database.drop_caches()
    await a.hs.blobs.put(block.blob, b"damaged")
    page = await alice.get(f"rooms/{room_id}/messages?dir=b&limit=50")
    assert page.status_code == 500
    assert page.json()["errcode"] == "M_UNKNOWN"
    assert (await alice.ok("GET", f"rooms/{room_id}/messages?dir=b&limit=1"))["chunk"][0]["event_id"] == sent[-1]
    assert len(await _page_all(alice, quiet)) == 12
    await send_text(alice, room_id, "and on it goes")


async def test_administrators_see_where_history_is(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice)
    for number in range(30):
        await send_text(alice, room_id, f"tea {number}")
    await archive_all(a.hs)
    path = f"/_homeserver/admin/v1/rooms/{room_id}/archive"
    assert (await alice.get(path)).status_code == 403
    await a.write(store_admin, alice.user_id, True)
    (block,) = (await alice.ok("GET", path))["blocks"]
    assert block["events"] == 29
    assert block["sealed"] is True
    assert len(block["checksum"]) == 64
    assert block["first_ts"] <= block["last_ts"]
    assert block["bytes"] > 1000
    assert "/archive/" in block["url"]
    assert (await alice.get("/_homeserver/admin/v1/rooms/!nowhere:a.example/archive")).status_code == 404


async def test_messages_are_deleted_when_their_room_keeps_them_no_longer(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    await join(bob, room_id, a.name)
    old = [await send_text(alice, room_id, f"old tea {number}") for number in range(20)]
    await trio.sleep(60)
    await archive_all(a.hs)
    await alice.ok("PUT", f"rooms/{room_id}/state/m.room.retention/", json={"max_lifetime": 2 * DAY_MS})
    await let_days_pass(3)
    new = await send_text(alice, room_id, "fresh tea")
    for server in (a, b):
        await expire_old(server.hs)
        await delete_leftovers(server.hs)
    for client in (alice, bob):
        assert await _page_all(client, room_id) == ["fresh tea"]
        assert (await client.get(f"rooms/{room_id}/event/{old[3]}")).status_code == 404
        assert (await client.ok("GET", f"rooms/{room_id}/event/{new}"))["content"]["body"] == "fresh tea"
    c = await federation.start("c.example")
    carol = await c.register("carol")
    await invite(alice, room_id, carol.user_id)
    await join(carol, room_id, a.name)
    assert all("old tea" not in body for body in await _page_all(carol, room_id, 50))
    assert not [
        event for event in await a.read(list_by_timestamp, room_id, 0, "f", 50) if b"old tea" in event.content_json
    ]


async def test_files_and_words_of_expired_messages_go_with_them(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id, other = await create_room(alice), await create_room(alice)
    gone, shared, shown_again, avatar, state = [await upload(alice, f"picture {number}") for number in range(5)]
    await send_text(alice, room_id, "oolong in the morning")
    for uri in (gone, shared, shown_again, avatar, state):
        await alice.ok("PUT", f"rooms/{room_id}/send/m.room.message/{uri[-9:]}", json=picture(uri))
    await alice.ok("PUT", f"rooms/{other}/send/m.room.message/s", json=picture(shared))
    await alice.ok("PUT", f"profile/{alice.user_id}/avatar_url", json={"avatar_url": avatar})
    await alice.ok("PUT", f"rooms/{room_id}/state/m.room.avatar/", json={"url": state})
    await send_text(alice, room_id, "sencha at noon")
    assert await found_words(a, "oolong", "sencha") == {"oolong", "sencha"}
    await archive_all(a.hs)
    await send_text(alice, room_id, "matcha in the evening")
    await let_days_pass(3)
    await alice.ok("PUT", f"rooms/{room_id}/send/m.room.message/again", json=picture(shown_again))

    expected, purged = Purged(), Purged()
    deadline = a.hs.now_ms() - 2 * DAY_MS
    room_nid = await a.read(lambda tx: tx.find(room_id))
    await estimate_purge(a.hs, room_nid, deadline, expected)
    assert await is_served(alice, gone)
    await purge_room(a.hs, room_nid, deadline, purged)
    assert expected == purged
    assert (purged.events, purged.files, purged.file_bytes) == (8, 1, len("picture 0"))
    assert [await is_served(alice, uri) for uri in (gone, shared, shown_again, avatar, state)] == [False, *[True] * 4]
    assert await found_words(a, "oolong", "sencha", "matcha") == set()

    # What remains of the messages is archived, in a block that has nothing but their graph.
    assert await a.read(_rows) == 1
    again = Purged()
    await purge_room(a.hs, room_nid, deadline, again)
    assert again == Purged()


def picture(uri: str) -> dict[str, object]:
    return {"msgtype": "m.image", "body": "a picture", "url": uri}


async def upload(client: Client, content: str) -> str:
    answer = await client.request("POST", "/_matrix/media/v3/upload", content=content.encode())
    uri: str = answer.json()["content_uri"]
    return uri


async def is_served(client: Client, uri: str) -> bool:
    path = uri.removeprefix("mxc://")
    return (await client.get(f"/_matrix/client/v1/media/download/{path}")).status_code == 200


async def found_words(server: Server, *words: str) -> set[str]:
    """Returns the words for which the index proposes an event."""
    assert server.hs.search is not None
    await catch_up(server.hs.database, server.hs.search, server.hs.stream.position)
    found = set()
    for word in words:
        wanted = {
            "groups": list(range(1000)), "authors": None, "not_authors": [], "labels_any": [], "from_time": None,
            "to_time": None, "by_rank": False, "before": None, "limit": 10,
        }  # fmt: skip
        hits, _ = await server.hs.search.call("search", word, wanted, 10)
        if hits:
            found.add(word)
    return found


async def test_a_lost_block_keeps_no_other_message_from_being_deleted(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    rooms = [await create_room(alice) for _ in range(2)]
    for part in range(2):
        for room_id in rooms:
            for number in range(20):
                await send_text(alice, room_id, f"old tea {part} {number}")
        await trio.sleep(60)
        await archive_all(a.hs)
    blocks = await a.read(lambda tx: [list_blocks(tx, tx.find(room_id)) for room_id in rooms])
    await a.hs.blobs.delete(min((each for each in blocks[0]), key=lambda each: each.first_ordering).blob)
    a.hs.database.drop_caches()
    for room_id in rooms:
        await alice.ok("PUT", f"rooms/{room_id}/state/m.room.retention/", json={"max_lifetime": DAY_MS})
    await let_days_pass(3)
    await expire_old(a.hs)
    assert await _page_all(alice, rooms[1]) == []


@pytest.mark.parametrize(
    ("max_lifetime", "retention", "days"),
    [
        (None, Retention(), None),
        (5, Retention(), 5),
        (None, Retention(default_days=7), 7),
        (30, Retention(default_days=7), 30),
        (30, Retention(max_days=10), 10),
        (None, Retention(max_days=10), 10),
        (1, Retention(min_days=3), 3),
        (1, Retention(min_days=3, max_days=10), 3),
        (None, Retention(min_days=3), None),
        ("soon", Retention(default_days=7), 7),
        (-1, Retention(), None),
        (10**30, Retention(max_days=10), 10),
    ],
)
def test_lifetimes_of_messages_follow_from_room_and_server(
    max_lifetime: object, retention: Retention, days: int | None
) -> None:

    wanted = max_lifetime * DAY_MS if isinstance(max_lifetime, int) else max_lifetime
    assert lifetime(wanted, retention) == (None if days is None else days * DAY_MS)


def test_a_lifetime_of_any_length_can_be_compared_with_stored_times() -> None:
    assert lifetime(10**30, Retention()) == 2**53 - 1
