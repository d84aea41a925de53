"""The users that an application service acts as. Spec: application-service-api/#identity-assertion"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homeserver.config import RateLimitsSection
from tests.support.application_services import AS_TOKEN, register, registration
from tests.support.homeservers import PASSWORD, Client, Homeservers, Server

GHOST = "@irc_ghost:test.example"


async def register_ghost(bot: Client, name: str = "irc_ghost") -> dict[str, Any]:
    return await bot.ok("POST", "register", json={"type": "m.login.application_service", "username": name})


async def test_it_acts_as_its_sender_unless_it_says_otherwise(bot: Client) -> None:
    assert (await bot.ok("GET", "account/whoami"))["user_id"] == "@ircbot:test.example"


async def test_it_registers_users_of_its_namespace_without_a_password(server: Server, bot: Client) -> None:
    assert (await register_ghost(bot))["user_id"] == GHOST
    assert (await bot.ok("GET", f"account/whoami?user_id={GHOST}"))["user_id"] == GHOST
    room_id = (await bot.ok("POST", f"createRoom?user_id={GHOST}", json={"preset": "public_chat"}))["room_id"]
    alice = await server.register("alice")
    await alice.ok("POST", f"join/{room_id}", json={})
    members = (await alice.ok("GET", f"rooms/{room_id}/joined_members"))["joined"]
    assert set(members) == {GHOST, alice.user_id}


async def test_it_may_register_a_user_in_that_user_s_name(bot: Client) -> None:
    """Libraries of bridges add `user_id` to every request, also to the one that makes the user."""
    body = {"type": "m.login.application_service", "username": "irc_ghost"}
    assert (await bot.ok("POST", f"register?user_id={GHOST}", json=body))["user_id"] == GHOST


async def test_it_may_say_when_something_happened(server: Server, bot: Client) -> None:
    alice = await server.register("alice")
    room_id = (await bot.ok("POST", "createRoom", json={"preset": "public_chat"}))["room_id"]
    await alice.ok("POST", f"join/{room_id}", json={})
    text = {"msgtype": "m.text", "body": "hi"}
    for client, expected in ((bot, True), (alice, False)):
        sent = await client.ok("PUT", f"rooms/{room_id}/send/m.room.message/1?ts=1000000000000", json=text)
        event = await alice.ok("GET", f"rooms/{room_id}/event/{sent['event_id']}")
        assert (event["origin_server_ts"] == 1_000_000_000_000) is expected
    topic = await bot.ok("PUT", f"rooms/{room_id}/state/m.room.topic?ts=1000000000001", json={"topic": "tea"})
    event = await alice.ok("GET", f"rooms/{room_id}/event/{topic['event_id']}")
    assert event["origin_server_ts"] == 1_000_000_000_001
    for wrong in ("-1", "0", str(2**53)):
        path = f"rooms/{room_id}/send/m.room.message/2?ts={wrong}"
        assert await bot.refused("PUT", path, json=text) == (400, "M_INVALID_PARAM")


async def test_it_may_act_as_nobody_else(server: Server, bot: Client) -> None:
    alice = await server.register("alice")
    for user_id, error in (
        (alice.user_id, (403, "M_FORBIDDEN")),
        ("@irc_unregistered:test.example", (403, "M_FORBIDDEN")),
        ("@irc_ghost:elsewhere.example", (403, "M_FORBIDDEN")),
        ("nonsense", (400, "M_INVALID_PARAM")),
    ):
        assert await bot.refused("GET", f"account/whoami?user_id={user_id}") == error, user_id


async def test_its_users_can_have_devices_without_logging_in(bot: Client) -> None:
    await register_ghost(bot)
    made = await bot.put(f"devices/PHONE?user_id={GHOST}", json={"display_name": "A phone"})
    assert made.status_code == 201
    told = await bot.ok("GET", f"account/whoami?user_id={GHOST}&device_id=PHONE")
    assert (told["user_id"], told["device_id"]) == (GHOST, "PHONE")
    await bot.ok("DELETE", f"devices/PHONE?user_id={GHOST}", json={})
    refused = await bot.refused("GET", f"account/whoami?user_id={GHOST}&device_id=PHONE")
    assert refused == (400, "M_UNKNOWN_DEVICE")


async def test_it_logs_its_users_in(server: Server, bot: Client) -> None:
    await register_ghost(bot)
    body = {"type": "m.login.application_service", "identifier": {"type": "m.id.user", "user": "irc_ghost"}}
    answer = await bot.ok("POST", "login", json=body)
    told = await server.with_token(answer["access_token"]).ok("GET", "account/whoami")
    assert (told["user_id"], told["device_id"]) == (GHOST, answer["device_id"])


async def test_it_logs_nobody_else_in(server: Server, bot: Client) -> None:
    alice = await server.register("alice")
    body = {"type": "m.login.application_service", "identifier": {"type": "m.id.user", "user": "alice"}}
    assert await bot.refused("POST", "login", json=body) == (400, "M_EXCLUSIVE")
    assert await server.anonymous.refused("POST", "login", json=body) == (401, "M_MISSING_TOKEN")
    assert await alice.refused("POST", "login", json=body) == (401, "M_UNKNOWN_TOKEN")


async def test_names_of_its_namespace_belong_to_nobody_else(server: Server, bot: Client) -> None:
    for name in ("irc_me", "ircbot"):
        taken = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        assert await server.anonymous.refused("POST", "register", json=taken) == (400, "M_EXCLUSIVE"), name
        available = f"register/available?username={name}"
        assert await server.anonymous.refused("GET", available) == (400, "M_EXCLUSIVE"), name
    outside = {"type": "m.login.application_service", "username": "alice"}
    bob = await server.register("bob")
    assert await server.anonymous.refused("POST", "register", json=outside) == (401, "M_MISSING_TOKEN")
    assert await bob.refused("POST", "register", json=outside) == (401, "M_UNKNOWN_TOKEN")
    assert await bot.refused("POST", "register", json=outside) == (400, "M_EXCLUSIVE")


async def test_aliases_of_its_namespace_belong_to_nobody_else(server: Server, bot: Client) -> None:
    alice = await server.register("alice")
    theirs = (await bot.ok("POST", "createRoom", json={}))["room_id"]
    await bot.ok("PUT", "directory/room/%23irc_tea:test.example", json={"room_id": theirs})
    outside = await bot.refused("PUT", "directory/room/%23tea:test.example", json={"room_id": theirs})
    assert outside == (400, "M_EXCLUSIVE")
    room_id = (await alice.ok("POST", "createRoom", json={}))["room_id"]
    inside = await alice.refused("PUT", "directory/room/%23irc_room:test.example", json={"room_id": room_id})
    assert inside == (400, "M_EXCLUSIVE")
    assert await alice.refused("POST", "createRoom", json={"room_alias_name": "irc_x"}) == (400, "M_EXCLUSIVE")
    await register_ghost(bot)
    await bot.ok("DELETE", f"directory/room/%23irc_tea:test.example?user_id={GHOST}")


async def test_nobody_else_deletes_aliases_of_its_namespace(server: Server, bot: Client) -> None:
    alice = await server.register("alice")
    room_id = (await bot.ok("POST", "createRoom", json={"preset": "public_chat"}))["room_id"]
    await bot.ok("PUT", "directory/room/%23irc_tea:test.example", json={"room_id": room_id})
    await alice.ok("POST", f"join/{room_id}", json={})
    levels = {"users": {alice.user_id: 100}}
    await bot.ok("PUT", f"rooms/{room_id}/state/m.room.power_levels/", json=levels)
    assert await alice.refused("DELETE", "directory/room/%23irc_tea:test.example") == (400, "M_EXCLUSIVE")


async def test_an_exclusive_namespace_is_closed_to_other_application_services(
    homeservers: Homeservers, tmp_path: Path
) -> None:
    everything = {
        "users": [{"regex": "@.*", "exclusive": False}],
        "aliases": [{"regex": "#.*", "exclusive": False}],
        "rooms": [],
    }
    other = registration(id="logger", as_token="other", sender_localpart="irc_logger", namespaces=everything)
    server = await homeservers.start(application_services=register(tmp_path, registration(), other))
    logger = server.with_token("other")
    assert (await logger.ok("GET", "account/whoami"))["user_id"] == "@irc_logger:test.example", (
        "its own name is its own"
    )
    for name in ("irc_x", "ircbot"):
        body = {"type": "m.login.application_service", "username": name}
        assert await logger.refused("POST", "register", json=body) == (400, "M_EXCLUSIVE"), name
    await register_ghost(logger, "visitor")
    room_id = (await logger.ok("POST", "createRoom", json={}))["room_id"]
    taken = await logger.refused("PUT", "directory/room/%23irc_a:test.example", json={"room_id": room_id})
    assert taken == (400, "M_EXCLUSIVE")
    await logger.ok("PUT", "directory/room/%23tea:test.example", json={"room_id": room_id})
    await server.with_token(AS_TOKEN).ok("POST", "createRoom", json={"room_alias_name": "irc_b"})
    assert await logger.refused("DELETE", "directory/room/%23irc_b:test.example") == (400, "M_EXCLUSIVE")


@pytest.mark.parametrize("limited", [False, True])
async def test_it_registers_as_many_users_at_once_as_it_needs(
    homeservers: Homeservers, tmp_path: Path, limited: bool
) -> None:
    services = register(tmp_path, registration(rate_limited=limited))
    limits = RateLimitsSection(enabled=True)
    server = await homeservers.start(application_services=services, rate_limits=limits)
    bot = server.with_token(AS_TOKEN)
    body = {"type": "m.login.application_service"}
    answers = [await bot.post("register", json={**body, "username": f"irc_{number}"}) for number in range(20)]
    assert all(answer.status_code == 200 for answer in answers) is not limited
    pretending = server.with_token("a token of nobody")
    answers = [await pretending.post("register", json=body) for _ in range(20)]
    assert answers[-1].status_code == 429


async def test_it_cannot_log_itself_out(bot: Client) -> None:
    """Its token is the registration's. The devices of the user that it acts as end, if it says so."""
    await register_ghost(bot)
    await bot.put(f"devices/PHONE?user_id={GHOST}", json={})
    await bot.ok("POST", f"logout?user_id={GHOST}", json={})
    assert len((await bot.ok("GET", f"devices?user_id={GHOST}"))["devices"]) == 2
    await bot.ok("POST", f"logout/all?user_id={GHOST}", json={})
    assert (await bot.ok("GET", f"devices?user_id={GHOST}"))["devices"] == []
    assert (await bot.ok("GET", "account/whoami"))["user_id"] == "@ircbot:test.example"


