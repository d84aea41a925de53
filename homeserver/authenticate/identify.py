"""From a request to its requester. Spec: client-server-api/#client-authentication

Theory of operation. An access token is looked up in the token cache, then in the database, then among the application
services. An entry of the cache carries the position that the stream had before the database was read. Every write that
revokes a token or changes an account wakes the user's `tokens_key`, and older entries are not used any more. So a token
in use costs no read, and a revoked one is refused from the commit on. Other nodes of the same database may hear of it a
little later: no entry is used where they may have gone on for over two seconds unheard (`Stream.may_have_changed`).

A token that replaces others (`refresh`) revokes them with its first use, in a write before the request proceeds. If the
database cannot write, the request proceeds and the token is not cached: a later use revokes them.

The requester is known before the body is read, and a body may take minutes. `Request.confirm` is called after it: it
reads the database only if the user's tokens have changed since, and refuses the request if the device was logged out.
Requests of other servers are identified in the same order: first by the header (`OriginClaim`), then by the signature,
which covers the body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from homeserver import limits
from homeserver.api.bodies import Body
from homeserver.api.routes import Operation, Request
from homeserver.authenticate.flags import get_account_flags
from homeserver.authenticate.refresh import delete_replaced_tokens
from homeserver.authenticate.requester import Requester, check_may_call, user_locked
from homeserver.authenticate.tokens import TokenLookup, find_token, hash_token, unknown_token
from homeserver.database import DatabaseUnavailable, Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.moments import is_ahead
from homeserver.process.token_cache import Seen, tokens_key
from homeserver.resources import Resources

# Requests of a device so soon after one another are noted as one.
_SEEN_MS = 1_000


class OriginClaim(Protocol):
    """The origin of a request by its header alone, which is well-formed and names a key that we know."""

    @property
    def origin(self) -> ServerName:
        """The server that the request claims to come from."""

    async def check(self, hs: Resources, request: Request, body: Body | None) -> None:
        """Checks the signature, which covers the body. Raises 401 M_UNAUTHORIZED if it is wrong."""


IdentifyOrigin = Callable[[Resources, Request], Awaitable[OriginClaim]]
"""Reads the X-Matrix header of a request, before its body is read. Given by `homeserver.remote`."""


FindAppservice = Callable[[Resources, str, Request], Awaitable[Requester | None]]
"""Finds the requester for the token of an application service and its `user_id` and `device_id` parameters."""


async def refuse_origin(hs: Resources, request: Request) -> OriginClaim:
    """Raises 401 M_UNAUTHORIZED: federation is off."""
    raise MatrixError(401, "M_UNAUTHORIZED", "This server does not take part in federation.")


async def find_requester(
    hs: Resources, operation: Operation, request: Request, find_appservice: FindAppservice | None
) -> Requester | None:
    """Returns the requester, or None if there is no token and the operation does not need one.

    Raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN, and the errors of `check_may_call`.
    """
    token = read_token(request)
    if token is None or token == "":
        if operation.plan.requester_optional:
            return None
        raise MatrixError(401, "M_MISSING_TOKEN", "This request needs an access token.")
    if len(token) > limits.ACCESS_TOKEN_CHARACTERS_MAX:
        raise unknown_token()
    position, now_ms = hs.stream.position, hs.now_ms()
    requester = await _requester_of(hs, token, now_ms)
    if requester is None and find_appservice is not None:
        requester = await find_appservice(hs, token, request)
    if requester is None:
        raise unknown_token()
    check_may_call(requester, operation)
    request.token_position = position
    request.confirm = partial(_confirm, hs, requester, position)
    if requester.device_id:
        note_seen(hs, requester.user_id, requester.device_id, request, now_ms)
        if hs.config.presence.enabled and not requester.is_shadow_banned:
            hs.heartbeats.note(requester.user_id, now_ms)
    return requester


def read_token(request: Request) -> str | None:
    """Returns the access token of the header or else of the query, None if there is none."""
    header = request.find_header(b"authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    given = request.query.get("access_token") if "access_token" in request.query_string else None
    return given[0] if given else None


async def _requester_of(hs: Resources, token: str, now_ms: int) -> Requester | None:
    token_hash = hash_token(token)
    cache = hs.token_cache
    found = cache.get(token_hash, now_ms, hs.stream.may_have_changed)
    if found is None:
        position = hs.stream.position
        found = await hs.database.read(find_token, token_hash)
        if found is None:
            return None
        if found.unused:
            try:
                await hs.database.write(delete_replaced_tokens, token_hash)
            except DatabaseUnavailable:  # nothing can be written now; a later use of the token revokes what it replaces
                return _unexpired(hs, found)
        cache.put(token_hash, found.requester.user_id, found, now_ms=hs.now_ms(), position=position)
    return _unexpired(hs, found)


def _unexpired(hs: Resources, found: TokenLookup) -> Requester:
    if found.expires_ms is not None and not is_ahead(found.expires_ms, hs.now_ms(), found.lifetime_ms_max):
        raise unknown_token(soft_logout=True)
    return found.requester


async def _confirm(hs: Resources, requester: Requester, position: int) -> None:
    """Raises MatrixError 401 if the device was logged out, or the account locked or deactivated, since `position`.

    position: the stream position before the token was read.
    """
    if hs.stream.may_have_changed((tokens_key(requester.user_id),), position):
        await hs.database.read(check_device, requester)


def note_seen(hs: Resources, user_id: UserID, device_id: str, request: Request, now_ms: int) -> None:
    """Notes when and from which address a device made a request. Its owner can see this."""
    ip, user_agent = request.client_ip, (request.find_header(b"user-agent") or "")[:255]
    last = hs.token_cache.last_seen(user_id, device_id)
    if last is None or not 0 <= now_ms - last.ts_ms < _SEEN_MS or (last.ip, last.user_agent) != (ip, user_agent):
        hs.token_cache.note_seen(user_id, device_id, Seen(now_ms, ip, user_agent))


def note_heartbeat(hs: Resources, user_id: UserID) -> None:
    """Notes that a local user is online, unless presence is turned off."""
    if hs.config.presence.enabled:
        hs.heartbeats.note(user_id, hs.now_ms())


def check_token(tx: Transaction, requester: Requester) -> None:
    """Raises MatrixError 401 if the requester's token was revoked, or their account locked, since the request began.

    If the device has another token by now, the client can continue with that, so the error is a soft logout.
    """
    if not requester.token_id:
        return
    found = find_token(tx, requester.token_id)
    if found is None:
        raise unknown_token(soft_logout=_is_logged_in(tx, requester))
    if found.requester.is_locked and not requester.is_locked:
        raise user_locked()


def check_device(tx: Transaction, requester: Requester) -> None:
    """Raises MatrixError 401 if the device was logged out, or the account locked, since the request began.

    A token that was replaced meanwhile is good enough, because a long upload may outlive its token.
    """
    if not requester.token_id:
        return
    if not _is_logged_in(tx, requester):
        raise unknown_token()
    if get_account_flags(tx, requester.user_id).is_locked and not requester.is_locked:
        raise user_locked()


def _is_logged_in(tx: Transaction, requester: Requester) -> bool:
    row = tx.one(
        "SELECT 1 FROM access_tokens WHERE user_nid = ? AND device_id = ? LIMIT 1",
        tx.find(requester.user_id),
        requester.device_id,
    )
    return row is not None
