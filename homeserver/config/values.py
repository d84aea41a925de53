"""What all sections share: their base class, and checks of single values that raise ConfigError."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from homeserver.federation.identifiers import InvalidIdentifier, parse_server_name


class ConfigError(ValueError):
    """What is wrong with the configuration, in one sentence for the operator."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


def check_server_name(key: str, value: str) -> None:
    """Raises ConfigError unless the value is a host name or address, with or without a port."""
    try:
        parse_server_name(value)
    except InvalidIdentifier as error:
        raise ConfigError(f"{key}: {value!r} is not a server name ({error})") from error


def check_url(key: str, value: str) -> None:
    """Raises ConfigError unless the value is an http or https URL without query and fragment."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{key}: {value!r} is not an http or https URL")


def check_range(key: str, value: int, lowest: int, highest: int) -> None:
    """Raises ConfigError unless the value lies between the two, both included."""
    if not lowest <= value <= highest:
        raise ConfigError(f"{key} must be from {lowest} to {highest}, not {value}")


def check_port(key: str, port: int, *, lowest: int) -> None:
    """Raises ConfigError unless the value is a port; `lowest` 0 allows one that the system chooses."""
    check_range(key, port, lowest, 65535)


def check_positive(key: str, value: int) -> None:
    """Raises ConfigError unless the value is more than 0."""
    if value <= 0:
        raise ConfigError(f"{key} must be more than 0, not {value}")


def check_one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError, which names the choices, unless the value is one of them."""
    if value not in choices:
        raise ConfigError(f"{key} must be {list_choices(choices)}, not {value!r}")


def check_networks(key: str, values: Iterable[str]) -> None:
    """Raises ConfigError unless each value is an IP address or a network, such as "10.0.0.0/8"."""
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise ConfigError(f'{key}: {value!r} is not an address or a network, as in "10.0.0.0/8"') from error


def list_choices(choices: Iterable[str]) -> str:
    """The choices as part of a sentence: '"a"', '"a" or "b"', '"a", "b" or "c"'."""
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
