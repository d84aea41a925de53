"""Server-sent events: sync answers as they come, over HTTP, for places where WebSockets are blocked.

Each event has the answer as `data`, and its token as `id`. Browsers reconnect by themselves and name the last `id` in
`Last-Event-ID`, from where the stream goes on: nothing is missing, and nothing comes twice. That is also what says that
the client has everything up to there, as the `since` of a sync does. If there is no news for a while, a comment keeps
proxies from closing the connection. The stream ends after some minutes and when the server stops, and after an event
`error` when the token ends, or if the user has too many streams. Spec: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Request, Response, Routes
from homeserver.authenticate import Requester
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.feature import PresenceState
from homeserver.process.token_cache import tokens_key
from homeserver.resources import Resources
from homeserver.sync.answer import body_of
from homeserver.sync.engine import Engine
from homeserver.sync.request import SyncRequest

PATH = "/_homeserver/client/v1/events"
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
_RETRY_AFTER_MS = 10_000


class EventStreamQuery(msgspec.Struct, frozen=True):
    """The parameters of `/sync` that make sense for a stream."""

    filter: str = ""
    since: str | None = None
    set_presence: PresenceState = "online"
    use_state_after: bool = False


MakeRequest = Callable[[Resources, Requester, EventStreamQuery, int], Awaitable[SyncRequest]]


def event_stream_routes(engine: Engine, make_request: MakeRequest) -> Routes:
    """Returns the operation. make_request: decodes the query, with the position before the token was read."""
    routes = Routes()
    streams: Counter[str] = Counter()  # by user

    @routes.get(PATH, rate_limit="sync", waits=True, allow_guest=True)
    async def stream_sync_events(
        hs: Resources, requester: Requester, request: Request, query: EventStreamQuery
    ) -> Response:
        user_id = requester.user_id
        if streams[user_id] >= limits.websocket.EVENT_STREAMS_PER_USER_MAX:
            raise _too_many()
        last = request.find_header(b"last-event-id")
        if last:
            query = msgspec.structs.replace(query, since=last)
        sync = await make_request(hs, requester, query, request.token_position)
        wait_ended = request.wait_ended

        async def events() -> AsyncIterator[bytes]:
            if streams[user_id] >= limits.websocket.EVENT_STREAMS_PER_USER_MAX:  # others have begun meanwhile
                yield _error(_too_many())
                return
            streams[user_id] += 1
            try:
                async for event in _events(hs, engine, sync, wait_ended):
                    yield event
            finally:
                streams[user_id] -= 1
                if not streams[user_id]:
                    del streams[user_id]

        return Response(200, None, _HEADERS, events())

    return routes


async def _events(
    hs: Resources, engine: Engine, sync: SyncRequest, wait_ended: Callable[[], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """Yields the events, until the client has gone, the server stops, or it is time."""
    yield b": the stream begins\n\n"
    end = trio.current_time() + limits.websocket.EVENT_STREAM_SECONDS_MAX
    try:
        answer = await engine.first_answer(hs, sync)
        while trio.current_time() < end:
            if answer.has_news or sync.is_whole:
                body = body_of(hs, answer)
                yield b"id: %b\ndata: %b\n\n" % (body["next_batch"].encode(), to_json(body))
            sync = msgspec.structs.replace(sync, since=answer.upto, queue_since=answer.queue_upto, is_anew=False)
            if answer.queue_upto >= answer.upto:
                keys = answer.keys | {tokens_key(sync.user_id)}
                deadline = trio.current_time() + limits.websocket.EVENT_STREAM_PING_SECONDS
                if await hs.stream.wait(keys, answer.upto, deadline, wait_ended) <= answer.upto:
                    yield b":\n\n"
            answer = await engine.read_again(hs, sync)
    except MatrixError as error:
        if error.status == 401:
            yield _error(error)


def _too_many() -> MatrixError:
    said = "You have too many event streams open."
    return MatrixError(429, "M_LIMIT_EXCEEDED", said, retry_after_ms=_RETRY_AFTER_MS)


def _error(error: MatrixError) -> bytes:
    """Returns the event that tells why a stream ends."""
    return b"event: error\ndata: %b\n\n" % to_json(error.body())
