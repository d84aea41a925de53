"""History leaves the server: a room as pages that anyone can read, and everything that is known about a person."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from homeserver.federation.signing import verify_json
from homeserver.portability.folders import ExportError, NewFolder
from homeserver.portability.page_style import POLICY
from homeserver.portability.pages import ENTRIES_PER_PAGE
from homeserver.portability.people import export_person
from homeserver.portability.rooms import export_room
from tests.media.images import encoded, gradient
from tests.support.federation import Federation, create_room, join, send_text, until
from tests.support.homeservers import Client, Server

MALICE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x00"


def nothing(done: int, of: int) -> None:
    """No progress bar."""


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


async def send(client: Client, room_id: str, number: str, content: Any, kind: str = "m.room.message") -> str:
    return str((await client.ok("PUT", f"rooms/{room_id}/send/{kind}/{number}", json=content))["event_id"])


async def upload(client: Client, content: bytes, content_type: str) -> str:
    headers = {"content-type": content_type}
    response = await client.post("/_matrix/media/v3/upload?filename=picture", content=content, headers=headers)
    return str(response.json()["content_uri"])


async def talk(server: Server, alice: Client, bob: Client, room_id: str) -> None:
    """A conversation with everything that a page shows, some of it malicious."""
    hello = await send(alice, room_id, "1", {"msgtype": "m.text", "body": f"Hello {MALICE}"})
    uri = await upload(alice, encoded(gradient(20, 10), "PNG"), "image/png")
    evil = await upload(alice, b"<svg onload=alert(1)>", "image/svg+xml")
    await send(alice, room_id, "2", {"msgtype": "m.image", "body": "kettle.png", "url": uri})
    await send(alice, room_id, "3", {"msgtype": "m.image", "body": "evil.svg", "url": evil})
    await send(alice, room_id, "4", {"msgtype": "m.image", "body": "gone.png", "url": "mxc://gone.example/x"})
    reply = {"m.relates_to": {"m.in_reply_to": {"event_id": hello}}}
    await send(bob, room_id, "5", {"msgtype": "m.text", "body": "I answer", **reply})
    threaded = {"m.relates_to": {"rel_type": "m.thread", "event_id": hello}}
    await send(bob, room_id, "6", {"msgtype": "m.text", "body": "in the thread", **threaded})
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": hello, "key": "<b>👍</b>"}}
    await send(bob, room_id, "7", reaction, "m.reaction")
    first = await send(alice, room_id, "8", {"msgtype": "m.text", "body": "teh tea"})
    edit = {"msgtype": "m.text", "body": "* the tea", "m.new_content": {"msgtype": "m.text", "body": "the tea"}}
    await send(alice, room_id, "9", {**edit, "m.relates_to": {"rel_type": "m.replace", "event_id": first}})
    secret = await send(bob, room_id, "10", {"msgtype": "m.text", "body": "a slip of the tongue"})
    await bob.ok("PUT", f"rooms/{room_id}/redact/{secret}/1", json={})

    async def is_redacted() -> bool:
        answer = await alice.get(f"rooms/{room_id}/event/{secret}")
        return answer.status_code == 200 and not answer.json()["content"]

    await until(is_redacted)


async def test_a_room_becomes_pages_that_show_everything_and_run_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    a, b, alice, bob = await federation.start_two()
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": f"Alice {MALICE[:-1]}"})
    room_id = await create_room(alice, preset="public_chat", name=f"Kitchen {MALICE[:-1]}")
    await join(bob, room_id, a.name)
    await talk(a, alice, bob, room_id)
    await send_text(alice, room_id, "last")
    done = await export_room(a.hs, room_id, tmp_path / "out", "html", nothing)
    page = (tmp_path / "out" / "index.html").read_text()
    tags = Tags(page)
    assert not {tag for tag, _ in tags.tags} & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert [each["content"] for tag, each in tags.tags if each.get("http-equiv")] == [POLICY]
    used = [each[name] or "" for _, each in tags.tags for name in ("src", "href") if name in each]
    assert all(re.fullmatch(r"media/[0-9a-f]{40}\.(png|bin)|(page-\d+\.html)?#e[0-9a-f]{20}", each) for each in used)
    assert all((tmp_path / "out" / each).is_file() for each in used if each.startswith("media/"))
    for text in (
        "Hello </title><script>",
        "I answer",
        "in the thread",
        "<b>👍</b> 1",
        "the tea",
        "deleted",
        "gone.png",
    ):
        assert text in tags.text, text
    assert "slip of the tongue" not in page
    assert [each["alt"] for tag, each in tags.tags if each.get("class") == "shown"] == ["kettle.png"]
    assert (done["media"], done["media_missing"]) == (2, 1)
    (picture,) = [str(each["src"]) for tag, each in tags.tags if each.get("class") == "shown"]
    assert (tmp_path / "out" / picture).read_bytes() == encoded(gradient(20, 10), "PNG")
    events = lines(tmp_path / "out" / "events.jsonl")
    assert len(events) == done["events"]
    assert [each["content"].get("body") for each in events if each["type"] == "m.room.message"][-1] == "last"


async def test_a_manifest_lists_every_file_and_is_signed(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice)
    await export_room(a.hs, room_id, tmp_path / "out", "html", nothing)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    key = a.hs.signing_key
    assert verify_json(manifest, a.name, key.key_id, key.verify_key_base64)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {*manifest["files"], "manifest.json"}
    for name, listed in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == listed["sha256"]


async def test_a_long_history_has_pages_that_lead_to_one_another(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    a.hs.rate_limits.enabled = False
    alice = await a.register("alice")
    room_id = await create_room(alice)
    first = await send_text(alice, room_id, "first")
    for number in range(ENTRIES_PER_PAGE):
        await send(alice, room_id, f"n{number}", {"msgtype": "m.text", "body": f"message {number}"})
    reply = {"m.relates_to": {"m.in_reply_to": {"event_id": first}}}
    await send(alice, room_id, "reply", {"msgtype": "m.text", "body": "I answer", **reply})
    await export_room(a.hs, room_id, tmp_path / "out", "html", nothing)
    pages = [(tmp_path / "out" / name).read_text() for name in ("index.html", "page-2.html")]
    assert 'rel="next" href="page-2.html"' in pages[0] and 'rel="prev" href="index.html"' in pages[1]
    (link,) = [str(each["href"]) for tag, each in Tags(pages[1]).tags if tag == "a" and "#" in str(each["href"])]
    assert link.startswith("index.html#") and f'id="{link.partition("#")[2]}"' in pages[0]


async def test_a_person_gets_everything_that_is_stored_about_them(federation: Federation, tmp_path: Path) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, a.name)
    await talk(a, alice, bob, room_id)
    own = f"user/{alice.user_id}"
    await alice.ok("PUT", f"{own}/account_data/org.example.secret", json={"a": 1})
    done = await export_person(a.hs, alice.user_id, tmp_path / "out", nothing)
    data = {path.stem: lines(path) for path in (tmp_path / "out" / "data").iterdir()}
    (account,) = data["users"]
    assert account["user_nid"] == alice.user_id and "password_hash" not in account
    assert {"type_nid": "org.example.secret", "content": {"a": 1}}.items() <= data["account_data"][-1].items()
    assert "token_hash" not in data["access_tokens"][0]
    sent = lines(tmp_path / "out" / "events.jsonl")
    assert {each["sender"] for each in sent} == {alice.user_id} and {each["room_id"] for each in sent} == {room_id}
    assert done["media"] == 2
    assert bob.user_id not in (tmp_path / "out" / "events.jsonl").read_text()


async def test_an_export_is_there_whole_or_not_at_all(federation: Federation, tmp_path: Path) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice)
    leftover = tmp_path / ".out.unfinished"  # of an export that was killed
    leftover.mkdir()
    (leftover / "events.jsonl").write_text("half")
    await export_room(a.hs, room_id, tmp_path / "out", "json", nothing)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]
    with pytest.raises(ExportError, match="exists already"):
        await export_room(a.hs, room_id, tmp_path / "out", "json", nothing)
    with pytest.raises(ExportError, match="does not know the room"):
        await export_room(a.hs, "!nowhere:a.example", tmp_path / "other", "json", nothing)
    with NewFolder(tmp_path / "busy"), pytest.raises(ExportError, match="is running"):
        await export_room(a.hs, room_id, tmp_path / "busy", "json", nothing)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "other", "busy"))]
