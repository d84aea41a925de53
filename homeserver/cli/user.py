"""`homeserver user …`: manages accounts, whether or not the server is running. A running server notices at once."""

from __future__ import annotations

import argparse
import getpass
import sys
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, run_beside, tell, tell_table


def add_commands(commands: Any) -> None:
    """Adds `user add`, `list`, `show`, `passwd`, `deactivate`, `admin`, `lock`, `suspend` and `shadow-ban`."""
    group = commands.add_parser("user", help="manage accounts")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add = _action(actions, "add", run_add, "make an account")
    add.add_argument("--admin", action="store_true", help="the account may administer the server")
    _add_password_argument(add)
    everyone = actions.add_parser("list", help="list all accounts, including deactivated ones")
    add_shared_arguments(everyone, run_list)
    _action(actions, "show", run_show, "show an account and its devices")
    passwd = _action(actions, "passwd", run_passwd, "set a new password and log the user out everywhere")
    passwd.add_argument("--keep-devices", action="store_true", help="keep the user logged in")
    _add_password_argument(passwd)
    deactivate = _action(actions, "deactivate", run_deactivate, "deactivate an account for good; its name stays taken")
    deactivate.add_argument("--erase", action="store_true", help="erase the user's data as well")
    admin = _action(actions, "admin", run_admin, "make a user an administrator of the server")
    admin.add_argument("--revoke", action="store_true", help="revoke the right instead")
    for name, run, about in (
        ("lock", run_lock, "keep a user out of the account, until that is undone"),
        ("suspend", run_suspend, "let a user read and leave only, until that is undone"),
        ("shadow-ban", run_shadow_ban, "let nothing that a user does reach others, without a sign of it, until undone"),
    ):
        _action(actions, name, run, about).add_argument("--undo", action="store_true", help="undo it")


