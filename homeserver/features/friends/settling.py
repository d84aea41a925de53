"""Settling: doing what is left to do in the conversations of a pair, and following what others do in them.

Theory of operation. `settle` does the tasks of one pair, one after the other, until there are none or a server does not
answer. A request waits for it for a while; `settle_later` does the same for tasks of earlier requests, of the tail, and
of before a restart, with a lane for each server (`users/friend_tasks.py`). Both share one run for each pair
(`hs.flights`). Each task ends in one write, together with the rows that follow from it
(`users/friend_rooms.py::refresh`), so a crash between two steps repeats a step at most.

`follow` is the tail: when a membership of a conversation has changed, it refreshes the rows of its pair, no matter
who changed it. So a person may accept by joining in any client, and refuse by leaving.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import msgspec
import trio

from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.errors import MatrixError, not_found
from homeserver.feature import Edu, EduQueue, OutgoingEdu
from homeserver.features.friends.asking import append_join, close, invitation
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.federation.wire import WireError
from homeserver.limits.peers import FRIEND_LANES_MAX
from homeserver.process.back_off import retry_delay_ms
from homeserver.remote.inviting import invite_user
from homeserver.remote.joining import join_room
from homeserver.remote.keys import list_statements
from homeserver.remote.outside import is_outside, store_outside_leave
from homeserver.remote.requests import Unreachable
from homeserver.resources import Resources
from homeserver.rooms.member_changes import list_members_changed, list_rooms_with_member_changes
from homeserver.rooms.membership import find_membership, find_room_membership
from homeserver.users.friend_rooms import (
    Withdrawal,
    delete_withdrawals,
    derive,
    find_partner,
    list_conversations,
    list_pairs,
    list_withdrawals,
    list_withdrawals_for,
    note_room,
    refresh,
)
from homeserver.users.friend_tasks import (
    KEPT_MS,
    WAKE_KEY,
    Task,
    count_failures,
    delete_task,
    find_lane_task,
    list_lanes_due,
    list_tasks,
    note_answer,
    note_failed_task,
    note_given_up,
    note_lane_done,
    note_sign_of_life,
    note_silent,
    replace_unplaced_tasks,
)
from homeserver.users.profile import get_member_profile

_log = logging.getLogger(__name__)

_BUSY_PAUSE_S = 1.0
_STEPS_MAX = 10
"""Tasks of a pair that one run does: each conversation has one at a time, and a pair rarely has more than two."""


async def settle(hs: Resources, user_id: UserID, other: UserID) -> None:
    """Does the tasks of a pair. Returns when there are none left, or the rest must wait for another server.

    Raises the MatrixError with which the other server has refused.
    """
    for _ in range(2):  # a run that was already under way may have ended just before the newest task was stored
        await hs.flights.join(hs.nursery, ("friends", user_id, other), _settle, hs, user_id, other)
        tasks = await hs.database.read(list_tasks, user_id, other)
        if not any(task.failures == 0 for task in tasks):
            break


async def _settle(hs: Resources, user_id: UserID, other: UserID) -> None:
    refusal: MatrixError | None = None
    for _ in range(_STEPS_MAX):
        tasks = await hs.database.read(list_tasks, user_id, other)
        if not tasks:
            break
        task = tasks[0]
        try:
            await _do(hs, task)
        except MatrixError as error:
            if not await _is_final(hs, task, error):
                await hs.database.write(_note_failure, task, _is_silence(error))
                break
            about = {"user_id": user_id, "other": other, "room_id": task.room_id, "reason": error.error}
            _log.info("friend request refused", extra=about)
            refusal = refusal or _explain(error, other)
            await hs.database.write(_give_up, task, _is_silence(error))
    if refusal is not None:
        raise refusal


def _note_failure(tx: Transaction, task: Task, is_silent: bool) -> None:
    server, own = server_name_of(task.other), tx.server.name
    note_failed_task(tx, task, retry_delay_ms(own, server, task.failures))
    if is_silent:
        note_silent(tx, server, retry_delay_ms(own, server, count_failures(tx, server)))
    else:
        note_answer(tx, server)


def _is_silence(error: MatrixError) -> bool:
    """Returns whether the server has not answered, or has asked us to wait, so that its other tasks would fail too."""
    return error.status == 429 or isinstance(error.__cause__, Unreachable)


async def _do(hs: Resources, task: Task) -> None:
    if task.kind == "join":
        await _join(hs, task)
    elif task.kind == "invite":
        await _invite(hs, task)
    else:
        await hs.database.write(_close, task)


async def _join(hs: Resources, task: Task) -> None:
    if await hs.database.write(_join_here, task):
        return
    content = await hs.database.read(get_member_profile, task.user_id)
    via = [server_name_of(task.other)]
    await join_room(hs, task.user_id, task.room_id, via, content)
    await hs.database.write(_finish_elsewhere, task)


def _join_here(tx: Transaction, task: Task) -> bool:
    """Joins if this server is in the room. Returns False if it is not, so that another server must be asked."""
    membership = find_membership(tx, task.room_id, task.user_id)
    if membership == "invite":
        if is_outside(tx, tx.server.name, task.room_id):
            return False
        append_join(tx, task.user_id, task.room_id)
    _finish(tx, task)
    return True


async def _invite(hs: Resources, task: Task) -> None:
    if await hs.database.read(_needs_invitation, task):
        content = invitation(task.message)
        await invite_user(hs, Draft(task.room_id, task.user_id, "m.room.member", content, state_key=task.other))
        await hs.database.write(_finish_elsewhere, task)
    else:
        await hs.database.write(_finish, task)


def _needs_invitation(tx: Transaction, task: Task) -> bool:
    is_in = find_membership(tx, task.room_id, task.user_id) == "join"
    return is_in and find_membership(tx, task.room_id, task.other) not in ("join", "invite")


def _close(tx: Transaction, task: Task) -> None:
    """Closes a conversation, unless it is not superfluous any more."""
    state, chosen = derive(list_conversations(tx, task.user_id, task.other))
    is_in = find_membership(tx, task.room_id, task.user_id) == "join"
    if state == "friend" and chosen not in (None, task.room_id) and is_in:
        close(tx, task.user_id, task.room_id, chosen)
    _finish(tx, task)


def _finish(tx: Transaction, task: Task) -> None:
    delete_task(tx, task.user_id, task.other, task.room_id)
    refresh(tx, task.user_id, task.other)
    refresh(tx, task.other, task.user_id)


def _finish_elsewhere(tx: Transaction, task: Task) -> None:
    """Ends a task that the other server has taken part in."""
    note_answer(tx, server_name_of(task.other))
    _finish(tx, task)


async def _is_final(hs: Resources, task: Task, error: MatrixError) -> bool:
    """Returns whether another attempt is pointless: the other server has refused, or has been away for too long.

    So is one at a server that does not exist. A name that once led to a server may do so again.
    """
    if hs.now_ms() - task.since_ms >= KEPT_MS:
        return True
    if error.status < 500:
        return error.status != 429
    if not leads_nowhere(error):
        return False
    server = server_name_of(task.other)
    return not await hs.database.read(list_statements, [server])


def leads_nowhere(error: MatrixError) -> bool:
    """Returns whether the name of the server is unknown, as opposed to a server that does not answer."""
    cause = error.__cause__
    failure = cause.__cause__ if isinstance(cause, Unreachable) else None
    return isinstance(failure, WireError) and failure.reason in ("dns", "discovery")


def _explain(error: MatrixError, other: UserID) -> MatrixError:
    if leads_nowhere(error):
        return not_found(f"There is no server {server_name_of(other)}.")
    return error


def _give_up(tx: Transaction, task: Task, is_silent: bool) -> None:
    """Undoes what a refused task was for: the invitation of the other person, or the user's own."""
    if not is_silent:
        note_answer(tx, server_name_of(task.other))
    if task.kind == "join":
        store_outside_leave(tx, tx.server.name, task.room_id, task.user_id)
    elif find_membership(tx, task.room_id, task.user_id) == "join":
        close(tx, task.user_id, task.room_id)
    _finish(tx, task)


