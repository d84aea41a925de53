"""The server's identity: its name, and the key that it signs with.

Theory of operation. The name is part of every user, room and event, and other servers check signatures against the
key. The data of a server are useless under another name, and if a new key replaced a lost one silently, other servers
would refuse our requests and events. So the database has the name and the public halves of the keys (never a secret),
and the server does not start unless the configuration and the key file agree with them:

    database          key file       start
    new               missing        creates a key, stores both
    new               a key          stores both
    has a key         the same key   continues
    has a key         missing        refused: restore the file, or `homeserver keys new`
    has a key         another key    refused in the same way
    any               not a key      refused; the file is not changed

Nodes that share one database may start at the same moment. A key file is created by a link, so it appears whole, and
the link fails if the file exists: then the node reads the file of the node that was faster. If the nodes do not share
the file, the first one to write to the database wins; the others delete their new file and refuse to start.

No setting changes the name, because accounts, rooms and signatures cannot be moved to another name.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from homeserver.config import Config, ConfigError
from homeserver.database import Database, Transaction
from homeserver.durable_files import create_file, sync_path, write_aside
from homeserver.federation.server_keys import VerifyKey
from homeserver.federation.signing import SigningKey, format_signing_key, parse_signing_key
from homeserver.users.accounts import list_users

# A key has about 60 bytes. A longer file is not a key.
_KEY_BYTES_MAX = 4096


class Identity(msgspec.Struct, frozen=True):
    """The server that the database belongs to. Name and key are None in a new one.

    key: the ID and the public half of the current signing key.
    """

    server_name: str | None
    key: tuple[str, str] | None
    is_new: bool


async def open_identity(config: Config, database: Database) -> SigningKey:
    """Returns the signing key. Creates it at the first start.

    Raises ConfigError if the database belongs to another name or key, or if the key is missing or damaged.
    """
    path = config.data_path(config.federation.signing_key_file)
    known = await database.read(get_identity)
    check_name(known, config.server_name)
    key = read_key(path)
    is_made = key is None and may_make_key(known)
    if is_made:
        key, is_made = make_key(path)
    check_key(known, key, path)
    assert key is not None
    if known.server_name is None or known.key is None:
        try:
            await database.write(_claim, config.server_name, key, path)
        except ConfigError:
            if is_made:
                path.unlink(missing_ok=True)
            raise
    return key


async def replace_key(config: Config, database: Database) -> tuple[SigningKey, Path | None]:
    """Creates a new signing key. Returns it and the new path of the old key's file, None if there was none.

    The old key is published as valid for signatures made before now. The server must not be running. Raises
    ConfigError.
    """
    path = config.data_path(config.federation.signing_key_file)
    check_name(await database.read(get_identity), config.server_name)
    key = _new_key()
    unfinished = write_aside(path, format_signing_key(key))
    try:
        await database.write(_store_identity, config.server_name, key)
        # From here on the server needs the new key. If the command is interrupted, it has to be run again.
        old = path.with_name(f"{path.name}.old-{key.version}") if path.exists() else None
        if old is not None:
            path.rename(old)
        unfinished.rename(path)
        sync_path(path.parent)
    except OSError as error:
        raise ConfigError(f"federation.signing_key_file: {path} cannot be replaced: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return key, old


def check_name(known: Identity, server_name: str) -> None:
    """Raises ConfigError if the database belongs to a server of another name."""
    if known.server_name not in (None, server_name):
        raise ConfigError(
            f"server_name is {server_name}, but this database belongs to {known.server_name}, whose name is part of"
            f" every user, room and signature in it: set server_name back to {known.server_name}, or begin anew with"
            " another data_dir and database"
        )


def check_key(known: Identity, key: SigningKey | None, path: Path) -> None:
    """Raises ConfigError if the key is missing, or is not the one that the database knows."""
    how = (
        "restore the file from your backup, or copy it from another node; if the key is lost for good,"
        " `homeserver keys new` makes another"
    )
    if key is None:
        raise ConfigError(
            f"federation.signing_key_file: there is no {path}, but this database belongs to a server that has a key: "
            + how
        )
    if known.key is not None and known.key != (key.key_id, key.verify_key_base64):
        raise ConfigError(
            f"federation.signing_key_file: {path} holds"
            f" {'another key of the name' if key.key_id == known.key[0] else 'the key'} {key.key_id}, but this server"
            f" signs with {known.key[0]}: {how}"
        )


def may_make_key(known: Identity) -> bool:
    """Returns whether a new key may be created, because nothing has been signed yet."""
    return known.is_new and known.key is None


# The file


def read_key(path: Path) -> SigningKey | None:
    """Returns the key in the file, None if there is no file. Raises ConfigError, which never quotes the file."""
    try:
        if not path.is_file() and path.exists():  # reading a pipe or a device might never end
            raise ConfigError(f"federation.signing_key_file: {path} is not a file")
        with path.open("rb") as file:
            return parse_signing_key(file.read(_KEY_BYTES_MAX).decode("ascii"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"federation.signing_key_file: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        said = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError(
            f"federation.signing_key_file: {path} does not hold a signing key, restore it from your backup: {said}"
        ) from error


def make_key(path: Path) -> tuple[SigningKey, bool]:
    """Creates a key file. Returns its key and True, or the key of a node that was faster and False.

    Raises ConfigError.
    """
    key = _new_key()
    try:
        create_file(path, format_signing_key(key))
    except FileExistsError:
        found = read_key(path)
        if found is not None:
            return found, False
        raise ConfigError(f"federation.signing_key_file: {path} was removed while this server started") from None
    except OSError as error:
        raise ConfigError(f"federation.signing_key_file: {path} cannot be made: {error.strerror}") from error
    return key, True


def _new_key() -> SigningKey:
    return SigningKey(secrets.token_hex(4), secrets.token_bytes(32))


# Storage


def get_identity(tx: Transaction) -> Identity:
    """Returns the identity in the database. If it has no name because it is old, that of its users is returned."""
    row = tx.one("SELECT server_name FROM identity WHERE id = 1")
    users = list_users(tx, limit=1)
    server_name = row[0] if row is not None else users[0].user_id.partition(":")[2] if users else None
    key = tx.one("SELECT key_id, key_base64 FROM own_keys WHERE expired_ts IS NULL")
    return Identity(
        server_name,
        None if key is None else (key[0], key[1]),
        is_new=row is None and not users and tx.position == 0,
    )


def _claim(tx: Transaction, server_name: str, key: SigningKey, path: Path) -> None:
    """Stores name and key. Raises ConfigError if another node was faster, with another name or key."""
    known = get_identity(tx)
    check_name(known, server_name)
    check_key(known, key, path)
    _store_identity(tx, server_name, key)


def _store_identity(tx: Transaction, server_name: str, key: SigningKey) -> None:
    tx.run("INSERT INTO identity (id, server_name) VALUES (1, ?) ON CONFLICT (id) DO NOTHING", server_name)
    note_own_key(tx, key.key_id, key.verify_key_base64)


def note_own_key(tx: Transaction, key_id: str, key_base64: str) -> None:
    """Stores this key as the only one that the server signs with from now on."""
    tx.run(
        "UPDATE own_keys SET expired_ts = ? WHERE expired_ts IS NULL AND NOT (key_id = ? AND key_base64 = ?)",
        tx.now_ms, key_id, key_base64,
    )  # fmt: skip
    tx.run(
        "INSERT INTO own_keys (key_id, key_base64, expired_ts) VALUES (?, ?, NULL)"
        " ON CONFLICT (key_id) DO UPDATE SET key_base64 = excluded.key_base64, expired_ts = NULL",
        key_id, key_base64,
    )  # fmt: skip


def list_old_keys(tx: Transaction) -> dict[str, VerifyKey]:
    """Returns the former signing keys by ID."""
    rows = tx.all("SELECT key_id, key_base64, expired_ts FROM own_keys WHERE expired_ts IS NOT NULL ORDER BY key_id")
    # If the clock was ahead when a key was replaced, the stored end may still be in the future.
    ended = [(old_id, old_base64, min(expired_ts, tx.now_ms)) for old_id, old_base64, expired_ts in rows]
    return {old_id: VerifyKey(old_base64, end_ts, end_ts) for old_id, old_base64, end_ts in ended}
