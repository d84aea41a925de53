"""`homeserver keys …`: the key that signs events and requests."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

from homeserver.cli.output import add_shared_arguments, read_config, run_trio, tell


def add_commands(commands: Any) -> None:
    """Adds `keys show` and `keys new`."""
    group = commands.add_parser("keys", help="show or replace the signing key")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_shared_arguments(actions.add_parser("show", help="show the public keys"), run_show)
    new = actions.add_parser(
        "new",
        help="replace the signing key after it was lost or stolen",
        description="Replaces the signing key. Stop the server first, on every node; give the new file to all nodes.",
    )
    add_shared_arguments(new, run_new)


def run_show(args: argparse.Namespace) -> int:
    """Prints the public parts of the current and the former keys; never a secret."""

    async def show(config: Any, database: Any) -> None:
        from homeserver.remote.identity import get_identity, list_old_keys

        known = await database.read(get_identity)
        old = await database.read(list_old_keys)
        current = {} if known.key is None else {known.key[0]: known.key[1]}
        lines = [f"{key_id} {key}" for key_id, key in current.items()]
        lines += [f"{key_id} {key.key_base64} (no longer used)" for key_id, key in old.items()]
        tell(
            args,
            "\n".join(lines or ["There is no signing key yet: it is created when the server first starts."]),
            verify_keys={key_id: {"key": key} for key_id, key in current.items()},
            old_verify_keys={
                key_id: {"key": key.key_base64, "expired_ts": key.valid_until_ts} for key_id, key in old.items()
            },
        )

    return _run(args, show, exclusive=False)


def run_new(args: argparse.Namespace) -> int:
    """Replaces the key. Refuses while a server runs on an SQLite database; stop nodes on PostgreSQL by hand."""

    async def make(config: Any, database: Any) -> None:
        from homeserver.remote.identity import replace_key

        key, put_aside = await replace_key(config, database)
        path = config.data_path(config.federation.signing_key_file)
        kept = "" if put_aside is None else f" The old one is kept in {put_aside}."
        tell(args, f"{config.server_name} now signs with {key.key_id}, stored in {path}.{kept} Back it up.",
             key_id=key.key_id, file=str(path), old_file=None if put_aside is None else str(put_aside))  # fmt: skip

    return _run(args, make, exclusive=True)


def _run(args: argparse.Namespace, act: Callable[[Any, Any], Awaitable[None]], *, exclusive: bool) -> int:
    """Opens the database alone, because a server cannot be opened without its key."""
    config = read_config(args)

    async def main() -> int:
        from homeserver.server import open_data

        database = await open_data(config, exclusive=exclusive)
        try:
            await act(config, database)
        finally:
            await database.aclose()
        return 0

    return run_trio(main)
