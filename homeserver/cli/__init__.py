"""The command line: `homeserver serve`, `config check`, `user add` … One file for each group of commands.

A group's file has `add_commands(commands)`, which describes its arguments and names the function that runs them. Only
that function imports the server: `homeserver --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from homeserver import __version__
from homeserver.cli import config, demo, keys, parked, serve, token, user
from homeserver.cli.output import CommandError, fail

GROUPS = (serve, config, user, token, keys, parked, demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code is 0 only where it did what was asked."""
    os.umask(os.umask(0o077) | 0o077)  # what the server stores is nobody else's to read
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
    except BrokenPipeError:  # whoever reads our output has heard enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="homeserver", description="A Matrix homeserver.")
    parser.add_argument("--version", action="version", version=f"homeserver {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for group in GROUPS:
        group.add_commands(commands)
    return parser
