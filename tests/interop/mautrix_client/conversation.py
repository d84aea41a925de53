"""Two people of two servers with mautrix, the library of bridges and of maubot, whose types every answer has to fit.

    python conversation.py PLAN

PLAN is JSON: {"people": [{"url", "server_name", "user", "password"}, …]}. Prints each step. Exits with 1 at the first
step that fails.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mautrix.client import Client, InternalEventType
from mautrix.client.dispatcher import MembershipEventDispatcher
from mautrix.client.state_store import MemoryStateStore, MemorySyncStore
from mautrix.errors import MForbidden, MNotFound, MUnknownToken
from mautrix.types import (
    EventType,
    ImageInfo,
    Membership,
    MessageType,
    PaginationDirection,
    PresenceState,
    PushActionType,
    PushRuleKind,
    PushRuleScope,
    RoomCreatePreset,
    RoomDirectoryVisibility,
    SpecVersions,
    TextMessageEventContent,
)

PATIENCE_S = 30.0
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c636460f8cf500f00038601805a34697d0000000049454e44ae426082"
)

Json = dict[str, Any]


class Errors(logging.Handler):
    """What the library complains about: answers that it cannot take, and handlers that fail."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class Person:
    """A client that keeps all events that it gets."""

    def __init__(self, plan: Json, sync_store: MemorySyncStore, **account: str) -> None:
        self.plan = plan
        self.sync_store = sync_store
        self.events: list[Any] = []
        self.left: list[Any] = []
        self.client = Client(
            base_url=plan["url"],
            sync_store=sync_store,
            state_store=MemoryStateStore(),
            default_retry_count=0,
            **account,
        )
        self.client.add_dispatcher(MembershipEventDispatcher)
        self.client.add_event_handler(EventType.ALL, self._keep)
        self.client.add_event_handler(InternalEventType.INVITE, self._accept)
        for event_type in (InternalEventType.KICK, InternalEventType.BAN):
            self.client.add_event_handler(event_type, self._leave)

    @classmethod
    async def enter(cls, plan: Json) -> Person:
        """Logs a person in with a new device."""
        person = cls(plan, MemorySyncStore())
        flows = await person.client.get_login_flows()
        check("a password will do", any(str(flow.type) == "m.login.password" for flow in flows.flows))
        await person.client.login(identifier=plan["user"], password=plan["password"], device_name="mautrix")
        person.client.start(None)
        return person

    async def again(self) -> Person:
        """Stops, and starts another client of the same device that syncs from where this one has stopped."""
        self.client.stop()
        account = {"mxid": self.id, "device_id": self.client.device_id, "token": self.client.api.token}
        await self.client.api.session.close()
        return Person(self.plan, self.sync_store, **account)

    @property
    def id(self) -> str:
        return str(self.client.mxid)

    async def _keep(self, event: Any) -> None:
        self.events.append(event)

    async def _accept(self, event: Any) -> None:
        await self.client.join_room(event.room_id, servers=[event.sender.partition(":")[2]])

    async def _leave(self, event: Any) -> None:
        self.left.append(event)

    def event(self, event_id: str) -> Any:
        """Returns an event that has come, None if it has not."""
        return next((each for each in self.events if getattr(each, "event_id", None) == event_id), None)

    def latest(self, event_type: EventType) -> Any:
        """Returns the content of the last event of a type."""
        found = [each for each in self.events if each.type == event_type]
        return found[-1].content if found else None


def check(what: str, holds: object) -> None:
    if not holds:
        raise AssertionError(f"not so: {what}")
    print(what, flush=True)


async def until(what: str, probe: Callable[[], Any]) -> Any:
    """Returns the first true value of `probe`. Raises AssertionError if there is none in time."""
    end = time.monotonic() + PATIENCE_S
    while True:
        value = probe()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            print(what, flush=True)
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}")
        await asyncio.sleep(0.05)


async def refused(error: type[Exception], request: Awaitable[Any]) -> bool:
    """Returns whether a request fails with this error."""
    try:
        await request
    except error:
        return True
    return False


async def meet(alice: Person, bob: Person) -> str:
    room_id = await alice.client.create_room(
        name="The balcony",
        topic="Parting",
        preset=RoomCreatePreset.PRIVATE,
        invitees=[bob.id],
        power_level_override={"users_default": 50},
    )
    joined = await until("the invited joins", lambda: joined_of(alice, bob, room_id))
    check("and was invited before", joined.unsigned.prev_content.membership == Membership.INVITE)
    return str(room_id)


def joined_of(reader: Person, member: Person, room_id: str) -> Any:
    return next(
        (
            each
            for each in reader.events
            if each.type == EventType.ROOM_MEMBER
            and (each.room_id, each.state_key, each.content.membership) == (room_id, member.id, Membership.JOIN)
        ),
        None,
    )


