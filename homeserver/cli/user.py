"""`homeserver user add`: makes an account, whether or not registration is open."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_trio, tell


def add_commands(commands: Any) -> None:
    """`user add`."""
    group = commands.add_parser("user", help="manage accounts")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make an account")
    add.add_argument("name", metavar="NAME", help="alice, or @alice:example.org")
    add.add_argument("--admin", action="store_true", help="the account may administer the server")
    add.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    add_shared_arguments(add, run_add)


def run_add(args: argparse.Namespace) -> int:
    """Asks for the password and stores the account, whether or not the server is running."""
    config = read_config(args)
    name = args.name.removeprefix("@")
    localpart, colon, server_name = name.partition(":")
    if colon and server_name != config.server_name:
        raise CommandError(f"{args.name} is not a user of {config.server_name}")
    password = read_password(from_stdin=args.password_stdin)

    async def add() -> int:
        from homeserver.server import Homeserver
        from homeserver.users.accounts import create_account

        async with Homeserver(config, beside=True) as server:
            user_id = await create_account(server.resources, localpart, password, admin=args.admin)
        tell(args, f"{user_id} can log in now.", user_id=user_id, admin=args.admin)
        return 0

    return run_trio(add)


def read_password(*, from_stdin: bool) -> str:
    """The password: a line of standard input, or typed twice. Raises CommandError."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise CommandError("there is no terminal to ask for the password; give --password-stdin")
    else:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise CommandError("the two passwords differ")
    if not password:
        raise CommandError("the password is empty")
    return password
