"""History comes back: an exported room becomes a room again, with the original times and senders, on any server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver.portability.folders import ExportError
from homeserver.portability.importing import import_room
from homeserver.portability.people import export_person
from homeserver.portability.replaying import IMPORTED
from homeserver.portability.rooms import export_room
from tests.media.images import encoded, gradient
from tests.stories.test_export import lines, nothing, send, upload
from tests.support.archive import archive_all
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, join, send_text, sync
from tests.support.homeservers import Client, Server


async def history(server: Server, room_id: str) -> list[dict[str, Any]]:
    """The events of a room as another export has them."""
    folder = Path(server.hs.config.data_dir).parent / f"again-{trio.current_time()}"
    await export_room(server.hs, room_id, folder, "json", nothing)
    found = lines(folder / "events.jsonl")
    shutil.rmtree(folder)
    return found


def texts_of(events: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Original sender, time, and text of the messages."""
    return [
        (each["content"][IMPORTED]["sender"], each["origin_server_ts"], each["content"].get("body", ""))
        for each in events
        if each["type"] == "m.room.message" and "redacted_by" not in each
    ]


def original_texts(folder: Path) -> list[tuple[str, int, str]]:
    events = lines(folder / "events.jsonl")
    return [
        (each["sender"], each["origin_server_ts"], each["content"].get("body", ""))
        for each in events
        if each["type"] == "m.room.message" and "redacted_by" not in each
    ]


async def exported(server: Server, alice: Client, bob: Client, folder: Path, room_id: str = "") -> str:
    """A room with a conversation, in a folder."""
    room_id = room_id or await create_room(alice, preset="public_chat", name="Kitchen")
    await join(bob, room_id, server.name)
    hello = await send_text(alice, room_id, "Hello")
    await trio.sleep(3600)
    reply = {"m.relates_to": {"m.in_reply_to": {"event_id": hello}}}
    await send(alice, room_id, "reply", {"msgtype": "m.text", "body": "an answer", **reply})
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": hello, "key": "👍"}}
    await send(alice, room_id, "reaction", reaction, "m.reaction")
    uri = await upload(alice, encoded(gradient(20, 10), "PNG"), "image/png")
    await send(alice, room_id, "picture", {"msgtype": "m.image", "body": "kettle.png", "url": uri})
    slip = await send_text(alice, room_id, "a slip")
    await alice.ok("PUT", f"rooms/{room_id}/redact/{slip}/1", json={})
    await trio.sleep(5)
    await export_room(server.hs, room_id, folder, "html", nothing)
    return room_id


