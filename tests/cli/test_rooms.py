"""`homeserver room`, `media`, `federation` and `user shadow-ban`, without a running server."""

from __future__ import annotations

from pathlib import Path

import trio

from homeserver import Homeserver
from homeserver.config import load_config
from tests.cli.test_accounts import ran, run, said, write_config


async def fill(config: Path) -> tuple[str, str]:
    """A room of alice and bob, and a file of alice."""
    async with Homeserver(load_config(config)) as server:
        alice = await server.register("alice", "a good password")
        bob = await server.register("bob", "a good password")
        room_id = await alice.create_room(name="Kitchen", preset="public_chat", room_alias_name="kitchen")
        await bob.join(room_id)
        await alice.send(room_id, "The kettle is on.")
        uploaded = await alice.call("upload_content", body=b"a file", headers={"content-type": "text/plain"})
        return room_id, uploaded["content_uri"]


async def tell_rooms(config: Path) -> tuple[list[str], list[str]]:
    """Returns the rooms of bob, and those of the one who was moved."""
    async with Homeserver(load_config(config)) as server:
        bob = await server.log_in("bob")
        alice = await server.log_in("alice")
        return (await bob.call("get_joined_rooms"))["joined_rooms"], (await alice.call("get_joined_rooms"))[
            "joined_rooms"
        ]


def test_rooms_are_listed_shown_blocked_and_deleted(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    room_id, _ = trio.run(fill, config)
    listed = ran(config, "room", "list")
    assert [(each["room_id"], each["name"], each["members"]) for each in listed["rooms"]] == [(room_id, "Kitchen", 2)]
    assert ran(config, "room", "list", "--search", "garden")["rooms"] == []
    assert ran(config, "room", "show", "#kitchen:test.example")["members"] == [
        "@alice:test.example",
        "@bob:test.example",
    ]
    assert "2 of this server" in run("room", "show", room_id, "--config", config).stdout
    assert ran(config, "room", "block", room_id) == {"room_id": room_id, "blocked": True}
    assert ran(config, "room", "show", room_id)["blocked"]
    assert ran(config, "room", "block", room_id, "--undo") == {"room_id": room_id, "blocked": False}
    assert "add --yes" in said(run("room", "delete", room_id, "--config", config))
    deleted = ran(config, "room", "delete", room_id, "--block", "--move-to-room-of", "alice", "--yes")
    assert deleted["kicked_users"] == ["@alice:test.example", "@bob:test.example"]
    assert trio.run(tell_rooms, config) == ([deleted["new_room_id"]], [deleted["new_room_id"]])
    assert "does not know the room" in said(run("room", "delete", room_id, "--yes", "--config", config))
    assert room_id not in [each["room_id"] for each in ran(config, "room", "list")["rooms"]]


def test_files_are_listed_quarantined_and_deleted(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    _, uri = trio.run(fill, config)
    (file,) = ran(config, "media", "list", "alice")["files"]
    assert (file["uri"], file["bytes"], file["quarantined_by"]) == (uri, 6, None)
    assert ran(config, "media", "protect", uri)["protected"]
    ran(config, "media", "quarantine", uri)
    assert ran(config, "media", "list", "alice")["files"][0]["quarantined_by"] is None
    assert not ran(config, "media", "protect", uri, "--undo")["protected"]
    assert ran(config, "media", "quarantine", uri)["quarantined"]
    assert ran(config, "media", "list", "alice")["files"][0]["quarantined_by"] == "@:test.example"
    assert not ran(config, "media", "quarantine", uri, "--undo")["quarantined"]
    assert ran(config, "media", "delete", uri, "--yes") == {"uri": uri}
    assert "does not have" in said(run("media", "delete", uri, "--yes", "--config", config))
    assert "not the URI of a file" in said(run("media", "delete", "nonsense", "--yes", "--config", config))


def test_users_are_shadow_banned(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    trio.run(fill, config)
    assert ran(config, "user", "shadow-ban", "bob") == {"user_id": "@bob:test.example", "shadow_banned": True}
    assert ran(config, "user", "show", "bob")["shadow_banned"]
    assert not ran(config, "user", "shadow-ban", "bob", "--undo")["shadow_banned"]
    ran(config, "user", "admin", "bob")
    assert "administrator" in said(run("user", "shadow-ban", "bob", "--config", config))


def test_other_servers_are_listed(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    trio.run(fill, config)
    assert ran(config, "federation", "list") == {"servers": []}
    for action in ("show", "retry"):
        result = run("federation", action, "elsewhere.example", "--config", config)
        assert "nothing to do with elsewhere.example" in said(result)