async def talk(alice: Person, bob: Person, room_id: str) -> None:
    first = await alice.client.send_text(room_id, html="But <b>soft</b>")
    event = await until("a message arrives", lambda: bob.event(first))
    check("with its formatting", event.content.formatted_body == "But <b>soft</b>")
    reply = TextMessageEventContent(msgtype=MessageType.NOTICE, body="Who's there?")
    reply.set_reply(event)
    answer = await bob.client.send_message(room_id, reply)
    check("an answer", (await until("arrives", lambda: alice.event(answer))).content.get_reply_to() == first)
    edit = TextMessageEventContent(msgtype=MessageType.TEXT, body="But soft!")
    edit.set_edit(first)
    edited = await alice.client.send_message(room_id, edit)
    check("an edit", (await until("arrives", lambda: bob.event(edited))).content.get_edit() == first)
    reaction = await bob.client.react(room_id, first, "🌹")
    check("a reaction", (await until("arrives", lambda: alice.event(reaction))).content.relates_to.key == "🌹")
    redaction = await bob.client.redact(room_id, answer, "never mind")
    check("a redaction", (await until("arrives", lambda: alice.event(redaction))).redacts == answer)
    check("leaves nothing", not (await alice.client.get_event(room_id, answer)).content.serialize().get("body"))
    await bob.client.send_receipt(room_id, first)
    await until("a receipt arrives", lambda: first in (alice.latest(EventType.RECEIPT) or {}))
    await alice.client.set_typing(room_id, timeout=20_000)
    await until("a typist is seen", lambda: alice.id in getattr(bob.latest(EventType.TYPING), "user_ids", ()))
    await alice.client.set_presence(PresenceState.ONLINE, "on the balcony")
    await until("presence arrives", lambda: is_on_the_balcony(bob, alice))


async def is_on_the_balcony(reader: Person, other: Person) -> bool:
    """Returns whether the reader sees the presence that the other has set. The library takes none from /sync."""
    presence = await reader.client.get_presence(other.id)
    return (presence.presence, presence.status_msg) == (PresenceState.ONLINE, "on the balcony")


async def look_back(alice: Person, bob: Person, room_id: str) -> None:
    """Reads the state, the members and the history of a room."""
    state = {(str(each.type), each.state_key) for each in await bob.client.get_state(room_id)}
    check("the state is there", {("m.room.create", ""), ("m.room.topic", ""), ("m.room.member", bob.id)} <= state)
    topic = await bob.client.get_state_event(room_id, EventType.ROOM_TOPIC)
    check("one by one", topic.topic == "Parting")
    await bob.client.send_state_event(room_id, EventType.ROOM_TOPIC, {"topic": "Morrow"})
    await until("a topic arrives", lambda: getattr(alice.latest(EventType.ROOM_TOPIC), "topic", "") == "Morrow")
    check("nothing of nothing", await refused(MNotFound, bob.client.get_state_event(room_id, EventType.ROOM_AVATAR)))
    members = {each.state_key for each in await alice.client.get_members(room_id)}
    joined = await alice.client.get_joined_members(room_id)
    check("both are members", members == set(joined) == {alice.id, bob.id})
    check("power levels fit", (await alice.client.get_state_event(room_id, EventType.ROOM_POWER_LEVELS)).users_default)
    for number in range(25):
        await alice.client.send_text(room_id, f"line {number}")
    page, token, lines = None, None, []
    while page is None or page.events:
        page = await alice.client.get_messages(room_id, PaginationDirection.BACKWARD, from_token=token, limit=10)
        texts = [str(getattr(each.content, "body", "")) for each in page.events]
        lines += [text for text in texts if text.startswith("line ")]
        if not page.end:
            break
        token = page.end
    check("history has everything once", lines == [f"line {number}" for number in reversed(range(25))])
    last = await alice.client.send_text(room_id, "the last")
    context = await alice.client.get_event_context(room_id, last, limit=4)
    check("and events have a context", context.event.event_id == last and context.events_before)


async def show(alice: Person, bob: Person, room_id: str) -> None:
    limit = (await alice.client.get_media_repo_config()).upload_size
    check("uploads have a limit", limit > len(PICTURE))
    for is_async in (False, True):  # if it is, what is downloaded may not be there yet
        mxc = await alice.client.upload_media(PICTURE, "image/png", "rose.png", async_upload=is_async)
        info = ImageInfo(mimetype="image/png", size=len(PICTURE), width=1, height=1)
        sent = await alice.client.send_image(room_id, mxc, info, "rose.png")
        seen = await until("a picture arrives", lambda: bob.event(sent))  # noqa: B023 (called at once)
        check("it is what was sent", await bob.client.download_media(seen.content.url) == PICTURE)
        small = await bob.client.download_thumbnail(seen.content.url, 32, 32, "crop")
        check("its thumbnail is a picture", small.startswith(b"\x89PNG"))