async def settle_later(hs: Resources) -> None:
    """Does stored tasks, until it is cancelled. Only one node of several does this at a time."""
    parked = Lane("friends", hs.database, hs.metrics)
    while True:
        async with hs.database.hold("friends"), trio.open_nursery() as nursery:
            await hs.database.write(replace_unplaced_tasks)
            busy: set[ServerName] = set()
            while True:
                free = FRIEND_LANES_MAX - len(busy)
                servers, next_ms, position = await hs.database.read(list_lanes_due, busy, free)
                for server in servers:
                    busy.add(server)
                    nursery.start_soon(_run_lane, hs, parked, server, busy)
                deadline = math.inf if free == 0 else trio.current_time() + next_ms / 1000
                await hs.stream.wait((WAKE_KEY, RETRY_KEY), position, deadline)


async def _run_lane(hs: Resources, parked: Lane, server: ServerName, busy: set[ServerName]) -> None:
    """Does the tasks of one lane, one after the other, until none is due or the server does not answer."""

    async def do(tasks: Sequence[Task]) -> None:
        for task in tasks:
            await _do_later(hs, task)

    while (task := await hs.database.read(find_lane_task, server)) is not None:
        if await parked.without_parked([task], _name_of):
            await parked.work([task], do, _name_of)
        else:
            await hs.database.write(note_given_up, task)
    busy.discard(server)
    await hs.database.write(note_lane_done, server)


