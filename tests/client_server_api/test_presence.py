"""Spec: client-server-api/#presence, server-server-api/#presence"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.config import Presence
from homeserver.features.presence import FEATURE
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import ServerName
from homeserver.rooms.append import append_local
from homeserver.rooms.membership import store_membership
from homeserver.users.presence import is_news_of_device, note_activity
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.rows import row

TIMEOUT_S = 300


async def sync(client: Client, since: str = "", **query: Any) -> dict[str, Any]:
    return await client.ok("GET", "sync", params={"since": since, **query} if since else query)


def presences(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The content of the last m.presence of each user in an answer of /sync."""
    return {each["sender"]: each["content"] for each in answer.get("presence", {}).get("events", [])}


async def status(client: Client, user_id: str) -> dict[str, Any]:
    return await client.ok("GET", f"presence/{user_id}/status")


async def roommates(server: Server) -> tuple[Client, Client]:
    alice, bob = await server.register("alice"), await server.register("bob")
    await server.make_room(alice, bob)
    return alice, bob


async def test_a_new_user_is_offline(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    assert await status(alice, alice.user_id) == {"presence": "offline"}


async def test_a_status_can_be_set(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    body = {"presence": "online", "status_msg": "Making cupcakes"}
    assert await alice.ok("PUT", f"presence/{alice.user_id}/status", json=body) == {}
    assert await status(alice, alice.user_id) == {**body, "last_active_ago": 0, "currently_active": True}
    await trio.sleep(10)
    await alice.ok("PUT", f"presence/{alice.user_id}/status", json={"presence": "unavailable"})
    assert await status(alice, alice.user_id) == {"presence": "unavailable", "last_active_ago": 0}


async def test_malformed_presence_is_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for body, refusal in [
        ({}, (400, "M_MISSING_PARAM")),
        ({"presence": "busy"}, (400, "M_BAD_JSON")),
        ({"presence": 7}, (400, "M_BAD_JSON")),
        ({"presence": "online", "status_msg": 7}, (400, "M_BAD_JSON")),
        ({"presence": "online", "status_msg": "x" * 2049}, (400, "M_TOO_LARGE")),
    ]:
        with row(body, refusal):
            assert await alice.refused("PUT", f"presence/{alice.user_id}/status", json=body) == refusal
            assert await status(alice, alice.user_id) == {"presence": "offline"}


async def test_only_users_sharing_a_room_see_presence(homeserver: Server) -> None:
    alice, bob = await roommates(homeserver)
    carol = await homeserver.register("carol")
    await alice.ok("PUT", f"presence/{alice.user_id}/status", json={"presence": "online"})
    assert (await status(bob, alice.user_id))["presence"] == "online"
    assert await carol.refused("GET", f"presence/{alice.user_id}/status") == (403, "M_FORBIDDEN")
    body = {"presence": "offline"}
    assert await carol.refused("PUT", f"presence/{alice.user_id}/status", json=body) == (403, "M_FORBIDDEN")


async def test_syncing_sets_users_online(homeserver: Server) -> None:
    alice, bob = await roommates(homeserver)
    first = await sync(bob, set_presence="offline")
    assert presences(first) == {}
    assert presences(await sync(alice))[alice.user_id]["presence"] == "online"
    told = presences(await sync(bob, first["next_batch"], set_presence="offline"))
    assert told == {alice.user_id: {"presence": "online", "last_active_ago": 0, "currently_active": True}}


@pytest.mark.parametrize("state", ["offline", "unavailable"])
async def test_sync_accepts_a_presence_to_set(homeserver: Server, state: str) -> None:
    alice = await homeserver.register("alice")
    await sync(alice, set_presence=state)
    assert (await status(alice, alice.user_id))["presence"] == state


async def test_silent_users_go_offline(homeserver: Server) -> None:
    alice, bob = await roommates(homeserver)
    since = (await sync(alice))["next_batch"]
    since = (await sync(bob, set_presence="offline"))["next_batch"]
    await trio.sleep(TIMEOUT_S + limits.users.PRESENCE_SWEEP_INTERVAL_S + 1)
    told = presences(await sync(bob, since, set_presence="offline"))
    assert told[alice.user_id]["presence"] == "offline"
    assert told[alice.user_id]["last_active_ago"] >= TIMEOUT_S * 1000


async def test_users_who_only_sync_become_idle_and_sending_makes_them_active(homeserver: Server) -> None:
    alice, _ = await roommates(homeserver)
    for _ in range(12):
        await sync(alice)
        await trio.sleep(30)
    assert (await status(alice, alice.user_id))["presence"] == "unavailable"
    await homeserver.write(note_activity, alice.user_id)
    assert (await status(alice, alice.user_id))["presence"] == "online"
    await trio.sleep(90)
    state = await status(alice, alice.user_id)
    assert (state["presence"], state["currently_active"]) == ("online", False)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "send/m.room.message/1", {"msgtype": "m.text", "body": "hello"}),
        ("PUT", "redact/{event_id}/1", {}),
        ("PUT", "state/m.room.topic", {"topic": "cupcakes"}),
        ("PUT", "typing/{user_id}", {"typing": True}),
        ("POST", "receipt/m.read/{event_id}", {}),
        ("POST", "read_markers", {"m.read": "{event_id}"}),
    ],
)
async def test_actions_in_rooms_make_users_active(
    homeserver: Server, method: str, path: str, body: dict[str, str]
) -> None:
    alice = await homeserver.register("alice")
    room_id = await homeserver.make_room(alice)
    message = {"msgtype": "m.text", "body": "before"}
    event_id = (await alice.ok("PUT", f"rooms/{room_id}/send/m.room.message/0", json=message))["event_id"]
    for _ in range(12):
        await sync(alice)
        await trio.sleep(30)
    assert (await status(alice, alice.user_id))["presence"] == "unavailable"
    path = path.format(event_id=event_id, user_id=alice.user_id)
    body = {key: event_id if value == "{event_id}" else value for key, value in body.items()}
    await alice.ok(method, f"rooms/{room_id}/{path}", json=body)
    assert (await status(alice, alice.user_id)).items() >= {"presence": "online", "last_active_ago": 0}.items()


