"""Requests over a `Wire`, for tests that want the whole response."""

from __future__ import annotations

import trio

from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import Wire, WireError, WireRequest, WireResponse


async def send(
    wire: Wire, destination: str, request: WireRequest, *, timeout_s: float = 30, max_bytes: int = 1000
) -> WireResponse:
    """The whole response, within `timeout_s`. Raises WireError."""
    with trio.move_on_after(timeout_s):
        async with wire.stream(ServerName(destination), request, timeout_s=timeout_s, max_bytes=max_bytes) as response:
            body = b"".join([chunk async for chunk in response.chunks])
            return WireResponse(response.status, response.headers, body)
    raise WireError(f"{destination} did not answer within {timeout_s:g} s", "timeout")
