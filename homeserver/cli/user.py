"""`homeserver user …`: manages accounts, whether or not the server is running. A running server notices at once."""

from __future__ import annotations

import argparse
import getpass
import sys
from datetime import UTC, datetime
from typing import Any

from homeserver.cli.output import (
    CommandError,
    add_shared_arguments,
    ask,
    counted,
    find_room,
    read_config,
    run_beside,
    tell,
    tell_table,
)


def add_commands(commands: Any) -> None:
    """Adds the commands that manage accounts."""
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
    _add_further(actions)


def _add_further(actions: Any) -> None:
    link = _action(actions, "link", run_link, "let a person whom a provider of single sign-on knows log in as a user")
    link.add_argument("provider", metavar="PROVIDER", help="the id of a section [[sso]]")
    link.add_argument("subject", metavar="SUBJECT", help="by which the provider knows the person (the claim `sub`)")
    link.add_argument("--undo", action="store_true", help="undo it")
    notice = _action(actions, "notice", run_notice, "send a user a message of the server, in a room of its own")
    notice.add_argument("text", metavar="TEXT", help="what it says")
    redact = _action(actions, "redact", run_redact, "redact what a user has sent")
    redact.add_argument("--room", metavar="ROOM", action="append", default=[], help="only in this room; repeatable")
    redact.add_argument("--limit", metavar="N", type=int, default=1000, help="the newest of each room (%(default)s)")
    redact.add_argument("--reason", metavar="TEXT", help="what the redactions say")
    redact.add_argument("--by", metavar="USER", help="who redacts, and has the power to; otherwise the user")
    redact.add_argument("--yes", action="store_true", help="do not ask")


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
        from homeserver.users.single_sign_on import list_external_ids

        account = await _find(server, args)
        devices = await server.resources.database.read(list_devices, account.user_id)
        lines = [f"{account.user_id}: {_kind(account)}, created {_date(account.user.created_ms)}"]
        if account.displayname:
            lines.append(f"  name: {account.displayname!r}")
        lines.append(f"  password: {'set' if account.user.password_hash else 'none'}")
        for device in devices:
            seen = f", last seen {_date(device.last_seen_ms)}" if device.last_seen_ms else ""
            lines.append(f"  device {device.device_id} {device.display_name or ''!r}{seen}")
        linked = await server.resources.database.read(list_external_ids, account.user_id)
        lines += [f"  logs in with {provider} as {subject!r}" for provider, subject in linked]
        shown = [{"provider": provider, "subject": subject} for provider, subject in linked]
        devices_shown = [device.body() for device in devices]
        tell(args, "\n".join(lines), **_fields(account), devices=devices_shown, external_ids=shown)

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


def run_link(args: argparse.Namespace) -> int:
    """Links an account with a provider's person, or undoes that."""
    config = read_config(args)
    providers = [each.id for each in config.sso]
    if not args.undo and args.provider not in providers:
        known = ", ".join(providers) or "none"
        raise CommandError(f"there is no provider {args.provider!r} in [[sso]]; there is: {known}")

    async def change(server: Any) -> None:
        from homeserver.users.single_sign_on import delete_external_id, link_external_id

        account = await _find(server, args)
        names = (account.user_id, args.provider, args.subject)
        if not args.undo:
            await server.resources.database.write(link_external_id, *names)
        elif not await server.resources.database.write(delete_external_id, *names):
            raise CommandError(f"{account.user_id} is not {args.subject!r} at {args.provider}")
        now = "no longer logs in" if args.undo else "can log in"
        said = f"{account.user_id} {now} with {args.provider} as {args.subject!r}."
        told = {"user_id": account.user_id, "provider": args.provider, "subject": args.subject}
        tell(args, said, **told, linked=not args.undo)

    return run_beside(config, change)


def run_notice(args: argparse.Namespace) -> int:
    """Sends a server notice."""

    async def send(server: Any) -> None:
        from homeserver.features.administration.notices import NoticeBody, send_notice

        account = await _find(server, args)
        notice = NoticeBody(account.user_id, {"msgtype": "m.text", "body": args.text})
        event_id = await server.resources.database.write(send_notice, notice, None)
        tell(args, f"{account.user_id} was sent the notice.", user_id=account.user_id, event_id=event_id)

    return run_beside(read_config(args), send)


def run_redact(args: argparse.Namespace) -> int:
    """Asks, and redacts what a user of this server, or of another one, has sent."""
    config = read_config(args)

    async def redact(server: Any) -> None:
        from homeserver.features.administration.history_changes import redact_now
        from homeserver.users.accounts import find_local

        hs = server.resources
        is_ours = args.name.partition(":")[2] in ("", config.server_name)
        user_id = find_local(hs, _localpart(args)) if is_ours else _parse(args.name)
        if args.by is None and not is_ours:
            raise CommandError(f"{user_id} belongs to another server: name who redacts, with --by")
        redactor = user_id if args.by is None else find_local(hs, args.by)
        rooms = [await hs.database.read(find_room, room) for room in args.room]
        if not args.yes:
            ask(f"What {user_id} has sent is redacted, for ever.")
        parameters = {
            "rooms": rooms, "reason": args.reason, "limit": args.limit, "use_admin": False, "after_ts": None,
            "before_ts": None, "requester": redactor, "redactor": redactor,
        }  # fmt: skip
        done = await redact_now(hs, user_id, parameters)
        failed = done["failed"]
        said = f"Redacted {counted(done['redacted'], 'event')} of {user_id}"
        said += f"; {len(failed)} could not be: {next(iter(failed.values()))}" if failed else "."
        tell(args, said, user_id=user_id, redacted=done["redacted"], failed=failed)

    return run_beside(config, redact)


def _parse(name: str) -> Any:
    from homeserver.federation.identifiers import InvalidIdentifier, parse_user_id

    try:
        return parse_user_id(name)
    except InvalidIdentifier as error:
        raise CommandError(f"{name}: {error}") from error


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
