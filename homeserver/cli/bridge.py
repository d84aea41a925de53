"""`homeserver bridge …`: how application services stand, what they do not take, and when they are tried again."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table

_REASON_CHARACTERS_MAX = 100


def add_commands(commands: Any) -> None:
    """Adds `bridge list`, `show` and `retry`."""
    group = commands.add_parser("bridge", help="see how bridges stand, and have them tried again")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_shared_arguments(
        actions.add_parser("list", help="list the bridges, and whether they take what they get"), run_list
    )
    show = actions.add_parser("show", help="show one bridge, and what it does not take")
    retry = actions.add_parser("retry", help="try a bridge again now, also with what it did not take")
    for action, run in ((show, run_show), (retry, run_retry)):
        action.add_argument("id", metavar="ID", help="the id of its registration")
        add_shared_arguments(action, run)
    retry.add_argument("item", metavar="ITEM", nargs="?", help="only this item, see `bridge show`")


def run_list(args: argparse.Namespace) -> int:
    """Prints a line for each application service of the configuration."""

    async def show(server: Any) -> None:
        found = await _read(server)
        rows = [
            (each["id"], str(each["lag"]), str(each["transactions"]), str(len(each["parked"])), _describe(each))
            for each in found
        ]
        tell_table(args, ("id", "lag", "sent", "parked", "state"), rows, bridges=found)

    return run_beside(read_config(args), show)


def run_show(args: argparse.Namespace) -> int:
    """Prints everything about one application service."""

    async def show(server: Any) -> None:
        bridge = await _find(server, args.id)
        if args.json:
            tell(args, "", **bridge)
            return
        for name, value in (
            ("id", bridge["id"]), ("url", bridge["url"] or "none: it is sent nothing"), ("user", bridge["user_id"]),
            ("lag", bridge["lag"]), ("sent", bridge["transactions"]), ("state", _describe(bridge)),
        ):  # fmt: skip
            tell(args, f"{name:<8}{value}")
        if bridge["parked"]:
            tell(args, "")
            rows = [(each["item"], _date(each["parked_ts"]), _why(each)) for each in bridge["parked"]]
            tell_table(args, ("item", "since", "why it is left out"), rows)

    return run_beside(read_config(args), show)


def run_retry(args: argparse.Namespace) -> int:
    """Ends the pause of a bridge that failed, and has it sent what was parked. A running server does so at once."""

    async def change(server: Any) -> None:
        from homeserver.features.application_services.status import retry

        bridge = await _find(server, args.id)
        if args.item is not None and args.item not in {each["item"] for each in bridge["parked"]}:
            raise CommandError(f"nothing called {args.item} is parked; `homeserver bridge show {args.id}` shows all")
        count = await server.resources.database.write(retry, args.id, args.item)
        what = {0: "", 1: ", with 1 parked item"}.get(count, f", with {count} parked items")
        tell(args, f"{args.id} will be tried again{what}: now, or when the server starts.", id=args.id, items=count)

    return run_beside(read_config(args), change)


async def _read(server: Any) -> list[dict[str, Any]]:
    from homeserver.features.application_services.status import list_status

    hs = server.resources
    found: list[dict[str, Any]] = await hs.database.read(list_status, list(hs.application_services))
    return found


async def _find(server: Any, bridge_id: str) -> dict[str, Any]:
    found = [each for each in await _read(server) if each["id"] == bridge_id]
    if not found:
        raise CommandError(f"no registration in application_services.files has the id {bridge_id!r}")
    return found[0]


def _describe(bridge: dict[str, Any]) -> str:
    if bridge["url"] is None:
        return "has no url"
    if "failures" not in bridge:
        return "answers"
    since, reason = _date(bridge["failing_since_ts"]), " ".join(bridge["reason"].split())
    return f"fails since {since} ({bridge['failures']} times): {reason}"[:_REASON_CHARACTERS_MAX]


def _why(item: dict[str, Any]) -> str:
    waits = "to be tried again; " if item["retry"] else ""
    return f"{waits}{' '.join(item['reason'].split())}"[:_REASON_CHARACTERS_MAX]


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
