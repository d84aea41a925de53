"""A database belongs to one server name and signing key, from the first start on.

Spec: server-server-api/#publishing-keys
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver import Config, Homeserver
from homeserver.config import ConfigError
from homeserver.database import Transaction
from homeserver.federation.signing import SigningKey, format_signing_key
from homeserver.remote import identity
from homeserver.server import open_data
from homeserver.testing import FakeNetwork
from tests.support.homeservers import config_for_tests, now_ms

NAME = "a.example"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_for_tests(NAME, tmp_path)


def key_file(config: Config) -> Path:
    return config.data_path("signing.key")


def server(config: Config, **options: Any) -> Homeserver:
    wire = FakeNetwork().wire_for(config.server_name)
    return Homeserver(config, wire=wire, now_ms=now_ms, inline_database=True, **options)


async def start(config: Config, *, then: Callable[[Transaction], object] = lambda tx: None) -> SigningKey:
    """One start and stop of the server: the key that it signs with."""
    async with server(config) as hs:
        await hs.resources.database.write(then)
        return hs.resources.signing_key


async def refusal(config: Config) -> str:
    """The sentence with which a start is refused. It names the file and holds nothing of the key."""
    path = key_file(config)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(ConfigError) as caught:
        await start(config)
    assert (path.read_bytes() if path.exists() else None) == before
    assert os.listdir(path.parent).count("signing.key") == (before is not None)
    said = str(caught.value)
    assert "\n" not in said
    return said


async def test_the_first_start_creates_a_key_that_only_the_owner_can_read(config: Config) -> None:
    key = await start(config)
    assert stat.S_IMODE(key_file(config).stat().st_mode) == 0o600
    assert not [name for name in os.listdir(config.data_dir) if name.startswith(".signing.key")]
    again = await start(config)
    assert (again.key_id, again.sign(b"words")) == (key.key_id, key.sign(b"words"))


@pytest.mark.parametrize("text", ["", "ed25519 a", "ed25519 a !", "rsa a b", "ed25519 a AAAA", "\udcff"])
async def test_a_file_without_a_signing_key_is_refused(config: Config, text: str) -> None:
    """At the first start as at any other."""
    content = text.encode("utf-8", "surrogateescape")
    key_file(config).parent.mkdir()
    key_file(config).write_bytes(content)
    assert f"{key_file(config)} does not hold a signing key, restore it from your backup" in await refusal(config)
    key_file(config).unlink()
    await start(config)
    key_file(config).write_bytes(content)
    assert f"{key_file(config)} does not hold a signing key" in await refusal(config)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
async def test_special_files_are_refused_without_blocking(config: Config, kind: str) -> None:
    await start(config)
    path = key_file(config)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ConfigError, match=f"signing_key_file: {path} is not a file"):
        await start(config)


async def test_a_truncated_key_is_refused_without_revealing_it(config: Config) -> None:
    secret = format_signing_key(await start(config)).split()[2]
    text = key_file(config).read_text()
    key_file(config).write_text(text[:-12])
    said = await refusal(config)
    assert str(key_file(config)) in said
    assert secret[:8] not in said
    key_file(config).write_text(text)
    await start(config)


async def test_a_lost_key_is_not_replaced(config: Config) -> None:
    key = await start(config)
    text = key_file(config).read_text()
    key_file(config).unlink()
    said = await refusal(config)
    assert f"there is no {key_file(config)}, but this database belongs to a server that has a key" in said
    assert "homeserver keys new" in said
    key_file(config).write_text(text)
    assert await start(config) == key


async def test_a_database_without_a_recorded_key_keeps_its_key(config: Config) -> None:
    def forget(tx: Transaction) -> None:
        tx.run("DELETE FROM identity")
        tx.run("DELETE FROM own_keys")
        tx.wake("something has happened")

    key = await start(config, then=forget)
    text = key_file(config).read_text()
    key_file(config).unlink()
    await refusal(config)
    key_file(config).write_text(text)
    assert await start(config) == key


async def test_the_key_of_another_server_is_refused(config: Config) -> None:
    key = await start(config)
    key_file(config).write_text(format_signing_key(SigningKey("other", b"o" * 32)))
    said = await refusal(config)
    assert f"holds the key ed25519:other, but this server signs with {key.key_id}" in said


async def test_a_new_key_is_created_on_request(config: Config) -> None:
    first = await start(config)
    for is_lost in (False, True):
        if is_lost:
            key_file(config).unlink()
        database = await open_data(config, inline=True, now_ms=now_ms)
        new, put_aside = await identity.replace_key(config, database)
        old_keys = await database.read(identity.list_old_keys)
        await database.aclose()
        assert (put_aside is None) == is_lost
        assert put_aside is None or stat.S_IMODE(put_aside.stat().st_mode) == 0o600
        assert old_keys[first.key_id].key_base64 == first.verify_key_base64
        assert stat.S_IMODE(key_file(config).stat().st_mode) == 0o600
        assert await start(config) == new


async def test_data_of_one_server_name_cannot_be_served_under_another(config: Config, tmp_path: Path) -> None:
    async with server(config) as hs:
        await hs.register("alice")
    renamed = Config(
        server_name="b.example", data_dir=config.data_dir, database=config.database, passwords=config.passwords
    )
    said = await refusal(renamed)
    assert f"server_name is b.example, but this database belongs to {NAME}" in said

    def forget(tx: Transaction) -> None:  # as before names were stored
        tx.run("DELETE FROM identity")

    await start(config, then=forget)
    assert f"belongs to {NAME}" in await refusal(renamed)
    await start(config)


async def test_servers_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """They share the file, which each finds missing."""
    path = tmp_path / "signing.key"
    found: list[tuple[SigningKey, bool]] = []

    async def make() -> None:
        found.append(await trio.to_thread.run_sync(identity.make_key, path))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(make)
    assert len({key.key_id for key, _ in found}) == 1
    assert [is_made for _, is_made in found].count(True) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["signing.key"]


async def test_the_second_of_two_nodes_with_different_keys_is_refused(config: Config, tmp_path: Path) -> None:
    key = await start(config)
    database = await open_data(config, inline=True, now_ms=now_ms)
    elsewhere = Config(server_name=NAME, data_dir=str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ConfigError, match="copy it from another node"):
        await identity.open_identity(elsewhere, database)
    assert not key_file(elsewhere).exists()
    key_file(elsewhere).write_text(format_signing_key(key))
    assert await identity.open_identity(elsewhere, database) == key
    await database.aclose()
