"""While storage refuses writes, reading continues, writes fail with a temporary error, and nothing is lost."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trio

from homeserver.background import keep_running
from homeserver.config import BlobsSection, DatabaseSection
from homeserver.resources import Resources
from tests.support.engine import ENGINE, file_url
from tests.support.homeservers import PASSWORD, Client, Homeservers, Server
from tests.support.storage import unwritable

READY = "/_homeserver/health/ready"


@pytest.fixture
async def server(homeservers: Homeservers, tmp_path: Path) -> Server:
    """A server whose database and media are files, as in production."""
    database = DatabaseSection(url=file_url(tmp_path / "test.example"))
    return await homeservers.start("test.example", database=database, blobs=BlobsSection(url="file:blobs"))


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Returns the log messages about storage, each with the part that it is about."""
    return [
        (record.message, record.__dict__["part"])
        for record in caplog.records
        if record.name == "homeserver.process.outages"
    ]  # fmt: skip


def assert_try_later(answer: httpx.Response) -> None:
    assert answer.status_code == 503 and answer.json()["errcode"] == "M_UNKNOWN"
    assert int(answer.headers["retry-after"]) >= 1


async def send(client: Client, room_id: str, txn_id: str, text: str = "x") -> httpx.Response:
    path = f"rooms/{quote(room_id)}/send/m.room.message/{txn_id}"
    return await client.put(path, json={"msgtype": "m.text", "body": text})


async def test_reading_continues(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await server.make_room(alice, bob)
    assert (await send(alice, room_id, "before")).status_code == 200
    with unwritable(server):
        for path in ("sync?timeout=0", "sync?timeout=0&set_presence=unavailable", "joined_rooms", "devices"):
            assert (await bob.get(path)).status_code == 200, path
        answer = await bob.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b")
        assert any(event["type"] == "m.room.message" for event in answer["chunk"])


async def test_writes_are_refused_temporarily_and_none_is_lost(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await server.make_room(alice)
    event_id = (await send(alice, room_id, "before")).json()["event_id"]
    login = {
        "type": "m.login.password", "password": PASSWORD,
        "identifier": {"type": "m.id.user", "user": "alice"},
    }  # fmt: skip
    with unwritable(server):
        assert_try_later(await send(alice, room_id, "during", "x" * 30_000))
        assert_try_later(await server.anonymous.post("login", json=login))
        assert_try_later(await alice.post("createRoom", json={}))
    again = await send(alice, room_id, "during", "x" * 30_000)
    assert again.status_code == 200
    for each in (event_id, again.json()["event_id"]):
        assert (await alice.get(f"rooms/{quote(room_id)}/event/{quote(each)}")).status_code == 200
    assert (await server.anonymous.post("login", json=login)).status_code == 200


async def test_the_health_check_fails_and_the_outage_is_logged_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    alice = await server.register("alice")
    room_id = await server.make_room(alice)
    assert (await server.anonymous.get(READY)).json() == {"ready": True}
    await trio.sleep(3)
    with unwritable(server):
        refused = await server.anonymous.get(READY)
        assert refused.status_code == 503 and refused.json()["ready"] is False
        assert "written to the database" in refused.json()["reason"]
        for number in range(20):
            await send(alice, room_id, f"during-{number}")
            await alice.get("sync?timeout=0")
        await trio.sleep(60)
        assert (await server.anonymous.get(READY)).status_code == 503
    await trio.sleep(5)
    assert (await server.anonymous.get(READY)).json() == {"ready": True}
    writes = [message for message, part in messages(caplog) if part == "database writes"]
    assert writes == ["storage fails", "storage works again"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_idle_server_notices_the_outage(server: Server) -> None:
    """No request but the health check itself writes anything."""
    await trio.sleep(3600)
    with unwritable(server):
        assert (await server.anonymous.get(READY)).status_code == 503
    await trio.sleep(5)
    assert (await server.anonymous.get(READY)).status_code == 200


async def test_a_freshly_refreshed_token_can_read(server: Server) -> None:
    """Its first use would revoke the tokens that it replaces. That waits for a later use."""
    await server.register("alice")
    login = await server.anonymous.ok("POST", "login", json={
        "type": "m.login.password", "password": PASSWORD, "refresh_token": True,
        "identifier": {"type": "m.id.user", "user": "alice"},
    })  # fmt: skip
    refreshed = await server.anonymous.ok("POST", "refresh", json={"refresh_token": login["refresh_token"]})
    alice = server.with_token(refreshed["access_token"])
    with unwritable(server):
        assert (await alice.get("joined_rooms")).status_code == 200
    assert (await alice.get("joined_rooms")).status_code == 200
    assert (await server.with_token(login["access_token"]).get("joined_rooms")).status_code == 401


async def test_background_work_pauses_and_resumes(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[float] = []
    done = trio.Event()

    async def work(hs: Resources) -> None:
        attempts.append(trio.current_time())
        await hs.database.write(lambda tx: tx.next_position())
        done.set()

    async with trio.open_nursery() as nursery:
        with unwritable(server), caplog.at_level(logging.INFO):
            nursery.start_soon(keep_running, server.hs, work)
            await trio.sleep(600)
            assert len(attempts) == 1
        began = trio.current_time()
        await done.wait()
        assert trio.current_time() - began <= 5
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.skipif(ENGINE != "sqlite", reason="the disk of PostgreSQL is not ours")
async def test_uploads_are_refused_and_work_later(server: Server) -> None:
    alice = await server.register("alice")
    upload = "/_matrix/media/v3/upload"
    content = {"content-type": "application/octet-stream"}
    with unwritable(server):
        for size_bytes in (100, 200_000, 2_000_000):
            assert_try_later(await alice.post(upload, content=b"x" * size_bytes, headers=content))
        assert "Media cannot be stored" in (await server.anonymous.get(READY)).json()["reason"]
    await trio.sleep(5)
    assert (await alice.post(upload, content=b"x" * 200_000, headers=content)).status_code == 200
    assert (await server.anonymous.get(READY)).status_code == 200
