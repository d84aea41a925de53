"""`homeserver serve`: the server in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_trio, tell


def add_commands(commands: Any) -> None:
    """`serve`."""
    serve = commands.add_parser("serve", help="run the server in the foreground")
    add_shared_arguments(serve, run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Exits 0 after a signal to stop, once the requests under way are answered; a second signal does not wait."""
    config = read_config(args)
    if not config.listeners:
        raise CommandError(f"{args.config}: there is no [[listeners]] section, so nobody can reach the server")
    raise_file_limit()

    async def main() -> int:
        import trio

        from homeserver.log import set_up_logging
        from homeserver.server import Homeserver

        set_up_logging(config.log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with Homeserver(config) as server, trio.open_nursery() as nursery:
                nursery.start_soon(_stop_at_signal, signals, server, nursery)
                bound = await nursery.start(_serve, server, nursery)
                for each in bound:
                    where = each.url or each.address
                    tell(args, f"{config.server_name} listens on {where}", listening=each.address, url=each.url)
        return 0

    return run_trio(main)


async def _serve(server: Any, nursery: Any, *, task_status: Any) -> None:
    await server.serve(task_status=task_status)
    nursery.cancel_scope.cancel()


async def _stop_at_signal(signals: Any, server: Any, nursery: Any) -> None:
    await anext(signals)
    server.stop()
    await anext(signals)
    nursery.cancel_scope.cancel()


def raise_file_limit() -> None:
    """As many open files as the system lets us have: each connection is one."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
