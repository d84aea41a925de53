"""A choir on three servers: who has heard what, a picture of the stage, and what changes when the choir grows large.

Read it from top to bottom. Alma lives at a.example, Bela and Bruno at b.example, Cleo at c.example.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import trio

from homeserver.config import Messages
from homeserver.users.receipts import DELIVERED
from tests.media import images
from tests.support.federation import Federation, create_room, invite, join, send_text, sync, until, wait_text
from tests.support.homeservers import Client

OURS = "/_homeserver/client/v1"
DELIVERY_MEMBERS_MAX = 6


class Singer:
    """Somebody of the choir with a client that comes back every few minutes, and says so with its token."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._since: str | None = None

    async def look(self) -> dict[str, Any]:
        news = await sync(self.client, self._since)
        self._since = news["next_batch"]
        return news

    async def look_into(self, room_id: str) -> dict[str, Any]:
        """Returns what is new in a room, the events of its timeline and those of the moment."""
        joined = (await self.look()).get("rooms", {}).get("join", {}).get(room_id, {})
        return {part: joined.get(part, {}).get("events", []) for part in ("timeline", "ephemeral")}

    async def receive(self, room_id: str, text: str) -> str:
        """Waits for a message, and acknowledges it with the next sync. Returns its ID."""

        async def find() -> str | None:
            events = (await self.look_into(room_id))["timeline"]
            return next((event["event_id"] for event in events if event["content"].get("body") == text), None)

        event_id: str = await until(find, text)
        await self.look()
        return event_id

    async def accept(self, room_id: str) -> None:
        """Waits for an invitation, and accepts it."""

        async def is_invited() -> bool:
            return room_id in (await self.look()).get("rooms", {}).get("invite", {})

        await until(is_invited)
        await join(self.client, room_id)

    async def read(self, room_id: str, event_id: str, receipt: str = "m.read") -> None:
        await self.client.ok("POST", f"rooms/{quote(room_id)}/receipt/{receipt}/{quote(event_id)}", json={})


async def status_of(asker: Client, room_id: str, event_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = await asker.ok("GET", f"{OURS}/rooms/{quote(room_id)}/events/{quote(event_id)}/status")
    return answer


async def test_a_choir_knows_who_has_heard_what(federation: Federation) -> None:
    sections = {"messages": Messages(delivery_members_max=DELIVERY_MEMBERS_MAX)}
    a, b, c = [await federation.start(f"{name}.example", **sections) for name in "abc"]
    alma, bela, bruno, cleo = [
        Singer(await server.register(name))
        for server, name in ((a, "alma"), (b, "bela"), (b, "bruno"), (c, "cleo"))
    ]  # fmt: skip
    choir = (bela, bruno, cleo)

    # Alma founds the choir and invites the others, who come from two other servers.
    room_id = await create_room(alma.client, preset="private_chat", name="Choir")
    for singer in choir:
        await invite(alma.client, room_id, singer.client.user_id)
        await singer.accept(room_id)
    for singer in (alma, *choir):
        await singer.look()

    # She announces the rehearsal. Before anybody's telephone has it, it is sent, for each of the three.
    federation.network.cut("a.example", "b.example")
    call = await send_text(alma.client, room_id, "Rehearsal at seven")
    assert (await status_of(alma.client, room_id, call))["counts"] == {"sent": 3, "delivered": 0, "read": 0}

    # Cleo reads it at once. At b.example they are cut off: the least of all counts, so it is still sent.
    await cleo.read(room_id, await cleo.receive(room_id, "Rehearsal at seven"))

    async def counts_are(**wanted: int) -> bool:
        return bool((await status_of(alma.client, room_id, call))["counts"] == wanted)

    await until(lambda: counts_are(sent=2, delivered=0, read=1))
    assert (await status_of(alma.client, room_id, call))["status"] == "sent"

    # The line works again. Bela's telephone has it: delivered. Bruno lets nobody know what reaches him.
    await bruno.client.ok("PUT", f"{OURS}/privacy", json={"delivery": "nobody"})
    federation.network.heal()
    await bela.receive(room_id, "Rehearsal at seven")
    await bruno.read(room_id, await bruno.receive(room_id, "Rehearsal at seven"), "m.read.private")
    await until(lambda: counts_are(sent=1, delivered=1, read=1))
    recipients = (await status_of(alma.client, room_id, call))["recipients"]
    assert recipients[bela.client.user_id]["delivered_ts"] is not None
    assert recipients[bruno.client.user_id] == {"status": "sent", "delivered_ts": None, "read_ts": None}

    # A picture of the stage: all see its outline with the message, and its thumbnail from their own server.
    picture = images.encoded(images.gradient(800, 600), "PNG")
    sent = {"content-type": "image/png"}
    uploaded = await alma.client.ok("POST", "/_matrix/media/v3/upload", content=picture, headers=sent)
    content = {"msgtype": "m.image", "body": "stage.png", "url": uploaded["content_uri"], "info": uploaded["info"]}
    await alma.client.ok("PUT", f"rooms/{quote(room_id)}/send/m.room.message/stage", json=content)
    place = uploaded["content_uri"].removeprefix("mxc://")
    for singer in choir:
        await singer.receive(room_id, "stage.png")
        thumbnail = await singer.client.get(f"/_matrix/client/v1/media/thumbnail/{place}?width=320&height=240")
        assert images.opened(thumbnail.content).size == (320, 240)

    # Somebody types, somebody is in doubt. Everybody sees both.
    await cleo.client.ok(
        "PUT", f"rooms/{quote(room_id)}/typing/{cleo.client.user_id}", json={"typing": True, "timeout": 30_000}
    )

    async def sees_cleo_type() -> bool:
        typing = {"type": "m.typing", "content": {"user_ids": [cleo.client.user_id]}}
        return typing in (await bela.look_into(room_id))["ephemeral"]

    await until(sees_cleo_type)
    await send_text(cleo.client, room_id, "Is that our stage?")
    for singer in (alma, bela, bruno):
        await singer.receive(room_id, "Is that our stage?")

    # The choir grows beyond the size for delivered receipts. The readers of a message are still known.
    for number in range(DELIVERY_MEMBERS_MAX):
        newcomer = await a.register(f"singer{number}")
        await invite(alma.client, room_id, newcomer.user_id)
        await join(newcomer, room_id)
    await trio.sleep(60)
    since = (await sync(alma.client))["next_batch"]
    concert = await send_text(alma.client, room_id, "The concert is on Sunday")
    await bela.receive(room_id, "The concert is on Sunday")
    await cleo.read(room_id, await cleo.receive(room_id, "The concert is on Sunday"))

    async def only_cleo_has_read() -> bool:
        recipients = (await status_of(alma.client, room_id, concert))["recipients"]
        return list(recipients) == [cleo.client.user_id]

    await until(only_cleo_has_read)
    heard = (await sync(alma.client, since))["rooms"]["join"][room_id]["ephemeral"]["events"]
    assert all(
        DELIVERED not in kinds for event in heard for kinds in event["content"].values() if event["type"] == "m.receipt"
    )

    # Bruno leaves. What is said afterwards does not reach him; what he has heard stays his.
    await bruno.client.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    await trio.sleep(60)
    await send_text(alma.client, room_id, "We need a bass")
    await wait_text(bela.client, room_id, "We need a bass")
    history = await bruno.client.ok("GET", f"rooms/{quote(room_id)}/messages?dir=b&limit=100")
    said = [event["content"].get("body") for event in history["chunk"] if event["type"] == "m.room.message"]
    assert "We need a bass" not in said and "Rehearsal at seven" in said
