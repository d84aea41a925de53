"""Romeo and Juliet talk on the page that their servers serve. Read it from top to bottom.

Romeo lives at montague.example, Juliet at capulet.example. What the page asks for is asked for here, by the same names
and in the same order; `make interop` has a browser run its modules.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import httpx
import trio

from homeserver.pages import chat, make_pages
from homeserver.socket_client import SocketClient, open_socket_client
from tests.media import images
from tests.support.federation import Federation, until
from tests.support.homeservers import PASSWORD, Client, Server
from tests.support.sockets import Line

OURS = "/_homeserver/client/v1"


class Person:
    """Somebody with the page open: what their socket has brought, by room."""

    def __init__(self, client: Client, socket: SocketClient) -> None:
        self.client = client
        self.socket = socket
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.receipts: dict[str, set[str]] = {}
        self.typing: list[str] = []
        self.unread = 0
        self._sent = 0

    async def follow(self) -> None:
        async for sync in self.socket.syncs():
            for room_id, joined in sync.get("rooms", {}).get("join", {}).items():
                self.events.setdefault(room_id, []).extend(joined.get("timeline", {}).get("events", []))
                self.unread = joined.get("unread_notifications", {}).get("notification_count", self.unread)
                for event in joined.get("ephemeral", {}).get("events", []):
                    self._hear(event)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "m.typing":
            self.typing = event["content"]["user_ids"]
        elif event["type"] == "m.receipt":
            for event_id, kinds in event["content"].items():
                self.receipts.setdefault(event_id, set()).update(kinds)

    async def sees(self, room_id: str, **wanted: Any) -> dict[str, Any]:
        """Waits for an event with this content."""

        async def find() -> dict[str, Any] | None:
            events = self.events.get(room_id, [])
            return next((event for event in events if wanted.items() <= event["content"].items()), None)

        found: dict[str, Any] = await until(find, str(wanted))
        return found

    async def say(self, room_id: str, **content: Any) -> str:
        body = {"msgtype": "m.text", **content}
        self._sent += 1
        answer = await self.socket.call("send_message", room_id, "m.room.message", f"c{self._sent}", body=body)
        return str(answer["event_id"])

    async def friend(self) -> dict[str, Any]:
        (entry,) = (await self.client.ok("GET", f"{OURS}/friends"))["friends"]
        return dict(entry)


async def load_page(server: Server) -> set[str]:
    """Opens the page as a browser does: its markup, and every module that one of its modules imports."""
    transport = httpx.ASGITransport(make_pages(server.hs))
    async with httpx.AsyncClient(transport=transport, base_url=f"https://{server.name}") as http:
        page = await http.get(chat.PATH)
        wanted = [f"/_homeserver/{address}" for address in re.findall(r'(?:src|href)="([^"]+)"', page.text)]
        loaded: set[str] = set()
        while wanted:
            address = wanted.pop()
            if address not in loaded:
                loaded.add(address)
                content = (await http.get(address)).raise_for_status().text
                folder = address.rpartition("/")[0]
                wanted += [f"{folder}/{name}" for name in re.findall(r'from "\./([^"]+)"', content)]
    return loaded


async def test_romeo_and_juliet_talk_on_the_page(federation: Federation) -> None:
    montague, capulet = await federation.start("montague.example"), await federation.start("capulet.example")

    # The page comes from their own server, all of it, and from nowhere else.
    assert {address.rpartition("/")[2] for address in await load_page(montague)} >= {"main.js", "socket.js", "base.css"}

    # Both log in. The page asks for a token that can be renewed, because the one it uses ends after an hour.
    await montague.register("romeo")
    await capulet.register("juliet")
    romeo = await montague.log_in("romeo", PASSWORD, refresh_token=True)
    juliet = await capulet.log_in("juliet", PASSWORD, refresh_token=True)
    async with (
        open_socket_client("https://montague.example", str(romeo.token), connect=Line(montague, romeo).connect) as one,
        open_socket_client("https://capulet.example", str(juliet.token), connect=Line(capulet, juliet).connect) as two,
        trio.open_nursery() as nursery,
    ):
        at_romeo, at_juliet = Person(romeo, one), Person(juliet, two)
        nursery.start_soon(at_romeo.follow)
        nursery.start_soon(at_juliet.follow)
        await talk(at_romeo, at_juliet)
        nursery.cancel_scope.cancel()

    # Romeo logs out. What his browser had is worth nothing now.
    await romeo.ok("POST", "logout", json={})
    assert (await romeo.refused("GET", "sync"))[0] == 401


async def talk(romeo: Person, juliet: Person) -> None:
    # He asks her to be his friend, in a conversation that the page can show: not end-to-end encrypted.
    ask = {"message": "We met at the ball.", "encrypted": False}
    await romeo.client.ok("PUT", f"{OURS}/friends/{quote(juliet.client.user_id)}", json=ask)

    async def is_asked() -> bool:
        return bool((await juliet.client.ok("GET", f"{OURS}/friends"))["friends"])

    await until(is_asked)
    assert (await juliet.friend())["state"] == "incoming"

    # She accepts, and each sees the other online.
    accepted = await juliet.client.ok("PUT", f"{OURS}/friends/{quote(romeo.client.user_id)}", json={"encrypted": False})
    room_id = accepted["room_id"]

    async def are_online() -> bool:
        entries = [await person.friend() for person in (romeo, juliet)]
        return all(each["state"] == "friend" and (each["status"] or {}).get("online") for each in entries)

    await until(are_online)
    state = await romeo.client.refused("GET", f"rooms/{quote(room_id)}/state/m.room.encryption/")
    assert state == (404, "M_NOT_FOUND")

    # He writes. She sees that he does, then what; his ticks become blue when she looks at it.
    await romeo.socket.call("set_typing", room_id, romeo.client.user_id, body={"typing": True, "timeout": 20_000})
    await until(lambda: has(juliet.typing == [romeo.client.user_id]))
    first = await romeo.say(room_id, body="Lady, by yonder blessed moon I vow")
    await juliet.sees(room_id, body="Lady, by yonder blessed moon I vow")
    await until(lambda: has("org.homeserver.delivered" in romeo.receipts.get(first, ())))
    await juliet.socket.call("set_read_marker", room_id, body={"m.fully_read": first, "m.read": first})
    await until(lambda: has("m.read" in romeo.receipts[first]))
    status = await romeo.client.ok("GET", f"{OURS}/rooms/{quote(room_id)}/events/{quote(first)}/status")
    assert status["status"] == "read"

    # She answers, and corrects a slip; he sees the answer as it is now.
    answered = {"m.relates_to": {"m.in_reply_to": {"event_id": first}}}
    answer = await juliet.say(room_id, body="O, swear not by the mon", **answered)
    edit = {"m.new_content": {"msgtype": "m.text", "body": "O, swear not by the moon"}}
    relation = {"m.relates_to": {"rel_type": "m.replace", "event_id": answer}}
    await juliet.say(room_id, body="* O, swear not by the moon", **edit, **relation)
    await romeo.sees(room_id, body="* O, swear not by the moon")

    # A picture of the moon comes with its thumbnail.
    picture = images.encoded(images.gradient(320, 200), "PNG")
    sent = {"content-type": "image/png"}
    uploaded = await romeo.client.ok("POST", "/_matrix/media/v3/upload", content=picture, headers=sent)
    url, info = uploaded["content_uri"], uploaded["info"]
    await romeo.say(room_id, msgtype="m.image", body="moon.png", url=url, info=info)
    await juliet.sees(room_id, url=url)
    thumbnail = f"/_matrix/client/v1/media/thumbnail/{url.removeprefix('mxc://')}?width=800&height=600"
    assert (await juliet.client.get(thumbnail)).status_code == 200

    # She looks elsewhere while he goes on. Her list counts what she has not read.
    for number in range(60):
        last = await romeo.say(room_id, body=f"Line {number}")
    await juliet.sees(room_id, body="Line 59")
    assert juliet.unread == 61

    # She finds the vow by a word of it, goes there, and sees the history around it, with what came later.
    heart = {"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": "❤️"}}
    await juliet.socket.call("send_message", room_id, "m.reaction", "heart", body=heart)
    found = await until(lambda: search(romeo.client, "blessed moon"))
    assert [each["result"]["event_id"] for each in found] == [first]
    around = await romeo.socket.call("get_event_context", room_id, first, query={"limit": 40})
    assert around["event"]["event_id"] == first and len(around["events_after"]) == 20
    edited = next(event for event in around["events_after"] if event["event_id"] == answer)
    assert edited["unsigned"]["m.relations"]["m.replace"]["content"]["m.new_content"] == edit["m.new_content"]
    reactions = await romeo.socket.call("get_relating_events_with_rel_type", room_id, first, "m.annotation")
    assert [event["content"]["m.relates_to"]["key"] for event in reactions["chunk"]] == ["❤️"]

    # She reads to the end, and nothing is unread.
    await juliet.socket.call("set_read_marker", room_id, body={"m.fully_read": last, "m.read": last})
    await until(lambda: has(juliet.unread == 0))

    # He deletes a line. It is gone for both.
    await romeo.socket.call("redact_event", room_id, last, "gone", body={})
    await juliet.sees(room_id, redacts=last)


async def has(is_so: bool) -> bool:
    return is_so


async def search(client: Client, term: str) -> list[dict[str, Any]]:
    body = {"search_categories": {"room_events": {"search_term": term, "order_by": "recent"}}}
    answer = await client.ok("POST", "search", json=body)
    return list(answer["search_categories"]["room_events"]["results"])
