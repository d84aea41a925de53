"""Spec: client-server-api/#tracking-the-device-list-for-a-user, #e2e-extensions-to-sync"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.database import Transaction
from homeserver.features.device_lists import list_news
from homeserver.users.encryption import device_lists
from homeserver.users.encryption.device_lists import UPDATES_KEPT_MAX, list_device_list_updates
from tests.support.federation import sync
from tests.support.homeservers import Client, Server
from tests.support.rows import row


async def rename(client: Client, name: str = "new name") -> None:
    await client.ok("PUT", f"devices/{client.device_id}", json={"display_name": name})


async def news(client: Client, since: str) -> tuple[set[str], set[str]]:
    """Returns the changes since a token, which /sync and /keys/changes must agree on."""
    answer = await sync(client, since)
    told = answer.get("device_lists", {})
    listed = await client.ok("GET", f"keys/changes?from={since}&to={answer['next_batch']}")
    assert listed == {"changed": told.get("changed", []), "left": told.get("left", [])}
    return set(listed["changed"]), set(listed["left"])


async def now(client: Client) -> str:
    return (await sync(client))["next_batch"]


async def test_users_sharing_a_room_and_the_user_learn_of_a_changed_device(homeserver: Server) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    await homeserver.make_room(alice, bob)
    since = await now(alice)
    await rename(alice)
    for client in (alice, bob):
        assert await news(client, since) == ({alice.user_id}, set())
    assert await news(carol, since) == (set(), set())


async def test_a_logout_is_a_change_of_the_device_list(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    laptop = await homeserver.log_in("alice")
    since = await now(bob)
    await laptop.ok("POST", "logout", json={})
    assert await news(bob, since) == ({alice.user_id}, set())


async def test_a_new_device_without_keys_is_not_reported(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    since = await now(bob)
    await homeserver.log_in("alice")
    assert await news(bob, since) == (set(), set())


async def test_a_change_wakes_a_waiting_sync(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    since = await now(bob)
    answers: list[dict[str, Any]] = []

    async def wait() -> None:
        answers.append(await sync(bob, since, timeout=30_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        begun = trio.current_time()
        await rename(alice)
    assert trio.current_time() - begun < 1
    assert answers[0]["device_lists"] == {"changed": [alice.user_id], "left": []}


async def test_users_who_start_sharing_a_room_are_reported_to_each_other(homeserver: Server) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await homeserver.make_room(alice, bob)
    since = await now(alice)
    await homeserver.join(carol, room_id)
    assert await news(carol, since) == ({alice.user_id, bob.user_id}, set())
    assert await news(alice, since) == ({carol.user_id}, set())


async def test_a_second_shared_room_is_not_reported(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    first, since = await homeserver.make_room(alice, bob), await now(alice)
    await homeserver.make_room(bob, alice)
    assert await news(alice, since) == (set(), set())
    await bob.ok("POST", f"rooms/{quote(first)}/leave", json={})
    assert await news(alice, since) == (set(), set())


async def test_users_are_reported_as_left_when_no_room_is_shared_any_more(homeserver: Server) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await homeserver.make_room(alice, bob, carol)
    await homeserver.make_room(alice, carol)
    since = await now(alice)
    await alice.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    assert await news(alice, since) == (set(), {bob.user_id})
    assert await news(bob, since) == (set(), {alice.user_id})
    assert await news(carol, since) == (set(), set())


async def test_nothing_is_reported_after_leaving_until_a_room_is_shared_again(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await homeserver.make_room(alice, bob)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    since = await now(alice)
    await rename(bob)
    assert await news(alice, since) == (set(), set())
    await homeserver.join(bob, room_id)
    assert await news(alice, since) == ({bob.user_id}, set())


async def test_users_who_were_never_members_do_not_learn_who_is(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await homeserver.make_room(alice)
    await alice.ok("POST", f"rooms/{quote(room_id)}/invite", json={"user_id": bob.user_id})
    since = await now(bob)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    assert await news(bob, since) == (set(), set())


async def test_former_members_do_not_learn_who_joined_later(homeserver: Server) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await homeserver.make_room(alice, bob)
    since = await now(bob)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    await homeserver.join(carol, room_id)
    assert await news(bob, since) == (set(), {alice.user_id})


async def test_a_filter_of_rooms_hides_no_device_lists(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    since = await now(bob)
    await rename(alice)
    no_rooms = quote('{"room": {"rooms": []}}')
    answer = await bob.ok("GET", f"sync?since={since}&filter={no_rooms}")
    assert answer["device_lists"]["changed"] == [alice.user_id]


async def test_an_initial_sync_has_no_device_lists(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await rename(alice)
    assert "device_lists" not in await sync(alice)


async def test_deactivation_is_a_change_of_the_device_list(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    since = await now(bob)
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    assert await news(bob, since) == (set(), {alice.user_id})


async def test_malformed_tokens_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for query in ["from=x&to=s1", "from=s1&to=x", "from=t1_1&to=s1", f"from=s{'9' * 30}&to=s1"]:
        with row(query):
            assert await alice.refused("GET", f"keys/changes?{query}") == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("query", ["", "from=s1", "to=s1"])
async def test_both_tokens_are_required(homeserver: Server, query: str) -> None:
    alice = await homeserver.register("alice")
    assert await alice.refused("GET", f"keys/changes?{query}") == (400, "M_MISSING_PARAM")


async def test_after_a_restore_from_a_backup_everyone_counts_as_changed(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await homeserver.make_room(alice, bob)
    since = await now(alice)
    answer = await alice.ok("GET", f"keys/changes?from=s3_another&to={since}")
    assert bob.user_id in answer["changed"]
    assert bob.user_id in (await sync(alice, "s3_another"))["device_lists"]["changed"]


async def test_a_quiet_sync_reads_no_rooms(homeserver: Server) -> None:
    """However many rooms and members there are, device lists cost a few statements where nothing has changed."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")

    async def count() -> int:
        statements = 0

        def read(tx: Transaction) -> None:
            nonlocal statements
            execute = tx._execute

            def counting(sql: str, params: Any) -> Any:
                nonlocal statements
                statements += 1
                return execute(sql, params)

            tx._execute = counting
            assert list_news(tx, alice.user_id, tx.position, tx.position) == (set(), set())

        await homeserver.read(read)
        return statements

    before = await count()
    for _ in range(5):
        await homeserver.make_room(bob, alice)
    assert await count() <= before <= 5


async def test_a_limited_number_of_updates_is_kept_for_each_user(homeserver: Server) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await rename(bob)
    last = await homeserver.read(device_lists.find_last_update, bob.user_id)
    for number in range(UPDATES_KEPT_MAX + 10):
        await rename(alice, f"{number}")
    for _ in range(UPDATES_KEPT_MAX + 10):
        await homeserver.write(device_lists.note_device_list_changed, bob.user_id, signing_keys=True)
    updates = await homeserver.read(list_device_list_updates, 0, homeserver.hs.stream.position)
    assert sum(each.user_id == alice.user_id for each in updates) == UPDATES_KEPT_MAX
    assert sum(each.user_id == bob.user_id for each in updates) == UPDATES_KEPT_MAX + 1
    assert last in updates
