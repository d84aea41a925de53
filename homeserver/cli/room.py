"""`homeserver room …`: the rooms that this server knows. A running server notices every change at once."""

from __future__ import annotations

import argparse
from typing import Any

from homeserver.cli.output import (
    CommandError,
    add_shared_arguments,
    ask,
    find_room,
    read_config,
    run_beside,
    tell,
    tell_table,
)
from homeserver.cli.progress import Bar


def add_commands(commands: Any) -> None:
    """Adds `room list`, `show`, `join`, `make-admin`, `block`, `delete` and `forget-key`."""
    group = commands.add_parser("room", help="manage rooms")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="list the rooms that this server is or was in, the largest first")
    listed.add_argument("--search", metavar="TEXT", default="", help="a part of the name, the main alias or the ID")
    listed.add_argument("--limit", metavar="N", type=int, default=100, help="show at most this many (%(default)s)")
    add_shared_arguments(listed, run_list)
    _action(actions, "show", run_show, "show a room and its members")
    block = _action(actions, "block", run_block, "keep everybody on this server from entering a room, until undone")
    block.add_argument("--undo", action="store_true", help="undo it")
    for name, run, about in (
        ("join", run_join, "have a user of this server join a room that the server is in"),
        ("make-admin", run_make_admin, "give a user the highest power that anybody on this server has in a room"),
    ):
        _action(actions, name, run, about).add_argument("user", metavar="USER", help="alice, or @alice:example.org")
    _add_delete(actions)
    forget = _action(
        actions,
        "forget-key",
        run_forget_key,
        "make everything that is stored of a room unreadable, for ever",
        "Destroys the key of a conversation. Its messages, files and names can never be read again on this"
        " server; memberships and permissions stay. A running server notices it at once. Other servers in the room keep"
        " their copies, and so do backups of the database together with the master key.",
    )
    forget.add_argument("--yes", action="store_true", help="do not ask")


def _add_delete(actions: Any) -> None:
    delete = _action(
        actions,
        "delete",
        run_delete,
        "remove everybody on this server from a room, and delete everything that is stored of it",
        "The users of this server leave the room. Then its messages, its state, and the files that only it shows are"
        " deleted for good. Other servers in the room keep their copies. If the command is interrupted, a running"
        " server goes on at its next start.",
    )
    delete.add_argument("--block", action="store_true", help="nobody on this server may ever enter the room again")
    delete.add_argument("--move-to-room-of", metavar="USER", help="move its members to a new room of this user")
    delete.add_argument("--message", metavar="TEXT", help="what the new room says")
    delete.add_argument("--only-leave", action="store_true", help="delete nothing")
    delete.add_argument("--yes", action="store_true", help="do not ask")


def _action(actions: Any, name: str, run: Any, about: str, more: str = "") -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(name, help=about, description=more or f"{about.capitalize()}.")
    action.add_argument("room", metavar="ROOM", help="the room's ID, or one of its aliases on this server")
    add_shared_arguments(action, run)
    return action


def run_list(args: argparse.Namespace) -> int:
    """Prints rooms, the largest first."""

    async def show(server: Any) -> None:
        from homeserver.features.administration.rooms import list_all_rooms
        from homeserver.rooms.administration import sort_rooms

        rooms = await list_all_rooms(server.resources, args.search)
        sort_rooms(rooms, "joined_members", {}, descending=False)
        shown = rooms[: max(0, args.limit)]
        rows = [
            (each.entry.room_id, str(each.members.all), str(each.members.local), each.entry.version,
             "encrypted" if each.entry.encryption else "", each.entry.canonical_alias or "", each.entry.name or "")
            for each in shown
        ]  # fmt: skip
        heads = ("room", "members", "local", "version", "", "alias", "name")
        tell_table(args, heads, rows, rooms=[_fields(each) for each in shown], total=len(rooms))

    return run_beside(read_config(args), show)


def _fields(room: Any) -> dict[str, Any]:
    """Returns a room as fields for programs."""
    return {
        "room_id": room.entry.room_id,
        "name": room.entry.name,
        "alias": room.entry.canonical_alias,
        "creator": room.entry.creator,
        "version": room.entry.version,
        "encryption": room.entry.encryption,
        "members": room.members.all,
        "local_members": room.members.local,
        "public": room.is_public,
    }


def run_show(args: argparse.Namespace) -> int:
    """Prints a room and its members."""

    async def show(server: Any) -> None:
        from homeserver.features.administration.rooms import get_room_body
        from homeserver.rooms.blocking import find_blocker
        from homeserver.rooms.membership import list_members

        read = server.resources.database.read
        room_id = await read(find_room, args.room)
        body = await read(get_room_body, room_id)
        members = sorted(await read(list_members, room_id, "join"))
        blocker = await read(find_blocker, room_id)
        lines = [f"{room_id}: {body['name'] or 'without a name'}, version {body['version']}, by {body['creator']}"]
        lines += [f"  {key}: {body[key]}" for key in ("canonical_alias", "topic", "encryption") if body[key]]
        lines.append(f"  members: {body['joined_members']}, {body['joined_local_members']} of this server")
        lines += [f"    {member}" for member in members[:_MEMBERS_SHOWN]]
        if len(members) > _MEMBERS_SHOWN:
            lines.append(f"    and {len(members) - _MEMBERS_SHOWN} others")
        if blocker is not None:
            lines.append(f"  blocked by {blocker}")
        tell(args, "\n".join(lines), **body, members=members, blocked=blocker is not None)

    return run_beside(read_config(args), show)


