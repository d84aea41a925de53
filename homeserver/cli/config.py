"""`homeserver config check`: whether a configuration can be served here and now, and which settings are unwise."""

from __future__ import annotations

import argparse
from typing import Any

from homeserver.cli.output import add_shared_arguments, fail, read_config, run_trio, tell


def add_commands(commands: Any) -> None:
    """Adds `config check`."""
    group = commands.add_parser("config", help="check a configuration")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="check whether a configuration is valid, and say what is wrong with it",
        description="Checks the configuration and what it refers to: files, folders, the database, the signing key,"
        " ports, the media storage. Changes nothing. Exits 1 if there is an error, 0 if there are only warnings.",
    )
    add_shared_arguments(check, run_check)


def run_check(args: argparse.Namespace) -> int:
    """Prints errors, which would stop the server or make it unreachable, and warnings about unwise settings."""
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
        for each in errors:  # warnings are shown only after the errors have been fixed
            fail(args, f"{args.config}: {each.text}")
        if errors:
            return 1
        for each in findings:
            print(f"warning: {each.text}", flush=True)
        if findings:
            tell(args, f"{args.config} can be served as {config.server_name}, with the warnings above.")
        else:
            tell(args, f"{args.config} is valid; it serves {config.server_name}.")
        return 0

    return run_trio(check)
