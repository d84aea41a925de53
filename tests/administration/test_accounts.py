"""The admin API for accounts: lists, details, changes, and acting for users."""

from __future__ import annotations

from typing import Any

import trio

from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.config import RateLimitsSection
from tests.support.homeservers import PASSWORD, Client, Homeservers, Server
from tests.support.people import create, invite, public_room, send, set_state, state

V1, V2, V3 = "/_synapse/admin/v1", "/_synapse/admin/v2", "/_synapse/admin/v3"
Json = dict[str, Any]


def names(answer: Json) -> list[str]:
    return [each["name"].partition(":")[0] for each in answer["users"]]


async def test_lists_of_accounts_come_in_pages(server: Server, boss: Client) -> None:
    for name in ("alice", "bob", "carol"):
        await server.register(name)
    first = await boss.ok("GET", f"{V2}/users?limit=3")
    assert (names(first), first["total"]) == (["@alice", "@bob", "@boss"], 4)
    rest = await boss.ok("GET", f"{V2}/users?limit=3&from={first['next_token']}")
    assert (names(rest), rest["total"], "next_token" in rest) == (["@carol"], 4, False)
    assert names(await boss.ok("GET", f"{V2}/users?dir=b")) == ["@carol", "@boss", "@bob", "@alice"]
    assert names(await boss.ok("GET", f"{V2}/users?from=1000")) == []
    assert len((await boss.ok("GET", f"{V3}/users?limit=999999999999"))["users"]) == 4
    for query in ("limit=0", "limit=-1", "from=-1", "limit=x", f"from={2**64}", "order_by=password", "dir=x"):
        assert await boss.refused("GET", f"{V2}/users?{query}") == (400, "M_INVALID_PARAM"), query


async def test_lists_of_accounts_are_filtered_and_sorted(server: Server, boss: Client, alice: Client) -> None:
    await trio.sleep(1)
    bob, dave = await server.register("bob"), await server.register("dave")
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Zoë Bobson"})
    await boss.ok("POST", f"{V1}/deactivate/{dave.user_id}", json={})
    await boss.ok("PUT", f"{V2}/users/{bob.user_id}", json={"locked": True, "user_type": "bot"})
    for query, found in (
        ("", ["@alice", "@boss"]),
        ("?locked=true", ["@alice", "@bob", "@boss"]),
        ("?locked=true&deactivated=true", ["@alice", "@bob", "@boss", "@dave"]),
        ("?locked=true&name=BOB", ["@alice", "@bob"]),
        ("?user_id=ali", ["@alice"]),
        ("?admins=true", ["@boss"]),
        ("?admins=false", ["@alice"]),
        ("?locked=true&not_user_type=bot", ["@alice", "@boss"]),
        ("?locked=true&not_user_type=", ["@bob"]),
        ("?order_by=displayname", ["@boss", "@alice"]),
        ("?order_by=creation_ts&locked=true&dir=b", ["@bob", "@alice", "@boss"]),
        ("?order_by=admin&dir=b", ["@boss", "@alice"]),
    ):
        assert names(await boss.ok("GET", f"{V2}/users{query}")) == found, query
    assert names(await boss.ok("GET", f"{V3}/users")) == ["@alice", "@boss", "@dave"]
    assert names(await boss.ok("GET", f"{V3}/users?deactivated=true")) == ["@dave"]
    assert names(await boss.ok("GET", f"{V3}/users?deactivated=false")) == ["@alice", "@boss"]


