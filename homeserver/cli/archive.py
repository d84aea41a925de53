"""`homeserver archive …`: old messages in the blob storage."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from homeserver.cli.output import (
    CommandError,
    add_shared_arguments,
    ask,
    counted,
    find_room,
    read_config,
    run_beside,
    tell,
    tell_table,
)
from homeserver.cli.progress import Bar

_AGE = re.compile(r"(\d{1,6})d?", re.ASCII)
_DAY_MS = 24 * 60 * 60 * 1000
_BLOCKS_AT_ONCE = 100


def add_commands(commands: Any) -> None:
    """Adds `archive run`, `purge`, `list` and `verify`."""
    group = commands.add_parser("archive", help="move old messages into the blob storage")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser("run", help="move old messages now; a running server goes on")
    run.add_argument("--room", metavar="ROOM", help="only this room")
    run.add_argument("--older-than", metavar="DAYS", help='such as "90d"; default: [archive] after_days')
    run.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    add_shared_arguments(run, run_run)
    purge = actions.add_parser(
        "purge",
        help="delete old messages and their files for good; a running server goes on",
        description="Deletes messages, and the files that only they show: those that are older than their rooms keep"
        " them, or those older than --older-than. State events stay, and so do messages on other servers.",
    )
    purge.add_argument("--room", metavar="ROOM", help="only this room")
    purge.add_argument("--older-than", metavar="DAYS", help='such as "365d"; default: what each room says')
    purge.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    add_shared_arguments(purge, run_purge)
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
        from homeserver.rooms.archiving import Wanted, archive, estimate

        hs = server.resources
        rooms = await _list_rooms(hs, args.room)
        wanted = Wanted(hs.now_ms() - days * _DAY_MS)
        if args.dry_run:
            moved = await estimate(hs, rooms, wanted)
        else:
            bar = Bar("events", is_shown=not args.json)
            moved = await archive(hs, rooms, wanted, bar.show)
            bar.end()
            await delete_leftovers(hs)
        verb = "would be" if args.dry_run else "was" if moved.events == 1 else "were"
        freed = "would free" if args.dry_run else "freed"
        sentence = (
            f"{counted(moved.events, 'event')} of {counted(moved.rooms, 'room')} {verb} moved into"
            f" {counted(moved.blocks, 'block')}, which {freed} {moved.freed_bytes / 1e6:.1f} MB of the database."
        )
        tell(args, sentence, dry_run=args.dry_run, rooms=moved.rooms, events=moved.events, blocks=moved.blocks,
             freed_bytes=moved.freed_bytes)  # fmt: skip

    return run_beside(config, move)


def run_purge(args: argparse.Namespace) -> int:
    """Says what would be deleted, asks, and deletes it."""
    days = None if args.older_than is None else _parse_days(args.older_than)

    async def purge(server: Any) -> None:
        from homeserver.features.archive import delete_leftovers
        from homeserver.rooms.expiring import Purged
        from homeserver.rooms.purging import estimate_purge, purge_room
        from homeserver.rooms.retention import find_deadline

        hs = server.resources
        deadlines: dict[int, int] = {}
        expected = Purged()
        for room_nid in await _list_rooms(hs, args.room):
            age = hs.now_ms() - days * _DAY_MS if days is not None else await hs.database.read(find_deadline, room_nid)
            if age is not None:
                deadlines[room_nid] = age
                await estimate_purge(hs, room_nid, age, expected)
        if args.dry_run:
            _tell_purged(args, expected, "would be")
            return
        if not args.yes and expected.rooms:
            ask(f"{_describe(expected)} will be deleted, for ever.")
        purged = Purged()
        bar = Bar("messages", is_shown=not args.json)

        def show(count: int) -> None:
            bar.show(purged.events + count, expected.events)

        for room_nid, age in deadlines.items():
            await purge_room(hs, room_nid, age, purged, show)
        bar.end()
        await delete_leftovers(hs)
        _tell_purged(args, purged, "were")

    return run_beside(read_config(args), purge)


def _describe(purged: Any) -> str:
    return (
        f"{counted(purged.events, 'message')} of {counted(purged.rooms, 'room')}"
        f" ({purged.text_bytes / 1e6:.1f} MB of text) and {counted(purged.files, 'file')}"
        f" ({purged.file_bytes / 1e6:.1f} MB)"
    )


def _tell_purged(args: argparse.Namespace, purged: Any, verb: str) -> None:
    tell(args, f"{_describe(purged)} {verb} deleted.", dry_run=args.dry_run, rooms=purged.rooms, events=purged.events,
         text_bytes=purged.text_bytes, files=purged.files, file_bytes=purged.file_bytes)  # fmt: skip


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
        sentence = (
            f"{counted(blocks, 'block')} {'was' if blocks == 1 else 'were'} read;"
            f" {len(damaged)} {'is' if len(damaged) == 1 else 'are'} lost or damaged."
        )
        tell(args, sentence, blocks=blocks, damaged=damaged)

    run_beside(read_config(args), verify)
    return 1 if damaged else 0


async def _list_rooms(hs: Any, room_id: str | None) -> list[int]:
    from homeserver.rooms.archiving import list_rooms

    if room_id is not None:
        return [(await _get_head(hs, room_id)).room_nid]
    rooms: list[int] = await hs.database.read(list_rooms)
    return rooms


async def _get_head(hs: Any, name: str) -> Any:
    from homeserver.rooms.heads import find_head

    head = await hs.database.read(find_head, await hs.database.read(find_room, name))
    if head is None:
        raise CommandError(f"this server does not know the room {name}")
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
