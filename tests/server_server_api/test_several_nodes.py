"""Several nodes of a homeserver are one server to others."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from homeserver.config import DatabaseSection, FederationSection
from homeserver.federation.identifiers import ServerName
from tests.support.federation import Federation, create_room, invite, join, running_homeserver, send_text, wait_text
from tests.support.homeservers import config_for_tests

pytestmark = pytest.mark.postgres


async def test_a_server_that_shows_itself_to_one_node_gets_what_it_missed_from_another(
    federation: Federation, postgres_url: str, tmp_path: Path
) -> None:
    b = await federation.start("b.example")
    shared = {
        "database": DatabaseSection(url=postgres_url),
        "federation": FederationSection(signing_key_file=str(tmp_path / "signing.key")),
    }
    one, two = (config_for_tests("a.example", tmp_path / node, **shared) for node in ("one", "two"))
    async with running_homeserver(one, federation.network) as sending:
        alice, bob = await sending.register("alice"), await b.register("bob")
        room_id = await create_room(alice)
        await invite(alice, room_id, bob.user_id)
        await join(bob, room_id, "a.example")
        async with running_homeserver(two, federation.network):  # others reach this one
            federation.network.cut("a.example", "b.example")
            await send_text(alice, room_id, "Are you there?")
            await trio.sleep(600)
            back_off = sending.hs.peers.find_back_off(ServerName("b.example"))
            assert back_off is not None and back_off.retry_after_ms - sending.hs.now_ms() > 60_000
            federation.network.heal()
            await send_text(bob, room_id, "I am back")
            with trio.fail_after(10):
                await wait_text(bob, room_id, "Are you there?")
