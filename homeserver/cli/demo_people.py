"""The people of the demo: small Matrix clients over real sockets, which record when they receive something."""

from __future__ import annotations

import struct
import zlib
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import trio

from homeserver.errors import MatrixError
from homeserver.federation.wire.client import HttpClient
from homeserver.federation.wire.dial import Dialer
from homeserver.socket_client import SocketClient, open_socket_client

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024
MATRIX = "/_matrix/client"
OWN = "/_homeserver/client/v1"


class Person:
    """One user with one client. `took_ms` is the duration of the last request."""

    def __init__(self, name: str, base_url: str) -> None:
        self.name = name
        self.base_url = base_url
        self.user_id = ""
        self.took_ms = 0.0
        self._token = ""
        self._socket: SocketClient | None = None
        self._http = HttpClient(Dialer("", True, True))
        self._seen: dict[str, float] = {}  # event ID, or what `wait_…` waits for → time of arrival
        self._members: dict[str, set[str]] = {}
        self._news = trio.Event()

    async def register(self, password: str) -> None:
        body = {"username": self.name, "password": password, "auth": {"type": "m.login.dummy"}, "inhibit_login": True}
        self.user_id = (await self._request("POST", "/v3/register", body))["user_id"]

    async def log_in(self, password: str) -> None:
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.name},
            "password": password,
            "initial_device_display_name": "Demo",
        }
        self._token = (await self._request("POST", "/v3/login", body))["access_token"]

    async def link(self, password: str) -> str:
        """Returns the address of the chat page with a log-in in it that works once.

        The secret in it is a refresh token: the page exchanges it at once, and only on an address of this machine.
        """
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.name},
            "password": password,
            "refresh_token": True,
            "initial_device_display_name": "Chat page",
        }
        answer = await self._request("POST", "/v3/login", body)
        return f"{self.base_url}/_homeserver/chat#link={quote(answer['refresh_token'])}"

    async def set_display_name(self, name: str) -> None:
        await self._request("PUT", f"/v3/profile/{quote(self.user_id)}/displayname", {"displayname": name})

    async def search(self, term: str) -> list[str]:
        """Returns the texts of the messages that a search finds."""
        body = {"search_categories": {"room_events": {"search_term": term}}}
        answer = await self._request("POST", "/v3/search", body)
        found = answer["search_categories"]["room_events"]["results"]
        return [each["result"]["content"]["body"] for each in found]

    async def ask_friend(self, user_id: str) -> None:
        """Asks somebody to be a friend, or accepts what they asked. The conversation is not end-to-end encrypted."""
        await self._request("PUT", f"/friends/{quote(user_id)}", {"encrypted": False}, root=OWN)

    async def list_friends(self) -> list[dict[str, Any]]:
        """Returns the list of friends and of requests, with status, conversation and last message."""
        friends: list[dict[str, Any]] = (await self._request("GET", "/friends", root=OWN))["friends"]
        return friends

    async def wait_friend(self, user_id: str, state: str, since: float) -> float:
        """Returns the milliseconds from `since` until this client's sync contained the state of a friendship."""
        return await self._wait(f"friend {user_id} {state}", since)

    async def wait_online(self, user_id: str, since: float) -> float:
        """Returns the milliseconds from `since` until this client's sync showed that somebody is online."""
        return await self._wait(f"online {user_id}", since)

    async def message_status(self, room_id: str, event_id: str) -> dict[str, Any]:
        """Returns to whom a message was delivered and who has read it, with times."""
        return await self._request("GET", f"/rooms/{quote(room_id)}/events/{quote(event_id)}/status", root=OWN)

    async def read_history(self, room_id: str) -> list[str]:
        """Returns the texts of the newest hundred events of a room, the oldest first."""
        page = await self._request("GET", f"/v3/rooms/{quote(room_id)}/messages?dir=b&limit=100")
        return [event["content"]["body"] for event in reversed(page["chunk"]) if "body" in event["content"]]

    async def create_room(self, name: str) -> str:
        body = {"name": name, "preset": "private_chat"}
        return str((await self._request("POST", "/v3/createRoom", body))["room_id"])

    async def invite(self, room_id: str, user_id: str) -> None:
        await self._request("POST", f"/v3/rooms/{quote(room_id)}/invite", {"user_id": user_id})

    async def join(self, room_id: str) -> None:
        await self._request("POST", f"/v3/join/{quote(room_id)}", {})

    async def send_text(self, room_id: str, text: str) -> tuple[str, float]:
        """Returns the event ID and the time at which the request was sent."""
        return await self._send(room_id, {"msgtype": "m.text", "body": text})

    async def send_picture(self, room_id: str, png: bytes) -> tuple[str, float, str]:
        """Uploads and sends a picture. Returns the event ID, the time at which it was sent, and the `mxc://` URI."""
        path = f"/_matrix/media/v3/upload?{urlencode({'filename': 'balcony.png'})}"
        mxc = orjson.loads(await self._raw("POST", path, png, "image/png"))["content_uri"]
        info = {"mimetype": "image/png", "size": len(png)}
        event_id, started = await self._send(
            room_id, {"msgtype": "m.image", "body": "balcony.png", "url": mxc, "info": info}
        )
        return event_id, started, mxc

    async def download(self, mxc: str) -> int:
        """Returns the size of the file in bytes."""
        return len(await self._raw("GET", f"/_matrix/client/v1/media/download/{mxc.removeprefix('mxc://')}"))

    async def thumbnail(self, mxc: str, width: int, height: int) -> int:
        """Returns the size of a small version of a picture in bytes."""
        query = urlencode({"width": width, "height": height})
        path = f"/_matrix/client/v1/media/thumbnail/{mxc.removeprefix('mxc://')}?{query}"
        return len(await self._raw("GET", path))

    async def read(self, room_id: str, event_id: str) -> None:
        await self._request("POST", f"/v3/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})

    async def wait_invited(self, room_id: str, since: float) -> float:
        """Returns the milliseconds from `since` until this client's sync contained the invite."""
        return await self._wait(f"invite {room_id}", since)

    async def wait_event(self, event_id: str, since: float) -> float:
        """Returns the milliseconds from `since` until this client's sync contained the event."""
        return await self._wait(event_id, since)

    async def wait_receipt(self, user_id: str, event_id: str, since: float, kind: str = "m.read") -> float:
        """Returns the milliseconds from `since` until this client's sync contained the user's receipt for the event."""
        return await self._wait(f"{kind} {user_id} {event_id}", since)

    async def wait_members(self, room_id: str, count: int) -> None:
        with trio.fail_after(TIMEOUT_S):
            while len(self._members.get(room_id, ())) < count:
                await self._news.wait()

    async def listen(self) -> None:
        """Keeps a WebSocket open, until cancelled: it tells what is new, and messages are sent over it."""
        async with open_socket_client(self.base_url, self._token) as self._socket:
            async for answer in self._socket.syncs():
                self._note(answer.get("rooms", {}), trio.current_time())
                for event in answer.get("presence", {}).get("events", []):
                    self._seen.setdefault(f"{event['content']['presence']} {event['sender']}", trio.current_time())
                self._note_friends(answer.get("account_data", {}).get("events", []), trio.current_time())
                self._news.set()
                self._news = trio.Event()

    def _note(self, rooms: dict[str, Any], now: float) -> None:
        for room_id in rooms.get("invite", {}):
            self._seen.setdefault(f"invite {room_id}", now)
        for room_id, room in rooms.get("join", {}).items():
            timeline = room.get("timeline", {}).get("events", [])
            for event in [*room.get("state", {}).get("events", []), *timeline]:
                self._seen.setdefault(event["event_id"], now)
                if event["type"] == "m.room.member" and event["content"].get("membership") == "join":
                    self._members.setdefault(room_id, set()).add(event["state_key"])
            for event in room.get("ephemeral", {}).get("events", []):
                self._note_receipts(event, now)

    def _note_receipts(self, event: dict[str, Any], now: float) -> None:
        if event["type"] != "m.receipt":
            return
        for event_id, receipts in event["content"].items():
            for kind, users in receipts.items():
                for user_id in users:
                    self._seen.setdefault(f"{kind} {user_id} {event_id}", now)

    def _note_friends(self, events: list[dict[str, Any]], now: float) -> None:
        for event in events:
            if event["type"] == "org.homeserver.friends":
                for friend in event["content"]["friends"]:
                    self._seen.setdefault(f"friend {friend['user_id']} {friend['state']}", now)

    async def _wait(self, what: str, since: float) -> float:
        with trio.fail_after(TIMEOUT_S):
            while what not in self._seen:
                await self._news.wait()
        return max(0.0, self._seen[what] - since) * 1000

    async def _send(self, room_id: str, content: dict[str, Any]) -> tuple[str, float]:
        assert self._socket is not None  # only listeners talk
        started = trio.current_time()
        return await self._socket.send(room_id, content), started

    async def _request(
        self, method: str, path: str, body: Any = None, *, root: str = MATRIX, timed: bool = True
    ) -> dict[str, Any]:
        data = None if body is None else orjson.dumps(body)
        raw = await self._raw(method, root + path, data, timed=timed)
        answer: dict[str, Any] = orjson.loads(raw)
        return answer

    async def _raw(
        self, method: str, path: str, data: bytes | None = None, kind: str = "application/json", *, timed: bool = True
    ) -> bytes:
        started = trio.current_time()
        headers = {"content-type": kind} | ({"authorization": f"Bearer {self._token}"} if self._token else {})
        response = await self._http.request(
            method,
            self.base_url + path,
            headers=headers,
            body=data,
            timeout_s=TIMEOUT_S,
            max_bytes=ANSWER_BYTES_MAX,
            schemes=("http",),
        )
        if timed:
            self.took_ms = (trio.current_time() - started) * 1000
        if response.status >= 400:
            problem = orjson.loads(response.body)
            raise MatrixError(response.status, problem["errcode"], f"{self.name}: {method} {path}: {problem['error']}")
        return response.body


def picture(width: int, height: int) -> bytes:
    """Returns a PNG of a night sky over a balcony: dark at the top, warm at the bottom."""
    rows = bytearray()
    for y in range(height):
        shade = y / height
        pixel = bytes((int(20 + 200 * shade**3), int(24 + 120 * shade**2), int(70 + 60 * shade)))
        rows += b"\0" + pixel * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image
