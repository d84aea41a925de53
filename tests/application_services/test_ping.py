"""Spec: application-service-api/#pinging"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.application_services import AS_TOKEN, Bridge, register, registration
from tests.support.federation import Federation
from tests.support.homeservers import Client

PING = "/_matrix/client/v1/appservice/irc/ping"


@pytest.fixture
async def bot(federation: Federation, bridge: Bridge, tmp_path: Path) -> Client:
    server = await federation.start("a.example", application_services=register(tmp_path, registration()))
    return server.with_token(AS_TOKEN)


async def test_a_bridge_learns_that_it_can_be_reached(bridge: Bridge, bot: Client) -> None:
    answer = await bot.ok("POST", PING, json={"transaction_id": "meow"})
    assert answer["duration_ms"] >= 0
    assert ("POST", "/_matrix/app/v1/ping") in bridge.requests


async def test_it_learns_why_it_cannot_be_reached(federation: Federation, bridge: Bridge, bot: Client) -> None:
    bridge.statuses = [403]
    refused = await bot.post(PING, json={})
    assert (refused.status_code, refused.json()["errcode"], refused.json()["status"]) == (502, "M_BAD_STATUS", 403)
    federation.network.leave("bridge.example")
    assert await bot.refused("POST", PING, json={}) == (502, "M_CONNECTION_FAILED")


async def test_it_can_ping_nobody_else(federation: Federation, bot: Client, tmp_path: Path) -> None:
    assert await bot.refused("POST", PING.replace("irc", "other"), json={}) == (403, "M_FORBIDDEN")
    person = await bot.server.register("alice")
    assert await person.refused("POST", PING, json={}) == (403, "M_FORBIDDEN")


async def test_a_registration_without_a_url_cannot_be_pinged(federation: Federation, tmp_path: Path) -> None:
    services = register(tmp_path, registration(url=None))
    server = await federation.start("b.example", application_services=services)
    assert await server.with_token(AS_TOKEN).refused("POST", PING, json={}) == (400, "M_URL_NOT_SET")
