"""A server of the fake network that gives every request the same answer, in chunks, for as long as anybody reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from homeserver.federation.identifiers import ServerName
from homeserver.testing import FakeNetwork

Body = Callable[[], AsyncIterator[bytes]]


class StreamingServer:
    """Joins the network at once. `sent_bytes`: how much of its answers was read."""

    def __init__(self, network: FakeNetwork, name: str, body: Body, status: int = 200) -> None:
        self.name = ServerName(name)
        self.sent_bytes = 0
        self._body, self._status = body, status
        network.join(name, self._serve)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, send, nursery.cancel_scope)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

    async def _answer(self, send: Any, scope: trio.CancelScope) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": []})
        async for chunk in self._body():
            self.sent_bytes += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        scope.cancel()
