"""Simplified sliding sync: a client names windows into its list of rooms, and gets what it lacks of these rooms.

`request` decodes both shapes of the request, `lists` finds the rooms in view, `room` reads each of them, `extensions`
asks the features, `engine` puts the answer together and waits. What a client has been told is stored in
`homeserver.users.sync_connections`, whose head says what happens if an answer is lost.

Spec: MSC4186
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from homeserver.api.routes import Request, Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject, PresenceState, SyncStart
from homeserver.resources import Resources
from homeserver.rooms.timeline import find_since, parse_sync_token
from homeserver.sync.sections import Sections
from homeserver.sync.sliding.engine import SlidingEngine, unknown_pos
from homeserver.sync.sliding.request import (
    Extensions,
    SlidingBody,
    SlidingRequest,
    check_conn_id,
    parse_lists,
    parse_subscriptions,
)

SYNC_TIMEOUT_MS_MAX = 90_000  # proxies give up soon after; clients ask for 30 s
UNSTABLE_FEATURE = "org.matrix.simplified_msc3575"

_POS = re.compile(r"(s[0-9]{1,19}_[A-Za-z0-9_-]{1,32})~([0-9]{1,18})\.([0-9]|1[0-5])", re.ASCII)


class SlidingQuery(msgspec.Struct, frozen=True):
    """What the shape that clients ship has in the query."""

    pos: str | None = None
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0
    set_presence: PresenceState = "online"


def routes_of(sections: Sections) -> Routes:
    """Returns the operation in both shapes."""
    engine = SlidingEngine(sections)
    routes = Routes()

    @routes.post(f"/_matrix/client/unstable/{UNSTABLE_FEATURE}/sync", rate_limit="sync", waits=True)
    async def sliding_sync_unstable(
        hs: Resources, requester: Requester, request: Request, query: SlidingQuery, body: SlidingBody
    ) -> JsonObject:
        pos = body.pos if query.pos is None else query.pos
        timeout_ms = max(query.timeout, body.timeout)
        sync = await _prepare(hs, engine, requester, body, pos, timeout_ms, query.set_presence, is_merged=False)
        answer = await engine.sync(hs, sync, request.wait_ended)
        return answer if body.txn_id is None else {"txn_id": body.txn_id, **answer}

    @routes.post("/_matrix/client/v4/sync", rate_limit="sync", waits=True)
    async def sliding_sync(hs: Resources, requester: Requester, request: Request, body: SlidingBody) -> JsonObject:
        presence = body.set_presence or "online"
        sync = await _prepare(hs, engine, requester, body, body.pos, body.timeout, presence, is_merged=True)
        return await engine.sync(hs, sync, request.wait_ended)

    return routes


async def _prepare(
    hs: Resources,
    engine: SlidingEngine,
    requester: Requester,
    body: SlidingBody,
    pos: str | None,
    timeout_ms: int,
    set_presence: PresenceState,
    *,
    is_merged: bool,
) -> SlidingRequest:
    """Returns the decoded request. Raises MatrixError 400: M_UNKNOWN_POS, or M_INVALID_PARAM for a wrong one."""
    lists, subscriptions = parse_lists(body, requester), parse_subscriptions(body, requester)
    extensions = body.extensions or Extensions()
    since, serial, bits = None, 0, 0
    queue_since = await _read_queue_since(hs, extensions.to_device.since) if extensions.to_device.enabled else 0
    if pos is None:
        limit_requester(hs, requester, "initial_sync")
    else:
        match = _POS.fullmatch(pos)
        if match is None:
            raise unknown_pos()
        since, serial, bits = await _read_position(hs, match[1]), int(match[2]), int(match[3])
        if since is None:
            # After a restore from a backup, features put things right before the client starts again.
            start = SyncStart(requester.user_id, requester.device_id, 0, 0, set_presence, is_anew=True)
            await engine.preparation.write(hs, start)
            raise unknown_pos()
    return SlidingRequest(
        requester, check_conn_id(body.conn_id), since, serial, bits, queue_since, lists, subscriptions, extensions,
        min(max(0, timeout_ms), SYNC_TIMEOUT_MS_MAX), set_presence, is_merged,
    )  # fmt: skip


async def _read_position(hs: Resources, text: str) -> int | None:
    """Returns the position of a token; None if it belongs to another history, see `rooms.timeline`."""
    token = parse_sync_token(text)
    if token.generation == hs.database.generation and token.position <= hs.stream.position:
        return token.number
    # The token may also be ahead of the stream: the stream learns of a commit a moment after readers can see it.
    return await hs.database.read(find_since, token)


async def _read_queue_since(hs: Resources, text: str | None) -> int:
    """Returns up to where the device has received its messages: 0 if it does not say so, or not in this history."""
    if text is None:
        return 0
    try:
        return await _read_position(hs, text) or 0
    except MatrixError:
        return 0  # of another server that the client has synced with: it has received nothing from this one
