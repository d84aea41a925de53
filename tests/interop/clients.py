"""A Matrix client as thin as can be: one user of one server, over plain httpx."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from tests.interop.servers import SHARED_SECRET, Server

T = TypeVar("T")

PASSWORD = "a password for the test"
ARRIVAL_TIMEOUT_S = 40.0
"""How long something may take to get from one server to the other. Retries after a failure are included."""

_names = itertools.count(1)
_transactions = itertools.count(1)


class RequestFailed(AssertionError):
    """A client's request was refused."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.response = response
        request = response.request
        super().__init__(
            f"{request.method} {request.url.raw_path.decode()}: {response.status_code} {response.text[:500]}"
        )

    @property
    def errcode(self) -> str | None:
        return self.response.json().get("errcode")


def wait_until(what: str, probe: Callable[[], T], timeout_s: float = ARRIVAL_TIMEOUT_S) -> T:
    """The first true value that `probe` gives. AssertionError, with `what`, if it gives none in time."""
    began = time.monotonic()
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        time.sleep(0.1)


class Client:
    """A user, logged in with one device. What /sync brings is kept."""

    def __init__(self, server: Server, localpart: str = "user") -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=90)
        self.localpart = f"{localpart}{next(_names)}"
        body = self._register()
        self.user_id: str = body["user_id"]
        self.device_id: str = body["device_id"]
        self.http.headers["Authorization"] = f"Bearer {body['access_token']}"
        self.since: str | None = None
        self.timelines: dict[str, list[dict[str, Any]]] = {}
        self.invites: dict[str, list[dict[str, Any]]] = {}
        self.left: set[str] = set()
        self.ephemeral: dict[tuple[str, str], dict[str, Any]] = {}
        self.presence: dict[str, dict[str, Any]] = {}
        self.to_device: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"<{self.user_id} of {self.server.kind}>"

    def _register(self) -> dict[str, Any]:
        path = "/_synapse/admin/v1/register"
        nonce = self.call("GET", path)["nonce"]
        message = "\0".join((nonce, self.localpart, PASSWORD, "notadmin"))
        mac = hmac.new(SHARED_SECRET.encode(), message.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": self.localpart, "password": PASSWORD, "mac": mac, "admin": False}
        return self.call("POST", path, body)

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer. Raises RequestFailed for any status but 200."""
        response = self.http.request(method, path, json=body, params=query or None)
        if response.status_code != 200:
            raise RequestFailed(response)
        return response.json()

    def v3(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        return self.call(method, f"/_matrix/client/v3{path}", body, **query)

    # -- rooms -----------------------------------------------------------------------------------------

    def create_room(self, version: str, **body: Any) -> str:
        room_id: str = self.v3("POST", "/createRoom", {"room_version": version, **body})["room_id"]
        return room_id

    def join(self, room: str, via: Server | None = None, **body: Any) -> str:
        query = {"via": via.server_name, "server_name": via.server_name} if via is not None else {}
        room_id: str = self.v3("POST", f"/join/{quote(room, safe='')}", body, **query)["room_id"]
        return room_id

    def knock(self, room: str, via: Server) -> None:
        query = {"via": via.server_name, "server_name": via.server_name}
        self.v3("POST", f"/knock/{quote(room, safe='')}", {}, **query)

    def membership(self, action: str, room_id: str, user_id: str = "") -> None:
        """invite, kick, ban, unban; or leave, of oneself."""
        self.v3("POST", f"/rooms/{quote(room_id)}/{action}", {"user_id": user_id} if user_id else {})

    def send(self, room_id: str, text: str) -> str:
        """The id of a message event with that body."""
        return self.send_event(room_id, "m.room.message", {"msgtype": "m.text", "body": text})

    def send_event(self, room_id: str, event_type: str, content: dict[str, Any]) -> str:
        path = f"/rooms/{quote(room_id)}/send/{event_type}/t{next(_transactions)}"
        event_id: str = self.v3("PUT", path, content)["event_id"]
        return event_id

    def set_state(self, room_id: str, event_type: str, content: dict[str, Any], state_key: str = "") -> str:
        path = f"/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key, safe='')}"
        event_id: str = self.v3("PUT", path, content)["event_id"]
        return event_id

    def redact(self, room_id: str, event_id: str) -> str:
        path = f"/rooms/{quote(room_id)}/redact/{quote(event_id, safe='')}/t{next(_transactions)}"
        redaction_id: str = self.v3("PUT", path, {"reason": "because"})["event_id"]
        return redaction_id

    def event(self, room_id: str, event_id: str) -> dict[str, Any] | None:
        """The event, or None while the server does not have it."""
        try:
            event: dict[str, Any] = self.v3("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id, safe='')}")
            return event
        except RequestFailed as refusal:
            if refusal.status == 404:
                return None
            raise

    def state(self, room_id: str) -> dict[tuple[str, str], str]:
        """The room's state: event ids."""
        events = self.v3("GET", f"/rooms/{quote(room_id)}/state")
        return {(event["type"], event["state_key"]): event["event_id"] for event in events}

    def state_content(self, room_id: str, event_type: str, state_key: str = "") -> dict[str, Any] | None:
        """The content of one state event, or None if there is none or the room is not to be seen."""
        path = f"/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key, safe='')}"
        try:
            content: dict[str, Any] = self.v3("GET", path)
            return content
        except RequestFailed as refusal:
            if refusal.status in (403, 404):
                return None
            raise

    def membership_of(self, room_id: str, user_id: str) -> str | None:
        content = self.state_content(room_id, "m.room.member", user_id)
        return None if content is None else content["membership"]

    def joined_members(self, room_id: str) -> set[str]:
        return set(self.v3("GET", f"/rooms/{quote(room_id)}/joined_members")["joined"])

    def history(self, room_id: str, count_max: int = 1000) -> list[dict[str, Any]]:
        """The room's events, newest first, as far back as the server can get."""
        events: list[dict[str, Any]] = []
        at: str | None = None
        while len(events) < count_max:
            query = {"from": at} if at is not None else {}
            page = self.v3("GET", f"/rooms/{quote(room_id)}/messages", dir="b", limit=50, **query)
            events += page["chunk"]
            at = page.get("end")
            if at is None or (not page["chunk"] and at == query.get("from")):
                break
        return events

    def send_to_device(self, receiver: Client, content: dict[str, Any]) -> None:
        """Sends an org.example.test message to the device of another client."""
        path = f"/sendToDevice/org.example.test/t{next(_transactions)}"
        self.v3("PUT", path, {"messages": {receiver.user_id: {receiver.device_id: content}}})

    # -- sync ------------------------------------------------------------------------------------------

    def sync(self, timeout_ms: int = 0) -> None:
        """Asks once, and keeps what comes."""
        query = {"since": self.since} if self.since is not None else {}
        answer = self.v3("GET", "/sync", timeout=timeout_ms, **query)
        self.since = answer["next_batch"]
        rooms = answer.get("rooms", {})
        for room_id, room in rooms.get("join", {}).items():
            self.invites.pop(room_id, None)
            self.left.discard(room_id)
            self.timelines.setdefault(room_id, []).extend(room.get("timeline", {}).get("events", []))
            for event in room.get("ephemeral", {}).get("events", []):
                self._keep_ephemeral(room_id, event)
        for room_id, room in rooms.get("invite", {}).items():
            self.invites[room_id] = room["invite_state"]["events"]
        for room_id, room in rooms.get("leave", {}).items():
            self.invites.pop(room_id, None)
            self.left.add(room_id)
            self.timelines.setdefault(room_id, []).extend(room.get("timeline", {}).get("events", []))
        self.to_device += answer.get("to_device", {}).get("events", [])
        for event in answer.get("presence", {}).get("events", []):
            self.presence[event["sender"]] = event["content"]

    def _keep_ephemeral(self, room_id: str, event: dict[str, Any]) -> None:
        if event["type"] != "m.receipt":
            self.ephemeral[room_id, event["type"]] = event["content"]
            return
        receipts = self.ephemeral.setdefault((room_id, "m.receipt"), {})  # each brings only what is new
        for event_id, by_type in event["content"].items():
            for receipt_type, by_user in by_type.items():
                receipts.setdefault(event_id, {}).setdefault(receipt_type, {}).update(by_user)

    def wait(self, what: str, probe: Callable[[], T], timeout_s: float = ARRIVAL_TIMEOUT_S) -> T:
        """Syncs until `probe`, which looks at what was kept, gives something true."""

        def sync_and_probe() -> T:
            value = probe()
            if not value:
                self.sync(timeout_ms=1000)
                value = probe()
            return value

        return wait_until(f"{self}: {what}", sync_and_probe, timeout_s)

    def wait_message(self, room_id: str, text: str) -> dict[str, Any]:
        """The message with that body, once sync has brought it."""

        def find() -> dict[str, Any] | None:
            events = self.timelines.get(room_id, [])
            return next((event for event in events if event.get("content", {}).get("body") == text), None)

        found = self.wait(f"message {text!r}", find)
        if found is None:
            raise AssertionError("wait gives only what is true")
        return found

    def wait_invite(self, room_id: str) -> list[dict[str, Any]]:
        """The stripped state of an invite, once sync has brought it."""
        return self.wait(f"invite to {room_id}", lambda: self.invites.get(room_id)) or []
