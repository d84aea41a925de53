"""`homeserver parked …`: work that was set aside because it kept failing or lacks something."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table

# The lane of events from other servers whose previous events are missing. They have a table of their own.
_EVENTS = "gaps"
_REASON_CHARACTERS_MAX = 100


def add_commands(commands: Any) -> None:
    """Adds `parked list`, `retry` and `clear`."""
    group = commands.add_parser("parked", help="manage work that was set aside because it failed")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_shared_arguments(actions.add_parser("list", help="list what was set aside, and why"), run_list)
    retry = actions.add_parser("retry", help="retry it; a running server does so within a minute")
    clear = actions.add_parser("clear", help="delete it for good")
    for action, run in ((retry, run_retry), (clear, run_clear)):
        action.add_argument("lane", metavar="LANE", nargs="?", help="only the items of this lane, see `list`")
        action.add_argument("item", metavar="ITEM", nargs="?", help="only this item")
        add_shared_arguments(action, run)
    clear.add_argument("--all", action="store_true", help="everything, of every lane")


def run_list(args: argparse.Namespace) -> int:
    """Prints every parked item, lane by lane."""

    async def show(server: Any) -> None:
        from homeserver.database.parked import list_parked
        from homeserver.remote.gaps import list_waiting

        database = server.resources.database
        found = [_fields(each) for each in await database.read(list_parked)]
        found += [_event_fields(each) for each in await database.read(list_waiting)]
        rows = [(each["lane"], each["item"], _date(each["parked_ts"]), _why(each)) for each in found]
        tell_table(args, ("lane", "item", "since", "why"), rows, items=found)

    return run_beside(read_config(args), show)


def run_retry(args: argparse.Namespace) -> int:
    """Marks the items for a retry, by a running server or at the next start."""
    if args.lane == "federation":
        raise CommandError("what could not be sent is not sent again; other servers ask for it once they miss it")

    def act(tx: Any) -> int:
        from homeserver.database.parked import set_parked_due
        from homeserver.remote.gaps import set_waiting_due

        return _count(args, tx, set_parked_due, set_waiting_due)

    return _change(args, act, "{} will be tried again: by a running server within a minute, or by the next start.")


def run_clear(args: argparse.Namespace) -> int:
    """Deletes the items. Their work will never be done."""
    if args.lane is None and not args.all:
        raise CommandError("say which lane to clear, or --all; `homeserver parked list` shows them")

    def act(tx: Any) -> int:
        from homeserver.database.parked import delete_parked_items
        from homeserver.remote.gaps import delete_waiting

        return _count(args, tx, delete_parked_items, delete_waiting)

    return _change(args, act, "{} forgotten.")


def _change(args: argparse.Namespace, act: Callable[[Any], int], sentence: str) -> int:
    async def change(server: Any) -> None:
        count = await server.resources.database.write(act)
        if not count:
            raise CommandError("no such item is parked; `homeserver parked list` shows all")
        tell(args, sentence.format("1 item" if count == 1 else f"{count} items"), items=count)

    return run_beside(read_config(args), change)


def _count(args: argparse.Namespace, tx: Any, on_items: Any, on_events: Any) -> int:
    """Returns the number of changed items and events."""
    count: int = on_items(tx, args.lane, args.item)
    if args.lane in (None, _EVENTS):
        count += on_events(tx, args.item)
    return count


def _fields(each: Any) -> dict[str, Any]:
    return {
        "lane": each.lane, "item": each.item, "reason": each.reason, "parked_ts": each.parked_ms, "retry": each.is_due,
    }  # fmt: skip


def _event_fields(each: Any) -> dict[str, Any]:
    return {
        "lane": _EVENTS, "item": each.event_id, "parked_ts": each.received_ms, "retry": True, "room_id": each.room_id,
        "reason": f"what it follows on cannot be had; tried {each.attempts} times; {each.origin} sent it",
    }  # fmt: skip


def _why(each: dict[str, Any]) -> str:
    """Returns the reason on one line, shortened if it is long."""
    reason: str = " ".join(each["reason"].split())
    waits = "to be tried again; " if each["retry"] and each["lane"] != _EVENTS else ""
    return f"{waits}{reason}"[:_REASON_CHARACTERS_MAX]


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
