"""Listeners: the application on sockets, with or without TLS, in HTTP/1.1 or HTTP/2.

Sockets, certificates, starting and stopping, and the number of connections are handled here for both protocols.
`http1_connection` answers HTTP/1.1, `http2_connection` HTTP/2.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import trio

from homeserver import limits
from homeserver.config import ConfigError, Listener, parse_bind
from homeserver.http.addresses import Proxies
from homeserver.http.answers import AnswerHeads
from homeserver.http.asgi import App
from homeserver.http.asgi_exchange import Address
from homeserver.http.connection import Connection, Connections, Tls, is_gone, room_for_connections
from homeserver.http.http1_connection import Http1Connection
from homeserver.http.sockets import SocketStream
from homeserver.process.rate_limits import address_key

_log = logging.getLogger("homeserver.http.listener")


class Bound(msgspec.Struct, frozen=True):
    """A listener that is listening. `address` is as in its bind, with the port that the system chose."""

    listener: Listener
    address: str

    @property
    def url(self) -> str:
        """The URL of the listener; "" for a unix socket."""
        if self.address.startswith("unix:"):
            return ""
        return f"{'https' if self.listener.tls_cert else 'http'}://{self.address}"


class _Door(msgspec.Struct):
    """One listening socket, opened but not yet served."""

    listener: Listener
    sock: socket.socket
    tls: ssl.SSLContext | None
    address: str
    certificate_read: float = 0
    file: tuple[int, int] | None = None  # for a unix socket: identifies the file at its path

    def close(self) -> None:
        """Closes the socket. Removes its file unless another server has replaced it."""
        self.sock.close()
        if self.file is not None and self.file == _find_file(self.address[5:]):
            os.unlink(self.address[5:])


async def serve(
    app: App,
    listeners: Sequence[Listener],
    *,
    stop: trio.Event,
    share_ports: bool = False,
    renewal: trio.lowlevel.ParkingLot | None = None,
    task_status: trio.TaskStatus[list[Bound]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves every listener until `stop` is set and the running requests are answered, within DRAIN_SECONDS.

    `task_status` gets the bound addresses once all of them listen. Raises ConfigError if one cannot. Certificates that
    have changed are reloaded from time to time, and whenever `renewal` is unparked. share_ports: other processes of
    this user may listen on the same ports; the system spreads connections over them.
    """
    doors = open_doors(listeners, share_ports=share_ports)
    connections = Connections(room_for_connections())
    metrics = app.dispatch.hs.metrics
    metrics.gauge("homeserver_connections", lambda: len(connections), "Connections that are open.")
    metrics.describe("homeserver_connections_refused_total", "Connections closed at once, because too many were open.")
    try:
        async with trio.open_nursery() as nursery:  # the connections
            async with trio.open_nursery() as accepting:
                for door in doors:
                    door.sock.listen(limits.http.LISTEN_BACKLOG)
                    handle = _handler(app, door, connections)
                    sock = trio.SocketListener(trio.socket.from_stdlib_socket(door.sock))
                    accepting.start_soon(partial(trio.serve_listeners, handle, [sock], handler_nursery=nursery))
                task_status.started([Bound(door.listener, door.address) for door in doors])
                accepting.start_soon(_sweep, connections)
                accepting.start_soon(
                    _follow_certificates, [door for door in doors if door.tls is not None],
                    renewal or trio.lowlevel.ParkingLot(),
                )  # fmt: skip
                await stop.wait()
                accepting.cancel_scope.cancel()
            app.dispatch.drain()  # idle connections end now, busy ones after their answer
            await _close([connection for connection in connections if connection.is_idle])
            nursery.cancel_scope.deadline = trio.current_time() + limits.http.DRAIN_SECONDS
    finally:
        app.dispatch.drain()
        await _close(tuple(connections))
        for door in doors:
            door.close()


def open_doors(listeners: Sequence[Listener], *, share_ports: bool = False) -> list[_Door]:
    """Binds every listener and loads its certificate. Raises ConfigError, with nothing left open."""
    doors: list[_Door] = []
    try:
        for listener in listeners:
            tls = tls_context(listener)
            for sock in _bind(listener, share_ports=share_ports):
                address = _address(listener, sock)
                file = _find_file(address[5:]) if sock.family == socket.AF_UNIX else None
                doors.append(_Door(listener, sock, tls, address, _modified(listener), file))
    except BaseException:  # nobody else knows these sockets
        for door in doors:
            door.close()
        raise
    return doors


def try_listener(listener: Listener) -> None:
    """Raises ConfigError if a server could not listen there now. Leaves nothing behind."""
    tls_context(listener)
    path = parse_bind(listener.bind).unix_path
    if path and os.path.exists(path) and not _is_answered(path):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return  # a killed server left it behind; the next server will replace it
    for sock in _bind(listener):
        sock.close()
        if path:
            os.unlink(path)


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def tls_context(listener: Listener) -> ssl.SSLContext | None:
    """Returns the TLS settings of a listener: TLS 1.2 or newer, HTTP/2 if the client can. Raises ConfigError."""
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
            f"listener {listener.bind}: {listener.tls_cert} and {listener.tls_key} are not a PEM certificate and key"
        ) from error
    return context


