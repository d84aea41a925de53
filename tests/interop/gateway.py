"""A push gateway on loopback. It checks every request against the specification."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.support.contract import list_gateway_faults

PATH = "/_matrix/push/v1/notify"
APP_ID = "org.example.app"

Json = dict[str, Any]


class Counts(msgspec.Struct, forbid_unknown_fields=True):
    """Spec: push-gateway-api/#post_matrixpushv1notify"""

    unread: int = 0
    missed_calls: int = 0


class Device(msgspec.Struct, forbid_unknown_fields=True):
    """A device that is to be notified. pushkey_ts: in seconds."""

    app_id: str
    pushkey: str
    pushkey_ts: int = 0
    data: dict[str, Any] = {}
    tweaks: dict[str, Any] = {}


class Notification(msgspec.Struct, forbid_unknown_fields=True):
    """What a server may say, and nothing else. `devices` has one device at least."""

    devices: list[Device]
    event_id: str | None = None
    room_id: str | None = None
    type: str | None = None
    sender: str | None = None
    sender_display_name: str | None = None
    room_name: str | None = None
    room_alias: str | None = None
    user_is_target: bool | None = None
    prio: str | None = None
    content: dict[str, Any] | None = None
    counts: Counts | None = None


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request."""

    notification: Notification


class Gateway:
    """Keeps what devices were told, in order. `capacity`: how many requests it takes before it fails with 502.

    rejected: the push keys that it does not know. faults: what was wrong with requests.
    """

    def __init__(self) -> None:
        self.told: list[Json] = []
        self.faults: list[str] = []
        self.rejected: set[str] = set()
        self.capacity: int | None = None
        self.failures = 0
        self._lock = threading.Lock()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = gateway.take(self.path, self.headers.get("Content-Type", ""), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                """Prints nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, content_type: str, body: bytes) -> tuple[int, bytes]:
        """Returns the status and body of the answer to a request."""
        with self._lock:
            self.faults += faults_of(path, content_type, body)
            if self.capacity is not None:
                if self.capacity == 0:
                    self.failures += 1
                    return 502, b"{}"
                self.capacity -= 1
            notification: Json = json.loads(body)["notification"]
            keys = [device["pushkey"] for device in notification["devices"]]
            self.told.append(notification)
            return 200, json.dumps({"rejected": [key for key in keys if key in self.rejected]}).encode()

    def pusher(self, pushkey: str, **data: Any) -> Json:
        """The body that sets a pusher on this gateway."""
        return {
            "kind": "http",
            "app_id": APP_ID,
            "pushkey": pushkey,
            "app_display_name": "App",
            "device_display_name": "Phone",
            "lang": "en",
            "data": {"url": f"http://127.0.0.1:{self._server.server_port}{PATH}", **data},
        }

    def of(self, pushkey: str) -> list[Json]:
        """Returns all notifications of a device."""
        with self._lock:
            return [told for told in self.told if told["devices"][0]["pushkey"] == pushkey]

    def events(self, pushkey: str) -> list[str]:
        """Returns the events among them. What is told again, after an answer that got lost, counts once."""
        return list(dict.fromkeys(told["event_id"] for told in self.of(pushkey) if "event_id" in told))

    def has(self, pushkey: str, event_ids: list[str]) -> Callable[[], bool]:
        """Returns a condition: the device got exactly these events, in this order."""
        return lambda: self.events(pushkey) == event_ids


def faults_of(path: str, content_type: str, body: bytes) -> list[str]:
    """Returns what is wrong with a request to a push gateway."""
    if path != PATH or content_type.partition(";")[0] != "application/json":
        return [f"{path} with {content_type}"]
    try:
        notification = msgspec.json.decode(body, type=Request).notification
    except msgspec.ValidationError as error:
        return [f"{error}: {body!r}"]
    faults = list_gateway_faults(path, body)
    if not notification.devices:
        faults.append(f"no devices: {body!r}")
    if notification.prio not in (None, "high", "low"):
        faults.append(f"prio {notification.prio}")
    if (notification.event_id is None) != (notification.room_id is None):
        faults.append(f"an event and its room belong together: {body!r}")
    return faults
