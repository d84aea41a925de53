"""Spec: MSC4140, in the form that clients use, and in its newest form."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import trio

from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.users.delayed_events import forget_delayed_events_in
from tests.support.delayed import (
    CALL,
    UNSTABLE,
    act,
    call_room,
    find,
    refused,
    said,
    scheduled,
    send_later,
    set_state_later,
)
from tests.support.homeservers import Server, now_ms
from tests.support.people import (
    all_messages,
    get_event,
    get_state,
    leave,
    path_of,
    public_room,
    send,
    set_state,
    sync,
    timeline,
)

HOUR = 3600.0


# Sending


async def test_a_delayed_message_is_sent_when_its_time_has_come(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await send_later(alice, room_id, 10_000)
    await trio.sleep(9.9)
    assert await said(alice, room_id) == []
    await trio.sleep(0.2)
    assert await said(alice, room_id) == ["later"]
    await trio.sleep(60)
    assert await said(alice, room_id) == ["later"]


async def test_delayed_events_are_sent_in_the_order_of_their_times(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    for number, delay_ms in enumerate((3_000, 1_000, 2_000)):
        await send_later(alice, room_id, delay_ms, str(delay_ms), f"t{number}")
    await trio.sleep(4)
    assert await said(alice, room_id) == ["1000", "2000", "3000"]


async def test_a_participant_of_a_call_who_disappears_leaves_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await call_room(alice, bob)
    delay_id = await set_state_later(bob, room_id, 8_000, {})
    await set_state(bob, room_id, CALL, {"application": "m.call"}, bob.user_id)
    for _ in range(5):
        await trio.sleep(5)
        await act(bob, delay_id, "restart")
    assert await get_state(alice, room_id, CALL, bob.user_id) == {"application": "m.call"}
    await trio.sleep(8.1)
    assert await get_state(alice, room_id, CALL, bob.user_id) == {}
    assert await refused(bob, delay_id, "restart") == (404, "M_NOT_FOUND")


async def test_the_newest_form_of_the_request_sends_messages_and_state(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    path = f"{UNSTABLE}/rooms/{quote(room_id)}/delayed_event"
    body = {"delay_ms": 1_000, "content": {"msgtype": "m.text", "body": "hello"}}
    first = await alice.ok("PUT", f"{path}/m.room.message/t1", json=body)
    assert await alice.ok("PUT", f"{path}/m.room.message/t1", json=body) == first
    topic = {"delay_ms": 1_000, "state_key": "", "content": {"topic": "Tea"}}
    await alice.ok("PUT", f"{path}/m.room.topic/t1", json=topic)
    await trio.sleep(2)
    assert await said(alice, room_id) == ["hello"]
    assert await get_state(alice, room_id, "m.room.topic") == {"topic": "Tea"}


async def test_a_request_that_is_repeated_schedules_once(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    assert await send_later(alice, room_id, 1_000) == await send_later(alice, room_id, 1_000)
    assert await send_later(alice, room_id, 1_000, txn_id="t2") != await send_later(alice, room_id, 1_000)
    other_device = await server.log_in("alice")
    await send_later(other_device, room_id, 1_000)
    await trio.sleep(2)
    assert await said(alice, room_id) == ["later"] * 3


async def test_a_delayed_redaction_redacts(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    event_id = await send(alice, room_id, "a secret")
    path = path_of(room_id, "send", "m.room.redaction", "t1")
    await alice.ok("PUT", path, json={"redacts": event_id}, params={"org.matrix.msc4140.delay": 1_000})
    await trio.sleep(2)
    assert (await get_event(alice, room_id, event_id))["content"] == {}


async def test_a_delayed_event_follows_the_rules_of_membership(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    invite = {"membership": "invite"}
    await set_state_later(alice, room_id, 1_000, invite, kind="m.room.member", state_key=bob.user_id)
    await trio.sleep(2)
    assert room_id in (await sync(bob))["rooms"]["invite"]


async def test_a_timed_out_event_does_not_make_its_user_online(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await sync(alice, set_presence="offline")
    await send_later(alice, room_id, 3_600_000)
    await trio.sleep(HOUR + 1)
    presence = await alice.ok("GET", f"presence/{quote(alice.user_id)}/status")
    assert presence["presence"] == "offline"


async def test_the_sender_sees_which_delayed_event_it_was(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    delay_id = await send_later(alice, room_id, 1_000)
    await trio.sleep(2)
    phone = await server.log_in("alice")
    for client in (alice, phone):
        for event in (
            timeline(await sync(client), room_id)[-1],
            (await all_messages(client, room_id))[0],
            await get_event(client, room_id, (await find(alice, delay_id))["event_id"]),
        ):
            assert event["unsigned"]["org.matrix.msc4140.delay_id"] == delay_id
            assert "transaction_id" not in event["unsigned"]
    seen_by_bob = timeline(await sync(bob), room_id)[-1]["unsigned"]
    assert not {"org.matrix.msc4140.delay_id", "transaction_id"} & seen_by_bob.keys()


# Managing


async def test_a_delayed_event_can_be_sent_at_once_and_is_not_sent_again(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    delay_id = await send_later(alice, room_id, 60_000)
    await act(alice, delay_id, "send")
    assert await said(alice, room_id) == ["later"]
    await act(alice, delay_id, "send")
    await trio.sleep(61)
    assert await said(alice, room_id) == ["later"]
    assert await refused(alice, delay_id, "cancel") == (404, "M_NOT_FOUND")


async def test_a_cancelled_event_is_never_sent(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    delay_id = await send_later(alice, room_id, 60_000)
    await act(alice, delay_id, "cancel")
    await act(alice, delay_id, "cancel")
    assert await refused(alice, delay_id, "send") == (404, "M_NOT_FOUND")
    assert await refused(alice, delay_id, "restart") == (404, "M_NOT_FOUND")
    assert await scheduled(alice) == []
    await trio.sleep(61)
    assert await said(alice, room_id) == []


async def test_a_media_server_manages_an_event_with_its_id_alone(server: Server) -> None:
    alice, mallory = await server.register("alice"), await server.register("mallory")
    room_id = await public_room(alice)
    delay_id = await send_later(alice, room_id, 60_000)
    await trio.sleep(59)
    await act(server.anonymous, delay_id, "restart")
    await trio.sleep(59)
    assert await said(alice, room_id) == []
    for action in ("send", "cancel", "restart"):
        assert await refused(mallory, delay_id, action) == (404, "M_NOT_FOUND")
        assert await refused(server.with_token("wrong"), delay_id, action) == (401, "M_UNKNOWN_TOKEN")
        assert await refused(server.anonymous, "unknown", action) == (404, "M_NOT_FOUND")
    await act(server.anonymous, delay_id, "send")
    assert await said(alice, room_id) == ["later"]


@pytest.mark.parametrize("action", ["send", "cancel", "restart"])
async def test_the_older_form_names_the_action_in_the_body(server: Server, action: str) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    delay_id = await send_later(alice, room_id, 1_000)
    path = f"{UNSTABLE}/delayed_events/{delay_id}"
    await alice.ok("POST", path, json={"action": action})
    assert await said(alice, room_id) == (["later"] if action == "send" else [])
    assert len(await scheduled(alice)) == (action == "restart")
    assert await alice.refused("POST", path, json={}) == (400, "M_MISSING_PARAM")
    assert await alice.refused("POST", path, json={"action": "explode"}) == (400, "M_BAD_JSON")


async def test_a_newer_state_event_of_another_user_cancels_a_delayed_one(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, power_level_content_override={"events": {"m.room.topic": 0}})
    first = await set_state_later(alice, room_id, 60_000, {"topic": "Tea"}, kind="m.room.topic", state_key="")
    await set_state(alice, room_id, "m.room.topic", {"topic": "Coffee"})
    assert [each["delay_id"] for each in await scheduled(alice)] == [first]
    await set_state(bob, room_id, "m.room.topic", {"topic": "Milk"})
    assert await scheduled(alice) == []
    assert await refused(alice, first, "restart") == (404, "M_NOT_FOUND")
    await trio.sleep(61)
    assert await get_state(alice, room_id, "m.room.topic") == {"topic": "Milk"}
    assert (await find(alice, first))["error"]["errcode"] == "M_UNKNOWN"


# Telling


async def test_scheduled_events_are_listed_for_their_user_only(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await call_room(alice, bob)
    began = now_ms()
    later = await send_later(alice, room_id, 20_000)
    sooner = await set_state_later(alice, room_id, 10_000, {"x": 1})
    common = {"room_id": room_id, "scheduled_at": began, "running_since": began}
    assert await scheduled(alice) == [
        {**common, "delay_id": sooner, "type": CALL, "state_key": alice.user_id, "content": {"x": 1},
         "delay_ms": 10_000, "delay": 10_000},
        {**common, "delay_id": later, "type": "m.room.message", "content": {"msgtype": "m.text", "body": "later"},
         "delay_ms": 20_000, "delay": 20_000},
    ]  # fmt: skip
    assert await find(alice, later) == (await scheduled(alice))[1]
    assert await scheduled(bob) == []
    assert await bob.refused("GET", f"{UNSTABLE}/delayed_events/{later}") == (404, "M_NOT_FOUND")


async def test_finalised_events_say_what_became_of_them(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    began = now_ms()
    sent = await send_later(alice, room_id, 5_000, "one", "t1")
    cancelled = await send_later(alice, room_id, 5_000, "two", "t2")
    await act(alice, cancelled, "cancel")
    await trio.sleep(10)
    answer = await find(alice, sent)
    assert answer["finalised_ts"] == began + 5_000
    assert (await get_event(alice, room_id, answer["event_id"]))["content"]["body"] == "one"
    answer = await find(alice, cancelled)
    assert answer["finalised_ts"] == began
    assert not {"event_id", "error"} & answer.keys()


async def test_an_event_that_cannot_be_sent_any_more_fails(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    delay_id = await send_later(bob, room_id, 5_000)
    await leave(bob, room_id)
    assert await refused(bob, delay_id, "send") == (403, "M_FORBIDDEN")
    assert len(await scheduled(bob)) == 1
    await trio.sleep(6)
    assert (await find(bob, delay_id))["error"]["errcode"] == "M_FORBIDDEN"
    assert await said(alice, room_id) == []


async def test_permission_counts_when_the_event_is_sent(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await set_state_later(bob, room_id, 5_000, {"topic": "Tea"}, kind="m.room.topic", state_key="")
    levels = await get_state(alice, room_id, "m.room.power_levels")
    await set_state(alice, room_id, "m.room.power_levels", {**levels, "users_default": 50})
    await trio.sleep(6)
    assert await get_state(alice, room_id, "m.room.topic") == {"topic": "Tea"}


# Accounts


@pytest.mark.parametrize(
    ("flags", "errcode"),
    [(AccountFlags(is_suspended=True), "M_USER_SUSPENDED"), (AccountFlags(is_locked=True), "M_USER_LOCKED")],
)
async def test_a_blocked_account_sends_nothing(server: Server, flags: AccountFlags, errcode: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    delay_id = await send_later(bob, room_id, 5_000)
    await server.write(store_account_flags, bob.user_id, flags)
    params = {"org.matrix.msc4140.delay": 1_000}
    path = path_of(room_id, "send", "m.room.message", "t9")
    assert (await bob.refused("PUT", path, json={}, params=params))[1] == errcode
    await trio.sleep(6)
    await server.write(store_account_flags, bob.user_id, AccountFlags())
    assert (await find(bob, delay_id))["error"]["errcode"] == errcode
    assert await said(alice, room_id) == []


async def test_the_end_of_an_account_cancels_its_delayed_events(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    delay_id = await send_later(bob, room_id, 5_000)
    await bob.ok("POST", "account/deactivate", json={"auth": bob.password_auth()})
    await trio.sleep(6)
    assert await said(alice, room_id) == []
    assert await refused(server.anonymous, delay_id, "restart") == (404, "M_NOT_FOUND")


async def test_a_forgotten_room_loses_its_delayed_events(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    await send_later(alice, room_id, 5_000)
    await server.write(forget_delayed_events_in, room_id)
    assert await scheduled(alice) == []


async def test_a_damaged_event_does_not_keep_those_of_others_from_being_sent(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    await send_later(alice, room_id, 5_000, "damaged", "t1")
    await server.write(lambda tx: tx.run("UPDATE delayed_events SET content = substr(content, 1, 40)"))
    await send_later(bob, room_id, 5_000, "whole", "t2")
    await trio.sleep(6)
    assert await said(alice, room_id) == ["whole"]
    assert await scheduled(alice) == []
