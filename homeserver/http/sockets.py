"""SocketStream: a connected socket as a trio stream, which yields to other tasks only when it has to wait.

trio's own `SocketStream` yields after each operation, also if it did not have to wait. For an answer that fits into the
socket's buffer this costs as much as sending it. Here `receive_some` always yields, and waits until there is something
to receive; `send_all` waits only if the buffer is full. So a task that answers one request after another still lets
others run in between. A task that only sends has to yield by itself.
"""

from __future__ import annotations

import socket

import trio

RECEIVE_BYTES = 65_536


class SocketStream(trio.abc.HalfCloseableStream):
    """Takes over a connected socket. One task may receive while another one sends."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @property
    def socket(self) -> socket.socket:
        """The socket, for its addresses."""
        return self._socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Returns what has arrived, b"" at the end. Raises BrokenResourceError, or ClosedResourceError if closed."""
        sock = self._socket
        while True:
            if sock.fileno() < 0:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(sock)
            try:
                return sock.recv(max_bytes or RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise self._failure() from error

    def send_some(self, data: bytes | bytearray | memoryview) -> int:
        """Sends as much as the buffer takes now. Returns its length. Raises the same errors as `send_all`."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._failure() from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends everything. Raises BrokenResourceError, or ClosedResourceError if closed."""
        sent = self.send_some(data)
        while sent < len(data):
            await self.wait_send_all_might_not_block()
            sent += self.send_some(memoryview(data)[sent:])

    async def wait_send_all_might_not_block(self) -> None:
        """Waits until there is room in the socket's buffer."""
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self._socket)

    async def send_eof(self) -> None:
        """Tells the other end that nothing more will be sent."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._failure() from error

    async def aclose(self) -> None:
        """Closes the socket. Tasks that are using it get ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()

    def _failure(self) -> Exception:
        """Returns what an OSError of the socket means."""
        return trio.ClosedResourceError() if self._socket.fileno() < 0 else trio.BrokenResourceError()
