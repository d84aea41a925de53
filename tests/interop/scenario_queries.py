"""Queries between servers: aliases, room lists, profiles, media, hierarchies."""

from __future__ import annotations

from io import BytesIO
from urllib.parse import quote

import pytest
from PIL import Image

from tests.interop.clients import Client, RequestFailed, wait_until
from tests.interop.servers import Server

Sides = tuple[Server, Server]


def test_alias(sides: Sides) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="public_chat", room_alias_name=f"lobby-{alice.localpart}")
    alias = f"#lobby-{alice.localpart}:{here.server_name}"
    found = bob.v3("GET", f"/directory/room/{quote(alias)}")
    assert found["room_id"] == room_id and here.server_name in found["servers"]
    assert bob.join(alias) == room_id
    bob.send(room_id, "found by its alias")
    alice.wait_message(room_id, "found by its alias")
    with pytest.raises(RequestFailed) as refusal:
        bob.v3("GET", f"/directory/room/{quote(f'#nothing:{here.server_name}')}")
    assert refusal.value.status == 404


def test_public_room_list(sides: Sides) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    name = f"Public place of {alice.localpart}"
    room_id = alice.create_room("12", preset="public_chat", visibility="public", name=name)

    def listed() -> list[str]:
        body = {"filter": {"generic_search_term": name}, "limit": 10}
        answer = bob.v3("POST", "/publicRooms", body, server=here.server_name)
        return [room["room_id"] for room in answer["chunk"]]

    wait_until("the room in the other server's list", lambda: listed() == [room_id])
    rooms = bob.v3("GET", "/publicRooms", server=here.server_name)["chunk"]
    assert room_id in [room["room_id"] for room in rooms]


def test_profile(sides: Sides) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    alice.v3("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Alice Å."})
    assert bob.v3("GET", f"/profile/{alice.user_id}")["displayname"] == "Alice Å."
    assert bob.v3("GET", f"/profile/{alice.user_id}/displayname") == {"displayname": "Alice Å."}
    with pytest.raises(RequestFailed) as refusal:
        bob.v3("GET", f"/profile/@nobody:{here.server_name}")
    assert refusal.value.status == 404
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=here)
    wait_until("joined", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    alice.v3("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Alice B."})

    def name_there() -> object:
        return (bob.state_content(room_id, "m.room.member", alice.user_id) or {}).get("displayname")

    wait_until("the new name in the room", lambda: name_there() == "Alice B.")


def picture() -> bytes:
    """Returns a PNG of 640 by 480 pixels."""
    file = BytesIO()
    Image.new("RGB", (640, 480), (200, 30, 60)).save(file, "PNG")
    return file.getvalue()


def test_media(sides: Sides) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    content = picture()
    upload = alice.http.post(
        "/_matrix/media/v3/upload", content=content, headers={"Content-Type": "image/png"}, params={"filename": "a.png"}
    )
    mxc = upload.json()["content_uri"]
    server_name, media_id = mxc.removeprefix("mxc://").split("/")
    assert server_name == here.server_name
    got = bob.http.get(f"/_matrix/client/v1/media/download/{server_name}/{media_id}")
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, content, "image/png")
    size = {"width": 96, "height": 96, "method": "crop"}
    thumbnail = bob.http.get(f"/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}", params=size)
    assert thumbnail.status_code == 200
    assert Image.open(BytesIO(thumbnail.content)).size == (96, 96)
    missing = bob.http.get(f"/_matrix/client/v1/media/download/{server_name}/nothingofthatname")
    assert missing.status_code == 404
