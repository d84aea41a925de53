"""Syncs that wait for news, and what ends them. Spec: client-server-api/#syncing, #client-authentication"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.homeservers import PASSWORD, Client, Server
from tests.support.people import sync


async def wait_while(client: Client, act: Callable[[], Awaitable[Any]]) -> tuple[int, dict[str, Any], float]:
    """The answer to a sync that waits while something is done, and how long it took in seconds."""
    since = (await sync(client, set_presence="offline"))["next_batch"]
    answers: list[tuple[int, dict[str, Any], float]] = []

    async def wait() -> None:
        began = trio.current_time()
        response = await client.get("sync", params={"since": since, "timeout": 30_000, "set_presence": "offline"})
        answers.append((response.status_code, response.json(), trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        await act()
    return answers[0]


@pytest.mark.parametrize("how", ["logout", "logout/all", "deactivation", "new password", "deleted device"])
async def test_a_sync_ends_when_its_token_is_revoked(server: Server, how: str) -> None:
    phone = await server.register("alice")
    laptop = await server.log_in("alice")

    async def revoke() -> None:
        if how == "logout":
            await phone.ok("POST", "logout")
        elif how == "logout/all":
            await laptop.ok("POST", "logout/all")
        elif how == "deactivation":
            await laptop.ok("POST", "account/deactivate", json={"auth": laptop.password_auth()})
        elif how == "new password":
            body = {"new_password": "another good one", "auth": laptop.password_auth()}
            await laptop.ok("POST", "account/password", json=body)
        else:
            await laptop.ok("DELETE", f"devices/{phone.device_id}", json={"auth": laptop.password_auth()})

    status, body, seconds = await wait_while(phone, revoke)
    assert (status, body["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    assert not body.get("soft_logout")
    assert seconds < 6


async def test_a_sync_ends_when_its_account_is_locked(server: Server) -> None:
    alice = await server.register("alice")

    async def lock() -> None:
        await server.write(store_account_flags, alice.user_id, AccountFlags(is_locked=True))

    status, body, seconds = await wait_while(alice, lock)
    assert (status, body["errcode"], body["soft_logout"]) == (401, "M_USER_LOCKED", True)
    assert seconds < 6


async def test_a_device_that_logs_in_again_keeps_its_keys(server: Server) -> None:
    alice = await server.register("alice")

    async def log_in_again() -> None:
        await server.log_in("alice", PASSWORD, device_id=alice.device_id)

    status, body, _ = await wait_while(alice, log_in_again)
    assert (status, body["errcode"], body["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", True)


async def test_a_waiting_sync_survives_a_refresh_of_its_token(server: Server) -> None:
    body = {"username": "alice", "password": PASSWORD, "auth": {"type": "m.login.dummy"}, "refresh_token": True}
    answer = await server.anonymous.ok("POST", "register", json=body)
    alice = Client(server, answer["access_token"], answer["user_id"], answer["device_id"])

    async def refresh() -> None:
        tokens = await server.anonymous.ok("POST", "refresh", json={"refresh_token": answer["refresh_token"]})
        await server.with_token(tokens["access_token"]).ok("GET", "account/whoami")
        assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")

    status, _, seconds = await wait_while(alice, refresh)
    assert status == 200
    assert seconds > 29


async def test_another_device_sees_the_logout_and_keeps_syncing(server: Server) -> None:
    phone = await server.register("alice")
    laptop = await server.log_in("alice")

    async def revoke() -> None:
        await laptop.ok("POST", "logout")

    status, answer, _ = await wait_while(phone, revoke)
    assert status == 200
    assert answer["device_lists"]["changed"] == [phone.user_id]


async def test_a_disconnecting_client_is_not_logged_as_an_error(server: Server) -> None:
    alice = await server.register("alice")
    since = (await sync(alice, set_presence="offline"))["next_batch"]
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, object]:
        await trio.sleep(1)
        return next(messages)

    async def send(message: dict[str, object]) -> None:
        """Nobody is there to get it."""

    await server.app(
        {
            "type": "http", "http_version": "1.1", "method": "GET", "path": "/_matrix/client/v3/sync",
            "raw_path": b"/_matrix/client/v3/sync", "client": ("192.0.2.7", 4711), "server": ("test.example", 443),
            "query_string": f"since={since}&timeout=30000&set_presence=offline".encode(), "scheme": "https",
            "headers": [(b"authorization", f"Bearer {alice.token}".encode())],
        },
        receive,
        send,
    )  # fmt: skip
    assert trio.current_time() < 10
    metrics = server.hs.metrics.text()
    assert 'homeserver_requests_total{operation="sync_events",status="499"} 1' in metrics
    assert 'status="503"' not in metrics


class Spawned(trio.abc.Instrument):
    """Notes the tasks that are started, but for those of the test's own client."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(("homeserver.http.", "homeserver.sync.")):  # others work in the background
            self.names.append(task.name)


@pytest.mark.parametrize("timeout", [0, 30_000])
async def test_a_waiting_sync_needs_no_task_of_its_own(server: Server, timeout: int) -> None:
    alice = await server.register("alice")
    since = (await sync(alice, set_presence="offline"))["next_batch"]
    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    try:
        await sync(alice, since, timeout=timeout, set_presence="offline")
    finally:
        trio.lowlevel.remove_instrument(spawned)
    assert spawned.names == []


async def test_one_user_cannot_occupy_all_waiting_syncs(server: Server) -> None:
    """All users share the requests that a server has under way at a time."""
    alice, bob = await server.register("alice"), await server.register("bob")
    since = (await sync(alice, set_presence="offline"))["next_batch"]
    statuses: Counter[int] = Counter()

    async def wait() -> None:
        response = await alice.get("sync", params={"since": since, "timeout": 30_000, "set_presence": "offline"})
        statuses[response.status_code] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(limits.http.WAITING_PER_USER_MAX):
            nursery.start_soon(wait)
        await trio.sleep(5)
        assert await alice.refused("GET", f"sync?since={since}&timeout=30000") == (429, "M_LIMIT_EXCEEDED")
        await alice.ok("GET", "account/whoami")
        await sync(bob)
    assert statuses == {200: limits.http.WAITING_PER_USER_MAX}
    await sync(alice, since)
