"""Listeners: the ASGI application on sockets, TLS and HTTP/2, served by Hypercorn's protocol code on trio.

The only file that knows Hypercorn. It owns the sockets and connections itself, so that starting, stopping and a
client that misbehaves are the same whatever speaks HTTP.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from homeserver import limits
from homeserver.asgi import App
from homeserver.config import ConfigError, Listener, parse_bind

_log = logging.getLogger("homeserver.listener")


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener that listens: `address` as in its bind, with the port that the system chose."""

    listener: Listener
    address: str

    @property
    def url(self) -> str:
        """Where it is reached; "" for a unix socket."""
        if self.address.startswith("unix:"):
            return ""
        return f"{'https' if self.listener.tls_cert else 'http'}://{self.address}"


@dataclass(slots=True)
class _Door:
    """One listening socket, opened but not yet served."""

    listener: Listener
    sock: socket.socket
    tls: ssl.SSLContext | None
    address: str


@dataclass(slots=True)
class _Connections:
    """The connections of all listeners."""

    streams: set[trio.abc.Stream] = field(default_factory=set)

    async def close(self) -> None:
        """Closes what is left without a word."""
        for stream in tuple(self.streams):
            await trio.aclose_forcefully(stream)


async def serve(
    app: App,
    listeners: Sequence[Listener],
    *,
    stop: trio.Event,
    task_status: trio.TaskStatus[list[Bound]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers on every listener until `stop` is set and the requests under way are answered, at most DRAIN_SECONDS.

    Starts with the bound addresses once all of them listen. Raises ConfigError where one cannot.
    """
    doors = open_doors(listeners)
    context = WorkerContext(None)
    connections = _Connections()
    try:
        async with trio.open_nursery() as nursery:  # the connections
            async with trio.open_nursery() as accepting:
                for door in doors:
                    door.sock.listen(limits.LISTEN_BACKLOG)
                    handle = _handler(app.serving(door.listener.serve), door, context, connections)
                    sock = trio.SocketListener(trio.socket.from_stdlib_socket(door.sock))
                    accepting.start_soon(partial(trio.serve_listeners, handle, [sock], handler_nursery=nursery))
                task_status.started([Bound(door.listener, door.address) for door in doors])
                await stop.wait()
                accepting.cancel_scope.cancel()
            app.dispatch.draining.set()
            await context.terminated.set()  # idle connections end, busy ones after their answer
            nursery.cancel_scope.deadline = trio.current_time() + limits.DRAIN_SECONDS
    finally:
        app.dispatch.draining.set()
        await connections.close()
        for door in doors:
            door.sock.close()
            if door.address.startswith("unix:"):
                _remove(door.address[5:])


def open_doors(listeners: Sequence[Listener]) -> list[_Door]:
    """Binds every listener and reads its certificate. Raises ConfigError, with nothing left open."""
    doors: list[_Door] = []
    try:
        for listener in listeners:
            tls = tls_context(listener)
            sock = _bind(listener)
            doors.append(_Door(listener, sock, tls, _address(listener, sock)))
    except BaseException:
        for door in doors:
            door.sock.close()
        raise
    return doors


def tls_context(listener: Listener) -> ssl.SSLContext | None:
    """The TLS settings of a listener: TLS 1.2 or newer, HTTP/2 where the client can. Raises ConfigError."""
    if not listener.tls_cert:
        return None
    for key, path in (("tls_cert", listener.tls_cert), ("tls_key", listener.tls_key)):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(f"listener {listener.bind}: cannot read {key} {path}: {error.strerror}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(listener.tls_cert, listener.tls_key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"listener {listener.bind}: {listener.tls_cert} and {listener.tls_key} are no PEM certificate with its key"
        ) from error
    return context


def _bind(listener: Listener) -> socket.socket:
    bind = parse_bind(listener.bind)
    family = socket.AF_UNIX if bind.unix_path else socket.AF_INET
    target: str | tuple[str, int] = bind.unix_path or (bind.host, bind.port)
    try:
        if not bind.unix_path:
            family, _, _, _, target = socket.getaddrinfo(
                bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        elif os.path.exists(bind.unix_path) and stat.S_ISSOCK(os.stat(bind.unix_path).st_mode):
            _remove_dead_socket(bind.unix_path)
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cannot listen on {listener.bind}: {error.strerror}") from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(target)
    except OSError as error:
        sock.close()
        what = "something else listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"cannot listen on {listener.bind}: {what}") from error
    sock.setblocking(False)
    return sock


def _remove_dead_socket(path: str) -> None:
    """Removes what a server that was killed left behind; one that answers is left alone, and the bind will fail."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _address(listener: Listener, sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return listener.bind
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _hypercorn_config() -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = logging.getLogger("homeserver.listener")
    config.include_server_header = False
    config.keep_alive_timeout = limits.KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 100_000  # closing a good connection gains nothing
    config.h11_max_incomplete_size = limits.PATH_CHARACTERS_MAX + 16_384
    return config


def _handler(app: App, door: _Door, context: WorkerContext, connections: _Connections) -> Callable:
    config = _hypercorn_config()
    wrapped = ASGIWrapper(app)

    async def handle(accepted: trio.SocketStream) -> None:
        stream: trio.abc.Stream = _Transport(accepted)
        if door.tls is not None:
            stream = trio.SSLStream(stream, door.tls, server_side=True, https_compatible=True)
        connections.streams.add(stream)
        try:
            await TCPServer(wrapped, config, context, ConnectionState({}), stream)
        except (Exception, BaseExceptionGroup) as error:
            # One client's connection, whatever it sent, must not end the others.
            if isinstance(error, BaseExceptionGroup):
                cancelled, others = error.split(trio.Cancelled)
                if others is not None:
                    _log.debug("connection failed", exc_info=others)
                if cancelled is not None:
                    raise cancelled from None
            else:
                _log.debug("connection failed", exc_info=error)
        finally:
            connections.streams.discard(stream)
            await trio.aclose_forcefully(stream)

    return handle


class _Transport(trio.abc.HalfCloseableStream):
    """A socket whose sends end: a client that reads nothing is cut off. Empty sends cost nothing."""

    def __init__(self, inner: trio.SocketStream) -> None:
        self._inner = inner
        self.socket = inner.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) <= limits.SEND_BYTES:
            if data:
                await self._send(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), limits.SEND_BYTES):
            await self._send(view[start : start + limits.SEND_BYTES])

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(limits.SEND_SECONDS_MAX):
            await self._inner.send_all(data)
            return
        raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()