def _action(actions: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(name, help=about, description=f"{about.capitalize()}.")
    action.add_argument("name", metavar="NAME", help="alice, or @alice:example.org")
    add_shared_arguments(action, run)
    return action


def _add_password_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")


def run_add(args: argparse.Namespace) -> int:
    """Asks for the password and creates the account."""
    localpart, config = _localpart(args), read_config(args)
    password = read_password(from_stdin=args.password_stdin)

    async def add(server: Any) -> None:
        from homeserver.users.accounts import create_account

        user_id = await create_account(server.resources, localpart, password, admin=args.admin)
        tell(args, f"{user_id} can log in now.", user_id=user_id, admin=args.admin)

    return run_beside(config, add)


def run_list(args: argparse.Namespace) -> int:
    """Prints all accounts, sorted by name."""

    async def show(server: Any) -> None:
        from homeserver.users.administration import list_accounts

        accounts: list[Any] = []
        while page := await server.resources.database.read(
            list_accounts, accounts[-1].user_id if accounts else "", 1000
        ):
            accounts += page
        rows = [(each.user_id, _kind(each), _date(each.user.created_ms), each.displayname or "") for each in accounts]
        tell_table(args, ("user", "kind", "created", "name"), rows, users=[_fields(each) for each in accounts])

    return run_beside(read_config(args), show)


def run_show(args: argparse.Namespace) -> int:
    """Prints one account with its devices."""

    async def show(server: Any) -> None:
        from homeserver.users.devices import list_devices

        account = await _find(server, args)
        devices = await server.resources.database.read(list_devices, account.user_id)
        lines = [f"{account.user_id}: {_kind(account)}, created {_date(account.user.created_ms)}"]
        if account.displayname:
            lines.append(f"  name: {account.displayname!r}")
        lines.append(f"  password: {'set' if account.user.password_hash else 'none'}")
        for device in devices:
            seen = f", last seen {_date(device.last_seen_ms)}" if device.last_seen_ms else ""
            lines.append(f"  device {device.device_id} {device.display_name or ''!r}{seen}")
        tell(args, "\n".join(lines), **_fields(account), devices=[device.body() for device in devices])

    return run_beside(read_config(args), show)


def run_passwd(args: argparse.Namespace) -> int:
    """Asks for the new password and stores it."""
    localpart, config = _localpart(args), read_config(args)
    password = read_password(from_stdin=args.password_stdin)

    async def change(server: Any) -> None:
        account = await _find(server, args)
        await server.set_password(localpart, password, logout_devices=not args.keep_devices)
        kept = " and was logged out everywhere" if not args.keep_devices else ""
        tell(args, f"{account.user_id} has a new password{kept}.", user_id=account.user_id)

    return run_beside(config, change)


def run_deactivate(args: argparse.Namespace) -> int:
    """Deactivates an account. If leaving its rooms takes too long for the command, the server finishes it."""
    localpart = _localpart(args)

    async def deactivate(server: Any) -> None:
        account = await _find(server, args)
        await server.deactivate(localpart, erase=args.erase)
        tell(args, f"{account.user_id} is deactivated.", user_id=account.user_id, erased=args.erase)

    return run_beside(read_config(args), deactivate)


def run_admin(args: argparse.Namespace) -> int:
    """Grants or revokes the right to administer the server."""

    async def change(server: Any) -> None:
        from homeserver.users.accounts import store_admin

        account = await _find(server, args)
        if account.user.is_deactivated:
            raise CommandError(f"{account.user_id} is deactivated")
        await server.resources.database.write(store_admin, account.user_id, not args.revoke)
        now = "no longer administers" if args.revoke else "administers"
        tell(args, f"{account.user_id} {now} this server.", user_id=account.user_id, admin=not args.revoke)

    return run_beside(read_config(args), change)


def run_lock(args: argparse.Namespace) -> int:
    """Locks an account, or unlocks it."""
    return _moderate(args, "locked", "can use the account again")


def run_suspend(args: argparse.Namespace) -> int:
    """Suspends an account, or lifts the suspension."""
    return _moderate(args, "suspended", "may do everything again")


def run_shadow_ban(args: argparse.Namespace) -> int:
    """Shadow-bans a user, or lifts that."""

    async def change(server: Any) -> None:
        from homeserver.errors import MatrixError
        from homeserver.users.administration import set_shadow_banned

        account = await _find(server, args)
        try:
            await server.resources.database.write(set_shadow_banned, account.user_id, not args.undo)
        except MatrixError as error:
            raise CommandError(f"{account.user_id}: {error.error}") from error
        now = "reaches others again" if args.undo else "is shadow-banned"
        tell(args, f"{account.user_id} {now}.", user_id=account.user_id, shadow_banned=not args.undo)

    return run_beside(read_config(args), change)


def _moderate(args: argparse.Namespace, flag: str, undone: str) -> int:
    async def change(server: Any) -> None:
        from homeserver.errors import MatrixError
        from homeserver.users.administration import moderate_account

        account = await _find(server, args)
        try:
            await server.resources.database.write(moderate_account, account.user_id, flag, not args.undo)
        except MatrixError as error:
            raise CommandError(f"{account.user_id}: {error.error}") from error
        said = f"{account.user_id} {undone if args.undo else f'is {flag}'}."
        tell(args, said, user_id=account.user_id, **{flag: not args.undo})

    return run_beside(read_config(args), change)


def read_password(*, from_stdin: bool) -> str:
    """Reads the password from one line of standard input, or asks for it twice. Raises CommandError."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise CommandError("there is no terminal to ask for the password; use --password-stdin")
    else:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Repeat it: ") != password:
            raise CommandError("the two passwords differ")
    if not password:
        raise CommandError("the password is empty")
    return password


def _localpart(args: argparse.Namespace) -> str:
    """Returns the localpart. Raises CommandError for a user of another server."""
    localpart, colon, server_name = str(args.name).removeprefix("@").partition(":")
    config = read_config(args)
    if colon and server_name != config.server_name:
        raise CommandError(f"{args.name} is not a user of {config.server_name}")
    return localpart


async def _find(server: Any, args: argparse.Namespace) -> Any:
    """Returns the account that the command names. Raises CommandError if there is none."""
    from homeserver.users.accounts import find_local
    from homeserver.users.administration import find_account

    hs = server.resources
    account = await hs.database.read(find_account, find_local(hs, _localpart(args)))
    if account is None:
        raise CommandError(f"there is no account {args.name}; `homeserver user list` shows all")
    return account


def _kind(account: Any) -> str:
    """Describes the kind of account in a word or two."""
    flags = account.flags
    words = [
        word
        for word, holds in (
            ("deactivated", account.user.is_deactivated), ("guest", flags.is_guest), ("admin", flags.is_admin),
            ("locked", flags.is_locked), ("suspended", flags.is_suspended), ("shadow-banned", flags.is_shadow_banned),
            ("bridged", account.user.appservice),
        )
        if holds
    ]  # fmt: skip
    return " ".join(words) or "user"


def _fields(account: Any) -> dict[str, Any]:
    """Returns the account as fields for programs."""
    return {
        "user_id": account.user_id,
        "displayname": account.displayname,
        "admin": account.flags.is_admin,
        "guest": account.flags.is_guest,
        "locked": account.flags.is_locked,
        "suspended": account.flags.is_suspended,
        "shadow_banned": account.flags.is_shadow_banned,
        "deactivated": account.user.is_deactivated,
        "has_password": account.user.password_hash is not None,
        "created_ts": account.user.created_ms,
    }


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")