def _bind(listener: Listener, *, share_ports: bool = False) -> list[socket.socket]:
    """Returns a socket for each address of the bind: "localhost" may be 127.0.0.1 and ::1."""
    bind = parse_bind(listener.bind)
    sockets: list[socket.socket] = []
    try:
        if bind.unix_path:
            if os.path.exists(bind.unix_path) and stat.S_ISSOCK(os.stat(bind.unix_path).st_mode):
                _remove_dead_socket(bind.unix_path)
            sockets.append(_bound_socket(socket.AF_UNIX, bind.unix_path))
            os.chmod(
                bind.unix_path, listener.socket_permissions
            )  # before it listens, so that nobody can connect too early
            return sockets
        found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, target in dict.fromkeys((each[0], each[4]) for each in found):
            try:
                sockets.append(_bound_socket(family, target, share_ports=share_ports))
            except OSError as error:
                # A name may also resolve to an address of a family that this machine does not support.
                if not sockets or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
    except OSError as error:
        for sock in sockets:
            sock.close()
        what = "another program is listening there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(f"cannot listen on {listener.bind}: {what}") from error
    return sockets


def _bound_socket(family: int, target: Any, *, share_ports: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share_ports:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_dead_socket(path: str) -> None:
    """Removes the socket of a killed server. A socket that answers is left alone, and binding will fail."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _find_file(path: str) -> tuple[int, int] | None:
    """Returns the identity of the file at a path, or None if there is no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _address(listener: Listener, sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return listener.bind
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _handler(app: App, door: _Door, connections: Connections) -> Callable:
    proxies = Proxies(door.listener.trusted_proxies)
    served = app.serving(door.listener.serve, proxies)
    heads = AnswerHeads(app.dispatch.hs.now_ms)
    if door.tls is not None:
        # Late on purpose: Hypercorn is a tenth of what a server imports, and HTTP/2 is only spoken over TLS.
        from homeserver.http.http2_connection import Http2Connection

    async def handle(accepted: trio.SocketStream) -> None:
        sock = socket.socket(door.sock.family, socket.SOCK_STREAM, fileno=accepted.socket.detach())
        stream = SocketStream(sock)
        connection = Connection(stream)
        client, server = _address_of(sock.getpeername), _address_of(sock.getsockname)
        address = client[0] if client is not None else ""
        try:
            if not await connections.admit(connection, address_key(address), is_proxy=proxies.trusts(address)):
                app.dispatch.hs.metrics.count("homeserver_connections_refused_total")
            elif await _shake_hands(connection, door.tls) == "h2":
                await Http2Connection(connection, served, client, server).run()
            else:
                proceed = await Http1Connection(connection, served, heads, client, server).run()
                if proceed is not None:
                    await proceed()
        except (Exception, BaseExceptionGroup) as error:
            # Errors of one connection must not affect the others.
            cancelled, others = error.split(trio.Cancelled) if isinstance(error, BaseExceptionGroup) else (None, error)
            if others is not None and not is_gone(others):
                _log.debug("connection failed", exc_info=others)
            if cancelled is not None:
                raise cancelled from None
        finally:
            connections.discard(connection)
            await trio.aclose_forcefully(stream)

    return handle


async def _shake_hands(connection: Connection, tls: ssl.SSLContext | None) -> str:
    """Begins TLS, if the listener has it. Returns the protocol that the client has chosen."""
    if tls is None:
        return "http/1.1"
    assert isinstance(connection.stream, SocketStream)
    stream: Tls = trio.SSLStream(connection.stream, tls, server_side=True, https_compatible=True)
    connection.stream = stream
    with trio.fail_after(limits.http.TLS_HANDSHAKE_SECONDS_MAX):
        await stream.do_handshake()
    connection.idle_since = trio.current_time()
    return stream.selected_alpn_protocol() or "http/1.1"


def _address_of(get_name: Callable[[], Any]) -> Address:
    """Returns one end's address and port; None for a unix socket, and for a client that has gone already."""
    try:
        name = get_name()
    except OSError:
        return None
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


async def _follow_certificates(doors: Sequence[_Door], renewal: trio.lowlevel.ParkingLot) -> None:
    """Uses renewed certificates for new connections, without a restart."""
    while doors:
        with trio.move_on_after(limits.http.CERTIFICATE_CHECK_SECONDS):
            await renewal.park()
        for door in doors:
            renew_certificate(door)


def renew_certificate(door: _Door) -> None:
    """Reloads each certificate whose file has changed."""
    modified = _modified(door.listener)
    if door.tls is None or modified == door.certificate_read:
        return
    try:
        door.tls.load_cert_chain(door.listener.tls_cert, door.listener.tls_key)
    except OSError as error:  # also ssl.SSLError: half written, or the key comes a moment later; the old one stays
        _log.warning("certificate not renewed", extra={"file": door.listener.tls_cert, "reason": str(error)})
        return
    door.certificate_read = modified
    _log.info("certificate renewed", extra={"file": door.listener.tls_cert})


def _modified(listener: Listener) -> float:
    try:
        return max(os.stat(path).st_mtime for path in (listener.tls_cert, listener.tls_key)) if listener.tls_cert else 0
    except OSError:
        return 0


async def _sweep(connections: Connections) -> None:
    """Closes the connections whose clients have gone silent, and tells the log if some were refused."""
    told, told_at = 0, -inf
    while True:
        await trio.sleep(limits.http.SWEEP_SECONDS)
        now = trio.current_time()
        if connections.refused > told and now - told_at > limits.http.REFUSALS_LOG_SECONDS:
            about = {"refused": connections.refused - told, "open": len(connections)}
            _log.warning("connections refused: too many are open", extra=about)
            told, told_at = connections.refused, now
        await _close([connection for connection in connections if connection.overdue(now)])


async def _close(connections: Iterable[Connection]) -> None:
    for connection in connections:
        await trio.aclose_forcefully(connection.stream)