def _name_of(task: Task) -> str:
    return f"{task.user_id} {task.other} {task.room_id}"


async def _do_later(hs: Resources, task: Task) -> None:
    if task.kind == "close":  # other tasks of the pair may have to wait for another server
        await hs.database.write(_close, task)
        return
    try:
        await settle(hs, task.user_id, task.other)
    except MatrixError as error:  # the request has failed; its user sees that in the list
        _log.debug("friend request not delivered", extra={"user_id": task.user_id, "reason": error.error})
        if error.status >= 500:  # too much is under way, and the task is still due
            await trio.sleep(_BUSY_PAUSE_S)


# --- following what others do ---


async def follow(hs: Resources, since: int, upto: int) -> None:
    """Refreshes the pairs whose conversations have changed in a span of the stream."""
    if pairs := await hs.database.read(_list_changed, since, upto):
        await hs.database.write(_refresh, pairs)


class _Changed(msgspec.Struct, frozen=True):
    """A pair whose conversation has changed. room_id: a conversation that was not known to be one, or None."""

    user_id: UserID
    other: UserID
    room_id: RoomID | None = None


def _list_changed(tx: Transaction, since: int, upto: int) -> list[_Changed]:
    found: list[_Changed] = []
    for room_nid in list_rooms_with_member_changes(tx, since):
        changed = set(tx.names(list_members_changed(tx, room_nid, since, upto)).values())
        if not changed:
            continue
        pairs = list_pairs(tx, room_nid)
        found += [_Changed(*pair) for pair in pairs if not changed.isdisjoint(pair)]
        known = {user_id for user_id, _ in pairs}
        found += _list_new(tx, RoomID(tx.name(room_nid)), [UserID(each) for each in changed - known])
    return found


def _list_new(tx: Transaction, room_id: RoomID, user_ids: Sequence[UserID]) -> Iterator[_Changed]:
    for user_id in user_ids:
        if server_name_of(user_id) == tx.server.name and (other := find_partner(tx, room_id, user_id)) is not None:
            yield _Changed(user_id, other, room_id)


def _refresh(tx: Transaction, pairs: Sequence[_Changed]) -> None:
    for each in pairs:
        if each.room_id is not None:
            note_room(tx, each.user_id, each.other, each.room_id)
        refresh(tx, each.user_id, each.other)
        note_sign_of_life(tx, each.user_id, each.other)


# --- withdrawn requests ---


class WithdrawalContent(msgspec.Struct, frozen=True):
    """The content of the EDU `org.homeserver.friend_withdrawal`: `user_id` withdraws what they asked `target`."""

    user_id: UserID
    target: UserID
    room_id: RoomID


async def receive_withdrawals(hs: Resources, origin: ServerName, contents: Sequence[WithdrawalContent]) -> None:
    """Drops the invitations of withdrawn requests."""
    await hs.database.write(_receive, contents)


def _receive(tx: Transaction, contents: Sequence[WithdrawalContent]) -> None:
    for each in contents:
        membership = find_room_membership(tx, each.room_id, each.target)
        if membership is None or membership.membership != "invite" or not membership.stripped:
            continue
        if server_name_of(each.target) != tx.server.name or membership.stripped[-1].get("sender") != each.user_id:
            continue
        store_outside_leave(tx, tx.server.name, each.room_id, each.target)
        refresh(tx, each.target, each.user_id)


def _edu(withdrawal: Withdrawal) -> OutgoingEdu:
    position, user_id, other, room_id = withdrawal
    content = {"user_id": user_id, "target": other, "room_id": room_id}
    return OutgoingEdu(content, destinations=(server_name_of(other),), position=position)


def list_withdrawal_edus(tx: Transaction, since: int, upto: int) -> Iterator[OutgoingEdu]:
    """Yields an EDU for each request that was withdrawn."""
    return map(_edu, list_withdrawals(tx, since, upto))


def _list_first(tx: Transaction, server: ServerName, since: int, upto: int, limit: int) -> Iterator[OutgoingEdu]:
    return map(_edu, list_withdrawals_for(tx, server, since, upto, limit))


EDUS = {
    "org.homeserver.friend_withdrawal": Edu(
        WithdrawalContent,
        receive_withdrawals,
        user=lambda content: content.user_id,
        room=None,
        source=list_withdrawal_edus,
        durable=True,
        queue=EduQueue(_list_first, delete_withdrawals),
    )
}
