"""`homeserver room …`: single rooms."""

from __future__ import annotations

import argparse
from typing import Any

from homeserver.cli.output import add_shared_arguments, ask, find_room, read_config, run_beside, tell
from homeserver.cli.progress import Bar


def add_commands(commands: Any) -> None:
    """Adds `room forget-key`."""
    group = commands.add_parser("room", help="manage single rooms")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    forget = actions.add_parser(
        "forget-key",
        help="make everything that is stored of a room unreadable, for ever",
        description="Destroys the key of a conversation. Its messages, files and names can never be read again on this"
        " server; memberships and permissions stay. A running server notices it at once. Other servers in the room keep"
        " their copies, and so do backups of the database together with the master key.",
    )
    forget.add_argument("room", metavar="ROOM", help="the room's ID, or one of its aliases on this server")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    add_shared_arguments(forget, run_forget_key)


def run_forget_key(args: argparse.Namespace) -> int:
    """Asks, and forgets the room."""

    async def forget(server: Any) -> None:
        from homeserver.features.at_rest import forget_room
        from homeserver.features.search.feeding import remove_deleted

        hs = server.resources
        room_id = await hs.database.read(find_room, args.room)
        if not args.yes:
            ask(f"Everything that this server stores of {room_id} becomes unreadable, for ever.")
        bar = Bar("changes", is_shown=not args.json)
        await forget_room(hs, room_id, bar.show)
        bar.end()
        if hs.search is not None and not is_server_running(server.config):
            await remove_deleted(hs.database, hs.search, hs.stream.position)
        tell(args, f"What was stored of {room_id} can no longer be read.", room_id=room_id)

    return run_beside(read_config(args), forget)


def is_server_running(config: Any) -> bool:
    """Returns whether a server has the database open, or may have: PostgreSQL does not tell."""
    from homeserver.database.sqlite import is_served
    from homeserver.server import database_url

    engine, _, path = database_url(config).partition(":")
    return engine != "sqlite" or is_served(path)
