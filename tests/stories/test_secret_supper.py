"""The secret supper: what a stolen disk says, and what is left of a conversation that its people want gone.

Ada and Ben plan a surprise at a.example; Cleo at b.example is in on it. Read it from top to bottom.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from homeserver.client import Client
from homeserver.config import ConfigError
from homeserver.errors import MatrixError
from homeserver.features import at_rest
from homeserver.rooms.rotation import rotate
from homeserver.testing import FakeNetwork, one_server
from tests.support.archive import archive_all

SECRET = "truffles in the chapel"


def files_with(folder: Path, secret: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


async def bodies(client: Client, room_id: str) -> list[str]:
    return [event.body for event in await client.messages(room_id, limit=50) if event.type == "m.room.message"][::-1]


async def wait_for(client: Client, room_id: str, text: str) -> None:
    with trio.fail_after(60):
        while text not in await bodies(client, room_id):  # noqa: ASYNC110
            await trio.sleep(0.1)


async def test_the_secret_supper(autojump_clock: MockClock, tmp_path: Path) -> None:
    network = FakeNetwork()
    folder = tmp_path / "a.example"
    async with one_server("b.example", network=network) as b:
        cleo = await b.register("cleo")
        async with one_server("a.example", network=network, folder=tmp_path) as a:
            ada, ben = await a.register("ada"), await a.register("ben")
            room_id = await ada.create_room(preset="private_chat", name="Supper")
            for guest in (ben, cleo):
                await ada.invite(room_id, guest.user_id)
            await ben.join(room_id)
            await cleo.join(room_id, via=("a.example",))
            await ada.send(room_id, f"There will be {SECRET}.")
            picture = await ben.upload(f"a map of {SECRET}".encode(), content_type="text/plain")
            await ben.send(room_id, {"msgtype": "m.file", "body": "the way", "url": picture})
            await cleo.send(room_id, "I bring the wine.")
            await wait_for(ada, room_id, "I bring the wine.")

        # At night somebody copies the server's disk, but not the key, which is kept elsewhere. It says nothing.
        assert files_with(folder, SECRET) == []
        key = (folder / "master.key").read_text()
        (folder / "master.key").unlink()
        with pytest.raises(ConfigError, match="this database needs"):
            async with one_server("a.example", network=network, folder=tmp_path):
                pass

        # In the morning the administrator puts the key back, and replaces it. Everything is where it was.
        (folder / "master.key").write_text(key)
        async with one_server("a.example", network=network, folder=tmp_path) as a:
            database = a.resources.database
            await rotate(a.config, database, database.server.master_keys, lambda done, of: None)
            ada, ben = await a.log_in("ada"), await a.log_in("ben")
            assert await bodies(ben, room_id) == [f"There will be {SECRET}.", "the way", "I bring the wine."]
            assert (await ada.download(picture)).content == f"a map of {SECRET}".encode()
            assert key not in (folder / "master.key").read_text()

            # The supper was a success. A part of its history is in the archive already when Ada asks for it to be gone.
            await ada.send(room_id, "Thank you all!")
            assert (await archive_all(a.resources)).events > 0
            await at_rest.forget_room(a.resources, room_id, lambda done, of: None)
            assert await bodies(ben, room_id) == ["", "", "", ""]
            assert files_with(folder, SECRET) == []
            with pytest.raises(MatrixError, match="M_NOT_FOUND"):
                await ada.download(picture)

            # Cleo's server has its own copy, as everybody in a room across servers has to know.
            assert f"There will be {SECRET}." in await bodies(cleo, room_id)

            # They are still together, and what they say from now on has a new key.
            await ben.send(room_id, "Same time next year?")
            assert (await bodies(ada, room_id))[-1] == "Same time next year?"
            await wait_for(cleo, room_id, "Same time next year?")
            assert files_with(folder, "next year") == []
