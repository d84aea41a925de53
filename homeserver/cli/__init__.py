"""The command line: `homeserver serve`, `config check`, `user add`, … with one file for each group of commands.

A group's file has `add_commands(commands)`, which declares its arguments and the functions that run them. Only these
functions import the server, so that `homeserver --help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from homeserver import __version__
from homeserver.cli import (
    archive,
    bridge,
    config,
    demo,
    export,
    federation,
    keys,
    media,
    parked,
    report,
    room,
    search,
    serve,
    stats,
    token,
    user,
)
from homeserver.cli.output import CommandError, fail

GROUPS = (
    serve, config, user, token, report, keys, room, media, federation, archive, search, stats, bridge, export, parked,
    demo,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. The exit code is 0 only if the command has succeeded."""
    os.umask(os.umask(0o077) | 0o077)  # files that the server stores are not readable by other users
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    try:
        code: int = args.run(args)
    except CommandError as error:
        fail(args, str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(prog="homeserver", description="A Matrix homeserver.")
    parser.add_argument("--version", action="version", version=f"homeserver {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for group in GROUPS:
        group.add_commands(commands)
    return parser