async def test_an_account_is_shown_with_all_that_tools_ask_for(server: Server, boss: Client, alice: Client) -> None:
    shown = await boss.ok("GET", f"{V2}/users/{alice.user_id}")
    assert (shown["name"], shown["deactivated"], shown["admin"], shown["threepids"]) == (
        alice.user_id, False, False, [],
    )  # fmt: skip
    assert [each["device_id"] for each in shown["devices"]] == [alice.device_id]
    assert (await boss.ok("GET", f"{V1}/users/{boss.user_id}/admin")) == {"admin": True}
    sessions = await boss.ok("GET", f"{V1}/whois/{alice.user_id}")
    assert list(sessions["devices"]) == [alice.device_id]
    for path in (f"{V2}/users", f"{V1}/whois"):
        assert await boss.refused("GET", f"{path}/@nobody:{server.name}") == (404, "M_NOT_FOUND")
        assert await boss.refused("GET", f"{path}/@alice:elsewhere.example") == (400, "M_INVALID_PARAM")
        assert await boss.refused("GET", f"{path}/nonsense") == (400, "M_INVALID_PARAM")


async def test_put_creates_an_account(server: Server, boss: Client) -> None:
    path = f"{V2}/users/@carol:{server.name}"
    body = {
        "password": PASSWORD, "displayname": "Carol", "avatar_url": "mxc://test.example/abc", "admin": True,
        "threepids": [{"medium": "email", "address": "Carol@Example.org"}, {"medium": "msisdn", "address": "447470"}],
    }  # fmt: skip
    made = await boss.put(path, json=body)
    assert made.status_code == 201
    assert {key: made.json()[key] for key in ("displayname", "avatar_url", "admin")} == {
        key: body[key] for key in ("displayname", "avatar_url", "admin")
    }
    assert {each["address"] for each in made.json()["threepids"]} == {"447470", "carol@example.org"}
    carol = await server.log_in("carol")
    assert await carol.ok("GET", f"profile/{carol.user_id}/displayname") == {"displayname": "Carol"}
    assert await boss.ok("GET", f"{V1}/threepid/email/users/CAROL@example.org") == {"user_id": carol.user_id}
    assert await boss.refused("GET", f"{V1}/threepid/email/users/nobody@example.org") == (404, "M_NOT_FOUND")
    assert await boss.refused("PUT", f"{V2}/users/@Dave:{server.name}", json={}) == (400, "M_INVALID_USERNAME")


async def test_put_changes_an_account_in_one_step(server: Server, boss: Client, alice: Client) -> None:
    path = f"{V2}/users/{alice.user_id}"
    room_id = await create(alice)
    changed = await boss.ok("PUT", path, json={"displayname": "Al", "user_type": "support"})
    assert (changed["displayname"], changed["user_type"]) == ("Al", "support")
    assert (await state(alice, room_id))["m.room.member", alice.user_id]["content"]["displayname"] == "Al"
    assert (await boss.ok("PUT", path, json={"displayname": "", "user_type": None}))["displayname"] is None
    await boss.ok("PUT", path, json={"password": "another password", "logout_devices": False})
    assert (await alice.ok("GET", "account/whoami"))["user_id"] == alice.user_id
    await boss.ok("PUT", path, json={"password": "a third password"})
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await server.log_in("alice", "a third password")
    before = await boss.ok("GET", path)
    for body, error in (
        ({"displayname": "New", "password": "short"}, "M_WEAK_PASSWORD"),
        ({"displayname": "New", "avatar_url": "https://example.org"}, "M_INVALID_PARAM"),
        ({"displayname": "New", "user_type": "king"}, "M_INVALID_PARAM"),
        ({"displayname": "New", "threepids": [{"medium": "email", "address": "nonsense"}]}, "M_INVALID_EMAIL"),
        ({"displayname": "New", "threepids": [{"medium": "fax", "address": "1"}]}, "M_INVALID_PARAM"),
        ({"displayname": "New", "deactivated": True, "locked": True}, "M_INVALID_PARAM"),
        ({"displayname": 5}, "M_BAD_JSON"),
        ({"admin": "yes"}, "M_BAD_JSON"),
    ):
        assert await boss.refused("PUT", path, json=body) == (400, error), body
    assert await boss.ok("GET", path) == before


