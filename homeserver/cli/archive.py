"""`homeserver archive …`: old messages in the blob storage."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table
from homeserver.cli.progress import Bar

_AGE = re.compile(r"(\d{1,6})d?", re.ASCII)
_DAY_MS = 24 * 60 * 60 * 1000
_BLOCKS_AT_ONCE = 100


def add_commands(commands: Any) -> None:
    """Adds `archive run`, `list` and `verify`."""
    group = commands.add_parser("archive", help="move old messages into the blob storage")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser("run", help="move old messages now; a running server goes on")
    run.add_argument("--room", metavar="ROOM", help="only this room")
    run.add_argument("--older-than", metavar="DAYS", help='such as "90d"; default: [archive] after_days')
    run.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    add_shared_arguments(run, run_run)
    show = actions.add_parser("list", help="list the blocks of a room")
    show.add_argument("room", metavar="ROOM")
    add_shared_arguments(show, run_list)
    add_shared_arguments(actions.add_parser("verify", help="read every block and check it"), run_verify)


def run_run(args: argparse.Namespace) -> int:
    """Moves messages, and shows how far it is."""
    config = read_config(args)
    days = config.archive.after_days if args.older_than is None else _parse_days(args.older_than)
    if args.older_than is None and not days:
        raise CommandError("[archive] after_days is 0, so nothing is archived; say what is old with --older-than")

    async def move(server: Any) -> None:
        from homeserver.features.archive import delete_leftovers
        from homeserver.rooms.archiving import Wanted, archive, estimate, list_rooms

        hs = server.resources
        if args.room is None:
            rooms = await hs.database.read(list_rooms)
        else:
            rooms = [(await _get_head(hs, args.room)).room_nid]
        wanted = Wanted(hs.now_ms() - days * _DAY_MS)
        if args.dry_run:
            moved = await estimate(hs, rooms, wanted)
        else:
            bar = Bar("events", is_shown=not args.json and sys.stderr.isatty())
            moved = await archive(hs, rooms, wanted, bar.show)
            bar.end()
            await delete_leftovers(hs)
        verb = "would be" if args.dry_run else "were"
        sentence = (
            f"{moved.events} events of {moved.rooms} rooms {verb} moved into {moved.blocks} blocks, which"
            f" {'would free' if args.dry_run else 'freed'} {moved.freed_bytes / 1e6:.1f} MB of the database."
        )
        tell(args, sentence, dry_run=args.dry_run, rooms=moved.rooms, events=moved.events, blocks=moved.blocks,
             freed_bytes=moved.freed_bytes)  # fmt: skip

    return run_beside(config, move)


def run_list(args: argparse.Namespace) -> int:
    """Prints the blocks of a room, oldest first."""

    async def show(server: Any) -> None:
        from homeserver.features.archive import describe_block
        from homeserver.rooms.archive.blocks import list_blocks

        hs = server.resources
        head = await _get_head(hs, args.room)
        blocks = [describe_block(hs, row) for row in await hs.database.read(list_blocks, head.room_nid)]
        rows = [
            (_date(each["first_ts"]), _date(each["last_ts"]), str(each["events"]), str(each["bytes"]),
             "yes" if each["sealed"] else "no", each["checksum"][:16], each["url"])
            for each in blocks
        ]  # fmt: skip
        tell_table(args, ("from", "to", "events", "bytes", "sealed", "sha-256", "url"), rows, blocks=blocks)

    return run_beside(read_config(args), show)


def run_verify(args: argparse.Namespace) -> int:
    """Reads every block. Exits with 1 if one is lost or damaged."""
    damaged: list[dict[str, str]] = []

    async def verify(server: Any) -> None:
        from homeserver.database import DatabaseDamaged
        from homeserver.rooms.archive.blocks import list_blocks_after
        from homeserver.rooms.archiving import verify_block

        hs = server.resources
        count, last = 0, 0
        while rows := await hs.database.read(list_blocks_after, last, _BLOCKS_AT_ONCE):
            for row in rows:
                try:
                    count += await verify_block(hs, row)
                except DatabaseDamaged as error:
                    damaged.append({"blob": row.blob, "damage": str(error)})
            last = rows[-1].block
        for each in damaged if not args.json else ():
            print(each["damage"], file=sys.stderr)
        blocks = count + len(damaged)
        tell(args, f"{blocks} blocks were read; {len(damaged)} are lost or damaged.", blocks=blocks, damaged=damaged)

    run_beside(read_config(args), verify)
    return 1 if damaged else 0


async def _get_head(hs: Any, room_id: str) -> Any:
    from homeserver.rooms.heads import find_head

    head = await hs.database.read(find_head, room_id)
    if head is None:
        raise CommandError(f"this server does not know the room {room_id}")
    return head


def _parse_days(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None:
        raise CommandError(f'--older-than must be a number of days, such as "90d", not {text!r}')
    return int(match[1])


def _date(ms: int) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
    except (OverflowError, ValueError, OSError):  # senders claim any time
        return str(ms)
