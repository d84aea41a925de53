"""`homeserver media …`: files that users have uploaded, or that other servers have sent."""

from __future__ import annotations

import argparse
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, ask, read_config, run_beside, tell, tell_table

_SHOWN_MAX = 1_000


def add_commands(commands: Any) -> None:
    """Adds `media list`, `quarantine`, `protect` and `delete`."""
    group = commands.add_parser("media", help="manage uploaded files")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="list the files of a user, the newest first")
    listed.add_argument("name", metavar="NAME", help="alice, or @alice:example.org")
    add_shared_arguments(listed, run_list)
    for name, run, about in (
        ("quarantine", run_quarantine, "serve a file, and all of the same content, to nobody"),
        ("protect", run_protect, "leave a file of this server out when many are quarantined at once"),
    ):
        action = actions.add_parser(name, help=about, description=f"{about.capitalize()}.")
        action.add_argument("uri", metavar="URI", help="mxc://example.org/abc")
        action.add_argument("--undo", action="store_true", help="undo it")
        add_shared_arguments(action, run)
    delete = actions.add_parser("delete", help="delete a file for good; other servers keep their copies")
    delete.add_argument("uri", metavar="URI", help="mxc://example.org/abc")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    add_shared_arguments(delete, run_delete)


def run_list(args: argparse.Namespace) -> int:
    """Prints the files of a user."""

    async def show(server: Any) -> None:
        from homeserver.features.media.listing import list_all_media_of
        from homeserver.users.accounts import find_local

        hs = server.resources
        user_id = find_local(hs, args.name)
        files = list(reversed(await hs.database.read(list_all_media_of, user_id)))
        rows = [
            (f"mxc://{hs.server_name}/{each.media_id}", str(each.size_bytes), each.content_type, each.filename or "",
             "quarantined" if each.quarantined_by else "")
            for each in files[:_SHOWN_MAX]
        ]  # fmt: skip
        fields = [
            {"uri": f"mxc://{hs.server_name}/{each.media_id}", "bytes": each.size_bytes, "type": each.content_type,
             "name": each.filename, "created_ts": each.created_ms, "quarantined_by": each.quarantined_by,
             "protected": each.is_protected}
            for each in files
        ]  # fmt: skip
        tell_table(args, ("file", "bytes", "type", "name", ""), rows, files=fields)

    return run_beside(read_config(args), show)


def run_quarantine(args: argparse.Namespace) -> int:
    """Puts a file into quarantine, or back into service."""

    async def change(server: Any) -> None:
        from homeserver.features.media.quarantine import delete_quarantine, store_quarantine

        hs = server.resources
        server_name, media_id = _parse(args)
        if args.undo:
            await hs.database.write(delete_quarantine, server_name, media_id)
        else:
            await hs.database.write(store_quarantine, server_name, media_id, f"@:{hs.server_name}")
        now = "is served again" if args.undo else "is in quarantine"
        tell(args, f"{args.uri} {now}.", uri=args.uri, quarantined=not args.undo)

    return run_beside(read_config(args), change)


def run_protect(args: argparse.Namespace) -> int:
    """Protects a file of this server from quarantine, or lifts that."""

    async def change(server: Any) -> None:
        from homeserver.features.media.quarantine import delete_protected, store_protected

        server_name, media_id = _parse(args)
        if server_name != server.resources.server_name:
            raise CommandError(f"{args.uri} is a file of another server")
        await server.resources.database.write(delete_protected if args.undo else store_protected, media_id)
        now = "is not protected any more" if args.undo else "is protected from quarantine"
        tell(args, f"{args.uri} {now}.", uri=args.uri, protected=not args.undo)

    return run_beside(read_config(args), change)


def run_delete(args: argparse.Namespace) -> int:
    """Asks, and deletes a file."""

    async def delete(server: Any) -> None:
        from homeserver.features.media.cleanup import delete_released
        from homeserver.features.media.storage import delete_media

        hs = server.resources
        server_name, media_id = _parse(args)
        if not args.yes:
            ask(f"{args.uri} is deleted, for ever.")
        if not await hs.database.write(delete_media, server_name, media_id):
            raise CommandError(f"this server does not have {args.uri}")
        await delete_released(hs)
        tell(args, f"{args.uri} is deleted.", uri=args.uri)

    return run_beside(read_config(args), delete)


def _parse(args: argparse.Namespace) -> tuple[str, str]:
    from homeserver.errors import MatrixError
    from homeserver.features.media.downloads import parse_mxc

    try:
        server_name, media_id = parse_mxc(args.uri)
    except MatrixError as error:
        raise CommandError(f"{args.uri} is not the URI of a file, such as mxc://example.org/abc") from error
    return server_name, media_id