async def test_activity_is_written_at_most_every_half_minute(homeserver: Server) -> None:
    alice, _ = await roommates(homeserver)
    await sync(alice)
    ago: list[int] = []
    for _ in range(4):
        await trio.sleep(20)
        await homeserver.write(note_activity, alice.user_id)
        ago.append((await status(alice, alice.user_id))["last_active_ago"])
    assert ago == [20_000, 0, 20_000, 0]


async def test_activity_of_a_write_that_fails_is_not_remembered(homeserver: Server) -> None:
    alice, _ = await roommates(homeserver)
    await sync(alice)
    await trio.sleep(40)

    def fail(tx: Any) -> None:
        note_activity(tx, alice.user_id)
        raise LookupError

    with pytest.raises(LookupError):
        await homeserver.write(fail)
    assert (await status(alice, alice.user_id))["last_active_ago"] == 40_000
    await homeserver.write(note_activity, alice.user_id)
    assert (await status(alice, alice.user_id))["last_active_ago"] == 0


async def test_a_user_is_online_while_one_device_is(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    other = await homeserver.log_in("alice")
    await sync(alice)
    await sync(other, set_presence="unavailable")
    assert (await status(alice, alice.user_id))["presence"] == "online"
    await trio.sleep(TIMEOUT_S - 10)
    await sync(other, set_presence="unavailable")
    await trio.sleep(TIMEOUT_S - 10)
    assert (await status(alice, alice.user_id))["presence"] == "unavailable"


async def test_syncing_as_offline_changes_nothing(homeserver: Server) -> None:
    alice, bob = await roommates(homeserver)
    phone = await homeserver.log_in("alice")
    await sync(phone, set_presence="offline")
    assert (await status(alice, alice.user_id))["presence"] == "offline"
    body = {"presence": "online", "status_msg": "here"}
    await alice.ok("PUT", f"presence/{alice.user_id}/status", json=body)
    since = (await sync(bob))["next_batch"]
    for client in (alice, phone):
        await sync(client, set_presence="offline")
    answer = await status(bob, alice.user_id)
    assert (answer["presence"], answer["status_msg"]) == ("online", "here")
    assert presences(await sync(bob, since)).get(alice.user_id, {}).get("presence") != "offline"


async def test_syncs_write_nothing_while_nothing_changes(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    since = (await sync(alice))["next_batch"]
    since = (await sync(alice, since))["next_batch"]
    before = homeserver.hs.stream.position
    for _ in range(20):
        since = (await sync(alice, since))["next_batch"]
        await trio.sleep(2)
    assert homeserver.hs.stream.position == before


async def test_a_device_that_syncs_without_news_stays_online(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    since = (await sync(alice))["next_batch"]
    for _ in range(TIMEOUT_S // 5 + 30):
        since = (await sync(alice, since))["next_batch"]
        await trio.sleep(5)
    assert (await status(alice, alice.user_id))["presence"] == "unavailable"


async def test_a_sync_sets_the_user_online_again_after_another_state_was_set(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    tablet = await homeserver.log_in("alice")
    await sync(tablet)
    since = (await sync(alice))["next_batch"]
    for _ in range(2):
        since = (await sync(alice, since))["next_batch"]
    await alice.ok("PUT", f"presence/{alice.user_id}/status", json={"presence": "unavailable"})
    assert (await status(alice, alice.user_id))["presence"] == "online"  # of the tablet: nobody else sees a change
    await sync(alice, since)
    assert not await homeserver.read(is_news_of_device, alice.user_id, alice.device_id, "online")


async def test_members_who_are_online_see_others_come_online(homeserver: Server) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await homeserver.make_room(alice)
    since = (await sync(alice))["next_batch"]
    await sync(bob, set_presence="unavailable")
    since = (await sync(alice, since))["next_batch"]
    for client in (bob, carol):
        await homeserver.join(client, room_id)
    answer = await sync(alice, since)
    assert {user_id: each["presence"] for user_id, each in presences(answer).items()} == {bob.user_id: "unavailable"}
    assert presences(await sync(alice, answer["next_batch"])) == {}


async def test_joining_a_room_returns_the_presence_of_its_members(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    bob = await homeserver.register("bob")
    room_id = await homeserver.make_room(alice)
    await sync(alice)
    since = (await sync(bob))["next_batch"]
    await homeserver.join(bob, room_id)
    assert presences(await sync(bob, since))[alice.user_id]["presence"] == "online"


async def test_presence_can_be_disabled(homeservers: Homeservers) -> None:
    server = await homeservers.start(presence=Presence(enabled=False))
    alice = await server.register("alice")
    await alice.ok("PUT", f"presence/{alice.user_id}/status", json={"presence": "online"})
    assert presences(await sync(alice)) == {}
    assert await status(alice, alice.user_id) == {"presence": "offline"}


REMOTE = "@rem:other.example"


async def with_remote(server: Server) -> tuple[Client, str]:
    """A user of this server, in a room with one of another server."""
    alice = await server.register("alice")
    room_id = await server.make_room(alice)

    def join(tx: Any) -> None:
        invite = Draft(room_id, alice.user_id, "m.room.member", {"membership": "invite"}, state_key=REMOTE)
        position = append_local(tx, invite) and tx.next_position(room_id)
        store_membership(tx, tx.find(room_id), REMOTE, "join", position, position)

    await server.write(join)
    return alice, room_id


async def receive(server: Server, content: Any, origin: str = "other.example") -> None:
    edu = FEATURE.edus["m.presence"]
    if updates := edu.parts_from(ServerName(origin), content):
        await edu.handler(server.hs, ServerName(origin), updates)


async def test_presence_from_other_servers_is_shown(homeserver: Server) -> None:
    alice, _ = await with_remote(homeserver)
    since = (await sync(alice))["next_batch"]
    update = {"user_id": REMOTE, "presence": "online", "last_active_ago": 5000, "status_msg": "hm"}
    await receive(homeserver, {"push": [update]})
    told = presences(await sync(alice, since))[REMOTE]
    assert told == {"presence": "online", "last_active_ago": 5000, "currently_active": False, "status_msg": "hm"}
    assert (await status(alice, REMOTE))["presence"] == "online"
    await trio.sleep(limits.users.PRESENCE_REMOTE_TIMEOUT_MS / 1000 + limits.users.PRESENCE_SWEEP_INTERVAL_S + 1)
    assert (await status(alice, REMOTE))["presence"] == "offline"


@pytest.mark.parametrize(
    ("content", "origin"),
    [
        ({"push": [{"user_id": REMOTE, "presence": "online", "last_active_ago": 1}]}, "third.example"),
        ({"push": [{"user_id": "@stranger:other.example", "presence": "online"}]}, "other.example"),
        ({"push": [{"user_id": REMOTE, "presence": "busy"}]}, "other.example"),
        ({"push": [7]}, "other.example"),
    ],
)
async def test_presence_of_users_of_a_third_server_is_ignored(homeserver: Server, content: Any, origin: str) -> None:
    alice, _ = await with_remote(homeserver)
    before = homeserver.hs.stream.position
    await receive(homeserver, content, origin)
    assert homeserver.hs.stream.position == before
    assert (await status(alice, REMOTE))["presence"] == "offline"


async def test_presence_is_sent_to_other_servers(homeserver: Server) -> None:
    alice, _ = await with_remote(homeserver)
    bob = await homeserver.register("bob")
    since = homeserver.hs.stream.position
    await sync(alice)
    await sync(bob)
    source = FEATURE.edus["m.presence"].source
    assert source is not None
    (edu,) = await homeserver.read(lambda tx: list(source(tx, since, homeserver.hs.stream.position)))
    assert edu.destinations == ("other.example",)
    assert edu.content == {
        "push": [
            {"user_id": alice.user_id, "presence": "online", "last_active_ago": 0, "currently_active": True},
        ]
    }


async def test_a_waiting_sync_returns_at_once(homeserver: Server) -> None:
    alice, bob = await roommates(homeserver)
    await sync(alice)
    since = (await sync(bob, set_presence="offline"))["next_batch"]
    began = trio.current_time()
    answer = await sync(bob, since, timeout=90_000, set_presence="offline")
    assert 60 <= trio.current_time() - began <= 60 + limits.users.PRESENCE_SWEEP_INTERVAL_S
    assert presences(answer)[alice.user_id]["currently_active"] is False
