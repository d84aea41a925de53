"""`homeserver token …`: registration tokens, for servers that require one (`registration.require_token`)."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table

_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def add_commands(commands: Any) -> None:
    """Adds `token create`, `list` and `revoke`."""
    group = commands.add_parser("token", help="manage registration tokens")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a token and print it")
    create.add_argument("--token", metavar="TEXT", help="the token itself; a random one if it is not given")
    create.add_argument("--uses", metavar="N", type=_count, help="how many accounts it is valid for (any number)")
    create.add_argument("--expires", metavar="TIME", type=_duration_ms, help="30m, 12h, 7d or 4w from now (never)")
    add_shared_arguments(create, run_create)
    add_shared_arguments(actions.add_parser("list", help="list the tokens"), run_list)
    revoke = actions.add_parser("revoke", help="revoke a token; accounts created with it remain")
    revoke.add_argument("token", metavar="TOKEN")
    add_shared_arguments(revoke, run_revoke)


def run_create(args: argparse.Namespace) -> int:
    """Prints the token alone, so that it can be piped to another program."""
    config = read_config(args)
    expires_ms = None if args.expires is None else time.time_ns() // 1_000_000 + args.expires

    async def create(server: Any) -> None:
        from homeserver.users.registration_tokens import create_token

        made = await server.resources.database.write(create_token, args.token, args.uses, expires_ms)
        tell(args, made.token, token=made.token)

    return run_beside(config, create)


def run_list(args: argparse.Namespace) -> int:
    """Prints every token, including used-up and expired ones."""

    async def show(server: Any) -> None:
        from homeserver.users.registration_tokens import list_tokens

        tokens = await server.resources.database.read(list_tokens)
        rows = [(each.token, _uses(each), _until(each.expires_ms)) for each in tokens]
        tell_table(args, ("token", "used", "expires"), rows, tokens=[each.body() for each in tokens])

    return run_beside(read_config(args), show)


def run_revoke(args: argparse.Namespace) -> int:
    """Deletes a token, so that no account can be registered with it any more."""

    async def revoke(server: Any) -> None:
        from homeserver.users.registration_tokens import delete_token

        if not await server.resources.database.write(delete_token, args.token):
            raise CommandError(f"there is no registration token {args.token!r}; `homeserver token list` shows all")
        tell(args, f"The token {args.token} is revoked.", token=args.token, revoked=True)

    return run_beside(read_config(args), revoke)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**53):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _duration_ms(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30m, 12h, 7d or 4w")
    return int(match[1]) * _UNITS_MS[match[2]]


def _uses(token: Any) -> str:
    return f"{token.uses} of {'any' if token.uses_allowed is None else token.uses_allowed}"


def _until(expires_ms: int | None) -> str:
    return "never" if expires_ms is None else datetime.fromtimestamp(expires_ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
