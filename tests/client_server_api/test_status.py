"""Not in the spec: docs/status.md. Who is online, and since when the others are not."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.config import DatabaseSection, Presence
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.users.status import Status, describe, find_language, read_statuses
from tests.support.engine import file_url
from tests.support.homeservers import Client, Homeservers, Server, config_for_tests, running

OURS = "/_homeserver/client/v1"
TIMEOUT_S = Presence().online_timeout_s


async def status_of(server: Server, person: Client | str, asker: Client, language: str = "en") -> Status | None:
    user_id = UserID(person if isinstance(person, str) else person.user_id)

    def read(tx: Transaction) -> Any:
        return read_statuses(tx, asker.user_id, [user_id], language)[user_id]

    status: Status | None = await server.read(read)
    return status


async def test_a_request_makes_its_sender_online(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    assert await status_of(server, bob, alice) is None
    await bob.ok("GET", "account/whoami")
    assert await status_of(server, bob, alice) == Status(online=True, last_active_ago=0, text="Online")


async def test_a_heartbeat_makes_its_sender_online(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    assert await bob.ok("POST", f"{OURS}/heartbeat") == {}
    status = await status_of(server, bob, alice)
    assert status is not None and status.online


async def test_a_silent_person_is_online_until_the_timeout(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await bob.ok("POST", f"{OURS}/heartbeat")
    await trio.sleep(TIMEOUT_S - 1)
    status = await status_of(server, bob, alice)
    assert status is not None and status.online and status.text == "Online"
    await trio.sleep(1)
    assert await status_of(server, bob, alice) == Status(
        online=False, last_active_ago=TIMEOUT_S * 1000, text="Active 5 minutes ago"
    )
    await trio.sleep(2 * 3600 - TIMEOUT_S)
    status = await status_of(server, bob, alice)
    assert status is not None and status.text == "Active 2 hours ago"


@pytest.mark.parametrize(
    ("ago_s", "language", "text"),
    [
        (1, "en", "Active 1 minute ago"),
        (119, "en", "Active 1 minute ago"),
        (120, "en", "Active 2 minutes ago"),
        (3599, "en", "Active 59 minutes ago"),
        (3600, "en", "Active 1 hour ago"),
        (86399, "en", "Active 23 hours ago"),
        (86400, "en", "Active 1 day ago"),
        (400 * 86400, "en", "Active 400 days ago"),
        (7200, "de", "Aktiv vor 2 Stunden"),
        (7200, "fr", "Actif il y a 2 heures"),
        (7200, "es", "Activo hace 2 horas"),
        (7200, "xx", "Active 2 hours ago"),
    ],
)
def test_the_text_counts_minutes_then_hours_then_days(ago_s: int, language: str, text: str) -> None:
    assert describe(online=False, last_active_ago=ago_s * 1000, language=language) == text


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("de", "de"),
        ("de-CH, fr;q=0.9, en;q=0.8", "de"),
        ("ja, fr;q=0.3, es;q=0.7", "es"),
        ("ja, *", "en"),
        ("de;q=0", "en"),
        ("DE-at", "de"),
        ("de;q=nan, fr;q=2, \x00, ;;;,", "en"),
        ("fr," * 100_000, "fr"),
    ],
)
def test_the_language_is_the_best_known_one_of_accept_language(header: str | None, language: str) -> None:
    assert find_language(header) == language


async def test_heartbeats_survive_a_restart(tmp_path: Any, homeservers: Homeservers) -> None:
    config = config_for_tests("test.example", tmp_path, database=DatabaseSection(url=file_url(tmp_path / "test")))
    async with running(config, wire=homeservers.wire) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        await bob.ok("POST", f"{OURS}/heartbeat")
    await trio.sleep(3600)
    async with running(config, wire=homeservers.wire) as server:
        status = await status_of(server, bob, alice)
        assert status is not None and status.text == "Active 1 hour ago"


async def test_heartbeats_are_stored_together_once_a_minute(server: Server) -> None:
    people = [await server.register(name) for name in ("alice", "bob", "carol")]
    await trio.sleep(limits.users.HEARTBEATS_STORED_INTERVAL_S + 1)
    position = server.hs.stream.position
    for _ in range(20):
        for person in people:
            await person.ok("POST", f"{OURS}/heartbeat")
    assert server.hs.stream.position == position
    assert await server.read(count_stored) == 0
    await trio.sleep(limits.users.HEARTBEATS_STORED_INTERVAL_S + 1)
    assert await server.read(count_stored) == 3
    assert server.hs.stream.position == position
    assert server.hs.heartbeats.list_unstored(10) == {}


def count_stored(tx: Transaction) -> int:
    return len(tx.all("SELECT user_nid FROM heartbeats"))


async def test_an_ended_account_leaves_no_heartbeat(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await trio.sleep(limits.users.HEARTBEATS_STORED_INTERVAL_S + 1)
    body = {"auth": bob.password_auth()}
    assert (await bob.post("account/deactivate", json=body)).status_code == 200
    await trio.sleep(limits.users.HEARTBEATS_STORED_INTERVAL_S + 1)
    assert await server.read(count_stored) == 0
    assert await status_of(server, bob, alice) is None


async def test_no_status_is_kept_while_presence_is_disabled(homeservers: Homeservers) -> None:
    server = await homeservers.start(presence=Presence(enabled=False))
    alice, bob = await server.register("alice"), await server.register("bob")
    await bob.ok("POST", f"{OURS}/heartbeat")
    assert await status_of(server, bob, alice) is None
    assert server.hs.heartbeats.list_unstored(10) == {}
