"""Shared by all commands: --config and --json, errors of one sentence, and results for people or programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """A command failed. The message is one sentence for the person who typed it."""


def add_shared_arguments(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Adds --config and --json, and sets the function that runs the command."""
    parser.add_argument("--config", metavar="FILE", default="homeserver.toml", help="the configuration (%(default)s)")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --json, which every command has."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def tell(args: argparse.Namespace, sentence: str, **fields: Any) -> None:
    """Prints a result: the sentence for people, or with --json the fields on one line."""
    print(json.dumps(fields) if args.json else sentence, flush=True)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, which is in the plural unless it is one: "1 block", "2 blocks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fail(args: argparse.Namespace, sentence: str) -> None:
    """Prints an error on standard error, and with --json also as an object on standard output."""
    if getattr(args, "json", False):
        print(json.dumps({"error": sentence}), flush=True)
    else:
        print(f"homeserver: {sentence}", file=sys.stderr, flush=True)


def ask(consequence: str) -> None:
    """Asks whether something that cannot be undone is meant. Raises CommandError unless the answer is "yes"."""
    if not sys.stdin.isatty():
        raise CommandError("nobody can be asked here whether it is meant: add --yes")
    print(f"{consequence} Type yes to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        raise CommandError("nothing was changed")


def run_trio(main: Callable[[], Awaitable[int]]) -> int:
    """Runs `trio.run`, and unwraps errors that are meant for people from the exception groups of nurseries.

    Raises CommandError for a ConfigError, DatabaseError or MatrixError; any other exception propagates unchanged.
    """
    import trio

    from homeserver.background import single_error
    from homeserver.config import ConfigError
    from homeserver.database import DatabaseError
    from homeserver.errors import MatrixError

    try:
        return trio.run(main)
    except (Exception, BaseExceptionGroup) as error:  # nurseries wrap what they raise; the rest is raised again
        inner = single_error(error)
        if isinstance(inner, MatrixError):
            raise CommandError(inner.error) from error
        if isinstance(inner, (ConfigError, DatabaseError)):
            raise CommandError(str(inner)) from error
        if isinstance(inner, BrokenPipeError):
            raise inner from None
        raise


def tell_table(args: argparse.Namespace, heads: Sequence[str], rows: Sequence[Sequence[str]], **fields: Any) -> None:
    """Prints a table for people, or with --json the fields on one line."""
    if args.json:
        tell(args, "", **fields)
        return
    shown = [heads, *([text if text.isprintable() else ascii(text) for text in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(heads))]
    for row in shown:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is either complete or unchanged. Raises CommandError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def run_beside(config: Any, act: Callable[[Any], Awaitable[None]]) -> int:
    """Works on the data of a server that may be running and will notice the changes at once. Raises CommandError."""

    async def main() -> int:
        from homeserver.server import Homeserver

        async with Homeserver(config, beside=True) as server:
            await act(server)
        return 0

    return run_trio(main)


def find_room(tx: Any, name: str) -> str:
    """Returns the ID of a room, which may be given by an alias on this server. Raises CommandError for an unknown one.

    Does not look whether the server knows the room.
    """
    from homeserver.rooms.aliases import find_alias

    if not name.startswith("#"):
        return name
    found = find_alias(tx, name)
    if found is None:
        raise CommandError(f"there is no room {name} on this server")
    return str(found[0])


def read_config(args: argparse.Namespace) -> Any:
    """Reads the configuration file given by --config. Raises CommandError."""
    from homeserver.config import ConfigError, load_config

    try:
        return load_config(args.config)
    except ConfigError as error:
        raise CommandError(str(error)) from error
