"""Exports and imports that are killed: a folder is there whole or not at all, and an import comes once."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey
from homeserver.portability.folders import MANIFEST, NewFolder, OldFolder
from homeserver.portability.importing import import_room
from homeserver.portability.rooms import export_room
from tests.stories.test_export import nothing, send
from tests.stories.test_import import exported, history, original_texts, texts_of
from tests.support.federation import Federation, create_room
from tests.support.kills import kill_at_every_step

KEY = SigningKey("1", bytes(32))
FILES = {"events.jsonl": b'{"a":1}\n', "media/0123.png": b"picture" * 1000, "index.html": b"<p>"}


def write(target: Path) -> None:
    with NewFolder(target) as folder:
        for name, content in FILES.items():
            folder.add(name, content)
        folder.finish({"kind": "room"}, ServerName("a.example"), KEY)


def is_whole(target: Path) -> bool:
    if not target.exists():
        return False
    folder = OldFolder(target)
    for name in FILES:
        folder.check(name)
    return {*folder.manifest.files} == {*FILES} and (target / MANIFEST).exists()


def test_a_folder_whose_export_is_killed_at_any_step_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    seen: list[bool] = []
    for _ in kill_at_every_step(lambda: write(target)):
        seen.append(target.exists())
        if not target.exists():
            write(target)
            assert [*tmp_path.iterdir()] == [target], "what was left is gone"
        assert is_whole(target)
        shutil.rmtree(target)
    assert len(seen) > 6 and not seen[0] and seen[-1]


class Killed(Exception):
    """The process has ended."""


class Mortal:
    """A database whose process ends before a write, or just after it."""

    def __init__(self, database: Any, writes: int, *, after: bool) -> None:
        self._database, self._left, self._after = database, writes, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def write(self, *args: Any) -> Any:
        self._left -= 1
        if self._left <= 0 and not self._after:
            raise Killed
        result = await self._database.write(*args)
        if self._left <= 0:
            raise Killed
        return result


class Dying:
    """The resources of a server that dies so."""

    def __init__(self, hs: Any, writes: int, *, after: bool) -> None:
        self._hs = hs
        self.database = Mortal(hs.database, writes, after=after)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hs, name)


@pytest.mark.parametrize("after", [False, True])
async def test_an_import_that_is_killed_at_any_write_comes_once(
    federation: Federation, tmp_path: Path, after: bool
) -> None:
    a = await federation.start("a.example")
    a.hs.rate_limits.enabled = False
    alice, bob = await a.register("alice"), await a.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    for number in range(70):
        await send(alice, room_id, f"n{number}", {"msgtype": "m.text", "body": f"message {number}"})
    await exported(a, alice, bob, tmp_path / "out", room_id)
    rooms = await a.read(lambda tx: tx.values("SELECT room_nid FROM rooms"))
    kills = 0
    for writes in count(1):
        assert writes < 30
        dying: Any = Dying(a.hs, writes, after=after)
        try:
            done = await import_room(dying, tmp_path / "out", nothing)
        except Killed:
            kills += 1
            continue
        break
    assert kills >= 3
    assert texts_of(await history(a, done["room_id"])) == original_texts(tmp_path / "out")
    assert len(await a.read(lambda tx: tx.values("SELECT room_nid FROM rooms"))) == len(rooms) + 1
    again = await export_room(a.hs, done["room_id"], tmp_path / "again", "json", nothing)
    assert again["media_missing"] == 0
