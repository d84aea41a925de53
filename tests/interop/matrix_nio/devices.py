"""Devices of people, each with matrix-nio and its cryptography (vodozemac), and waiting for what they hear.

Nothing runs in the background: `until` lets every device that is not lost sync, and send what its cryptography wants
to send, until its condition holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nio import (
    AsyncClient,
    AsyncClientConfig,
    ErrorResponse,
    Event,
    MatrixRoom,
    MegolmEvent,
    RoomMessageText,
    ShareGroupSessionResponse,
)
from nio.crypto import OlmDevice
from nio.store import SqliteMemoryStore

PATIENCE_S = 40.0

CONFIG = AsyncClientConfig(store=SqliteMemoryStore, encryption_enabled=True, max_timeouts=2)


@dataclass(frozen=True, slots=True)
class Message:
    """What was said, and the Megolm session it was encrypted with."""

    event_id: str
    body: str
    session_id: str


def require(response: Any) -> Any:
    """Returns a response of matrix-nio. Raises AssertionError if it is a refusal."""
    if isinstance(response, ErrorResponse):
        raise AssertionError(repr(response))
    return response


def check(what: str, holds: bool) -> None:
    """Raises AssertionError unless `holds`."""
    if not holds:
        raise AssertionError(f"not so: {what}")
    print(what, flush=True)


class Device:
    """A device of a person, logged in. `given` has the devices it has sent keys of rooms to: (user ID, device ID)."""

    def __init__(self, url: str, user: str) -> None:
        self.client = AsyncClient(url, user, config=CONFIG)
        self.client.add_event_callback(self._keep, (RoomMessageText, MegolmEvent))
        self.given: set[tuple[str, str]] = set()
        self.events: dict[str, Event] = {}
        receive = self.client.receive_response

        async def receive_and_note(response: Any) -> None:
            if isinstance(response, ShareGroupSessionResponse):
                self.given |= response.users_shared_with
            await receive(response)

        self.client.receive_response = receive_and_note

    def __repr__(self) -> str:
        return f"{self.user_id} {self.device_id}"

    @property
    def user_id(self) -> str:
        return str(self.client.user_id)

    @property
    def device_id(self) -> str:
        return str(self.client.device_id)

    @property
    def name(self) -> tuple[str, str]:
        return self.user_id, self.device_id

    async def _keep(self, _room: MatrixRoom, event: Event) -> None:
        self.events[event.event_id] = event

    async def step(self) -> None:
        """Syncs once, and does what matrix-nio does after each sync in its own loop."""
        require(await self.client.sync(timeout=0))
        for response in await self.client.send_to_device_messages():
            require(response)
        if self.client.should_upload_keys:
            require(await self.client.keys_upload())
        if self.client.should_query_keys:
            require(await self.client.keys_query())
        if self.client.should_claim_keys:
            require(await self.client.keys_claim(self.client.get_users_for_key_claiming()))

    async def fetch(self, path: str) -> dict[str, Any]:
        """Returns the answer of the server as it is: matrix-nio would decrypt it."""
        response = await self.client.send("GET", path, headers={"Authorization": f"Bearer {self.client.access_token}"})
        answer: dict[str, Any] = await response.json()
        return answer

    def known(self, other: Device) -> OlmDevice | None:
        """Returns what this device knows of the other: None if it does not know it, or knows that it is gone."""
        active = self.client.device_store.active_user_devices(other.user_id)
        return next((device for device in active if device.id == other.device_id), None)

    def reads(self, message: Message) -> bool:
        """Returns whether the device has the message and its key."""
        event = self.events.get(message.event_id)
        if isinstance(event, MegolmEvent):
            session = self.client.olm.inbound_group_store.get(event.room_id, event.sender_key, event.session_id)
            if session is None:
                return False
            event = self.client.decrypt_event(event)
        return isinstance(event, RoomMessageText) and event.body == message.body and event.decrypted

    def trusts(self, other: Device) -> bool:
        device = self.known(other)
        return device is not None and bool(device.verified)


class People:
    """All devices that are logged in."""

    def __init__(self) -> None:
        self.devices: list[Device] = []

    async def enter(self, person: dict[str, str]) -> Device:
        """A new device of the person, with its keys uploaded."""
        device = Device(person["url"], person["user"])
        require(await device.client.login(person["password"]))
        await device.step()
        check(f"{device} has uploaded its keys", device.client.olm_account_shared)
        self.devices.append(device)
        return device

    async def lose(self, device: Device) -> None:
        """Logs a device out. It does nothing any more."""
        self.devices.remove(device)
        require(await device.client.logout())
        await device.client.close()

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Lets all devices step until `holds`. Raises AssertionError if it does not in time."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}")
            for device in self.devices:
                await device.step()
        print(what, flush=True)

    async def compare_emoji(self, one: Device, other: Device) -> None:
        """Two devices verify each other by the short authentication string."""
        await self.until(f"{one} and {other} know each other", lambda: bool(one.known(other) and other.known(one)))
        require(await one.client.start_key_verification(one.known(other)))
        transaction = one.client.get_active_sas(other.user_id, other.device_id).transaction_id
        await self.until("the other is asked", lambda: transaction in other.client.key_verifications)
        require(await other.client.accept_key_verification(transaction))
        both = [device.client.key_verifications[transaction] for device in (one, other)]
        await self.until("keys are exchanged", lambda: all(sas.established_sas for sas in both))
        here, there = (sas.get_emoji() for sas in both)
        check("both show the same seven emoji", here == there and len(here) == 7)
        for device in (one, other):
            require(await device.client.confirm_short_auth_string(transaction))
        await self.until("they trust each other", lambda: one.trusts(other) and other.trusts(one))

    async def say(self, sender: Device, room_id: str, body: str) -> Message:
        """Sends a message. matrix-nio refuses to if a device in the room is not verified."""
        sent = require(await sender.client.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": body}))
        stored = await sender.fetch(f"/_matrix/client/v3/rooms/{quote(room_id)}/event/{quote(sent.event_id)}")
        check(f"the server of {sender} has only ciphertext", stored["type"] == "m.room.encrypted")
        check("and no word of the message", body not in json.dumps(stored, ensure_ascii=False))
        return Message(sent.event_id, body, stored["content"]["session_id"])

    async def read(self, readers: Sequence[Device], message: Message) -> None:
        """Waits until all readers have read the message."""
        for reader in readers:
            await self.until(f"{reader} reads {message.body}", lambda: reader.reads(message))  # noqa: B023 (called at once)

    async def unreadable(self, reader: Device, message: Message) -> None:
        """Waits until the reader has the message, and checks that it lacks the key."""
        await self.until(f"{reader} gets an event", lambda: message.event_id in reader.events)
        check("and cannot read it", not reader.reads(message))
