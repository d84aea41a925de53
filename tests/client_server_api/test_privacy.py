"""Not in the spec: docs/status.md. What a person lets others see, and who may invite them."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from tests.client_server_api.test_status import OURS, status_of
from tests.support.homeservers import Server

PRIVACY = f"{OURS}/privacy"
EVERYONE = {"status": "everyone", "friend_requests": "everyone", "invites": "everyone", "delivery": "everyone"}
DATA = "user/{}/account_data/org.homeserver.privacy"


def befriend(tx: Transaction, user_id: UserID, friend: UserID) -> None:
    tx.run(
        "INSERT INTO friends (user_nid, friend_nid, state, room_nid, since_ms, position)"
        " VALUES (?, ?, 'friend', 0, 1, ?)",
        tx.intern(user_id),
        tx.intern(friend),
        tx.next_position(user_id),
    )


async def test_everyone_may_see_everything_by_default(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.ok("GET", PRIVACY) == EVERYONE


async def test_settings_that_are_not_named_stay(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.ok("PUT", PRIVACY, json={"status": "friends"}) == {**EVERYONE, "status": "friends"}
    expected = {**EVERYONE, "status": "friends", "invites": "shared_room"}
    assert await alice.ok("PUT", PRIVACY, json={"invites": "shared_room"}) == expected
    assert await alice.ok("GET", PRIVACY) == expected


async def test_settings_are_account_data(server: Server) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", PRIVACY, json={"delivery": "nobody"})
    path = DATA.format(alice.user_id)
    assert await alice.ok("GET", path) == {"delivery": "nobody"}
    await alice.ok("PUT", path, json={"status": "nobody"})
    assert await alice.ok("GET", PRIVACY) == {**EVERYONE, "status": "nobody"}


@pytest.mark.parametrize(
    "body",
    [
        {"status": "shared_room"},
        {"status": None},
        {"invites": ["everyone"]},
        {"friend_requests": "friends"},
        {"delivery": "Nobody"},
        {"delivery": 0},
    ],
)
async def test_unknown_audiences_are_refused(server: Server, body: dict[str, Any]) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", PRIVACY, json={"status": "nobody"})
    assert await alice.refused("PUT", PRIVACY, json=body) == (400, "M_INVALID_PARAM")
    assert await alice.refused("PUT", DATA.format(alice.user_id), json=body) == (400, "M_BAD_JSON")
    assert await alice.ok("GET", PRIVACY) == {**EVERYONE, "status": "nobody"}


async def test_unknown_settings_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.refused("PUT", PRIVACY, json={"stauts": "nobody"}) == (400, "M_INVALID_PARAM")


async def test_a_hidden_status_is_seen_by_its_owner_only(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await bob.ok("PUT", PRIVACY, json={"status": "nobody"})
    assert await status_of(server, bob, alice) is None
    own = await status_of(server, bob, bob)
    assert own is not None and own.online


async def test_friends_see_a_status_that_is_for_friends(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await bob.ok("PUT", PRIVACY, json={"status": "friends"})
    await server.write(befriend, bob.user_id, alice.user_id)
    assert await status_of(server, bob, alice) is not None
    assert await status_of(server, bob, carol) is None
