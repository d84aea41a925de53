"""`homeserver federation …`: the other servers that share rooms with this one."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table

_ROOMS_SHOWN = 50


def add_commands(commands: Any) -> None:
    """Adds `federation list`, `show` and `retry`."""
    group = commands.add_parser("federation", help="show other servers, and whether they answer")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="list the servers that share a room with us, those that fail first")
    add_shared_arguments(listed, run_list)
    for name, run, about in (
        ("show", run_show, "show a server and the rooms that it is in with us"),
        ("retry", run_retry, "have a running server try one that does not answer again, now"),
    ):
        action = actions.add_parser(name, help=about, description=f"{about.capitalize()}.")
        action.add_argument("server", metavar="SERVER", help="such as example.org")
        add_shared_arguments(action, run)


def run_list(args: argparse.Namespace) -> int:
    """Prints the servers."""

    async def show(server: Any) -> None:
        from homeserver.remote.administration import list_servers

        found = sorted(await list_servers(server.resources), key=lambda each: (each.back_off is None, each.server))
        rows = [(each.server, str(each.rooms), _state(each)) for each in found]
        tell_table(args, ("server", "rooms", "state"), rows, servers=[_fields(each) for each in found])

    return run_beside(read_config(args), show)


def run_show(args: argparse.Namespace) -> int:
    """Prints one server and its rooms."""

    async def show(server: Any) -> None:
        from homeserver.rooms.administration import list_rooms_with_server

        found = await _find(server, args)
        rooms = sorted(
            room_id for room_id, _ in await server.resources.database.read(list_rooms_with_server, args.server)
        )
        lines = [f"{found.server}: {_state(found)}, in {found.rooms} rooms with us"]
        lines += [f"  {room_id}" for room_id in rooms[:_ROOMS_SHOWN]]
        if len(rooms) > _ROOMS_SHOWN:
            lines.append(f"  and {len(rooms) - _ROOMS_SHOWN} others")
        tell(args, "\n".join(lines), **_fields(found), room_ids=rooms)

    return run_beside(read_config(args), show)


def run_retry(args: argparse.Namespace) -> int:
    """Ends the back-off of a server."""

    async def retry(server: Any) -> None:
        from homeserver.remote.administration import request_retry

        found = await _find(server, args)
        await server.resources.database.write(request_retry, found.server)
        tell(args, f"{found.server} is tried again now.", server=found.server)

    return run_beside(read_config(args), retry)


async def _find(server: Any, args: argparse.Namespace) -> Any:
    from homeserver.remote.administration import find_destination

    found = await find_destination(server.resources, args.server)
    if found is None:
        raise CommandError(f"this server has nothing to do with {args.server}; `homeserver federation list` shows all")
    return found


def _state(each: Any) -> str:
    if each.back_off is not None:
        since = datetime.fromtimestamp(each.back_off.since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
        return f"does not answer since {since}"
    return "has everything" if each.acked_position is None else "lacks something"


def _fields(each: Any) -> dict[str, Any]:
    """Returns a server as fields for programs."""
    back_off = each.back_off
    return {
        "server": each.server,
        "rooms": each.rooms,
        "failing_since_ts": None if back_off is None else back_off.since_ms,
        "retry_after_ts": None if back_off is None else back_off.retry_after_ms,
        "is_behind": each.acked_position is not None,
    }