async def test_a_room_comes_back_on_its_own_server(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await exported(a, alice, bob, tmp_path / "out")
    bob_before = (await sync(bob))["next_batch"]
    await let_days_pass(1)
    done = await import_room(a.hs, tmp_path / "out", nothing)
    assert done["own_senders"] is True
    again = await history(a, done["room_id"])
    assert texts_of(again) == original_texts(tmp_path / "out")
    by_text = {each["content"].get("body"): each for each in again if each["type"] == "m.room.message"}
    assert by_text["Hello"]["sender"] == alice.user_id
    reply = by_text["an answer"]["content"]["m.relates_to"]["m.in_reply_to"]
    assert reply == {"event_id": by_text["Hello"]["event_id"]}
    (reaction,) = [each for each in again if each["type"] == "m.reaction"]
    assert reaction["content"]["m.relates_to"]["event_id"] == by_text["Hello"]["event_id"]
    (redacted,) = [each for each in again if "redacted_by" in each and each["type"] == "m.room.message"]
    assert "body" not in redacted["content"]
    picture = by_text["kettle.png"]["content"]["url"].removeprefix("mxc://")
    assert (await bob.get(f"/_matrix/client/v1/media/download/{picture}")).status_code == 200
    section = (await sync(bob, bob_before))["rooms"]["join"][done["room_id"]]
    assert section["unread_notifications"]["notification_count"] == 0
    await send_text(bob, done["room_id"], "We are back.")
    rules = {each["type"]: each["content"] for each in await bob.ok("GET", f"rooms/{done['room_id']}/state")}
    assert rules["m.room.join_rules"] == {"join_rule": "public"}
    assert rules["m.room.name"]["name"] == "Kitchen"


async def test_a_room_of_another_server_comes_with_placeholders(federation: Federation, tmp_path: Path) -> None:
    a, b, alice, bob = await federation.start_two()
    await exported(a, alice, bob, tmp_path / "out")
    done = await import_room(b.hs, tmp_path / "out", nothing)
    again = await history(b, done["room_id"])
    assert texts_of(again) == original_texts(tmp_path / "out")
    assert {each["sender"].partition(":")[2] for each in again} == {b.name}
    assert not {each["sender"] for each in again} & {bob.user_id}
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": again[0]["sender"]}}
    assert (await b.anonymous.refused("POST", "login", json={**body, "password": ""}))[0] == 403


async def test_an_interrupted_import_goes_on_and_repeats_nothing(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    a.hs.rate_limits.enabled = False
    alice, bob = await a.register("alice"), await a.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    for number in range(130):
        await send(alice, room_id, f"n{number}", {"msgtype": "m.text", "body": f"message {number}"})
    await exported(a, alice, bob, tmp_path / "out", room_id)

    class Killed(Exception):
        pass

    for _ in range(3):

        def tell(done: int, of: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            await import_room(a.hs, tmp_path / "out", tell)
        await federation.kill("a.example")
        a = await federation.start("a.example")
    done = await import_room(a.hs, tmp_path / "out", nothing)
    assert texts_of(await history(a, done["room_id"])) == original_texts(tmp_path / "out")
    assert await import_room(a.hs, tmp_path / "out", nothing) == done
    assert await a.read(lambda tx: tx.all("SELECT original FROM imported_events")) == []


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file, and the manifest with it, as someone who forges an export would."""
    import hashlib

    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    manifest = json.loads((folder / "manifest.json").read_text())
    data = path.read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge_name(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 5, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_by_link(folder: Path) -> None:
    shutil.move(folder / "events.jsonl", folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", folder / "events.jsonl")


def replace_folder_by_link(folder: Path) -> None:
    shutil.move(folder / "media", folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", folder / "media")


def replace_by_pipe(folder: Path) -> None:
    (folder / "events.jsonl").unlink()
    os.mkfifo(folder / "events.jsonl")


def make_huge(folder: Path) -> None:
    os.truncate(folder / "events.jsonl", 1 << 40)


def change_a_letter(folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Hello", b"Jello"))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (shutil.rmtree, "cannot be read"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
    "not JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "not that of an export"),
    "deep JSON": (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "not that of an export"),
    "a name that leaves": (lambda folder: forge_name(folder, "../../etc/passwd"), "forbidden name"),
    "an absolute name": (lambda folder: forge_name(folder, "/etc/passwd"), "forbidden name"),
    "a link": (replace_by_link, "cannot be read"),
    "a linked folder": (replace_folder_by_link, "cannot be read"),
    "a pipe": (replace_by_pipe, "not a regular file"),
    "a huge file": (make_huge, "larger than the manifest says"),
    "a changed file": (change_a_letter, "checksum differs"),
    "a long line": (
        lambda folder: rewrite(folder, "events.jsonl", lambda old: b" " * (1 << 20)),
        "longer than any event",
    ),
    "nonsense": (lambda folder: rewrite(folder, "events.jsonl", lambda old: old + b"[]\n"), "is not an object"),
    "a deep line": (lambda folder: rewrite(folder, "events.jsonl", lambda old: b"[" * 9000), "is not JSON"),
    "no event": (lambda folder: rewrite(folder, "events.jsonl", lambda old: old + b"{}\n"), "is not an event"),
    "a bad sender": (
        lambda folder: rewrite(folder, "events.jsonl", lambda old: old.replace(b"@alice", b"alice")),
        "is not an event",
    ),
    "an unlisted file": (
        lambda folder: rewrite(folder, "media.jsonl", lambda old: b'{"mxc":"mxc://a/b","file":"../x"}\n'),
        "does not list",
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_hostile_folder_is_refused_before_anything_is_written(
    federation: Federation, tmp_path: Path, how: str
) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await exported(a, alice, bob, tmp_path / "out")
    change, sentence = HOSTILE[how]
    change(tmp_path / "out")
    before = await a.read(lambda tx: tx.position)
    with pytest.raises(ExportError, match=sentence):
        await import_room(a.hs, tmp_path / "out", nothing)
    assert await a.read(lambda tx: tx.position) == before


async def test_a_forged_folder_speaks_for_nobody(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await exported(a, alice, bob, tmp_path / "out")
    rewrite(tmp_path / "out", "events.jsonl", lambda old: old.replace(b"Hello", b"I owe"))
    done = await import_room(a.hs, tmp_path / "out", nothing)
    assert done["own_senders"] is False
    again = await history(a, done["room_id"])
    assert "I owe" in [text for _, _, text in texts_of(again)]
    assert not {alice.user_id, bob.user_id} & {each["sender"] for each in again}


@pytest.mark.parametrize("users", [[1], "alice", 5, {"@alice:a.example": [1]}, {"alice": 100}])
async def test_levels_of_a_forged_folder_do_not_stop_the_import(
    federation: Federation, tmp_path: Path, users: Any
) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await exported(a, alice, bob, tmp_path / "out")
    line = {
        "type": "m.room.power_levels", "state_key": "", "sender": alice.user_id, "event_id": "$forged",
        "origin_server_ts": 1, "content": {"users": users},
    }  # fmt: skip
    rewrite(tmp_path / "out", "state.jsonl", lambda old: old + json.dumps(line).encode() + b"\n")
    done = await import_room(a.hs, tmp_path / "out", nothing)
    assert await import_room(a.hs, tmp_path / "out", nothing) == done


async def test_types_and_names_of_a_forged_folder_reach_no_header(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await exported(a, alice, bob, tmp_path / "out")
    forged = {"content_type": "text/html\r\nx-evil: 1", "filename": "a\r\nx-evil: 1"}
    rewrite(tmp_path / "out", "media.jsonl", lambda old: json.dumps({**json.loads(old), **forged}).encode() + b"\n")
    done = await import_room(a.hs, tmp_path / "out", nothing)
    (event,) = [e for e in await history(a, done["room_id"]) if str(e["content"].get("url")).startswith("mxc://")]
    path = event["content"]["url"].removeprefix("mxc://")
    answer = await alice.get(f"/_matrix/client/v1/media/download/{path}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment") and "x-evil" not in answer.headers


async def test_numbers_of_any_length_are_exported(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    await exported(a, alice, bob, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["room_version"] = "5"  # the last version that has such numbers
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    line = {
        "type": "m.room.message", "sender": alice.user_id, "event_id": "$long", "origin_server_ts": 1,
        "content": {"number": 10**30},
    }  # fmt: skip
    rewrite(tmp_path / "out", "events.jsonl", lambda old: old + json.dumps(line).encode() + b"\n")
    done = await import_room(a.hs, tmp_path / "out", nothing)
    assert 10**30 in [each["content"].get("number") for each in await history(a, done["room_id"])]


async def test_archived_history_is_exported_and_imported_like_the_rest(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    room_id = await exported(a, alice, bob, tmp_path / "before")
    await archive_all(a.hs)
    assert await a.read(lambda tx: tx.all("SELECT block FROM archive_blocks"))
    await export_room(a.hs, room_id, tmp_path / "after", "html", nothing)
    for name in ("events.jsonl", "state.jsonl", "media.jsonl"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    person = await export_person(a.hs, alice.user_id, tmp_path / "alice", nothing)
    sent = [each for each in lines(tmp_path / "before" / "events.jsonl") if each["sender"] == alice.user_id]
    assert person["events"] == len(sent)
    done = await import_room(a.hs, tmp_path / "before", nothing)
    expected = texts_of(await history(a, done["room_id"]))
    await archive_all(a.hs)
    assert texts_of(await history(a, done["room_id"])) == expected


async def test_bans_invites_and_aliases_come_back(federation: Federation, tmp_path: Path) -> None:
    a, b, alice, bob = await federation.start_two()
    carol, dave = await a.register("carol"), await a.register("dave")
    room_id = await create_room(alice, preset="public_chat", name="Kitchen", room_alias_name="kitchen")
    await join(carol, room_id, a.name)
    for banned in (carol.user_id, "@mallory:evil.example"):
        await alice.ok("POST", f"rooms/{room_id}/ban", json={"user_id": banned, "reason": "noise"})
    for invited in (dave.user_id, bob.user_id):
        await alice.ok("POST", f"rooms/{room_id}/invite", json={"user_id": invited})
    await export_room(a.hs, room_id, tmp_path / "out", "json", nothing)
    done = {server.name: (await import_room(server.hs, tmp_path / "out", nothing))["room_id"] for server in (a, b)}
    own = {each["state_key"]: each["content"] for each in await state_of(a, alice, done[a.name], "m.room.member")}
    assert {user: content["membership"] for user, content in own.items()} == {
        alice.user_id: "join", carol.user_id: "ban", "@mallory:evil.example": "ban", dave.user_id: "invite",
    }  # fmt: skip
    assert own[carol.user_id]["reason"] == "noise"
    await join(dave, done[a.name], a.name)
    assert await carol.refused("POST", f"join/{done[a.name]}", json={}) == (403, "M_FORBIDDEN")
    assert await state_of(a, alice, done[a.name], "m.room.canonical_alias") == [], "the old room still has it"
    elsewhere = {each["type"]: each["content"] for each in await history(b, done[b.name])}
    assert elsewhere["m.room.canonical_alias"] == {"alias": f"#kitchen:{b.name}"}
    assert (await bob.ok("GET", f"directory/room/%23kitchen:{b.name}"))["room_id"] == done[b.name]
    memberships = [
        each["content"]["membership"] for each in await history(b, done[b.name]) if "membership" in each["content"]
    ]
    assert "invite" not in memberships and memberships.count("ban") == 2


async def state_of(server: Server, client: Client, room_id: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in await client.ok("GET", f"rooms/{room_id}/state") if each["type"] == kind]
