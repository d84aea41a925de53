"""`homeserver keys …`: the key that signs events and requests, and the master key of what is sealed in storage."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

from homeserver.cli.output import add_shared_arguments, counted, read_config, run_beside, run_trio, tell
from homeserver.cli.progress import Bar


def add_commands(commands: Any) -> None:
    """Adds `keys show`, `new`, `status` and `rotate`."""
    group = commands.add_parser("keys", help="show or replace the signing key and the master key")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_shared_arguments(actions.add_parser("show", help="show the public signing keys"), run_show)
    new = actions.add_parser(
        "new",
        help="replace the signing key after it was lost or stolen",
        description="Replaces the signing key. Stop the server first, on every node; give the new file to all nodes.",
    )
    add_shared_arguments(new, run_new)
    status = actions.add_parser("status", help="show what the master key wraps")
    add_shared_arguments(status, run_status)
    rotate = actions.add_parser(
        "rotate",
        help="replace the master key; a running server goes on",
        description="Replaces the master key, which wraps the keys of conversations and files. If it is interrupted,"
        " run it again. Then back up the new key, apart from the database.",
    )
    add_shared_arguments(rotate, run_rotate)


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


def run_status(args: argparse.Namespace) -> int:
    """Prints the fingerprint of the master key, and how many keys it wraps; never a secret."""

    async def show(server: Any) -> None:
        from homeserver.features.media.sealing_storage import count_unsealed
        from homeserver.rooms.resealing import count_waiting
        from homeserver.rooms.rotation import get_status

        database, config = server.resources.database, server.config
        status = await database.read(get_status)
        events, blocks = await database.read(count_waiting)
        files = await database.read(count_unsealed) if config.at_rest.media else 0
        place = database.server.master_keys.place
        sealed = [name for name in ("events", "media", "archive") if getattr(config.at_rest, name)]
        if status.current is None:
            text = "There is no master key: nothing is sealed."
        else:
            forgotten = f"{counted(status.forgotten, 'key')} {'is' if status.forgotten == 1 else 'are'} forgotten"
            text = (
                f"The master key is {status.current}, in {place}. It wraps the keys of"
                f" {counted(status.rooms, 'conversation')} and {counted(status.files, 'file')}; {forgotten}."
                f" Sealed from now on: {', '.join(sealed) or 'nothing'}."
            )
        for old, count in status.replaced.items():
            text += (
                f"\nThe old master key {old} still wraps {counted(count, 'key')}: run `homeserver keys rotate` again."
            )
        if events or blocks or files:
            text += (
                f"\nStill to be sealed: {counted(events, 'event')}, {counted(files, 'file')} and"
                f" {counted(blocks, 'block')} of the archive;"
                " a running server does it in the background."
            )
        waiting = {"events": events, "files": files, "blocks": blocks}
        tell(args, text, master_key=status.current, place=place, rooms=status.rooms, files=status.files,
             forgotten=status.forgotten, replaced=status.replaced, sealed=sealed, waiting=waiting)  # fmt: skip

    return run_beside(read_config(args), show)


def run_rotate(args: argparse.Namespace) -> int:
    """Replaces the master key, with a progress bar."""

    async def rotate_key(server: Any) -> None:
        from homeserver.rooms.rotation import rotate

        database = server.resources.database
        keys = database.server.master_keys
        bar = Bar("keys", is_shown=not args.json)
        new, has_old = await rotate(server.config, database, keys, bar.show)
        bar.end()
        rest = " Remove the old key there, and restart every server." if has_old else ""
        tell(args, f"The master key is now {new}, in {keys.place}. Back it up, apart from the database.{rest}",
             master_key=new, place=keys.place, has_old_key=has_old)  # fmt: skip

    return run_beside(read_config(args), rotate_key)


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
