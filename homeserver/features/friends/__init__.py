"""Friends: asking, accepting, ending and blocking, and the list of friends. Not in the spec.

A friendship is a conversation, and everything between servers is the ordinary life of rooms: see docs/friends.md.
`asking` has the writes of requests, `settling` what is done after them, `listing` the list.
"""

from __future__ import annotations

import msgspec
import trio

from homeserver.api.routes import Empty, Request, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, not_found
from homeserver.feature import Feature, Follower, JsonObject, SyncContext
from homeserver.features.friends.asking import Asking, ask, end, state_answer
from homeserver.features.friends.listing import ListQuery, read_list
from homeserver.features.friends.settling import EDUS, follow, leads_nowhere, settle, settle_later
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.limits.users import FRIEND_MESSAGE_BYTES_MAX
from homeserver.remote.leaves import leave_room
from homeserver.remote.profiles import fetch_profile
from homeserver.resources import Resources
from homeserver.rooms.heads import STATE_CHANGES
from homeserver.users.account_data import find_account_data, list_changes, store_account_data
from homeserver.users.blocking import IGNORED_TYPE, ignored_in_sync, ignored_users
from homeserver.users.friend_rooms import read_states, refresh
from homeserver.users.friends import LIST_TYPE, find_friend, forget_friends, list_changed
from homeserver.users.shadow_bans import write_and_undo
from homeserver.users.status import find_language

PREFIX = "/_homeserver/client/v1"
ANSWER_SECONDS = 10.0
"""How long a request waits for the other server. After that it is pending, and is delivered later."""

routes = Routes()


class AskBody(msgspec.Struct, frozen=True):
    """message: for the other person, with the invitation. encrypted: of a new conversation, else as configured."""

    message: str = ""
    encrypted: bool | None = None


@routes.get(PREFIX + "/friends")
async def get_friends(hs: Resources, requester: Requester, query: ListQuery, request: Request) -> JsonObject:
    _check_enabled(hs)
    language = find_language(request.headers.get("accept-language"))
    return await hs.database.read(read_list, requester.user_id, query, hs.database.generation, language)


@routes.put(PREFIX + "/friends/{user_id}", rate_limit="invite")
async def set_friend(hs: Resources, requester: Requester, user_id: UserID, body: AskBody | None) -> JsonObject:
    _check_enabled(hs)
    body = body or AskBody()
    if user_id == requester.user_id:
        raise invalid_param("You cannot be a friend of yourself.")
    if len(body.message.encode("utf-8", "surrogatepass")) > FRIEND_MESSAGE_BYTES_MAX:
        raise invalid_param(f"The message of a request may be at most {FRIEND_MESSAGE_BYTES_MAX} bytes long.")
    if server_name_of(user_id) != hs.server_name:
        await _check_elsewhere(hs, requester.user_id, user_id)
    is_encrypted = hs.config.friends.encrypted if body.encrypted is None else body.encrypted
    asking = Asking(requester.user_id, user_id, body.message, is_encrypted)
    if requester.is_shadow_banned:
        return state_answer(await write_and_undo(hs, ask, asking))
    friend = await hs.database.write(ask, asking)
    with trio.move_on_after(ANSWER_SECONDS):
        await settle(hs, requester.user_id, user_id)
    return state_answer(await hs.database.read(find_friend, requester.user_id, user_id) or friend)


async def _check_elsewhere(hs: Resources, user_id: UserID, other: UserID) -> None:
    """Raises MatrixError 403 without federation; 404 if the other server does not exist, or has no such user.

    If it does not answer, the request is delivered later.
    """
    if not hs.config.federation.enabled:
        raise forbidden("This server does not take part in federation, so its users have no friends on other servers.")
    friend = await hs.database.read(find_friend, user_id, other)
    if friend is not None and friend.state != "none":
        return
    try:
        await fetch_profile(hs, other)
    except MatrixError as error:
        if error.status == 404:
            raise not_found(f"There is no user {other}.") from None
        if leads_nowhere(error):
            raise not_found(f"There is no server {server_name_of(other)}.") from None


@routes.delete(PREFIX + "/friends/{user_id}", allow_suspended=True)
async def delete_friend(hs: Resources, requester: Requester, user_id: UserID) -> Empty:
    _check_enabled(hs)
    for room_id in await hs.database.write(end, requester.user_id, user_id):
        await leave_room(hs, requester.user_id, room_id, {})
        await hs.database.write(refresh, requester.user_id, user_id)
    return Empty()


def _check_enabled(hs: Resources) -> None:
    if not hs.config.friends.enabled:
        raise MatrixError(404, "M_UNRECOGNIZED", "This server has no friends lists: `[friends] enabled` is off.")


# --- blocking ---


@routes.put(PREFIX + "/friends/{user_id}/block", allow_suspended=True)
async def block_user(hs: Resources, requester: Requester, user_id: UserID) -> Empty:
    if user_id == requester.user_id:
        raise invalid_param("You cannot block yourself.")
    await hs.database.write(_set_blocked, requester.user_id, user_id, True)
    return Empty()


@routes.delete(PREFIX + "/friends/{user_id}/block", allow_suspended=True)
async def unblock_user(hs: Resources, requester: Requester, user_id: UserID) -> Empty:
    await hs.database.write(_set_blocked, requester.user_id, user_id, False)
    return Empty()


@routes.get(PREFIX + "/blocked")
async def get_blocked(hs: Resources, requester: Requester) -> JsonObject:
    return {"blocked": sorted(await hs.database.read(ignored_users, requester.user_id))}


def _set_blocked(tx: Transaction, user_id: UserID, other: UserID, is_blocked: bool) -> None:
    """Adds a person to m.ignored_user_list, or removes them. Clients write it too, so it can be of any shape."""
    content = find_account_data(tx, user_id, None, IGNORED_TYPE) or {}
    listed = content.get("ignored_users")
    ignored = dict(listed) if isinstance(listed, dict) else {}
    if (other in ignored) == is_blocked:
        return
    if is_blocked:
        ignored[other] = {}
    else:
        del ignored[other]
    store_account_data(tx, user_id, None, IGNORED_TYPE, {**content, "ignored_users": ignored})
    refresh(tx, user_id, other)


# --- sync ---


def sync_friends(tx: Transaction, context: SyncContext) -> None:
    """Adds the list of ids and states as account data, if it has changed. Blocking somebody changes it, too.

    What people do whom the user blocks does not change it.
    """
    user_id, since, upto = context.user_id, context.since, context.upto
    if since > 0 and not list_changed(tx, user_id, since, upto) - ignored_in_sync(tx, context):
        ignored_nid = tx.find(IGNORED_TYPE)
        if all(type_nid != ignored_nid for _, type_nid, _ in list_changes(tx, user_id, since, upto)):
            return
    content = read_states(tx, user_id)
    if since > 0 or content["friends"]:
        context.account_data.append({"type": LIST_TYPE, "content": content})


FEATURE = Feature(
    name="friends",
    spec="none: docs/friends.md",
    routes=routes,
    edus=EDUS,
    sync=sync_friends,
    tails=(Follower("friends", follow, wake_keys=(STATE_CHANGES,), is_on=lambda config: config.friends.enabled),),
    background=(settle_later,),
    forget_user=forget_friends,
)
