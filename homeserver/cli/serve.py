"""`homeserver serve`: runs the server in the foreground until SIGTERM or SIGINT.

With `--lame-duck` it goes on serving for a while after that, with `--processes` several processes do (`processes.py`).
SIGHUP reloads the certificates and `[log]`.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import Any
from urllib.parse import urlsplit

from homeserver import __version__
from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_trio, tell
from homeserver.cli.processes import Ties, Watch, check_processes, config_of_process
from homeserver.process.garbage import exempt_what_exists

_log = logging.getLogger(__name__)

_SETTLED_SECONDS = 10


def add_commands(commands: Any) -> None:
    """Adds `serve`."""
    serve = commands.add_parser("serve", help="run the server in the foreground")
    serve.add_argument(
        "--lame-duck", type=float, default=0.0, metavar="SECONDS",
        help="how long to go on serving after SIGTERM while the health check says no, for load balancers",
    )  # fmt: skip
    serve.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="how many processes serve together, each on a core of its own; needs PostgreSQL",
    )  # fmt: skip
    add_shared_arguments(serve, run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Runs the server. Exits 0 after a stop signal, once pending requests are answered; a second signal skips that."""
    if sys.platform != "win32":
        # By default SIGHUP ends a process. One may arrive right after the start or during a stop, when nothing handles
        # it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config = read_config(args)
    if not config.listeners:
        raise CommandError(f"{args.config}: there is no [[listeners]] section, so nobody can reach the server")
    raise_file_limit()
    if args.processes == 1:
        return _serve_in_one(args, config)
    from homeserver.log import set_up_logging

    check_processes(config, args.processes)
    set_up_logging(config.log)
    return Watch(
        args, args.processes, lambda number, ties: _serve_in_one(args, config_of_process(config, number), ties)
    ).run()


def _serve_in_one(args: argparse.Namespace, config: Any, ties: Ties | None = None) -> int:
    """Serves in this process. ties: there are others, and one that watches them."""

    async def main() -> int:
        import trio

        from homeserver.log import set_up_logging
        from homeserver.server import Homeserver

        set_up_logging(config.log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with Homeserver(config) as server, trio.open_nursery() as nursery:
                nursery.start_soon(_follow_signals, args, signals, server, nursery)
                nursery.start_soon(_settle)
                bound = await nursery.start(_serve, server, nursery, ties is not None)
                _log_start(config, bound)
                for each in bound:
                    where = each.url or each.address
                    tell(args, f"{config.server_name} listens on {where}", listening=each.address, url=each.url)
                if ties is not None:
                    nursery.start_soon(_end_with, ties.watched, server)
                    ties.tell_ready()
        return 0

    return run_trio(main)


def _log_start(config: Any, bound: list[Any]) -> None:
    """Logs versions, addresses and unwise settings: the first things to know when something is wrong."""
    from homeserver.cli.findings import find_in_config
    from homeserver.server import database_url

    _log.info(
        "server started",
        extra={
            "version": __version__,
            "server_name": config.server_name,
            "database": without_password(database_url(config)),
            "data": str(config.data_path("")),
            "listeners": ",".join(each.url or each.address for each in bound),
        },
    )
    for finding in find_in_config(config):
        _log.warning("a setting is unwise", extra={"what": finding.text})


def without_password(url: str) -> str:
    """Returns a database URL without its password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.netloc else url


async def _settle() -> None:
    """Exempts from the collection of garbage what a server has loaded when it has answered its first requests."""
    import trio

    await trio.sleep(_SETTLED_SECONDS)
    exempt_what_exists()


async def _serve(server: Any, nursery: Any, share_ports: bool, *, task_status: Any) -> None:
    await server.serve(share_ports=share_ports, task_status=task_status)
    nursery.cancel_scope.cancel()


async def _follow_signals(args: argparse.Namespace, signals: Any, server: Any, nursery: Any) -> None:
    stopping = False
    async for number in signals:
        if number == signal.SIGHUP:
            _read_again(args, server)
        elif stopping:
            nursery.cancel_scope.cancel()
        else:
            stopping = True
            nursery.start_soon(_stop, server, args.lame_duck)


async def _stop(server: Any, lame_duck_s: float) -> None:
    """Stops the server after the time that load balancers need to send new requests elsewhere."""
    import trio

    if lame_duck_s > 0:
        server.retire()
        await trio.sleep(lame_duck_s)
    server.stop()


async def _end_with(watched: int, server: Any) -> None:
    """Stops the server when the process that watches it has ended, however it has."""
    import trio

    await trio.lowlevel.wait_readable(watched)
    _log.warning("the process that watches this one has ended")
    server.stop()


def _read_again(args: argparse.Namespace, server: Any) -> None:
    """Reloads what can change without a restart: the certificates and `[log]`."""
    from homeserver.log import set_up_logging

    server.renew_certificates()
    try:
        config = read_config(args)
    except CommandError as error:
        _log.warning("the configuration was not reloaded", extra={"reason": str(error)})
        return
    set_up_logging(config.log)
    _log.info("certificates and [log] were reloaded", extra={"level": config.log.level})


def raise_file_limit() -> None:
    """Raises the limit of open files as far as the system allows, because each connection needs one."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
