"""`homeserver stats`: figures about the server's use, whether or not it is running. See docs/analytics.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homeserver.cli.output import (
    CommandError,
    add_shared_arguments,
    read_config,
    run_beside,
    tell,
    tell_table,
    write_whole,
)

_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = ("active_people", "messages", "joins", "new_people", "media_bytes")
_COLUMNS = {
    "start": "",
    "active_people": "active",
    "active_people_week": "week",
    "active_people_month": "month",
    "messages_sent": "sent",
    "messages_received": "received",
    "calls": "calls",
    "joins": "joins",
    "new_people": "people",
    "new_rooms": "rooms",
    "media_bytes": "media",
    "delivery_ms_p50": "p50",
    "delivery_ms_p99": "p99",
}
_LARGEST_SHOWN = 10


def add_commands(commands: Any) -> None:
    """Adds `stats`."""
    stats = commands.add_parser("stats", help="show how the server is used: people, messages, media, other servers")
    stats.add_argument("--from", dest="start", metavar="DATE", default="", help="2026-11-01; 30 days or 48 hours ago")
    stats.add_argument("--to", metavar="DATE", default="", help="including that day (default: now)")
    stats.add_argument("--granularity", choices=("hour", "day"), default="day", help="a row for each (%(default)s)")
    stats.add_argument("--export", metavar="FILE", type=Path, help="write the rows to a file: .csv or .parquet")
    add_shared_arguments(stats, run_stats)


def run_stats(args: argparse.Namespace) -> int:
    """Prints the figures, or writes them to a file."""
    config = read_config(args)
    if not config.analytics.enabled:
        raise CommandError("analytics are turned off: [analytics] enabled = false")
    if args.export is not None:
        check_format(args.export)

    async def show(server: Any) -> None:
        from homeserver.features.analytics import list_rooms
        from homeserver.features.analytics.report import parse_span, read_report

        hs = server.resources
        span = parse_span(args.start, args.to, args.granularity, hs.now_ms())
        report = await hs.database.read(read_report, span)
        if args.export is not None:
            export(args.export, report.periods)
            tell(
                args,
                f"{len(report.periods)} rows are in {args.export}.",
                file=str(args.export),
                rows=len(report.periods),
            )
            return
        rooms = await list_rooms(hs.database)
        if args.json:
            tell(args, "", **report.body(rooms))
        else:
            _print(args, report, rooms)

    return run_beside(config, show)


def check_format(path: Path) -> None:
    """Raises CommandError unless the file can be written in the format that its name says."""
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise CommandError(
                "Parquet files need the package pyarrow: pip install 'homeserver[parquet]', or export to a .csv file"
            ) from error
    elif path.suffix != ".csv":
        raise CommandError(f"the name of the file must end with .csv or .parquet, not {path.suffix or 'nothing'!r}")


def export(path: Path, periods: Sequence[dict[str, Any]]) -> None:
    """Writes one row for each period. The file appears once it is complete. Raises CommandError."""
    if path.suffix == ".csv":
        from homeserver.features.analytics.report import to_csv

        write_whole(path, to_csv(periods).encode())
        return
    import io

    import pyarrow
    import pyarrow.parquet

    fields = [(name, pyarrow.string() if name == "start" else pyarrow.int64()) for name in periods[0]]
    table = pyarrow.Table.from_pylist(list(periods), schema=pyarrow.schema(fields))
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written)
    write_whole(path, written.getvalue())


def _print(args: argparse.Namespace, report: Any, rooms: Sequence[dict[str, Any]]) -> None:
    columns = [name for name in _COLUMNS if name in report.periods[0]]
    width = max(len(name) for name in _SPARKS)
    for name in _SPARKS:
        values = [period[name] for period in report.periods]
        print(f"{name.replace('_', ' '):<{width}}  {sparkline(values)}  {_short(name, max(values))} at most")
    print()
    shown = [period for period in report.periods if any(value for name, value in period.items() if "start" not in name)]
    rows = [[_short(name, period[name]) for name in columns] for period in shown]
    tell_table(args, [_COLUMNS[name] or args.granularity for name in columns], rows)
    if report.peers:
        print()
        peers = report.peers[:_LARGEST_SHOWN]
        rows = [[each["server"], str(each["received"]), str(each["sent"])] for each in peers]
        tell_table(args, ["other server", "received", "sent"], rows)
    if rooms:
        print()
        largest = rooms[:_LARGEST_SHOWN]
        rows = [[each["room_id"], str(each["messages"]), _short("bytes", each["bytes"])] for each in largest]
        tell_table(args, ["largest rooms", "messages", "bytes"], rows)
    if report.behind:
        print(f"\n{report.behind} changes are not counted yet; a running server does it.")


def sparkline(values: Sequence[int]) -> str:
    """Returns one bar for each value; a space for 0."""
    most = max(values, default=0)
    return "".join(_BARS[(value * len(_BARS) - 1) // most] if value else " " for value in values)


def _short(name: str, value: Any) -> str:
    """Returns a figure in a few characters: bytes and milliseconds with their unit."""
    if value is None:
        return "-"
    if name.endswith("bytes"):
        for unit in ("B", "kB", "MB", "GB"):
            if value < 1000:
                return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
            value /= 1000
        return f"{value:.1f} TB"
    if name.startswith("delivery_ms"):
        return f"{value} ms" if value < 10_000 else f"{value / 1000:.0f} s"
    return str(value)
