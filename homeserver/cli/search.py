"""`homeserver search …`: the search index."""

from __future__ import annotations

import argparse
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, counted, read_config, run_beside, tell
from homeserver.cli.progress import Bar


def add_commands(commands: Any) -> None:
    """Adds `search status` and `rebuild`."""
    group = commands.add_parser("search", help="manage the search index")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_shared_arguments(actions.add_parser("status", help="show how large the index is"), run_status)
    rebuild = actions.add_parser("rebuild", help="build the index again; a running server goes on answering")
    add_shared_arguments(rebuild, run_rebuild)


def run_status(args: argparse.Namespace) -> int:
    """Prints the size of the index, and how much it lacks."""

    async def show(server: Any) -> None:
        from homeserver.search.manifest import find_status

        try:
            status = find_status(server.config.data_path("search"))
        except ValueError as error:
            raise CommandError(
                f"the search index is damaged and will be rebuilt at the next search: {error}"
            ) from error
        status = status or {"position": 0, "since": 0, "documents": 0, "deleted": 0, "slices": 0, "bytes": 0}
        behind = await server.resources.database.read(_position) - status["position"] + status["since"]
        tell(args, _describe(status, behind), **status, behind=behind)

    return run_beside(_read_config(args), show)


def run_rebuild(args: argparse.Namespace) -> int:
    """Builds an index beside the current one, and replaces it."""

    async def rebuild(server: Any) -> None:
        from homeserver.features.search.feeding import rebuild

        bar = Bar("changes", is_shown=not args.json)
        status = await rebuild(server.resources.database, server.config, bar.show)
        bar.end()
        tell(args, f"The index is rebuilt: {_describe(status, 0)}", **status, behind=0)

    return run_beside(_read_config(args), rebuild)


def _read_config(args: argparse.Namespace) -> Any:
    config = read_config(args)
    if not config.search.enabled:
        raise CommandError("search is turned off: [search] enabled = false")
    return config


def _position(tx: Any) -> int:
    position: int = tx.position
    return position


def _describe(status: dict[str, Any], behind: int) -> str:
    size = f"{counted(status['documents'], 'text')} in {counted(status['slices'], 'slice')}"
    size += f", {status['bytes'] / 1e6:.1f} MB"
    if status["deleted"]:
        size += f", {status['deleted']} deleted still in the files"
    lacks = f"{counted(behind, 'change')} {'is' if behind == 1 else 'are'} not indexed yet"
    return f"{size}; {lacks}." if behind else f"{size}; up to date."
