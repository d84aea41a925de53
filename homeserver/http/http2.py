"""HTTP/2 on one connection: Hypercorn's protocol code, with limits on work that a client can cause for free.

Theory of operation. A frame of nine bytes costs as much as a kilobyte of a body. Many kinds of frames cause work but
are not part of a request: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, requests that are reset at once. So
every frame is counted. Each request, and each kilobyte in either direction, allows for some frames. A client that sends
more gets ENHANCE_YOUR_CALM and its connection ends. Received bytes are processed in small slices, so that other tasks
run in between. Spec: RFC 9113, sections 5.4.1, 8.1 and 10.5
"""

from __future__ import annotations

from typing import Any

import trio
from h2.errors import ErrorCodes
from h2.events import DataReceived, StreamReset
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body, Data, EndBody, EndData
from hypercorn.protocol.h2 import H2Protocol

from homeserver import limits

_PREFACE_BYTES = 24
_FRAME_HEAD_BYTES = 9
# Kinds of frames (RFC 9113, section 6) whose payload is limited elsewhere: bodies and heads.
_DATA, _HEADERS, _CONTINUATION = 0, 1, 9
# Frames processed before other tasks get their turn, and bytes of frames without payload: two milliseconds of work.
_FRAMES_AT_ONCE = 100
_SLICE_BYTES = 900


class FrameCounter:
    """Counts the frames in the bytes from a client. A large control frame counts as several."""

    __slots__ = ("_head", "_skipped", "frames")

    def __init__(self) -> None:
        self.frames = 0
        self._head = b""
        self._skipped = _PREFACE_BYTES

    def feed(self, data: bytes) -> None:
        """Counts the frames in the next bytes."""
        at = 0
        while at < len(data):
            if self._skipped:
                step = min(self._skipped, len(data) - at)
                self._skipped -= step
                at += step
                continue
            missing = _FRAME_HEAD_BYTES - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) < _FRAME_HEAD_BYTES:
                return
            self._skipped = int.from_bytes(self._head[:3], "big")
            self.frames += 1
            if self._head[3] not in (_DATA, _HEADERS, _CONTINUATION):
                self.frames += self._skipped // limits.http.HTTP2_FRAME_BYTES_USUAL
            self._head = b""


class Http2(H2Protocol):  # type: ignore[misc]  # Hypercorn is not typed so
    """One connection. Used by `homeserver.http.connection` in place of Hypercorn's own protocol."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._counter = FrameCounter()
        self._resets = 0
        self._body_bytes = 0
        self._sent_bytes = 0

    async def handle(self, event: Event) -> None:
        """Processes an event from the client."""
        if not isinstance(event, RawData):
            await super().handle(event)
            if self.closed:  # unsent data will never be sent, so nothing should wait for it
                for buffer in tuple(self.stream_buffers.values()):
                    await buffer.close()
            return
        before = self._counter.frames
        self._counter.feed(event.data)
        has_many = self._counter.frames - before > _FRAMES_AT_ONCE
        size = _SLICE_BYTES if has_many else len(event.data) or 1
        for at in range(0, len(event.data), size):
            await super().handle(RawData(event.data[at : at + size]))
            if self.closed:
                return
            if self._is_too_busy():
                await self._end()
                return
            if has_many:
                await trio.lowlevel.checkpoint()

    async def stream_send(self, event: Any) -> None:
        """Sends an event of the application's answer. A client that does not receive it loses its connection."""
        if not isinstance(event, (Body, Data, EndBody, EndData)):
            await super().stream_send(event)
            return
        if self.closed:
            return
        if isinstance(event, (Body, Data)):
            self._sent_bytes += len(event.data)
        with trio.move_on_after(limits.http.SEND_SECONDS_MAX) as sending:
            await super().stream_send(event)
        if sending.cancelled_caught:
            await self._end()

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, StreamReset):
                self._resets += 1
            if isinstance(event, DataReceived):
                self._body_bytes += len(event.data)
                if event.stream_id not in self.streams:
                    await self._refuse_body(event)
                    continue
            await super()._handle_events([event])

    async def _priority_updated(self, event: Any) -> None:
        """Does nothing: priorities are obsolete. Spec: RFC 9113, section 5.3"""

    async def _refuse_body(self, event: DataReceived) -> None:
        """Tells the client not to send the rest of a body, because the request is already answered."""
        try:
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.connection.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)
        except ProtocolError:
            return  # the stream has ended in the meantime
        await self._flush()

    def _is_too_busy(self) -> bool:
        requests = self.keep_alive_requests
        bought = (self._body_bytes + self._sent_bytes) // limits.http.HTTP2_BYTES_PER_FRAME
        frames_max = limits.http.HTTP2_FRAMES_FREE + requests * limits.http.HTTP2_FRAMES_PER_REQUEST + bought
        is_resetting = self._resets > limits.http.HTTP2_RESETS_FREE + (requests - self._resets)
        return self._counter.frames > frames_max or is_resetting

    async def _end(self) -> None:
        if self.closed:
            return
        try:
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        except ProtocolError:
            pass  # the connection has already ended
        await self._flush()
        await self.send(Closed())