async def test_an_address_belongs_to_one_account(server: Server, boss: Client, alice: Client) -> None:
    address = {"medium": "email", "address": "x@example.org"}
    await boss.ok("PUT", f"{V2}/users/{alice.user_id}", json={"threepids": [address]})
    path = f"{V2}/users/@bob:{server.name}"
    refused = await boss.refused("PUT", path, json={"password": PASSWORD, "threepids": [address]})
    assert refused == (400, "M_THREEPID_IN_USE")
    assert await boss.refused("GET", path) == (404, "M_NOT_FOUND")  # nothing half done
    await boss.ok("PUT", f"{V2}/users/{alice.user_id}", json={"threepids": []})
    assert (await boss.put(path, json={"threepids": [address]})).status_code == 201


async def test_a_deactivated_account_can_be_opened_again(server: Server, boss: Client, alice: Client) -> None:
    path = f"{V2}/users/{alice.user_id}"
    await public_room(alice)
    assert (await boss.ok("PUT", path, json={"deactivated": True}))["deactivated"]
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert await boss.refused("PUT", path, json={"displayname": "Al"}) == (400, "M_UNKNOWN")
    await trio.sleep(1)  # the user has left their rooms
    assert (await boss.ok("GET", f"{V1}/users/{alice.user_id}/joined_rooms"))["total"] == 0
    opened = await boss.ok("PUT", path, json={"deactivated": False, "password": PASSWORD})
    assert not opened["deactivated"]
    again = await server.log_in("alice")
    assert await again.ok("GET", "joined_rooms") == {"joined_rooms": []}


async def test_administrators_cannot_lock_themselves_out(boss: Client, alice: Client) -> None:
    for body in ({"admin": False}, {"deactivated": True}, {"locked": True}, {"suspended": True}):
        assert await boss.refused("PUT", f"{V2}/users/{boss.user_id}", json=body) == (403, "M_FORBIDDEN")
    assert await boss.refused("PUT", f"{V1}/users/{boss.user_id}/admin", json={"admin": False}) == (403, "M_FORBIDDEN")
    await boss.ok("PUT", f"{V1}/users/{alice.user_id}/admin", json={"admin": True})
    for body in ({"locked": True}, {"suspended": True}):
        assert await boss.refused("PUT", f"{V2}/users/{alice.user_id}", json=body) == (403, "M_FORBIDDEN")
    assert await boss.refused("POST", f"{V1}/users/{alice.user_id}/shadow_ban") == (403, "M_FORBIDDEN")
    await boss.ok("PUT", f"{V1}/users/{alice.user_id}/admin", json={"admin": False})
    assert await alice.refused("GET", f"{V2}/users") == (403, "M_FORBIDDEN")


async def test_rooms_data_and_pushers_of_a_user_are_listed(server: Server, boss: Client, alice: Client) -> None:
    bob = await server.register("bob")
    room_id, other = await create(alice), await public_room(bob, alice)
    await invite(alice, room_id, bob)
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.a", json={"a": 1})
    await alice.ok("PUT", f"user/{alice.user_id}/rooms/{room_id}/account_data/org.example.b", json={"b": 2})
    of_alice = f"{V1}/users/{alice.user_id}"
    assert (await boss.ok("GET", f"{of_alice}/joined_rooms"))["joined_rooms"] == sorted([room_id, other])
    assert (await boss.ok("GET", f"{of_alice}/memberships"))["memberships"] == {room_id: "join", other: "join"}
    data = (await boss.ok("GET", f"{of_alice}/accountdata"))["account_data"]
    assert (data["global"]["org.example.a"], data["rooms"][room_id]) == ({"a": 1}, {"org.example.b": {"b": 2}})
    assert await boss.ok("GET", f"{of_alice}/pushers") == {"pushers": [], "total": 0}
    assert await boss.ok("GET", f"{of_alice}/sent_invite_count?from_ts=0") == {"invite_count": 1}
    assert await boss.ok("GET", f"{of_alice}/cumulative_joined_room_count?from_ts=0") == {
        "cumulative_joined_room_count": 2
    }
    later = server.hs.now_ms() + 1000
    assert await boss.ok("GET", f"{of_alice}/sent_invite_count?from_ts={later}") == {"invite_count": 0}
    assert await boss.refused("GET", f"{of_alice}/sent_invite_count") == (400, "M_MISSING_PARAM")
    assert await boss.refused("GET", f"{of_alice}/sent_invite_count?from_ts={2**70}") == (400, "M_INVALID_PARAM")


