"""Not in the spec: docs/friends.md. The list of friends: order, last messages, counts, status, and what has changed."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.friends.people import OURS, ask, befriend, block, end, friends_of, say, states_of, unblock
from tests.support.homeservers import Client, Server


async def friend_of(client: Client) -> dict[str, Any]:
    (friend,) = await friends_of(client)
    return friend


async def changes_of(client: Client, since: str) -> dict[str, Any]:
    answer: dict[str, Any] = await client.ok("GET", f"{OURS}/friends?since={quote(since)}")
    return answer


async def token_of(client: Client) -> str:
    token: str = (await client.ok("GET", f"{OURS}/friends"))["next_batch"]
    return token


async def test_a_friend_has_names_status_and_no_message_at_first(alice: Client, bob: Client) -> None:
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bob"})
    room_id = await befriend(alice, bob)
    friend = await friend_of(alice)
    assert friend.pop("since_ts") > 0
    assert friend.pop("status") == {"online": True, "last_active_ago": 0, "text": "Online"}
    assert friend == {
        "user_id": bob.user_id,
        "state": "friend",
        "room_id": room_id,
        "display_name": "Bob",
        "avatar_url": None,
        "message": None,
        "last_message": None,
        "unread": 0,
        "highlight": 0,
    }


async def test_status_is_in_the_language_of_the_client(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    await trio.sleep(2 * 3600)
    answer = await alice.ok("GET", f"{OURS}/friends", headers={"accept-language": "de"})
    assert answer["friends"][0]["status"]["text"] == "Aktiv vor 2 Stunden"


async def test_the_last_message_is_shown_with_the_number_of_unread_ones(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    await say(bob, room_id, "one")
    event_id = await say(bob, room_id, "two")
    friend = await friend_of(alice)
    assert friend["last_message"].pop("origin_server_ts") > 0
    assert friend["last_message"] == {
        "event_id": event_id,
        "sender": bob.user_id,
        "type": "m.room.message",
        "text": "two",
    }
    assert (friend["unread"], friend["highlight"]) == (2, 0)
    assert (await friend_of(bob))["unread"] == 0


async def test_a_read_message_is_not_unread(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    event_id = await say(bob, room_id, "one")
    assert (await friend_of(alice))["unread"] == 1
    await alice.ok("POST", f"rooms/{room_id}/receipt/m.read.private/{quote(event_id)}", json={})
    assert (await friend_of(alice))["unread"] == 0


async def test_an_edited_message_is_shown_as_edited(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    event_id = await say(bob, room_id, "tpyo")
    edit = {
        "msgtype": "m.text",
        "body": "* typo",
        "m.new_content": {"msgtype": "m.text", "body": "typo"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }
    await bob.ok("PUT", f"rooms/{room_id}/send/m.room.message/edit", json=edit)
    last = (await friend_of(alice))["last_message"]
    assert (last["event_id"], last["text"]) == (event_id, "typo")


async def test_a_redacted_message_is_not_shown(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    await say(bob, room_id, "good")
    event_id = await say(bob, room_id, "bad")
    assert (await friend_of(alice))["last_message"]["text"] == "bad"
    await bob.ok("PUT", f"rooms/{room_id}/redact/{quote(event_id)}/r", json={})
    assert (await friend_of(alice))["last_message"]["text"] == "good"


async def test_reactions_do_not_hide_the_last_message(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    event_id = await say(bob, room_id, "Look!")
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": "+1"}}
    await alice.ok("PUT", f"rooms/{room_id}/send/m.reaction/r", json=reaction)
    assert (await friend_of(alice))["last_message"]["text"] == "Look!"


async def test_a_long_message_is_cut(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    await say(bob, room_id, "long " * 100)
    assert len((await friend_of(alice))["last_message"]["text"]) == 200


async def test_the_newest_conversation_comes_first(homeserver: Server, alice: Client, bob: Client) -> None:
    carol = await homeserver.register("carol")
    with_bob, with_carol = await befriend(alice, bob), await befriend(alice, carol)
    await say(bob, with_bob, "one")
    assert [each["user_id"] for each in await friends_of(alice)] == [bob.user_id, carol.user_id]
    await say(carol, with_carol, "two")
    assert [each["user_id"] for each in await friends_of(alice)] == [carol.user_id, bob.user_id]


# --- since ---


async def test_nothing_has_changed_since_the_last_answer(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    await trio.sleep(1)
    answer = await changes_of(alice, await token_of(alice))
    assert (answer["friends"], answer["removed"], answer["limited"]) == ([], [], False)


async def test_changes_are_told_since_an_answer(homeserver: Server, alice: Client, bob: Client) -> None:
    carol = await homeserver.register("carol")
    room_id = await befriend(alice, bob)
    await befriend(alice, carol)
    since = await token_of(alice)
    event_id = await say(bob, room_id, "news")
    (friend,) = (await changes_of(alice, since))["friends"]
    assert (friend["user_id"], friend["unread"]) == (bob.user_id, 1)
    since = await token_of(alice)
    await alice.ok("POST", f"rooms/{room_id}/receipt/m.read.private/{quote(event_id)}", json={})
    (friend,) = (await changes_of(alice, since))["friends"]
    assert (friend["user_id"], friend["unread"]) == (bob.user_id, 0)


async def test_friends_who_are_none_any_more_are_told_since_an_answer(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    since = await token_of(alice)
    await end(bob, alice)
    answer = await changes_of(alice, since)
    assert (answer["friends"], answer["removed"]) == ([], [bob.user_id])


async def test_blocking_is_told_since_an_answer(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    since = await token_of(alice)
    await block(alice, bob)
    answer = await changes_of(alice, since)
    assert (answer["friends"], answer["removed"]) == ([], [bob.user_id])
    await unblock(alice, bob)
    assert [each["user_id"] for each in (await changes_of(alice, answer["next_batch"]))["friends"]] == [bob.user_id]


async def test_a_token_of_another_history_gets_the_whole_list(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    answer = await changes_of(alice, "s999999_nowhere_q")
    assert answer["limited"] is True
    assert [each["user_id"] for each in answer["friends"]] == [bob.user_id]


@pytest.mark.parametrize("since", ["", "x", "s", "s-1", "t1_2_3"])
async def test_a_token_must_be_one_of_this_server(alice: Client, since: str) -> None:
    assert await alice.refused("GET", f"{OURS}/friends?since={since}") == (400, "M_INVALID_PARAM")


# --- sync ---


def listed(answer: dict[str, Any]) -> Any:
    events = answer.get("account_data", {}).get("events", [])
    return next((each["content"]["friends"] for each in events if each["type"] == "org.homeserver.friends"), None)


async def test_changes_come_in_sync_as_account_data(alice: Client, bob: Client) -> None:
    before = await bob.ok("GET", "sync")
    assert listed(before) is None
    room_id = (await ask(alice, bob))["room_id"]
    request = {"user_id": alice.user_id, "state": "incoming", "room_id": room_id}
    after = await bob.ok("GET", f"sync?since={before['next_batch']}")
    assert listed(after) == [request]
    assert listed(await bob.ok("GET", "sync")) == [request]
    assert listed(await bob.ok("GET", f"sync?since={after['next_batch']}")) is None
    await end(bob, alice)
    assert listed(await bob.ok("GET", f"sync?since={after['next_batch']}")) == []


async def test_blocking_comes_in_sync_too(alice: Client, bob: Client) -> None:
    await befriend(alice, bob)
    since = (await alice.ok("GET", "sync"))["next_batch"]
    ignored = {"ignored_users": {bob.user_id: {}}}
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.ignored_user_list", json=ignored)
    assert listed(await alice.ok("GET", f"sync?since={since}")) == []
    assert await states_of(alice) == {}


async def test_the_account_data_can_be_read_but_not_written(alice: Client, bob: Client) -> None:
    room_id = await befriend(alice, bob)
    path = f"user/{alice.user_id}/account_data/org.homeserver.friends"
    expected = [{"user_id": bob.user_id, "state": "friend", "room_id": room_id}]
    assert await alice.ok("GET", path) == {"friends": expected}
    assert (await alice.refused("PUT", path, json={}))[0] == 405
