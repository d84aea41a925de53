"""A bridge on mautrix, the library of the bridges to WhatsApp, Signal, Telegram and others.

    python bridge.py PLAN

PLAN is JSON: {"people": [{"url", "server_name", "user", "password"}, …], "port", "registration"}. The server of the
first person knows the bridge; the second one is on another server. Prints each step, and exits with 1 if one fails.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

from conversation import Errors, Json, Person, check, until
from mautrix.appservice import AppService, IntentAPI
from mautrix.appservice.state_store import ASStateStore
from mautrix.client.state_store import MemoryStateStore
from mautrix.errors import MForbidden
from mautrix.types import EventType, Format, MessageType, RoomCreatePreset, TextMessageEventContent, UserID

SENT_MS = 1_000_000_000_000  # when something was said on the other network: in 2001


class BridgeStateStore(ASStateStore, MemoryStateStore):
    """What the bridge remembers of rooms and of its users."""

    def __init__(self) -> None:
        ASStateStore.__init__(self)
        MemoryStateStore.__init__(self)


class Bridge:
    """The bridge, with all that it was sent."""

    def __init__(self, plan: Json) -> None:
        registration, person = plan["registration"], plan["people"][0]
        self.plan = plan
        self.server_name = person["server_name"]
        self.events: list[Any] = []
        self.service = AppService(
            id=registration["id"],
            server=person["url"],
            domain=self.server_name,
            as_token=registration["as_token"],
            hs_token=registration["hs_token"],
            bot_localpart=registration["sender_localpart"],
            state_store=BridgeStateStore(),
            ephemeral_events=True,
        )
        self.service.matrix_event_handler(self._handle)

    async def _handle(self, event: Any) -> None:
        self.events.append(event)

    def ghost(self, name: str) -> IntentAPI:
        """Returns the API of one of its users."""
        return self.service.intent.user(UserID(f"@bridged_{name}:{self.server_name}"))

    def said(self, body: str) -> Any:
        """Returns the message with this text, None if it has not come."""
        return next((each for each in self.events if getattr(each.content, "body", None) == body), None)

    def member(self, user_id: str, membership: str) -> bool:
        """Returns whether such a member event has come."""
        members = self.of_type(EventType.ROOM_MEMBER)
        return any(each.state_key == user_id and each.content.membership.value == membership for each in members)

    def of_type(self, event_type: EventType) -> list[Any]:
        return [each for each in self.events if each.type == event_type]


async def introduce(bridge: Bridge) -> None:
    """The bridge finds the server, and the server finds the bridge."""
    bot = bridge.service.intent
    await bot.ensure_registered()
    check("the bridge is its own user", (await bot.whoami()).user_id == bot.mxid)
    duration_ms = await bridge.service.ping_self("1")
    check("the server reaches the bridge", duration_ms >= 0)
    await bot.set_displayname("The bridge")


async def converse(bridge: Bridge, alice: Person, bob: Person) -> str:
    """Alice invites the bridge's user into a room where Bob of another server is, and they talk."""
    ghost = bridge.ghost("carol")
    await ghost.set_displayname("Carol of the other network")
    room_id = await alice.client.create_room(
        preset=RoomCreatePreset.PRIVATE, name="Bridged", invitees=[UserID(bob.id), ghost.mxid]
    )
    await until("the bridge is sent the invitation", lambda: bridge.member(ghost.mxid, "invite"))
    await ghost.ensure_joined(room_id)
    await until("Bob comes", lambda: bridge.member(bob.id, "join"))
    await until("and his own server knows it", lambda: is_in(bob, room_id))
    await alice.client.send_text(room_id, "hello over there")
    await bob.client.send_text(room_id, "hello from elsewhere")
    await until("the bridge is sent what Alice says", lambda: bridge.said("hello over there"))
    await until("and what Bob says", lambda: bridge.said("hello from elsewhere"))
    content = TextMessageEventContent(
        msgtype=MessageType.TEXT, body="**hi**", format=Format.HTML, formatted_body="<b>hi</b>"
    )
    said = await ghost.send_message(room_id, content, timestamp=SENT_MS)
    for person in (alice, bob):
        event = await until("what Carol says arrives", lambda person=person: person.event(said))
        check("with the time of the other network", event.timestamp == SENT_MS)
    return str(room_id)


async def is_in(person: Person, room_id: str) -> bool:
    return room_id in await person.client.get_joined_rooms()


async def notice(bridge: Bridge, alice: Person, room_id: str) -> None:
    """Typing and receipts, in both directions."""
    ghost = bridge.ghost("carol")
    last = await alice.client.send_text(room_id, "read this")
    await until("the bridge is sent another message", lambda: bridge.said("read this"))
    await ghost.mark_read(room_id, last)
    await ghost.set_typing(room_id, timeout=5000)
    typists = lambda: getattr(alice.latest(EventType.TYPING), "user_ids", ())  # noqa: E731
    await until("Alice sees that Carol types", lambda: ghost.mxid in typists())
    await alice.client.set_typing(room_id, timeout=5000)
    await until(
        "the bridge sees that Alice types",
        lambda: any(alice.id in each.content.user_ids for each in bridge.of_type(EventType.TYPING)),
    )
    await alice.client.send_receipt(room_id, last)
    await until(
        "and what she has read", lambda: any(last in each.content for each in bridge.of_type(EventType.RECEIPT))
    )


async def stay_apart(bridge: Bridge, alice: Person) -> None:
    """The bridge is nobody but itself."""
    try:
        await bridge.service.intent.user(UserID(alice.id)).whoami()
    except MForbidden:
        check("the bridge cannot act as Alice", True)
    else:
        check("the bridge cannot act as Alice", False)


async def main(plan: Json) -> None:
    errors = Errors()
    logging.getLogger().addHandler(errors)
    bridge = Bridge(plan)
    await bridge.service.start("127.0.0.1", plan["port"])
    alice, bob = await Person.enter(plan["people"][0]), await Person.enter(plan["people"][1])
    try:
        await introduce(bridge)
        room_id = await converse(bridge, alice, bob)
        await notice(bridge, alice, room_id)
        await stay_apart(bridge, alice)
    finally:
        print(*errors.found, sep="\n")
        for person in (alice, bob):
            person.client.stop()
            await person.client.api.session.close()
        await bridge.service.stop()
    check(f"the library had nothing to complain about {errors.found}", not errors.found)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
