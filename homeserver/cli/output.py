"""What every command shares: --config and --json, one sentence for an error, one result for people or for machines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any


class CommandError(Exception):
    """Why a command could not do what was asked: one sentence for whoever typed it."""


def add_shared_arguments(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """--config, --json, and the function that runs the command."""
    parser.add_argument("--config", metavar="FILE", default="homeserver.toml", help="the configuration (%(default)s)")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json, which every command has."""
    parser.add_argument("--json", action="store_true", help="answer in JSON, for programs")


def tell(args: argparse.Namespace, sentence: str, **fields: Any) -> None:
    """The result: the sentence for people, or with --json the fields as one line."""
    print(json.dumps(fields) if args.json else sentence, flush=True)


def fail(args: argparse.Namespace, sentence: str) -> None:
    """The error: on standard error, and with --json as an object on standard output."""
    if getattr(args, "json", False):
        print(json.dumps({"error": sentence}), flush=True)
    else:
        print(f"homeserver: {sentence}", file=sys.stderr, flush=True)


def run_trio(main: Callable[[], Awaitable[int]]) -> int:
    """trio.run, where an error meant for people comes out of the groups that nurseries wrap it in.

    Raises CommandError for a ConfigError, DatabaseError or MatrixError; anything else as it is.
    """
    import trio

    from homeserver.config import ConfigError
    from homeserver.database import DatabaseError
    from homeserver.errors import MatrixError

    try:
        return trio.run(main)
    except (Exception, BaseExceptionGroup) as error:
        inner: BaseException = error
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        if isinstance(inner, MatrixError):
            raise CommandError(inner.error) from error
        if isinstance(inner, (ConfigError, DatabaseError)):
            raise CommandError(str(inner)) from error
        if isinstance(inner, BrokenPipeError):
            raise inner from None
        raise


def read_config(args: argparse.Namespace) -> Any:
    """The Config in the file of --config. Raises CommandError."""
    from homeserver.config import ConfigError, load_config

    try:
        return load_config(args.config)
    except ConfigError as error:
        raise CommandError(str(error)) from error
