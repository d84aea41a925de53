"""People with a matrix-nio client: an independent idea of what a homeserver is and how it answers.

nio speaks asyncio. A Person lends each call the loop for as long as it takes, so that a test reads from top to bottom.
Answers that do not fit nio's own schemas come back as errors, and errors end the test.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import nio

from tests.end_to_end.programs import PATIENCE_S, Failed, Homeserver

T = TypeVar("T")
PASSWORD = "o happy dagger"


class Refused(AssertionError):
    """nio was answered with an error, or with what it does not understand."""

    def __init__(self, answer: nio.ErrorResponse) -> None:
        super().__init__(str(answer))
        self.errcode = answer.status_code


class Person:
    """One user of one server. What their syncs bring is kept."""

    def __init__(self, loop: asyncio.Runner, server: Homeserver, localpart: str) -> None:
        self.server = server
        self.localpart = localpart
        self.user_id = server.user_id(localpart)
        self.timelines: dict[str, list[nio.Event]] = {}
        self.left: dict[str, nio.RoomInfo] = {}
        self.read: dict[tuple[str, str], str] = {}  # (room, reader) → event
        self._loop = loop
        # nio waits longer before each retry; these tests want to see the error
        config = nio.AsyncClientConfig(max_timeouts=1, max_limit_exceeded=1, encryption_enabled=False)
        self.nio = self._run(self._make_client(config))

    async def _make_client(self, config: nio.AsyncClientConfig) -> nio.AsyncClient:
        return nio.AsyncClient(self.server.url, self.user_id, config=config)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(coroutine)

    def ask(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The answer to a call of nio. Refused where it is an error."""
        answer = self._run(coroutine)
        if isinstance(answer, nio.ErrorResponse):
            raise Refused(answer)
        return answer

    # -- accounts

    def register(self) -> None:
        answer = self.ask(self.nio.register(self.localpart, PASSWORD, device_name="first"))
        assert answer.user_id == self.user_id

    def log_in(self, password: str = PASSWORD) -> None:
        self.ask(self.nio.login(password, device_name="another"))

    def another_device(self) -> Person:
        """The same person at a device that is not logged in yet."""
        return Person(self._loop, self.server, self.localpart)

    def go(self) -> None:
        """Logs out, if logged in, and closes the client."""
        if self.nio.logged_in:
            self._run(self.nio.logout())
        self._run(self.nio.close())

    # -- rooms

    def create_room(self, *invite: Person, **options: Any) -> str:
        room_id: str = self.ask(self.nio.room_create(invite=[each.user_id for each in invite], **options)).room_id
        return room_id

    def join(self, room: str) -> str:
        room_id: str = self.ask(self.nio.join(room)).room_id
        return room_id

    def leave(self, room_id: str) -> None:
        self.ask(self.nio.room_leave(room_id))

    def say(self, room_id: str, text: str) -> str:
        return self.send(room_id, {"msgtype": "m.text", "body": text})

    def send(self, room_id: str, content: dict[str, Any]) -> str:
        event_id: str = self.ask(self.nio.room_send(room_id, "m.room.message", content)).event_id
        return event_id

    def redact(self, room_id: str, event_id: str, reason: str) -> None:
        self.ask(self.nio.room_redact(room_id, event_id, reason))

    def set_state(self, room_id: str, event_type: str, content: dict[str, Any], state_key: str = "") -> None:
        self.ask(self.nio.room_put_state(room_id, event_type, content, state_key))

    def mark_read(self, room_id: str, event_id: str) -> None:
        self.ask(self.nio.update_receipt_marker(room_id, event_id, thread_id=None))

    def type(self, room_id: str, is_typing: bool) -> None:
        self.ask(self.nio.room_typing(room_id, is_typing))

    def pages(self, room_id: str, limit: int) -> list[list[nio.Event]]:
        """The history of a room, newest first, a page at a time until there is none before it."""
        found: list[list[nio.Event]] = []
        at: str | None = None
        while True:
            page = self.ask(self.nio.room_messages(room_id, at, limit=limit))
            found.append(page.chunk)
            at = page.end
            if not at:
                return found

    def texts(self, room_id: str) -> list[str]:
        """Returns the messages of a room that the user can read, oldest first."""
        events = [event for page in self.pages(room_id, 100) for event in page]
        return [event.body for event in reversed(events) if isinstance(event, nio.RoomMessageText)]

    # -- media

    def upload(self, data: bytes, content_type: str, filename: str) -> str:
        """The mxc:// URI."""
        upload = self.nio.upload(io.BytesIO(data), content_type, filename, filesize=len(data))
        answer, _ = self._run(upload)
        if isinstance(answer, nio.ErrorResponse):
            raise Refused(answer)
        uri: str = answer.content_uri
        return uri

    def download(self, uri: str) -> nio.MemoryDownloadResponse:
        answer: nio.MemoryDownloadResponse = self.ask(self.nio.download(uri))
        return answer

    # -- sync

    def sync(self, timeout_ms: int = 0) -> nio.SyncResponse:
        """One sync from where the last one ended. What it brought is kept."""
        answer = self.ask(self.nio.sync(timeout_ms))
        for room_id, room in answer.rooms.join.items():
            self.left.pop(room_id, None)
            self.timelines.setdefault(room_id, []).extend(room.timeline.events)
            for event in room.ephemeral:
                if isinstance(event, nio.ReceiptEvent):
                    self.read |= {(room_id, receipt.user_id): receipt.event_id for receipt in event.receipts}
        self.left |= answer.rooms.leave
        return answer

    def wait(self, what: str, probe: Callable[[], T | None]) -> T:
        """Syncs until `probe`, which looks at what was kept, gives something true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            value = probe()
            if value:
                return value
            if time.monotonic() > deadline:
                raise Failed(f"{self.user_id} still waits for: {what}")
            self.sync(timeout_ms=2000)

    def wait_invited(self, room_id: str) -> nio.MatrixInvitedRoom:
        return self.wait(f"an invitation to {room_id}", lambda: self.nio.invited_rooms.get(room_id))

    def wait_joined(self, room_id: str, person: Person) -> None:
        def is_there() -> bool:
            room = self.nio.rooms.get(room_id)
            return room is not None and person.user_id in room.users and person.user_id not in room.invited_users

        self.wait(f"{person.user_id} to join", is_there)

    def wait_gone(self, room_id: str, person: Person) -> None:
        def is_gone() -> bool:
            room = self.nio.rooms.get(room_id)
            return room is not None and person.user_id not in room.users

        self.wait(f"{person.user_id} to leave", is_gone)

    def heard(self, room_id: str, event_id: str) -> nio.Event | None:
        """The event, if a sync has brought it."""
        return next((event for event in self.timelines.get(room_id, ()) if event.event_id == event_id), None)

    def wait_event(self, room_id: str, event_id: str) -> Any:
        return self.wait(f"event {event_id}", lambda: self.heard(room_id, event_id))
