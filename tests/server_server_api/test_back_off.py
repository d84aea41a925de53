"""Servers that do not answer are spared, but not at the cost of the people who wait for them.

Spec: server-server-api/#transactions leaves it to a server when it tries again.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import pytest
import trio
import trio.testing

from homeserver import limits
from homeserver.federation.identifiers import ServerName
from homeserver.process.back_off import BackOff
from homeserver.process.peers import Cause, Peers, Shares, peer, stranger
from tests.support.federation import Federation, create_room, join, send_text, wait_text
from tests.support.homeservers import Client
from tests.support.stranger import Stranger

OWN, THEIRS = ServerName("a.example"), ServerName("b.example")
PERSON, IN_THE_BACKGROUND = Cause("person"), peer(ServerName("c.example"))


def test_back_off_doubles_with_each_failed_retry() -> None:
    peers, now_ms, lasts_ms = Peers(), 1_000, []
    for failures in range(1, 20):
        back_off = peers.note_failure(OWN, THEIRS, now_ms)
        assert (back_off.failures, back_off.since_ms) == (failures, 1_000)
        lasts_ms.append(back_off.retry_after_ms - now_ms)
        now_ms = back_off.retry_after_ms
    assert lasts_ms[0] < 3_000
    assert all(1.2 * before < after for before, after in itertools.pairwise(lasts_ms[:9]))
    assert max(lasts_ms) <= 1.2 * limits.peers.RETRY_MS_MAX


def test_failure_during_the_back_off_does_not_make_it_longer() -> None:
    peers = Peers()
    first = peers.note_failure(OWN, THEIRS, 0)
    again = peers.note_failure(OWN, THEIRS, 500)
    assert (again.failures, again.retry_after_ms) == (1, first.retry_after_ms)


def test_a_users_request_is_let_through_every_few_seconds_of_a_back_off() -> None:
    peers = Peers()
    peers.set_back_off(THEIRS, BackOff(12, 0, 3_600_000, tried_ms=0))
    admitted = [ms for ms in range(0, 20_000, 250) if peers.admit(THEIRS, ms, PERSON)]
    every_ms = limits.peers.EARLY_ATTEMPT_MS["person"]
    assert admitted == list(range(every_ms, 20_000, every_ms))
    assert not any(peers.admit(THEIRS, ms, IN_THE_BACKGROUND) for ms in range(0, 20_000, 250))


def test_any_contact_with_a_server_ends_its_back_off() -> None:
    peers = Peers()
    peers.note_failure(OWN, THEIRS, 0)
    assert not peers.admit(THEIRS, 1, IN_THE_BACKGROUND)
    peers.note_contact(THEIRS)
    assert peers.admit(THEIRS, 1, IN_THE_BACKGROUND)


def test_correcting_the_clock_does_not_prolong_a_back_off() -> None:
    peers = Peers()
    year_ms = 365 * 86_400_000
    peers.note_failure(OWN, THEIRS, year_ms)
    assert peers.admit(THEIRS, 0, IN_THE_BACKGROUND)


async def test_users_reach_a_recovered_server_at_once(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    await create_room(bob, preset="public_chat", room_alias_name="lobby")
    await federation.kill("b.example")
    alias = quote("#lobby:b.example")

    async def statuses() -> set[int]:
        lookups = (f"directory/room/{alias}", f"profile/{quote(bob.user_id)}", "publicRooms?server=b.example")
        return {(await alice.get(path)).status_code for path in lookups}

    for _ in range(1_000):
        assert 200 not in await statuses()
        await trio.sleep(1)
    await federation.start("b.example")
    await trio.sleep(limits.peers.EARLY_ATTEMPT_MS["person"] / 1000)
    assert await statuses() == {200}
    await join(alice, "#lobby:b.example")


async def test_an_answered_request_releases_events_waiting_for_the_server(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.cut("a.example", "b.example")
    await send_text(alice, room_id, "are you there?")
    await trio.sleep(5_000)
    federation.network.heal()
    assert (await alice.get(f"profile/{quote(bob.user_id)}")).status_code == 200
    with trio.fail_after(10):
        await wait_text(bob, room_id, "are you there?")


# Shares of the connections


@pytest.mark.parametrize("cause", [peer, stranger])
async def test_one_cause_cannot_use_more_than_its_share_of_requests(
    cause: Callable[[ServerName], Cause], autojump_clock: trio.testing.MockClock
) -> None:
    shares = Shares()
    one, other = cause(ServerName("one.example")), cause(ServerName("other.example"))
    share = limits.peers.CONNECTION_SHARES[one.kind]
    async with trio.open_nursery() as nursery:
        held = [await nursery.start(_hold, shares, one) for _ in range(share.each)]
        with trio.move_on_after(60) as waiting:
            await nursery.start(_hold, shares, one)
        assert waiting.cancelled_caught
        with trio.fail_after(0.1):
            held.append(await nursery.start(_hold, shares, other))
            async with shares.take(PERSON):
                pass
        for scope in held:
            scope.cancel()
    assert (shares.using(one), shares.using(other)) == (0, 0)


async def test_causes_of_one_kind_leave_connections_for_others() -> None:
    shares = Shares()
    async with trio.open_nursery() as nursery:
        for number in range(1_000):
            nursery.start_soon(_hold, shares, peer(ServerName(f"s{number}.example")))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(0.1):
            async with shares.take(stranger("192.0.2.1")), shares.take(PERSON):
                pass
        nursery.cancel_scope.cancel()
    assert sum(share.total for share in limits.peers.CONNECTION_SHARES.values()) < 512


async def _hold(
    shares: Shares, cause: Cause, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        async with shares.take(cause):
            task_status.started(scope)
            await trio.sleep_forever()


# What may make us connect


async def test_forged_events_from_an_uninvolved_server_cause_no_requests(
    forge: Callable[..., Awaitable[set[str]]],
) -> None:
    assert await forge(joined=False) == set()


async def test_events_from_servers_outside_the_room_cause_no_requests(
    forge: Callable[..., Awaitable[set[str]]],
) -> None:
    assert await forge(joined=True) == set()


async def test_a_server_that_may_be_joining_is_asked_for_its_keys(forge: Callable[..., Awaitable[set[str]]]) -> None:
    assert await forge(joined=True, member=True) == {"s0.example", "s1.example", "s2.example"}


@pytest.fixture
async def forge(federation: Federation) -> Callable[..., Awaitable[set[str]]]:
    """Makes a stranger send events of users of three servers. Returns the servers that we asked for keys."""
    a = await federation.start("a.example")
    alice: Client = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    anchor = await send_text(alice, room_id, "anchor")
    mallory = Stranger(federation.network, ServerName("mallory.example"))

    async def send(*, joined: bool, member: bool = False) -> set[str]:
        if joined:
            await mallory.join("a.example", room_id, "mallory")
        pdus = [
            {
                "type": "m.room.member" if member else "m.room.message",
                "room_id": room_id,
                "sender": f"@x:s{number}.example",
                **({"state_key": f"@x:s{number}.example"} if member else {}),
                "content": {"membership": "join"} if member else {"body": "x", "msgtype": "m.text"},
                "depth": 9,
                "origin_server_ts": 1,
                "prev_events": [anchor],
                "auth_events": [anchor],
                "hashes": {"sha256": "x"},
                "signatures": {f"s{number}.example": {"ed25519:1": "A" * 86}},
            }
            for number in range(3)
        ]
        results = await mallory.send("a.example", "1", pdus)
        assert len(results) == 3
        if not member:
            assert all("error" in result for result in results.values())
        return {
            each.destination
            for each in federation.network.exchanges
            if each.origin == "a.example" and each.destination != "mallory.example"
        }

    return send