async def test_names_can_be_checked_even_while_nobody_can_register(boss: Client, alice: Client) -> None:
    assert await boss.ok("GET", f"{V1}/username_available?username=new") == {"available": True}
    assert await boss.refused("GET", f"{V1}/username_available?username=alice") == (400, "M_USER_IN_USE")
    assert await boss.refused("GET", f"{V1}/username_available?username=a%20b") == (400, "M_INVALID_USERNAME")


async def test_administrators_act_for_users_unseen(server: Server, boss: Client, alice: Client) -> None:
    login = f"{V1}/users/{alice.user_id}/login"
    token = (await boss.ok("POST", login, json={}))["access_token"]
    acting = server.with_token(token)
    assert (await acting.ok("GET", "account/whoami"))["user_id"] == alice.user_id
    assert len((await alice.ok("GET", "devices"))["devices"]) == 1
    await alice.ok("POST", "logout/all")
    assert (await acting.ok("GET", "account/whoami"))["user_id"] == alice.user_id
    await boss.ok("POST", "logout/all")
    assert await acting.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_tokens_to_act_for_users_end(server: Server, boss: Client, alice: Client) -> None:
    login = f"{V1}/users/{alice.user_id}/login"
    until = server.hs.now_ms() + 24 * 3600 * 1000
    acting = server.with_token((await boss.ok("POST", login, json={"valid_until_ms": until}))["access_token"])
    await trio.sleep(23 * 3600)
    await acting.ok("GET", "account/whoami")
    await trio.sleep(2 * 3600)
    assert await acting.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    other = server.with_token((await boss.ok("POST", login))["access_token"])
    await other.ok("POST", "logout")
    assert await other.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    third = server.with_token((await boss.ok("POST", login))["access_token"])
    await boss.ok("POST", f"{V1}/deactivate/{alice.user_id}", json={})
    assert await third.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert await boss.refused("POST", login) == (404, "M_NOT_FOUND")
    assert await boss.refused("POST", f"{V1}/users/{boss.user_id}/login") == (400, "M_INVALID_PARAM")
    for moment in (1, 2**60):
        refused = await boss.refused("POST", f"{V1}/users/{alice.user_id}/login", json={"valid_until_ms": moment})
        assert refused == (400, "M_INVALID_PARAM")


async def test_tokens_to_act_for_users_end_with_the_rights_of_the_administrator(
    server: Server, boss: Client, alice: Client
) -> None:
    helper = await server.register("helper")
    rights = f"{V1}/users/{helper.user_id}/admin"
    await boss.ok("PUT", rights, json={"admin": True})
    token = (await helper.ok("POST", f"{V1}/users/{alice.user_id}/login"))["access_token"]
    acting = server.with_token(token)
    await acting.ok("GET", "account/whoami")
    await boss.ok("PUT", rights, json={"admin": False})
    assert await acting.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_tokens_to_act_for_users_end_when_the_administrator_gets_a_new_password(
    server: Server, boss: Client, alice: Client
) -> None:
    """Whoever had taken over the administrator's account may have made them."""
    acting = server.with_token((await boss.ok("POST", f"{V1}/users/{alice.user_id}/login"))["access_token"])
    await acting.ok("GET", "account/whoami")
    await boss.ok("POST", f"{V1}/reset_password/{boss.user_id}", json={"new_password": "correct horse 1"})
    assert await acting.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_nobody_acts_for_a_user_who_has_become_an_administrator(
    server: Server, boss: Client, alice: Client
) -> None:
    acting = server.with_token((await boss.ok("POST", f"{V1}/users/{alice.user_id}/login"))["access_token"])
    await acting.ok("GET", "account/whoami")
    await boss.ok("PUT", f"{V1}/users/{alice.user_id}/admin", json={"admin": True})
    assert await acting.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await alice.ok("GET", "account/whoami")


