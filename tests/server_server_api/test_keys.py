"""The keys of servers. Spec: server-server-api/#retrieving-server-keys"""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from homeserver.config import FederationSection, RateLimitsSection
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import build_authorization
from homeserver.federation.server_keys import VerifyKey, build_key_response, parse_key_response, parse_notary_response
from homeserver.federation.signing import SigningKey
from homeserver.limits import FLIGHTS_AT_ONCE_MAX
from homeserver.remote.identity import replace_key
from homeserver.server import open_data
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, join, send_text, texts, wait_text
from tests.support.homeservers import now_ms
from tests.support.stranger import Stranger

CAROL = ServerName("c.example")


async def test_own_keys_are_published_and_valid_for_a_while(federation: Federation) -> None:
    a = await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    status, answer = await carol.request("a.example", "GET", "/_matrix/key/v2/server", headers={})
    assert status == 200
    keys = parse_key_response(answer, ServerName("a.example"), now_ms())
    assert keys.verify_keys[a.hs.signing_key.key_id].key_base64 == a.hs.signing_key.verify_key_base64
    assert keys.valid_until_ts > now_ms() + 3_600_000


async def test_after_a_change_the_former_key_is_an_old_key(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    await send_text(alice, room_id, "signed with the old key")
    old_key = a.hs.signing_key
    carol = Stranger(federation.network, CAROL)
    await carol.request("a.example", "GET", "/_matrix/key/v2/server", headers={})
    await federation.kill("a.example")
    await trio.sleep(100)
    database = await open_data(a.hs.config, inline=True, now_ms=now_ms)
    new_key, _ = await replace_key(a.hs.config, database)
    await database.aclose()
    a = await federation.start("a.example")
    _, answer = await carol.request("a.example", "GET", "/_matrix/key/v2/server", headers={})
    keys = parse_key_response(answer, ServerName("a.example"), now_ms())
    assert list(keys.verify_keys) == [new_key.key_id]
    assert keys.old_verify_keys[old_key.key_id].key_base64 == old_key.verify_key_base64
    # Earlier signatures remain valid for servers that join now.
    bob = await b.register("bob")
    await join(bob, room_id, "a.example")
    assert await texts(bob, room_id) == ["signed with the old key"]
    await send_text(alice.__class__(a, alice.token), room_id, "signed with the new key")
    await wait_text(bob, room_id, "signed with the new key")


async def test_a_changed_key_of_a_peer_is_requested_once(federation: Federation) -> None:
    await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    uri = "/_matrix/federation/v1/query/profile?user_id=@nobody:a.example"
    for count, seed in enumerate((b"a", b"b", b"c", b"d"), start=1):
        carol.key = SigningKey(f"key{count}", seed * 32)
        for _ in range(3):
            assert (await carol.get("a.example", uri))[0] == 404
        assert carol.asked.count(("GET", "/_matrix/key/v2/server")) == count


async def test_one_address_cannot_make_us_request_keys_from_everyone(federation: Federation) -> None:
    await federation.start("a.example", rate_limits=RateLimitsSection(enabled=True))
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    statuses = [await _claim_to_be(mallory, f"s{number}.example") for number in range(300)]
    assert set(statuses[:200]) == {401}
    assert set(statuses[250:]) == {429}
    asked = {each.destination for each in federation.network.exchanges if each.origin == "a.example"}
    assert len(asked) < 250
    carol = Stranger(federation.network, CAROL)
    assert (await carol.get("a.example", "/_matrix/federation/v1/version"))[0] == 200
    assert await carol.send("a.example", "1") == {}


async def test_unresponsive_servers_do_not_delay_others(federation: Federation) -> None:
    await federation.start("a.example")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    carol = Stranger(federation.network, CAROL)
    assert await carol.send("a.example", "1") == {}

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(FLIGHTS_AT_ONCE_MAX + 10):
            federation.network.join(f"s{number}.example", hang)
            nursery.start_soon(_claim_to_be, mallory, f"s{number}.example")
        await trio.testing.wait_all_tasks_blocked()
        assert await carol.send("a.example", "2") == {}
        nursery.cancel_scope.cancel()


async def _claim_to_be(stranger: Stranger, name: str) -> int:
    """The status that the stranger gets for a request in the name of another server."""
    uri = "/_matrix/federation/v1/query/profile?user_id=@nobody:a.example"
    origin = ServerName(name)
    signed = build_authorization("GET", uri, origin, ServerName("a.example"), stranger.key, None)
    return (await stranger.request("a.example", "GET", uri, headers={"authorization": signed}))[0]


async def test_expired_keys_are_requested_again(federation: Federation) -> None:
    await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    uri = "/_matrix/federation/v1/query/profile?user_id=@nobody:a.example"
    assert (await carol.get("a.example", uri))[0] == 404
    await trio.sleep(2 * 3600)  # a stranger's keys are valid for an hour
    assert (await carol.get("a.example", uri))[0] == 404
    assert carol.asked.count(("GET", "/_matrix/key/v2/server")) == 2


async def test_a_retired_key_is_not_accepted(federation: Federation) -> None:
    await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    uri = "/_matrix/federation/v1/query/profile?user_id=@nobody:a.example"
    stolen = carol.key
    assert (await carol.get("a.example", uri))[0] == 404
    carol.key = SigningKey("another", b"c" * 32)
    old = {stolen.key_id: VerifyKey(stolen.verify_key_base64, now_ms(), now_ms())}
    carol.answers["GET", "/_matrix/key/v2/server"] = build_key_response(CAROL, carol.key, old, now_ms() + 3_600_000)
    assert (await carol.get("a.example", uri))[0] == 404
    carol.key = stolen
    assert (await carol.get("a.example", uri))[0] == 401


async def test_a_key_is_requested_again_after_a_week_at_the_latest(federation: Federation) -> None:
    """Spec: "This is to avoid a situation where an attacker publishes a key which is valid for a significant amount of
    time without a way for the homeserver owner to revoke it"."""
    await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    uri = "/_matrix/federation/v1/query/profile?user_id=@nobody:a.example"
    stolen = carol.key
    carol.answers["GET", "/_matrix/key/v2/server"] = build_key_response(CAROL, stolen, {}, 2**53 - 1)
    assert (await carol.get("a.example", uri))[0] == 404
    carol.answers["GET", "/_matrix/key/v2/server"] = lambda uri, content: build_key_response(
        CAROL, SigningKey("another", b"c" * 32), {}, now_ms() + 3_600_000
    )
    await let_days_pass(6)
    assert (await carol.get("a.example", uri))[0] == 404
    await let_days_pass(2)
    assert (await carol.get("a.example", uri))[0] == 401


async def test_a_notary_serves_keys_of_servers_that_are_gone(federation: Federation) -> None:
    a = await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    dave = Stranger(federation.network, ServerName("d.example"))
    notary = ServerName("a.example")
    key = VerifyKey(a.hs.signing_key.verify_key_base64, now_ms() + 1000)
    notary_keys = {a.hs.signing_key.key_id: key}
    for _ in range(2):
        _, answer = await carol.request("a.example", "GET", "/_matrix/key/v2/query/d.example", headers={})
        statements = parse_notary_response(answer, notary, notary_keys, now_ms())
        assert [statement.server_name for statement in statements] == ["d.example"]
        federation.network.leave("d.example")
        await let_days_pass(1)
    question = {"server_keys": {"d.example": {}, "nowhere.example": {}, "a.example": {}}}
    _, answer = await carol.request("a.example", "POST", "/_matrix/key/v2/query", question, headers={})
    statements = parse_notary_response(answer, notary, notary_keys, now_ms())
    assert {statement.server_name for statement in statements} == {"d.example", "a.example"}
    assert dave.asked.count(("GET", "/_matrix/key/v2/server")) == 1


async def test_keys_of_servers_that_are_gone_are_requested_from_the_notary(federation: Federation) -> None:
    """Bob joins a room with events of a server that does not exist any more: only the notary still has its keys."""
    n = await federation.start("notary.example")
    a = await federation.start("a.example")
    b = await federation.start("b.example", federation=FederationSection(trusted_key_servers=("notary.example",)))
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    carol = Stranger(federation.network, CAROL)
    room = await carol.join("a.example", room_id, "carol")
    await carol.send("a.example", "1", [room.text("remember me").pdu])
    await carol.request("notary.example", "GET", "/_matrix/key/v2/query/c.example", headers={})
    federation.network.leave(CAROL)
    await join(bob, room_id, "a.example")
    members = await bob.ok("GET", f"rooms/{room_id}/joined_members")
    assert room.user_id in members["joined"]
    assert await texts(bob, room_id) == ["remember me"]
    assert n.hs.server_name == "notary.example"


async def test_an_unresponsive_server_is_not_asked_for_keys_all_the_time(federation: Federation) -> None:
    await federation.start("a.example")
    carol = Stranger(federation.network, CAROL)
    federation.network.leave(CAROL)
    uri = "/_matrix/federation/v1/query/profile?user_id=@nobody:a.example"
    for _ in range(20):
        assert (await carol.get("a.example", uri))[0] == 401
        await trio.sleep(1)
    tries = [each for each in federation.network.exchanges if each.destination == CAROL]
    assert len(tries) <= 5  # the back-off doubles from two seconds on
    federation.network.join(CAROL, carol._serve)
    await trio.sleep(3600)
    assert (await carol.get("a.example", uri))[0] == 404
