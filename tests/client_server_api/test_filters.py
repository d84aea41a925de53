"""Spec: client-server-api/#filtering"""

from __future__ import annotations

import pytest

from homeserver import limits
from tests.support.homeservers import Server
from tests.support.rows import row

# The example of the specification.
EXAMPLE = {
    "room": {
        "state": {"types": ["m.room.*"], "not_rooms": ["!726s6s6q:example.com"]},
        "timeline": {
            "limit": 10,
            "types": ["m.room.message"],
            "not_rooms": ["!726s6s6q:example.com"],
            "not_senders": ["@spam:example.com"],
        },
        "ephemeral": {
            "types": ["m.receipt", "m.typing"],
            "not_rooms": ["!726s6s6q:example.com"],
            "not_senders": ["@spam:example.com"],
        },
    },
    "presence": {"types": ["m.presence"], "not_senders": ["@alice:example.com"]},
    "event_format": "client",
    "event_fields": ["type", "content", "sender"],
    "org.example.unknown": {"kept": True},
}


async def test_filters_are_stored_and_returned(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/filter"
    for content in (EXAMPLE, {}):
        filter_id = (await alice.ok("POST", path, json=content))["filter_id"]
        assert not filter_id.startswith("{")
        assert await alice.ok("GET", f"{path}/{filter_id}") == content


async def test_the_same_filter_has_the_same_id(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/filter"
    one = await alice.ok("POST", path, json={"room": {"timeline": {"limit": 5, "types": ["a"]}}})
    two = await alice.ok("POST", path, json={"room": {"timeline": {"types": ["a"], "limit": 5}}})
    assert one == two


async def test_too_many_filters_evict_the_oldest(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/filter"
    first = (await alice.ok("POST", path, json={}))["filter_id"]
    for number in range(limits.users.FILTERS_PER_USER_MAX):
        last = (await alice.ok("POST", path, json={"room": {"timeline": {"limit": number}}}))["filter_id"]
    assert await alice.refused("GET", f"{path}/{first}") == (404, "M_NOT_FOUND")
    await alice.ok("GET", f"{path}/{last}")


async def test_malformed_filters_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    path = f"user/{alice.user_id}/filter"
    for content in [
        {"presence": "not_an_object"},
        {"account_data": []},
        {"event_format": "nonsense"},
        {"event_fields": "content"},
        {"event_fields": [7]},
        {"room": []},
        {"room": {"timeline": "not_an_object"}},
        {"room": {"state": "not_an_object"}},
        {"room": {"ephemeral": "not_an_object"}},
        {"room": {"account_data": "not_an_object"}},
        {"room": {"include_leave": "yes"}},
        {"room": {"rooms": ["not_a_room_id"]}},
        {"room": {"not_rooms": "!a:example.org"}},
        {"room": {"timeline": {"types": "not_a_list"}}},
        {"room": {"timeline": {"types": [1]}}},
        {"room": {"timeline": {"limit": "ten"}}},
        {"room": {"timeline": {"rooms": ["not_a_room_id"]}}},
        {"room": {"timeline": {"senders": ["not_a_sender_id"]}}},
        {"room": {"timeline": {"contains_url": 1}}},
        {"room": {"state": {"lazy_load_members": "true"}}},
        {"presence": {"not_senders": ["nobody"]}},
        [],
    ]:
        with row(content):
            assert await alice.refused("POST", path, json=content) == (400, "M_BAD_JSON")
            assert await alice.refused("GET", f"{path}/1") == (404, "M_NOT_FOUND")


async def test_oversized_filters_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    content = {"event_fields": ["x" * limits.users.FILTER_BYTES_MAX]}
    assert await alice.refused("POST", f"user/{alice.user_id}/filter", json=content) == (413, "M_TOO_LARGE")


@pytest.mark.parametrize("filter_id", ["0", "999", "nonsense", "-1", "9" * 40, "%C2%B2"])
async def test_unknown_filters_are_not_found(homeserver: Server, filter_id: str) -> None:
    alice = await homeserver.register("alice")
    assert await alice.refused("GET", f"user/{alice.user_id}/filter/{filter_id}") == (404, "M_NOT_FOUND")


async def test_filters_are_private_to_their_user(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    await alice.ok("POST", f"user/{alice.user_id}/filter", json={})
    assert await bob.refused("GET", f"user/{alice.user_id}/filter/1") == (403, "M_FORBIDDEN")
    assert await bob.refused("POST", f"user/{alice.user_id}/filter", json={}) == (403, "M_FORBIDDEN")
