"""The master key comes from a file, the environment or systemd. A server does not start without the right one."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from homeserver import Config
from homeserver.config import AtRest, ConfigError, FederationSection
from homeserver.process.sealing import MasterKey, new_secret
from homeserver.rooms.master_keys import VARIABLE, describe_source, format_keys, read_keys
from homeserver.testing import one_server


def file_of(folder: Path) -> Path:
    return folder / "a.example" / "master.key"


def config(folder: Path) -> Config:
    return Config(server_name="a.example", data_dir=str(folder / "a.example"))


async def start(folder: Path, **at_rest: bool) -> None:
    async with one_server("a.example", folder=folder, at_rest=AtRest(**at_rest)):
        pass


async def test_the_file_is_created_at_the_first_start_for_its_owner_only(tmp_path: Path) -> None:
    await start(tmp_path)
    path = file_of(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    await start(tmp_path)
    assert path.read_text() == text


async def test_unless_configured_the_file_lies_beside_the_signing_key(tmp_path: Path) -> None:
    """So do those of several nodes, which share the signing key."""
    keys = tmp_path / "keys"
    keys.mkdir()
    for node in ("one", "two"):
        federation = FederationSection(signing_key_file=str(keys / "signing.key"))
        async with one_server("a.example", folder=tmp_path / node, federation=federation):
            assert {path.name for path in keys.iterdir()} == {"signing.key", "master.key"}
    assert config(tmp_path).master_key_path == file_of(tmp_path)
    moved = Config(server_name="a.example", data_dir=str(tmp_path), at_rest=AtRest(master_key_file="other.key"))
    assert moved.master_key_path == tmp_path / "other.key"


async def test_no_file_is_created_if_nothing_is_to_be_sealed(tmp_path: Path) -> None:
    await start(tmp_path, events=False, media=False, archive=False)
    assert not (file_of(tmp_path)).exists()


async def test_a_server_does_not_start_without_the_key_that_its_database_needs(tmp_path: Path) -> None:
    await start(tmp_path)
    (key,) = read_keys(config(tmp_path))
    path = file_of(tmp_path)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"^at_rest.master_key_file: there is no {path}, but .* {key.fingerprint}:"):
        await start(tmp_path)
    assert not path.exists()


async def test_a_server_does_not_start_with_another_key(tmp_path: Path) -> None:
    await start(tmp_path)
    (key,) = read_keys(config(tmp_path))
    wrong = MasterKey(new_secret())
    (file_of(tmp_path)).write_text(format_keys([wrong]))
    with pytest.raises(ConfigError, match=rf"holds the master key {wrong.fingerprint}, .* needs {key.fingerprint}:"):
        await start(tmp_path, events=False, media=False, archive=False)


@pytest.mark.parametrize("content", [b"", b"not a key", b"\xff\xfe", b"A" * 42])
async def test_a_file_that_is_not_a_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = file_of(tmp_path)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold a master key"):
        await start(tmp_path)
    assert path.read_bytes() == content


def test_the_environment_comes_before_a_credential_and_that_before_the_file(tmp_path: Path) -> None:
    of_file, of_systemd, of_environment = (MasterKey(new_secret()) for _ in range(3))
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    file_of(tmp_path).parent.mkdir()
    (file_of(tmp_path)).write_text(format_keys([of_file]))
    environment: dict[str, str] = {}

    def held(environment: Mapping[str, str]) -> tuple[str, str]:
        (key,) = read_keys(config(tmp_path), environment)
        return key.fingerprint, describe_source(config(tmp_path), environment)

    assert held(environment) == (of_file.fingerprint, str(file_of(tmp_path)))
    environment["CREDENTIALS_DIRECTORY"] = str(credentials)
    assert held(environment)[0] == of_file.fingerprint
    (credentials / "master.key").write_text(of_systemd.format())
    assert held(environment) == (of_systemd.fingerprint, f"the credential {credentials / 'master.key'}")
    environment[VARIABLE] = of_environment.format()
    assert held(environment) == (of_environment.fingerprint, f"the environment variable {VARIABLE}")
