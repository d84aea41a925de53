"""A message to somebody who is away, as the founding documents tell it. Read it from top to bottom.

Alice lives at a.example, Carol at c.example. They are friends.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import trio

from homeserver.users.receipts import DELIVERED
from tests.support.federation import Federation, send_text, sync, until
from tests.support.homeservers import Client, now_ms

OURS = "/_homeserver/client/v1"
DAY_S = 24 * 3600


async def wait_until(hour: int, minute: int) -> None:
    """Sleeps until the clock on the wall says so."""
    now_s = now_ms() / 1000 % DAY_S
    await trio.sleep((hour * 3600 + minute * 60 - now_s) % DAY_S)


def clock(ts_ms: int) -> str:
    """Returns the time of day, as a client shows it beside a message."""
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%H:%M")


async def friend_of(client: Client, friend: Client, language: str = "en") -> dict[str, Any]:
    answer = await client.ok("GET", f"{OURS}/friends", headers={"accept-language": language})
    found: dict[str, Any] = next(each for each in answer["friends"] if each["user_id"] == friend.user_id)
    return found


async def test_a_message_to_a_friend_who_is_away(federation: Federation) -> None:
    federation.network.latency_s = 0.03
    a, c = await federation.start("a.example"), await federation.start("c.example")
    alice, carol = await a.register("alice"), await c.register("carol")

    # In the morning the two become friends. Both servers have a conversation for them.
    await wait_until(10, 58)
    await alice.ok("PUT", f"{OURS}/friends/{quote(carol.user_id)}", json={"encrypted": False})

    async def is_asked() -> bool:
        return bool((await carol.ok("GET", f"{OURS}/friends"))["friends"])

    async def are_friends() -> bool:
        return all([(await friend_of(*pair))["state"] == "friend" for pair in ((alice, carol), (carol, alice))])

    await until(is_asked)
    await carol.ok("PUT", f"{OURS}/friends/{quote(alice.user_id)}", json={})
    await until(are_friends)
    room_id = (await friend_of(alice, carol))["room_id"]
    token = (await sync(carol))["next_batch"]
    await sync(carol, token)

    async def is_online() -> bool:
        status = (await friend_of(alice, carol))["status"]
        return status is not None and bool(status["text"] == "Online")

    await until(is_online)

    # 13:04. Carol has been away for two hours. Alice writes to her: sent, unread.
    await wait_until(13, 4)
    status = (await friend_of(alice, carol))["status"]
    assert not status["online"] and status["text"] == "Active 2 hours ago"
    assert (await friend_of(alice, carol, "de-CH, en;q=0.5"))["status"]["text"] == "Aktiv vor 2 Stunden"
    hello = await send_text(alice, room_id, "Hello")
    since = (await sync(alice))["next_batch"]

    async def status_at(asker: Client) -> dict[str, Any]:
        answer: dict[str, Any] = await asker.ok("GET", f"{OURS}/rooms/{quote(room_id)}/events/{quote(hello)}/status")
        return answer

    await wait_until(14, 8)
    answer = await status_at(alice)
    assert answer["status"] == "sent" and answer["recipients"][carol.user_id]["read_ts"] is None

    # 14:09. Carol comes back. Her telephone gets the message, and says so with its next sync: delivered.
    await wait_until(14, 9)
    news = await sync(carol, token)
    assert [event["content"]["body"] for event in news["rooms"]["join"][room_id]["timeline"]["events"]] == ["Hello"]
    assert news["rooms"]["join"][room_id]["unread_notifications"]["notification_count"] == 1
    token = (await sync(carol, news["next_batch"]))["next_batch"]

    async def is_status(expected: str) -> bool:
        return bool((await status_at(alice))["status"] == expected)

    await until(lambda: is_status("delivered"))
    assert clock((await status_at(alice))["recipients"][carol.user_id]["delivered_ts"]) == "14:09"
    assert (await friend_of(alice, carol))["status"]["online"]

    # She opens it: read 14:09.
    await carol.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(hello)}", json={})
    await until(lambda: is_status("read"))
    assert clock((await status_at(alice))["recipients"][carol.user_id]["read_ts"]) == "14:09"

    # Alice's client learned both from its syncs.
    (receipts,) = (await sync(alice, since))["rooms"]["join"][room_id]["ephemeral"]["events"]
    assert set(receipts["content"][hello]) == {DELIVERED, "m.read"}

    # In the evening they have written more. The message was still read at 14:09.
    await wait_until(20, 0)
    for text in ("Are you there?", "Good night"):
        last = await send_text(alice, room_id, text)
        await trio.sleep(60)
        token = (await sync(carol, token))["next_batch"]
        await sync(carol, token)
        await carol.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(last)}", json={})
        await trio.sleep(60)
    recipient = (await status_at(alice))["recipients"][carol.user_id]
    assert (clock(recipient["delivered_ts"]), clock(recipient["read_ts"])) == ("14:09", "14:09")
