"""`homeserver config check`: whether a configuration can be served here and now, and what is unwise about it."""

from __future__ import annotations

import argparse
from typing import Any

from homeserver.cli.output import add_shared_arguments, fail, read_config, run_trio, tell


def add_commands(commands: Any) -> None:
    """`config check`."""
    group = commands.add_parser("config", help="look at a configuration")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="say whether a configuration is good, and what is wrong with it",
        description="Reads the configuration and looks at what it names: files, folders, the database, the signing key,"
        " ports, the store of media. Changes nothing. Exits 1 if there is an error, 0 if there are only warnings.",
    )
    add_shared_arguments(check, run_check)


def run_check(args: argparse.Namespace) -> int:
    """Errors are what would stop the server or cut it off; warnings are what is unwise."""
    config = read_config(args)

    async def check() -> int:
        from homeserver.cli.findings import find_all

        findings = await find_all(config)
        errors = [each for each in findings if each.level == "error"]
        if args.json:
            listed = [{"level": each.level, "text": each.text} for each in findings]
            error = {"error": f"{args.config}: {errors[0].text}"} if errors else {}
            tell(args, "", ok=not errors, server_name=config.server_name, findings=listed, **error)
            return 1 if errors else 0
        for each in errors:  # first things first: warnings are shown when these are mended
            fail(args, f"{args.config}: {each.text}")
        if errors:
            return 1
        for each in findings:
            print(f"warning: {each.text}", flush=True)
        if findings:
            tell(args, f"{args.config} can be served as {config.server_name}, with the warnings above.")
        else:
            tell(args, f"{args.config} is good: it serves {config.server_name}.")
        return 0

    return run_trio(check)
