"""A picture and a film between two people on two servers, as the founding documents tell it.

A sends a file: it is uploaded, kept as a blob, gets a thumbnail and a URL, and C sees the thumbnail before the file.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from urllib.parse import quote

from tests.media import images
from tests.support.federation import Federation, create_room, invite, join, sync, until
from tests.support.homeservers import Client

UPLOADS = "/_homeserver/client/v1/uploads"
MEDIA = "/_matrix/client/v1/media"
TUS = {"tus-resumable": "1.0.0"}


async def _two_in_a_room(federation: Federation) -> tuple[Client, Client, str]:
    _, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    await join(bob, room_id, "a.example")
    return alice, bob, room_id


async def _message_to(client: Client, room_id: str, sender: Client) -> dict[str, Any]:
    """The newest message of somebody in the room, once it has come."""

    async def find() -> dict[str, Any] | None:
        answer = await sync(client)
        events = answer["rooms"]["join"][room_id]["timeline"]["events"]
        found = [each for each in events if each["sender"] == sender.user_id and each["type"] == "m.room.message"]
        return found[-1]["content"] if found else None

    content: dict[str, Any] = await until(find)
    return content


async def test_a_picture_is_seen_small_at_once_and_whole_when_it_is_wanted(federation: Federation) -> None:
    alice, bob, room_id = await _two_in_a_room(federation)
    picture = images.encoded(images.gradient(1600, 1200), "PNG")

    # Alice uploads it. The answer has all that belongs into her message.
    sent = {"content-type": "image/png"}
    uploaded = await alice.ok("POST", "/_matrix/media/v3/upload?filename=kettle.png", content=picture, headers=sent)
    assert uploaded["info"] | {"blurhash": "", "xyz.amorgan.blurhash": ""} == {
        "mimetype": "image/png", "size": len(picture), "w": 1600, "h": 1200, "blurhash": "", "xyz.amorgan.blurhash": "",
    }  # fmt: skip
    content = {"msgtype": "m.image", "body": "kettle.png", "url": uploaded["content_uri"], "info": uploaded["info"]}
    await alice.ok("PUT", f"rooms/{quote(room_id)}/send/m.room.message/1", json=content)

    # The message brings Bob the outline of the picture, before anything else is fetched.
    arrived = await _message_to(bob, room_id, alice)
    assert len(arrived["info"]["blurhash"]) == 28
    place = arrived["url"].removeprefix("mxc://")

    # His server fetches the picture once; he gets a thumbnail, then the whole, then any part of it.
    thumbnail = await bob.get(f"{MEDIA}/thumbnail/{place}?width=320&height=240&method=scale")
    assert images.opened(thumbnail.content).size == (320, 240)
    assert len(thumbnail.content) < len(picture)
    whole = await bob.get(f"{MEDIA}/download/{place}")
    assert (whole.content, whole.headers["content-type"]) == (picture, "image/png")
    part = await bob.server.http.get(
        f"{MEDIA}/download/{place}", headers={"authorization": f"Bearer {bob.token}", "range": "bytes=100-199"}
    )
    assert (part.status_code, part.content) == (206, picture[100:200])


async def test_a_film_arrives_although_the_connection_broke_while_it_was_sent(federation: Federation) -> None:
    alice, bob, room_id = await _two_in_a_room(federation)
    film = b"".join(hashlib.sha512(number.to_bytes(4)).digest() for number in range(20_000))
    name = base64.b64encode(b"holiday.mp4").decode()
    kind = base64.b64encode(b"video/mp4").decode()

    # Alice begins on the train. The connection breaks after a part.
    headers = {**TUS, "upload-length": str(len(film)), "upload-metadata": f"filename {name},filetype {kind}"}
    created = await alice.post(UPLOADS, headers=headers)
    path = created.headers["location"]
    part = {**TUS, "content-type": "application/offset+octet-stream"}
    await alice.request("PATCH", path, content=film[:300_000], headers={**part, "upload-offset": "0"})

    # Meanwhile her server is killed, and starts again.
    await federation.kill("a.example")
    alice.server = await federation.start("a.example")

    # At home her client asks what has arrived, and sends the rest.
    offset = int((await alice.request("HEAD", path, headers=TUS)).headers["upload-offset"])
    assert offset == 300_000
    await alice.request("PATCH", path, content=film[offset:], headers={**part, "upload-offset": str(offset)})
    finished = await alice.ok("GET", path)
    content = {"msgtype": "m.video", "body": "holiday.mp4", "url": finished["content_uri"], "info": finished["info"]}
    await alice.ok("PUT", f"rooms/{quote(room_id)}/send/m.room.message/2", json=content)

    # Bob looks at the end first, as players do, and then at the whole.
    arrived = await _message_to(bob, room_id, alice)
    place = arrived["url"].removeprefix("mxc://")
    end = await bob.server.http.get(
        f"{MEDIA}/download/{place}", headers={"authorization": f"Bearer {bob.token}", "range": "bytes=-1000"}
    )
    assert (end.status_code, end.content) == (206, film[-1000:])
    whole = await bob.get(f"{MEDIA}/download/{place}")
    assert whole.content == film
    assert whole.headers["content-disposition"] == "inline; filename=holiday.mp4"