async def test_an_account_may_have_rate_limits_of_its_own(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    boss, alice = await server.register("boss"), await server.register("alice")
    await server.write(store_account_flags, boss.user_id, AccountFlags(is_admin=True))
    room_id = await create(alice)
    path = f"{V1}/users/{alice.user_id}/override_ratelimit"
    assert await boss.ok("GET", path) == {}
    limit = {"messages_per_second": 1, "burst_count": 3}
    assert await boss.ok("POST", path, json=limit) == limit
    assert await boss.ok("GET", path) == limit
    for _ in range(3):
        await send(alice, room_id)
    text = {"msgtype": "m.text", "body": "x"}
    assert await alice.refused("PUT", f"rooms/{room_id}/send/m.room.message/x", json=text) == (429, "M_LIMIT_EXCEEDED")
    await boss.ok("POST", path, json={})
    for _ in range(150):
        await set_state(alice, room_id, "org.example", {})
    assert await boss.ok("DELETE", path) == {}
    assert await boss.ok("GET", path) == {}
    assert await boss.refused("POST", path, json={"messages_per_second": -1}) == (400, "M_INVALID_PARAM")
    assert await boss.refused("POST", path, json={"burst_count": 2**63}) == (400, "M_INVALID_PARAM")


async def test_suspensions_of_tools_are_those_of_the_specification(boss: Client, alice: Client) -> None:
    path = f"{V1}/suspend/{alice.user_id}"
    assert await boss.ok("PUT", path, json={"suspend": True}) == {f"user_{alice.user_id}_suspended": True}
    assert await alice.refused("POST", "createRoom", json={}) == (403, "M_USER_SUSPENDED")
    await boss.ok("PUT", path, json={"suspend": False})
    await create(alice)


# --- devices ---


async def test_devices_of_users_are_listed_renamed_and_deleted(server: Server, boss: Client, alice: Client) -> None:
    phone = await server.log_in("alice", device_id="PHONE")
    devices = f"{V2}/users/{alice.user_id}/devices"
    listed = await boss.ok("GET", devices)
    assert (listed["total"], {each["device_id"] for each in listed["devices"]}) == (2, {"PHONE", alice.device_id})
    await boss.ok("PUT", f"{devices}/PHONE", json={"display_name": "Lost"})
    assert (await boss.ok("GET", f"{devices}/PHONE"))["display_name"] == "Lost"
    assert await boss.ok("POST", devices, json={"device_id": "NEW"}) == {}
    assert await boss.ok("POST", devices, json={"device_id": "NEW"}) == {}
    assert await boss.ok("DELETE", f"{devices}/PHONE") == {}
    assert await phone.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await boss.ok("POST", f"{V2}/users/{alice.user_id}/delete_devices", json={"devices": ["NEW", "UNKNOWN"]})
    assert (await boss.ok("GET", devices))["total"] == 1
    for method, path, body in (
        ("GET", f"{devices}/PHONE", None),
        ("PUT", f"{devices}/PHONE", {"display_name": "x"}),
        ("GET", f"{V2}/users/@nobody:{server.name}/devices", None),
        ("POST", f"{V2}/users/@nobody:{server.name}/devices", {"device_id": "X"}),
    ):
        assert await boss.refused(method, path, json=body) == (404, "M_NOT_FOUND"), path
    for body in ({"device_id": ""}, {"device_id": "x" * 1000}, {"device_id": "\n"}):
        assert await boss.refused("POST", devices, json=body) == (400, "M_INVALID_PARAM"), body
