"""A bridge on mautrix that encrypts: all it knows of keys comes from transactions, and it never syncs.

    python encrypted_bridge.py PLAN

PLAN is that of bridge.py. The second person, of another server, writes to the bridge's own user in an encrypted room.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from conversation import Json, Person, check, until
from mautrix.appservice import AppService
from mautrix.appservice.state_store import ASStateStore
from mautrix.client import Client, DecryptionDispatcher
from mautrix.client.state_store import MemoryStateStore
from mautrix.crypto import OlmMachine, StateStore
from mautrix.crypto.store import MemoryCryptoStore
from mautrix.errors import DecryptionError
from mautrix.types import (
    EncryptionAlgorithm,
    EventType,
    MessageType,
    RoomCreatePreset,
    RoomEncryptionStateEventContent,
    TextMessageEventContent,
    UserID,
)

MEGOLM = RoomEncryptionStateEventContent(EncryptionAlgorithm.MEGOLM_V1)


class BridgeStateStore(ASStateStore, MemoryStateStore):
    """What the bridge remembers of rooms and of its users."""

    def __init__(self) -> None:
        ASStateStore.__init__(self)
        MemoryStateStore.__init__(self)


class Encrypted(StateStore):
    """All rooms are encrypted, and shared with everybody."""

    def __init__(self) -> None:
        self.rooms: set[Any] = set()

    async def is_encrypted(self, room_id: Any) -> bool:
        return True

    async def get_encryption_info(self, room_id: Any) -> RoomEncryptionStateEventContent:
        self.rooms.add(room_id)
        return MEGOLM

    async def find_shared_rooms(self, user_id: Any) -> list[Any]:
        return list(self.rooms)


def add_keys(client: Client) -> OlmMachine:
    """Gives a client a new identity for encryption."""
    client.crypto = OlmMachine(client, MemoryCryptoStore(str(client.mxid), "a key for pickles"), Encrypted())
    return client.crypto


class EncryptedPerson(Person):
    """A person whose client encrypts."""

    @classmethod
    async def enter_encrypted(cls, plan: Json) -> Person:
        person = await cls.enter(plan)
        person.client.stop()
        crypto = add_keys(person.client)
        person.client.add_dispatcher(DecryptionDispatcher)
        await crypto.load()
        await crypto.share_keys()
        person.client.start(None)
        return person

    async def say(self, room_id: str, text: str) -> None:
        content = await self.client.encrypt(room_id, EventType.ROOM_MESSAGE, message(text))
        await self.client.send_message_event(room_id, EventType.ROOM_ENCRYPTED, content, disable_encryption=True)

    def heard(self, text: str) -> bool:
        return any(getattr(event.content, "body", None) == text for event in self.events)


def message(text: str) -> TextMessageEventContent:
    return TextMessageEventContent(msgtype=MessageType.TEXT, body=text)


class Bridge:
    """The bridge: its own user has a device, which was created without logging in."""

    def __init__(self, plan: Json) -> None:
        registration, person = plan["registration"], plan["people"][0]
        self.events: list[Any] = []
        self.counts: list[Any] = []
        self.changed: list[str] = []
        self.service = AppService(
            id=registration["id"],
            server=person["url"],
            domain=person["server_name"],
            as_token=registration["as_token"],
            hs_token=registration["hs_token"],
            bot_localpart=registration["sender_localpart"],
            state_store=BridgeStateStore(),
            ephemeral_events=True,
            encryption_events=True,
        )
        self.service.matrix_event_handler(self._keep)
        self.client = Client(
            mxid=self.service.bot_mxid,
            base_url=person["url"],
            token=registration["as_token"],
            state_store=MemoryStateStore(),
            default_retry_count=0,
        )
        self.crypto = add_keys(self.client)
        self.service.otk_handler = self._count
        self.service.device_list_handler = self._note_changes
        self.service.to_device_handler = self.crypto.handle_as_to_device_event

    async def _keep(self, event: Any) -> None:
        self.events.append(event)

    async def _count(self, counts: Any) -> None:
        self.counts.append(counts)
        await self.crypto.handle_as_otk_counts(counts)

    async def _note_changes(self, lists: Any) -> None:
        self.changed += lists.changed
        await self.crypto.handle_as_device_lists(lists)

    async def start(self, port: int) -> None:
        await self.service.start("127.0.0.1", port)
        await self.service.intent.ensure_registered()
        await self.client.create_device_msc4190("ENCRYPTINGBRIDGE", "The bridge")
        await self.crypto.load()
        await self.crypto.share_keys()

    async def stop(self) -> None:
        await self.client.api.session.close()
        await self.service.stop()

    def is_invited(self) -> bool:
        """Returns whether somebody has invited the bridge's own user."""
        members = [event for event in self.events if event.type == EventType.ROOM_MEMBER]
        return any(event.state_key == self.client.mxid for event in members)

    async def heard(self, text: str) -> bool:
        """Returns whether this was said to the bridge, and it could read it."""
        for event in self.events:
            if event.type == EventType.ROOM_ENCRYPTED and event.sender != self.client.mxid:
                try:
                    decrypted = await self.crypto.decrypt_megolm_event(event)
                except DecryptionError:
                    continue
                if decrypted.content.body == text:
                    return True
        return False

    async def say(self, room_id: str, text: str) -> None:
        content = await self.client.encrypt(room_id, EventType.ROOM_MESSAGE, message(text))
        await self.service.intent.send_message_event(room_id, EventType.ROOM_ENCRYPTED, content)


async def main(plan: Json) -> None:
    bridge = Bridge(plan)
    await bridge.start(plan["port"])
    bob = await EncryptedPerson.enter_encrypted(plan["people"][1])
    people = [bob]
    try:
        bot = UserID(bridge.client.mxid)
        room_id = await bob.client.create_room(
            preset=RoomCreatePreset.TRUSTED_PRIVATE,
            is_direct=True,
            invitees=[bot],
            initial_state=[{"type": "m.room.encryption", "content": MEGOLM.serialize()}],
        )
        await until("the bridge is invited", bridge.is_invited)
        await bridge.service.intent.ensure_joined(room_id)
        await until("Bob's server sees it in the room", lambda: is_in(bob, room_id, bot))
        await bob.say(room_id, "for the bridge only")
        await until("the bridge reads what Bob has encrypted", lambda: bridge.heard("for the bridge only"))
        check("it was told what its device has left", bridge.counts)
        await bridge.say(room_id, "for Bob only")
        await until("Bob reads what the bridge has encrypted", lambda: bob.heard("for Bob only"))
        told = len(bridge.changed)
        tablet = await EncryptedPerson.enter_encrypted(plan["people"][1])
        people.append(tablet)
        await until("the bridge is told that Bob has a new device", lambda: bob.id in bridge.changed[told:])
        await asyncio.sleep(1)
        await bridge.say(room_id, "for all of Bob's devices")
        await until("Bob reads the next message on it", lambda: tablet.heard("for all of Bob's devices"))
        await until("and on the older one", lambda: bob.heard("for all of Bob's devices"))
    finally:
        for person in people:
            person.client.stop()
            await person.client.api.session.close()
        await bridge.stop()


async def is_in(person: Person, room_id: str, user_id: str) -> bool:
    return user_id in await person.client.get_joined_members(room_id)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
