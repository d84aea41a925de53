"""`homeserver report …`: events, rooms and users that people have reported."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table

_REASON_CHARACTERS_MAX = 100
_UNKNOWN = "there is no report {}; `homeserver report list` shows all"


def add_commands(commands: Any) -> None:
    """Adds `report list`, `show` and `delete`."""
    group = commands.add_parser("report", help="read what people have reported")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the reports, newest first")
    listing.add_argument("--limit", metavar="N", type=_count, default=100, help="how many (%(default)s)")
    add_shared_arguments(listing, run_list)
    show = actions.add_parser("show", help="show a report, with the event that it is about")
    show.add_argument("id", metavar="ID", type=_count, help="see `report list`")
    add_shared_arguments(show, run_show)
    delete = actions.add_parser("delete", help="delete a report that has been dealt with")
    delete.add_argument("id", metavar="ID", type=_count, help="see `report list`")
    add_shared_arguments(delete, run_delete)


def run_list(args: argparse.Namespace) -> int:
    """Prints the newest reports, of all kinds."""

    async def show(server: Any) -> None:
        reports = await server.resources.database.read(_list, args.limit)
        rows = [
            (str(each["id"]), _date(each["received_ts"]), each["user_id"], each["kind"], each["about"], _short(each))
            for each in reports
        ]
        tell_table(args, ("id", "when", "who", "kind", "about", "why"), rows, reports=reports)

    return run_beside(read_config(args), show)


def run_show(args: argparse.Namespace) -> int:
    """Prints one report. Texts that people have written are quoted, so that they cannot pass for anything else."""

    async def show(server: Any) -> None:
        from homeserver.encoding import to_json
        from homeserver.features.reports import find_report_body

        body = await server.resources.database.read(find_report_body, args.id)
        if body is None:
            raise CommandError(_UNKNOWN.format(args.id))
        report = json.loads(to_json(body))
        about = report.get("event_id") or report.get("room_id") or report.get("target_user_id")
        lines = [f"report {args.id} of {_date(report['received_ts'])} by {report['user_id']}, about {about}"]
        lines += [f"  {key}: {report[key]!r}" for key in ("room_id", "name", "sender", "reason") if report.get(key)]
        if "event_json" in report:
            lines.append(f"  event: {json.dumps(report['event_json']) if report['event_json'] else 'not known here'}")
        tell(args, "\n".join(lines), **report)

    return run_beside(read_config(args), show)


def run_delete(args: argparse.Namespace) -> int:
    """Deletes one report."""

    async def delete(server: Any) -> None:
        from homeserver.features.reports import delete_report

        if not await server.resources.database.write(delete_report, args.id):
            raise CommandError(_UNKNOWN.format(args.id))
        tell(args, f"The report {args.id} is deleted.", id=args.id, deleted=True)

    return run_beside(read_config(args), delete)


def _list(tx: Any, limit: int) -> list[dict[str, Any]]:
    from homeserver.features.reports import list_reports, report_body

    return [
        {"kind": each.kind, "about": each.event_id or each.room_id or each.target, **report_body(tx, each)}
        for each in list_reports(tx, start=0, limit=limit, newest_first=True)
    ]


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**53):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _date(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")


def _short(report: dict[str, Any]) -> str:
    return " ".join(report["reason"].split())[:_REASON_CHARACTERS_MAX]