@pytest.mark.parametrize("device_id", ["a%00b", "x" * 5000, "%F0%9F%A6%8A", "NONE"])
async def test_it_acts_as_no_device_that_does_not_exist(bot: Client, device_id: str) -> None:
    await register_ghost(bot)
    refused = await bot.refused("GET", f"account/whoami?user_id={GHOST}&device_id={device_id}")
    assert refused == (400, "M_UNKNOWN_DEVICE")


@pytest.mark.parametrize(("limited", "fine"), [(False, 120), (True, 101)])
async def test_rate_limits_apply_if_the_registration_says_so(
    homeservers: Homeservers, tmp_path: Path, limited: bool, fine: int
) -> None:
    services = register(tmp_path, registration(rate_limited=limited))
    limits = RateLimitsSection(enabled=True)
    bot = (await homeservers.start(application_services=services, rate_limits=limits)).with_token(AS_TOKEN)
    await register_ghost(bot)
    room_id = (await bot.ok("POST", f"createRoom?user_id={GHOST}", json={}))["room_id"]
    sent = 0
    for number in range(fine):
        path = f"rooms/{room_id}/send/m.room.message/{number}?user_id={GHOST}"
        sent += (await bot.put(path, json={"msgtype": "m.text", "body": "hi"})).status_code == 200
    assert (sent == fine) is not limited
