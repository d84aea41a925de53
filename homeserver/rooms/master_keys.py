"""The master key: it wraps the keys in the database (`keys.py`), and must not be in the database or its backups.

Theory of operation. It comes from the first of these places that has one:

    the environment variable HOMESERVER_MASTER_KEY
    a systemd credential: the file of the name of `Config.master_key_path` in $CREDENTIALS_DIRECTORY
    the file `Config.master_key_path`

The database has the fingerprints of the master keys that it needs, so a wrong or missing one is noticed at the start:

    database            our keys                       start
    needs none          none, nothing is to be sealed  continues without one
    needs none          none                           creates the file
    needs none          some                           continues; the first one becomes the current one
    needs some          all of them                    continues
    needs some          not all of them                refused, with the fingerprint of the one that is missing
    any                 not a key                      refused; the file is not changed

During a rotation (`rotation.py`) there are two.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from homeserver.config import Config, ConfigError
from homeserver.database import Database, Transaction
from homeserver.durable_files import create_file
from homeserver.process.sealing import MasterKey, MasterKeys, new_secret, parse_master_keys
from homeserver.rooms.keys import get_current_master, list_needed_masters

VARIABLE = "HOMESERVER_MASTER_KEY"
_CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
_KEY = "at_rest.master_key_file"
# A key has 43 characters, and a rotation needs two. The rest are comments.
_FILE_BYTES_MAX = 16_384
_COMMENT = "# A master key of a homeserver. Back it up apart from the database: docs/encryption_at_rest.md\n"


async def open_master_keys(
    config: Config, database: Database, environment: Mapping[str, str] = os.environ
) -> MasterKeys:
    """Returns the master keys, which the caller passes to `ServerIdentity`. Creates the file at the first start.

    Raises ConfigError if one that the database needs is missing, or if a source is damaged.
    """
    needed = await database.read(list_needed_masters)
    path = config.master_key_path
    if find_fixed_source(config, environment) is None and not needed and _is_used(config) and not path.exists():
        check_folder(config, environment)
        _create(path)
    return load_keys(config, needed, environment)


def check_folder(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError if the file with the keys is to be in a folder that does not exist, except data_dir.

    It may be where a disk is mounted: a key that was made beneath the mount could not be found again.
    """
    folder = config.master_key_path.parent
    if folder != config.data_path("") and not folder.exists() and find_fixed_source(config, environment) is None:
        raise ConfigError(f"{_KEY}: the folder {folder} does not exist: create it, or configure another one")


def load_keys(config: Config, needed: Collection[str], environment: Mapping[str, str] = os.environ) -> MasterKeys:
    """Returns the master keys, without creating any. needed: the fingerprints of those that the database needs.

    Raises ConfigError if one of these is missing, or if a source is damaged.
    """
    path = config.master_key_path
    keys = MasterKeys(lambda: read_keys(config, environment), describe_source(config, environment))
    check_keys(needed, keys, path.exists() or find_fixed_source(config, environment) is not None)
    return keys


def find_exposed(config: Config, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the file that holds the keys, if every user of this machine can read it."""
    if environment.get(VARIABLE):
        return None
    path = _credential(config, environment) or config.master_key_path
    return path if path.is_file() and path.stat().st_mode & 0o007 else None


def check_keys(needed: Collection[str], keys: MasterKeys, exists: bool = True) -> None:
    """Raises ConfigError if a master key that the database needs is missing. exists: whether its source exists."""
    for fingerprint in needed:
        if keys.find(fingerprint) is None:
            held = ", ".join(key.fingerprint for key in keys.list())
            what = f"{keys.place} holds the master key {held}" if exists else f"there is no {keys.place}"
            raise ConfigError(
                f"{_KEY}: {what}, but this database needs {fingerprint}: restore that key from your backup, or copy it"
                " from another node; without it nothing that is sealed can be read"
            )


def claim(tx: Transaction) -> None:
    """Makes our first master key the current one, if the database has none and we have one."""
    if tx.server.master_keys.list():
        get_current_master(tx)


def find_fixed_source(config: Config, environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns what provides the keys, in words, if it is not the file, which we may write."""
    if environment.get(VARIABLE):
        return f"the environment variable {VARIABLE}"
    credential = _credential(config, environment)
    return None if credential is None else f"the credential {credential}"


def describe_source(config: Config, environment: Mapping[str, str] = os.environ) -> str:
    """Returns where the keys come from, in words."""
    return find_fixed_source(config, environment) or str(config.master_key_path)


def read_keys(config: Config, environment: Mapping[str, str] = os.environ) -> list[MasterKey]:
    """Returns the keys of the first source that has any; none if there is no source. Raises ConfigError."""
    value = environment.get(VARIABLE)
    if value:
        return _parse(value, f"the environment variable {VARIABLE}")
    path = _credential(config, environment) or config.master_key_path
    try:
        if not path.is_file() and path.exists():  # reading a pipe or a device might never end
            raise ConfigError(f"{_KEY}: {path} is not a file")
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX).decode("ascii")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{_KEY}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{_KEY}: {path} does not hold a master key: it is not text") from None
    return _parse(text, str(path))


def format_keys(keys: list[MasterKey]) -> str:
    """Returns the text of a file that holds these keys."""
    return _COMMENT + "".join(f"{key.format()}  # {key.fingerprint}\n" for key in keys)


def _parse(text: str, place: str) -> list[MasterKey]:
    try:
        return parse_master_keys(text)
    except ValueError as error:
        raise ConfigError(f"{_KEY}: {place} does not hold a master key, restore it from your backup: {error}") from None


def _credential(config: Config, environment: Mapping[str, str]) -> Path | None:
    folder = environment.get(_CREDENTIALS_DIRECTORY)
    if not folder:
        return None
    path = Path(folder) / config.master_key_path.name
    return path if path.exists() else None


def _is_used(config: Config) -> bool:
    return config.at_rest.events or config.at_rest.media or config.at_rest.archive


def _create(path: Path) -> None:
    try:
        create_file(path, format_keys([MasterKey(new_secret())]))
    except FileExistsError:
        pass  # another node was faster; its key is read
    except OSError as error:
        raise ConfigError(f"{_KEY}: {path} cannot be made: {error.strerror}") from error