_MEMBERS_SHOWN = 50


def run_join(args: argparse.Namespace) -> int:
    """Has a user join a room. The strongest user of this server invites them if the room is not open to them."""

    async def change(server: Any) -> None:
        from homeserver.features.administration.room_members import find_strongest, join_here
        from homeserver.users.accounts import find_local

        hs = server.resources
        user_id = find_local(hs, args.user)
        room_id = await hs.database.read(find_room, args.room)
        inviter = await hs.database.read(find_strongest, room_id)
        if not await hs.database.write(join_here, room_id, user_id, inviter):
            raise CommandError(
                f"nobody on this server is in {room_id}: use POST /_synapse/admin/v1/join of the running server instead"
            )
        tell(args, f"{user_id} is in {room_id}.", room_id=room_id, user_id=user_id)

    return run_beside(read_config(args), change)


def run_make_admin(args: argparse.Namespace) -> int:
    """Gives a user of this server power over a room."""

    async def change(server: Any) -> None:
        from homeserver.features.administration.room_members import give_power
        from homeserver.users.accounts import find_local

        hs = server.resources
        user_id = find_local(hs, args.user)
        room_id = await hs.database.read(find_room, args.room)
        await hs.database.write(give_power, room_id, user_id)
        tell(args, f"{user_id} may administer {room_id}.", room_id=room_id, user_id=user_id)

    return run_beside(read_config(args), change)


def run_block(args: argparse.Namespace) -> int:
    """Blocks a room, or unblocks it. The server need not know the room."""
    config = read_config(args)

    async def change(server: Any) -> None:
        from homeserver.rooms.blocking import delete_block, store_block

        hs = server.resources
        room_id = await hs.database.read(find_room, args.room)
        if args.undo:
            await hs.database.write(delete_block, room_id)
        else:
            await hs.database.write(store_block, room_id, _operator(config))
        now = "can be entered again" if args.undo else "is blocked"
        tell(args, f"{room_id} {now}.", room_id=room_id, blocked=not args.undo)

    return run_beside(config, change)


def _operator(config: Any) -> str:
    """Returns the user who is noted for what a command has done: the server itself, whose localpart is empty."""
    return f"@:{config.server_name}"


def run_delete(args: argparse.Namespace) -> int:
    """Asks, and deletes the room."""
    config = read_config(args)

    async def delete(server: Any) -> None:
        from homeserver.features.administration.room_deletion import request_deletion, run_deletion
        from homeserver.features.search.feeding import remove_deleted
        from homeserver.rooms.tasks import find_task
        from homeserver.users.accounts import find_local
        from homeserver.users.room_shutdown import is_known

        hs = server.resources
        room_id = await hs.database.read(find_room, args.room)
        if not await hs.database.read(is_known, room_id):
            raise CommandError(f"this server does not know the room {args.room}")
        if not args.yes:
            what = "" if args.only_leave else " and everything that is stored of it is deleted, for ever"
            ask(f"Everybody on this server leaves {room_id}{what}.")
        creator = None if args.move_to_room_of is None else find_local(hs, args.move_to_room_of)
        parameters = {
            "new_room_user_id": creator, "room_name": None, "message": args.message, "block": args.block,
            "purge": not args.only_leave, "force_purge": True, "requester": _operator(config),
        }  # fmt: skip
        task = await hs.database.write(_request, request_deletion, room_id, parameters)
        bar = Bar("changes", is_shown=not args.json)
        await run_deletion(hs, task.task_id, bar.show)
        bar.end()
        if hs.search is not None and not args.only_leave and not is_server_running(config):
            await remove_deleted(hs.database, hs.search, hs.stream.position)
        ended = await hs.database.read(find_task, task.task_id)
        if ended.status != "complete":
            raise CommandError(f"{room_id} was not deleted: {ended.error}")
        done = ended.result["shutdown_room"]
        verb = "was left" if args.only_leave else "was deleted"
        said = f"{room_id} {verb}; {len(done['kicked_users'])} users were removed."
        if done["new_room_id"] is not None:
            said += f" They are in {done['new_room_id']} now."
        tell(args, said, room_id=room_id, **done)

    return run_beside(config, delete)


def _request(tx: Any, request_deletion: Any, room_id: str, parameters: dict[str, Any]) -> Any:
    return request_deletion(tx, room_id, parameters, is_urgent=False)


def run_forget_key(args: argparse.Namespace) -> int:
    """Asks, and forgets the room."""

    async def forget(server: Any) -> None:
        from homeserver.features.at_rest import forget_room
        from homeserver.features.search.feeding import remove_deleted

        hs = server.resources
        room_id = await hs.database.read(find_room, args.room)
        if not args.yes:
            ask(f"Everything that this server stores of {room_id} becomes unreadable, for ever.")
        bar = Bar("changes", is_shown=not args.json)
        await forget_room(hs, room_id, bar.show)
        bar.end()
        if hs.search is not None and not is_server_running(server.config):
            await remove_deleted(hs.database, hs.search, hs.stream.position)
        tell(args, f"What was stored of {room_id} can no longer be read.", room_id=room_id)

    return run_beside(read_config(args), forget)


def is_server_running(config: Any) -> bool:
    """Returns whether a server has the database open, or may have: PostgreSQL does not tell."""
    from homeserver.database.sqlite import is_served
    from homeserver.server import database_url

    engine, _, path = database_url(config).partition(":")
    return engine != "sqlite" or is_served(path)
