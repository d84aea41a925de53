"""/sync: one engine and its HTTP operations. `Syncs` makes syncs of the features' sections, `feature_of` serves them.

`engine`, `room` and `lazy_members` answer `/v3/sync`; `sliding` has the shape in which clients name the rooms to show.
Both ask the same `sections` of the features, read timelines with the same reader, and wait in the same way (`waiting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
import orjson

from homeserver.api.filters import EVERYTHING, Filter, parse_filter
from homeserver.api.routes import Request, Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.database import Transaction
from homeserver.database.cache import Cache
from homeserver.errors import bad_json, invalid_param
from homeserver.feature import Feature, PresenceState
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.rooms.timeline import Token, find_since, parse_sync_token
from homeserver.sync.engine import Engine
from homeserver.sync.event_stream import EventStreamQuery, event_stream_routes
from homeserver.sync.initial_sync import initial_sync_routes
from homeserver.sync.request import SyncRequest
from homeserver.sync.sections import Sections
from homeserver.sync.sliding import SYNC_TIMEOUT_MS_MAX, UNSTABLE_FEATURE, routes_of

FILTERS_CACHED_MAX = 10_000
# a parsed filter takes several times as much memory; larger ones are parsed for each request
FILTER_CACHED_BYTES_MAX = 4_096

GetFilter = Callable[[Transaction, UserID, str], "dict[str, Any] | None"]


class SyncQuery(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#get_matrixclientv3sync"""

    filter: str = ""
    since: str | None = None
    full_state: bool = False
    set_presence: PresenceState = "online"
    timeout: Annotated[int, msgspec.Meta(ge=0)] = 0
    use_state_after: bool = False


class Syncs:
    """Starts syncs of all kinds: the engine, and the filters that clients refer to by ID."""

    def __init__(self, features: Sequence[Feature], get_filter: GetFilter) -> None:
        """features: those whose sections the answers have. get_filter: reads a stored filter."""
        self.sections = Sections.of(features)
        self.engine = Engine(self.sections)
        self._get_filter = get_filter
        self._filters = Cache(FILTERS_CACHED_MAX)

    async def make_request(
        self, hs: Resources, requester: Requester, query: SyncQuery, token_position: int
    ) -> SyncRequest:
        """Returns the request that the client makes. Raises MatrixError if it is not valid, or one too many.

        token_position: the position of the stream before the requester's token was read.
        """
        token = None if query.since is None else parse_sync_token(query.since)
        since = None if token is None else await read_since(hs, token)
        if since is None or query.full_state:
            limit_requester(hs, requester, "initial_sync")
        return SyncRequest(
            requester=requester,
            since=since,
            is_anew=since is None and query.since is not None,
            filter=await _read_filter(hs, self._filters, self._get_filter, requester, query.filter),
            queue_since=None if token is None or since is None else token.queue,
            timeout_ms=min(query.timeout, SYNC_TIMEOUT_MS_MAX),
            full_state=query.full_state,
            use_state_after=query.use_state_after,
            set_presence=query.set_presence,
            token_position=token_position,
        )


def feature_of(syncs: Syncs) -> Feature:
    """Returns the feature that answers /sync with the sections of all others."""
    engine = syncs.engine
    routes = Routes()

    @routes.get("/_matrix/client/v3/sync", rate_limit="sync", waits=True, allow_guest=True)
    async def sync_events(hs: Resources, requester: Requester, request: Request, query: SyncQuery) -> Any:
        sync = await syncs.make_request(hs, requester, query, request.token_position)
        return await engine.sync(hs, sync, request.wait_ended)

    async def make_request(
        hs: Resources, requester: Requester, query: EventStreamQuery, token_position: int
    ) -> SyncRequest:
        asked = SyncQuery(**msgspec.structs.asdict(query))
        return await syncs.make_request(hs, requester, asked, token_position)

    routes.include(event_stream_routes(engine, make_request))
    routes.include(routes_of(syncs.sections))
    routes.include(initial_sync_routes(engine))
    return Feature(
        name="sync",
        spec="client-server-api/#syncing",
        routes=routes,
        limits={
            # each answer leads to the next request at once, so a broken client would spin here
            "sync": Bucket(200, 50),
            "initial_sync": Bucket(20, 0.2),  # all of the user's rooms with their state: seconds of work
        },
        unstable_features={UNSTABLE_FEATURE: True},
    )


async def read_since(hs: Resources, token: Token) -> int | None:
    """Returns the position of a token; None if it belongs to another history, see `rooms.timeline`."""
    if token.generation == hs.database.generation and token.position <= hs.stream.position:
        return token.number
    # The token may also be ahead of the stream: the stream learns of a commit a moment after readers can see it.
    return await hs.database.read(find_since, token)


async def _read_filter(hs: Resources, known: Cache, get_filter: GetFilter, requester: Requester, text: str) -> Filter:
    """Returns the filter that the client gives in full or by its ID. known: caches filters, which are immutable."""
    if not text:
        return EVERYTHING
    is_whole = text.startswith("{")
    key = text if is_whole else (requester.user_id, text)
    filter_: Filter | None = known.get(key)
    if filter_ is not None:
        return filter_
    if is_whole:
        try:
            filter_ = parse_filter(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise bad_json(f"The filter is not valid JSON: {error}.") from None
        if len(text) <= FILTER_CACHED_BYTES_MAX:  # the clients of one program all have the same
            known.put(key, filter_)
    else:
        stored = await hs.database.read(get_filter, requester.user_id, text)
        if stored is None:
            raise invalid_param("There is no such filter.")
        filter_ = parse_filter(stored)
        if len(orjson.dumps(stored)) <= FILTER_CACHED_BYTES_MAX:
            known.put(key, filter_)
    return filter_
