"""Listeners: the addresses that the server answers on, and the groups of operations that it serves there."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from homeserver.config.values import ConfigError, Section, check_networks, check_port

ServeGroup = Literal["client", "federation", "media", "admin", "metrics", "health"]
SERVE_GROUPS: tuple[ServeGroup, ...] = get_args(ServeGroup)


class Bind(msgspec.Struct, frozen=True):
    """The address of a listener: a TCP address, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    unix_path: str = ""


def parse_bind(bind: str) -> Bind:
    """Parses `host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose. Raises ConfigError."""
    if bind.startswith("unix:"):
        if not bind[5:]:
            raise ConfigError("a unix bind needs a path, as in unix:/run/homeserver.sock")
        return Bind(unix_path=bind[5:])
    host, colon, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or (":" in host and not bracketed):
        raise ConfigError(f"bind {bind!r} is not host:port, [::1]:port or unix:/path")
    check_port(f"bind {bind!r}: the port", int(port), lowest=0)
    return Bind(host=host[1:-1] if bracketed else host, port=int(port))


class Listener(Section, frozen=True):
    """One address that the server answers on. It uses TLS if both files are given.

    socket_mode: the permissions of a unix socket, in octal. trusted_proxies: addresses and networks of reverse proxies
    whose X-Forwarded-For is trusted. Proxies on loopback and unix sockets are always trusted.
    """

    bind: str = "127.0.0.1:8008"
    serve: tuple[ServeGroup, ...] = SERVE_GROUPS
    tls_cert: str = ""
    tls_key: str = ""
    socket_mode: str = "0660"
    trusted_proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_bind(self.bind)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError(f"listener {self.bind}: tls_cert and tls_key must be given together")
        if not self.serve:
            raise ConfigError(f"listener {self.bind}: serve is empty, so it would answer nothing")
        _ = self.socket_permissions
        check_networks(f"listener {self.bind}: trusted_proxies", self.trusted_proxies)

    @property
    def socket_permissions(self) -> int:
        """Returns `socket_mode` as the number that chmod takes. Raises ConfigError."""
        digits = self.socket_mode.removeprefix("0o")
        if not (3 <= len(digits) <= 4 and set(digits) <= set("01234567") and int(digits, 8) <= 0o777):
            raise ConfigError(
                f"listener {self.bind}: socket_mode {self.socket_mode!r} is not three octal digits, as in "
                '"0660" (owner and group) or "0666" (every user of this machine)'
            )
        return int(digits, 8)
