"""`homeserver export …` and `import`: history as folders of files, whether or not the server is running."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, counted, find_room, read_config, run_beside, tell
from homeserver.cli.progress import Bar


def add_commands(commands: Any) -> None:
    """Adds `export room`, `export user` and `import`."""
    group = commands.add_parser("export", help="write a room, or a person's data, to a folder")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    room = actions.add_parser("room", help="write the history of a room, with its pictures")
    room.add_argument("room", metavar="ROOM", help="!abc:example.org, or #alias:example.org")
    room.add_argument("--format", choices=("json", "html"), default="html", help="html adds pages (%(default)s)")
    user = actions.add_parser("user", help="write everything that is stored about a user")
    user.add_argument("user", metavar="USER", help="alice, or @alice:example.org")
    for action, run in ((room, run_room), (user, run_user)):
        action.add_argument(
            "--out", metavar="DIR", type=Path, required=True, help="the folder, which must not exist yet"
        )
        add_shared_arguments(action, run)
    read = commands.add_parser("import", help="make a room of a folder that `export room` has written")
    read.add_argument("folder", metavar="DIR", type=Path)
    add_shared_arguments(read, run_import)


def run_room(args: argparse.Namespace) -> int:
    """Writes a room."""

    async def act(server: Any, bar: Bar) -> None:
        from homeserver.portability.rooms import export_room

        room_id = await server.resources.database.read(find_room, args.room)
        done = await export_room(server.resources, room_id, args.out, args.format, bar.show)
        bar.end()
        lost = done["media_missing"]
        missing = f", {counted(lost, 'more file')} {'is' if lost == 1 else 'are'} not on this server" if lost else ""
        what = f"{counted(done['events'], 'event')} and {counted(done['media'], 'file')}"
        tell(args, f"{what} are in {args.out}{missing}.", **done)

    return _run(args, "changes", act)


def run_user(args: argparse.Namespace) -> int:
    """Writes the data of a person."""

    async def act(server: Any, bar: Bar) -> None:
        from homeserver.portability.people import export_person
        from homeserver.users.accounts import find_local

        done = await export_person(server.resources, find_local(server.resources, args.user), args.out, bar.show)
        bar.end()
        what = f"{counted(done['rows'], 'row')}, {counted(done['events'], 'event')}"
        tell(args, f"{what} and {counted(done['media'], 'file')} are in {args.out}.", **done)

    return _run(args, "changes", act)


def run_import(args: argparse.Namespace) -> int:
    """Makes a room of a folder. After an interruption, the same command goes on."""

    async def act(server: Any, bar: Bar) -> None:
        from homeserver.portability.importing import import_room

        done = await import_room(server.resources, args.folder, bar.show)
        bar.end()
        verb = "is" if done["events"] == 1 else "are"
        tell(args, f"{counted(done['events'], 'event')} {verb} in the new room {done['room_id']}.", **done)

    return _run(args, "events", act)


def _run(args: argparse.Namespace, unit: str, act: Callable[[Any, Bar], Awaitable[None]]) -> int:
    from homeserver.portability.folders import ExportError

    bar = Bar(unit, is_shown=not args.json)

    async def run(server: Any) -> None:
        try:
            await act(server, bar)
        except ExportError as error:
            raise CommandError(str(error)) from error

    try:
        return run_beside(read_config(args), run)
    except CommandError:
        bar.end()
        raise
