"""Sockets: the door of WebSockets: who may open one, how many there are, and how all of them end.

Security. A page of another site can open a WebSocket to this server in its visitor's browser: browsers send no
preflight for it. That gains it nothing here, because the browser adds no credentials of its own: there are no cookies,
and a connection does nothing before it has named an access token, which such a page does not have. So `Origin` is not
checked, and clients served from anywhere may connect, as with CORS and HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import partial

import trio

from homeserver import limits
from homeserver.api.routes import Request, Response, Routes, UpgradeRequest
from homeserver.authenticate import Requester
from homeserver.authenticate.identify import read_token
from homeserver.errors import MatrixError, unrecognized
from homeserver.feature import Feature
from homeserver.http.asgi import WEBSOCKET_PATH, Continue, Receive, Send
from homeserver.http.connection import Connection
from homeserver.http.dispatch import Dispatch
from homeserver.limits import Bucket
from homeserver.process.budgets import Hold
from homeserver.resources import Resources
from homeserver.sync import Syncs
from homeserver.websocket.asgi import AsgiWire
from homeserver.websocket.deflate import Deflate
from homeserver.websocket.handshake import UPGRADE_REQUIRED, shake_hands
from homeserver.websocket.messages import Close, Closing
from homeserver.websocket.pushes import Pushes
from homeserver.websocket.session import Session
from homeserver.websocket.wire import Wire

_RETRY_AFTER_MS = 10_000


class Sockets:
    """All WebSockets of one server. Used on the trio thread only."""

    def __init__(self, syncs: Syncs) -> None:
        self.syncs = syncs
        self._dispatch: Dispatch | None = None
        self._pushes: Pushes | None = None
        self._wires: dict[Session, Wire | AsgiWire] = {}
        self._by_user: Counter[str] = Counter()
        self._has_some = trio.Event()

    def feature(self) -> Feature:
        """Returns the operation that opens a connection, and its rate limit."""
        routes = Routes()

        @routes.get(WEBSOCKET_PATH, rate_limit="websocket", allow_guest=True)
        async def open_websocket(hs: Resources, requester: Requester | None, request: Request) -> Response:
            return self._agree(hs, requester, request)

        return Feature(
            name="websocket",
            spec="",
            routes=routes,
            limits={"websocket": Bucket(100, 2)},  # hundreds of people behind one address reconnect after a restart
        )

    def _agree(self, hs: Resources, requester: Requester | None, request: Request) -> Response:
        if not hs.config.websocket.enabled:
            raise unrecognized()
        if not isinstance(request, UpgradeRequest):
            return UPGRADE_REQUIRED
        if not hs.is_ready or len(self._wires) >= hs.config.websocket.connections_max:
            said = "This server has as many WebSockets as it may have. Try again later, or use /sync."
            raise MatrixError(503, "M_UNKNOWN", said, retry_after_ms=_RETRY_AFTER_MS)
        if requester is not None and self._by_user[requester.user_id] >= limits.websocket.CONNECTIONS_PER_USER_MAX:
            said = "You have too many WebSockets open."
            raise MatrixError(429, "M_LIMIT_EXCEEDED", said, retry_after_ms=_RETRY_AFTER_MS)
        request.requester = requester
        request.extension = None
        if request.is_raw:
            response, request.extension = shake_hands(request)
            return response
        return Response(101, b"")

    def open(self, dispatch: Dispatch) -> None:
        """Starts what serves the connections. Call it once."""
        hs = dispatch.hs
        self._dispatch, self._pushes = dispatch, Pushes(hs, self.syncs)
        hs.metrics.gauge("homeserver_websockets", lambda: len(self._wires), "WebSockets that are open.")
        hs.metrics.describe(
            "homeserver_websockets_closed_total", "WebSockets that have ended, by the server's close code."
        )
        hs.nursery.start_soon(self._pushes.run)
        hs.nursery.start_soon(self._sweep)
        hs.nursery.start_soon(self._stop)

    def take_over(
        self, request: UpgradeRequest, connection: Connection, received: bytes, groups: Collection[str]
    ) -> Continue:
        """Returns what serves a connection of our own listeners until its end. received: what followed the handshake.

        It does not keep the request, which would be a third of the memory of an idle connection.
        """
        assert self._dispatch is not None
        deflate = request.extension
        assert deflate is None or isinstance(deflate, Deflate)
        wire = Wire(connection, received, deflate, self._dispatch.hs.nursery)
        return partial(self._run, wire, self._open_session(wire, request, groups))

    async def serve_asgi(self, request: UpgradeRequest, receive: Receive, send: Send, groups: Collection[str]) -> None:
        """Serves a connection of an ASGI server until its end."""
        assert self._dispatch is not None
        wire = AsgiWire(receive, send, self._dispatch.hs.nursery)
        await self._run(wire, self._open_session(wire, request, groups))

    def _open_session(self, wire: Wire | AsgiWire, request: UpgradeRequest, groups: Collection[str]) -> Session:
        assert self._dispatch is not None and self._pushes is not None
        agent = request.find_header(b"user-agent")
        session = Session(self._dispatch, self._pushes, wire, request.client_ip, agent, groups)
        if request.requester is not None:
            session.accept(read_token(request) or "", request.requester, request.token_position)
        wire.count_frame = session.count_frame
        if isinstance(wire, Wire):
            wire.wait_for_room = session.wait_for_room
        return session

    async def _run(self, wire: Wire | AsgiWire, session: Session) -> None:
        assert self._dispatch is not None
        self._wires[session] = wire
        self._has_some.set()
        user_id = ""
        try:
            if session.requester is None and not await self._authenticate(session):
                return
            assert session.requester is not None
            user_id = session.requester.user_id
            self._by_user[user_id] += 1
            if self._by_user[user_id] > limits.websocket.CONNECTIONS_PER_USER_MAX:
                session.close(Close.TOO_MANY, "You have too many WebSockets open.")
            hold = session.channel.hold = Hold(self._dispatch.hs.budgets.answers, user_id, "")
            try:
                await session.run()
            finally:
                hold.become(0)
        finally:
            del self._wires[session]
            if user_id:
                self._by_user[user_id] -= 1
                if not self._by_user[user_id]:
                    del self._by_user[user_id]
            with trio.move_on_after(limits.websocket.CLOSE_SECONDS_MAX) as scope:
                scope.shield = self._dispatch.is_draining
                await wire.finish()
            code = str(wire.channel.code or "lost")
            self._dispatch.hs.metrics.count("homeserver_websockets_closed_total", (("code", code),))

    async def _authenticate(self, session: Session) -> bool:
        """Learns who the client is from its first message. Returns False if nobody."""
        try:
            with trio.move_on_after(limits.websocket.AUTHENTICATE_SECONDS_MAX):
                return await session.receive_token()
            raise Closing(Close.UNAUTHENTICATED, "Authenticate sooner.")
        except Closing as closing:
            session.close(closing.code, closing.reason)
            return False

    async def _stop(self) -> None:
        """Ends all connections when the server stops."""
        assert self._dispatch is not None
        await self._dispatch.hs.stopping.wait()
        for session in tuple(self._wires):
            session.end()

    async def _sweep(self) -> None:
        """Looks after all connections: who has gone silent, who does not read, and whose token has ended."""
        while True:
            if not self._wires:  # an idle server sleeps
                self._has_some = trio.Event()
                await self._has_some.wait()
            await trio.sleep(limits.websocket.SWEEP_SECONDS)
            now = trio.current_time()
            for session, wire in tuple(self._wires.items()):
                await self._look_after(session, wire, now)

    async def _look_after(self, session: Session, wire: Wire | AsgiWire, now: float) -> None:
        channel = session.channel
        stalled_s = now - channel.stalled_since
        if stalled_s > limits.websocket.STALLED_SECONDS_MAX + limits.websocket.STALLED_CLOSE_SECONDS:
            channel.lose()
            await wire.end()
        elif stalled_s > limits.websocket.STALLED_SECONDS_MAX and channel.is_open:
            channel.give_up(Close.NOT_READING, "You do not read what you are sent.")
        elif isinstance(wire, Wire) and not session.is_held_back:
            if wire.is_gone(now):
                channel.lose()
                await wire.end()
            elif wire.is_silent(now):
                wire.ask()
        if session.requester is not None and now - session.checked_at > limits.websocket.CHECK_SECONDS:
            await session.check()
            if session.push is not None and self._pushes is not None:
                await self._pushes.heartbeat(session.push)
