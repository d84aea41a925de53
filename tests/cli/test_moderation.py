"""Commands that act in rooms for the operator, without a running server: joins, power, redactions, notices, links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from homeserver import Homeserver
from homeserver.config import load_config
from tests.cli.test_accounts import ran, run, said, write_config

ALICE, BOB = "@alice:test.example", "@bob:test.example"
SSO = """[[sso]]
id = "keycloak"
name = "Example login"
issuer = "https://login.example.org"
client_id = "matrix"
client_secret = "a secret of the test"
"""


async def fill(config: str) -> str:
    """A private room of alice, with two messages and a report of one of them; bob is not in it."""
    async with Homeserver(load_config(config)) as server:
        alice = await server.register("alice", "a good password")
        await server.register("bob", "a good password")
        room_id: str = await alice.create_room(name="Kitchen", preset="private_chat")
        await alice.send(room_id, "one")
        event_id = await alice.send(room_id, "two")
        await alice.call("report_event", room_id, event_id, body={"reason": "rude"})
        return room_id


async def tell(config: str, name: str, room_id: str) -> tuple[list[Any], dict[str, Any]]:
    """The texts of a room, None for redacted ones, and its power levels, as a member sees them."""
    async with Homeserver(load_config(config)) as server:
        member = await server.log_in(name)
        page = await member.call("get_room_events", room_id, query={"dir": "f", "limit": "100"})
        texts = [each["content"].get("body") for each in page["chunk"] if each["type"] == "m.room.message"]
        levels = await member.call("get_room_state_with_key", room_id, "m.room.power_levels", "")
        return texts, levels


def test_a_user_is_put_into_a_private_room_and_given_power(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    room_id = trio.run(fill, config)
    assert ran(config, "room", "join", room_id, "bob") == {"room_id": room_id, "user_id": BOB}
    assert ran(config, "room", "show", room_id)["members"] == [ALICE, BOB]
    assert ran(config, "room", "join", room_id, BOB)["user_id"] == BOB, "a user who is in the room stays"
    assert "carol" in said(run("room", "join", room_id, "carol", "--config", config))
    assert said(run("room", "join", "!nowhere:test.example", "bob", "--config", config))
    assert ran(config, "room", "make-admin", room_id, "bob") == {"room_id": room_id, "user_id": BOB}
    assert trio.run(tell, config, "bob", room_id)[1]["users"][BOB] == 100


def test_events_of_a_user_are_redacted(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    room_id = trio.run(fill, config)
    (report,) = ran(config, "report", "list")["reports"]
    shown = ran(config, "report", "show", str(report["id"]))
    assert (shown["sender"], shown["event_json"]["content"]["body"]) == (ALICE, "two")
    assert "add --yes" in said(run("user", "redact", "alice", "--config", config))
    assert "--by" in said(run("user", "redact", "@eve:evil.example", "--yes", "--config", config))
    assert "limit" in said(run("user", "redact", "alice", "--limit", "0", "--yes", "--config", config))
    done = ran(config, "user", "redact", "alice", "--limit", "1", "--room", room_id, "--reason", "rude", "--yes")
    assert done == {"user_id": ALICE, "redacted": 1, "failed": {}}
    assert trio.run(tell, config, "alice", room_id)[0] == ["one", None]
    assert "Redacted" in run("user", "redact", "alice", "--by", "alice", "--yes", "--config", config).stdout
    assert trio.run(tell, config, "alice", room_id)[0] == [None, None]


def test_a_user_gets_a_notice(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    trio.run(fill, config)
    assert ran(config, "user", "notice", "bob", "The server moves tonight.")["user_id"] == BOB
    (room,) = [each for each in ran(config, "room", "list")["rooms"] if each["name"] == "Server notices"]
    ran(config, "room", "join", room["room_id"], "bob")
    assert trio.run(tell, config, "bob", room["room_id"])[0] == ["The server moves tonight."]
    assert "there is no account" in said(run("user", "notice", "carol", "Hello.", "--config", config))


def test_an_account_is_linked_with_a_person_of_a_provider(tmp_path: Path) -> None:
    config = write_config(tmp_path, SSO)
    trio.run(fill, config)
    told = {"user_id": ALICE, "provider": "keycloak", "subject": "4711"}
    assert ran(config, "user", "link", "alice", "keycloak", "4711") == {**told, "linked": True}
    assert ran(config, "user", "show", "alice")["external_ids"] == [{"provider": "keycloak", "subject": "4711"}]
    assert "belongs to @alice" in said(run("user", "link", "bob", "keycloak", "4711", "--config", config))
    assert "there is: keycloak" in said(run("user", "link", "bob", "gogle", "4711", "--config", config))
    assert ran(config, "user", "link", "alice", "keycloak", "4711", "--undo") == {**told, "linked": False}
    assert ran(config, "user", "show", "alice")["external_ids"] == []
    assert "is not '4711'" in said(run("user", "link", "alice", "keycloak", "4711", "--undo", "--config", config))