async def settle(alice: Person, bob: Person, room_id: str) -> None:
    """Sets and reads profile, account data, tags, push rules, aliases, directory and filters."""
    client = alice.client
    await client.set_displayname("Alice of the balcony")
    await client.set_avatar_url("mxc://example.org/rose")
    profile = await bob.client.get_profile(alice.id)
    check("a profile is seen", (profile.displayname, str(profile.avatar_url)[:6]) == ("Alice of the balcony", "mxc://"))
    await client.set_account_data("org.example.theme", {"dark": True}, room_id)
    check("account data stay", await client.get_account_data("org.example.theme", room_id) == {"dark": True})
    await client.set_room_tag(room_id, "m.favourite", {"order": 0.5})
    check("a tag stays", (await client.get_room_tag(room_id, "m.favourite")).order == 0.5)
    await client.remove_room_tag(room_id, "m.favourite")
    check("and goes", await client.get_room_tag(room_id, "m.favourite") is None)
    rule = (PushRuleScope.GLOBAL, PushRuleKind.ROOM, room_id)
    await client.set_push_rule(*rule, actions=[PushActionType.NOTIFY])
    check("a push rule stays", (await client.get_push_rule(*rule)).enabled)
    await client.remove_push_rule(*rule)
    check("and goes", await refused(MNotFound, client.get_push_rule(*rule)))
    name = f"balcony-{time.time_ns()}"
    server = alice.plan["server_name"]
    await client.add_room_alias(room_id, name)
    found = await bob.client.resolve_room_alias(f"#{name}:{server}")
    check("an alias is found", found.room_id == room_id and server in found.servers)
    await client.send_state_event(room_id, EventType.ROOM_JOIN_RULES, {"join_rule": "public"})  # or Synapse hides it
    await client.set_room_directory_visibility(room_id, RoomDirectoryVisibility.PUBLIC)
    listed = await bob.client.get_room_directory(server=server, limit=100, search_query="balcony")
    check("the room is listed", room_id in {each.room_id for each in listed.chunk})
    await client.remove_room_alias(name)
    check("an alias is gone", await refused(MNotFound, bob.client.resolve_room_alias(f"#{name}:{server}")))
    check("rooms are known", room_id in await bob.client.get_joined_rooms())
    check("nobody is found who is not there", not (await client.search_users("nobody of this name")).results)
    filter_id = await client.create_filter({"room": {"timeline": {"limit": 5}}})
    check("filters are kept", (await client.get_filter(filter_id)).room.timeline.limit == 5)
    check("versions are told", (await client.versions()).supports_at_least(SpecVersions.V111))


async def come_back(alice: Person, bob: Person, room_id: str) -> Person:
    """Returns a new client of the same device, which has got what came meanwhile, and nothing twice."""
    again = await bob.again()
    said = [await alice.client.send_text(room_id, f"while you were away {number}") for number in range(3)]
    again.client.start(None)
    await until("what came meanwhile arrives", lambda: all(again.event(each) for each in said))
    seen = [each.event_id for each in again.events if each.type == EventType.ROOM_MESSAGE]
    check("once and in order", seen == said)
    return again


async def part(alice: Person, bob: Person, room_id: str) -> None:
    await alice.client.kick_user(room_id, bob.id, "enough")
    await until("a kick is noticed", lambda: bob.left)
    check("a stranger is shut out", await refused(MForbidden, bob.client.send_text(room_id, "still here")))
    await alice.client.ban_user(room_id, bob.id)
    await alice.client.unban_user(room_id, bob.id)
    await bob.client.forget_room(room_id)
    await alice.client.leave_room(room_id)
    for person in (alice, bob):
        person.client.stop()
        check("a token is known", (await person.client.whoami()).device_id == person.client.device_id)
        await person.client.logout(clear_access_token=False)
        check("until its owner logs out", await refused(MUnknownToken, person.client.whoami()))


async def main(plan: list[Json]) -> None:
    errors = Errors()
    logging.getLogger().addHandler(errors)
    alice, bob = await Person.enter(plan[0]), await Person.enter(plan[1])
    people = [alice, bob]
    try:
        room_id = await meet(alice, bob)
        await talk(alice, bob, room_id)
        await look_back(alice, bob, room_id)
        await show(alice, bob, room_id)
        await settle(alice, bob, room_id)
        people[1] = bob = await come_back(alice, bob, room_id)
        await part(alice, bob, room_id)
    finally:
        print(*errors.found, sep="\n")
        for person in people:
            await person.client.api.session.close()
    check(f"the library had nothing to complain about {errors.found}", not errors.found)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])["people"]))
