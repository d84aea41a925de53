"""The base class of all sections, and checks of single values that raise ConfigError."""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from os import PathLike
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from homeserver.federation.identifiers import InvalidIdentifier, parse_server_name, parse_user_id
from homeserver.federation.signing import decode_base64

# Some numbers are told to clients: no JSON number of Matrix is larger.
JSON_INTEGER_MAX = 2**53 - 1


class ConfigError(ValueError):
    """The configuration is wrong; the message is one sentence for the operator."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file. A program may create one as well; mistakes raise ConfigError in both cases.

    A mapping is accepted for a section, a list for a tuple, a path for text.
    """

    def __post_init__(self) -> None:
        """Checks the types of all fields. Sections add their own checks after this one."""
        for each in fields_of(type(self)):
            where = each.encode_name if type(self).__name__ == "Config" else f"{type(self).__name__}.{each.encode_name}"
            given = getattr(self, each.name)
            value = _read(each.type, given, where)
            if value is not given:
                msgspec.structs.force_setattr(self, each.name, value)


@cache
def fields_of(kind: type[Section]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Returns the fields of a section. Cached, because reading them from the annotations takes a while."""
    return msgspec.structs.fields(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    """Returns the value as `kind`. Raises ConfigError if it has another type."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list or a tuple, not {value!r}")
        items = tuple(_read(get_args(kind)[0], item, where) for item in value)
        return value if items == value else items
    if get_origin(kind) is Literal:
        check_one_of(where, value, get_args(kind))
    elif issubclass(kind, Section):
        if isinstance(value, Mapping):
            return _section(kind, value, where)
        if not isinstance(value, kind):
            raise ConfigError(f"{where} must be a {kind.__name__} or a mapping, not {value!r}")
    elif kind is str and isinstance(value, PathLike):
        return _read(str, os.fspath(value), where)
    elif type(value) is not kind:
        wanted = {bool: "True or False", int: "an int", str: "a str"}[kind]
        raise ConfigError(f"{where} must be {wanted}, not {value!r}")
    elif kind is str:
        check_text(where, value)
    return value


def _section(kind: type[Section], given: Mapping[str, Any], where: str) -> Section:
    names = {each.encode_name: each.name for each in fields_of(kind)}
    for key in given:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(str(key), names)}")
    missing = [each.encode_name for each in fields_of(kind) if each.required and each.encode_name not in given]
    if missing:
        raise ConfigError(f"{where} needs the key {missing[0]!r}")
    return kind(**{names[key]: value for key, value in given.items()})


def suggest(key: str, names: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown key: the closest of the names, or "" if none is close."""
    near = difflib.get_close_matches(key, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_text(key: str, value: str) -> None:
    """Raises ConfigError if the value holds a NUL: no path, name, address or URL may."""
    if "\0" in value:
        raise ConfigError(f"{key} holds the character U+0000, which no name, path or address may: {value!r}")


def check_server_name(key: str, value: str) -> None:
    """Raises ConfigError unless the value is a host name or address, with or without a port."""
    try:
        parse_server_name(value)
    except InvalidIdentifier as error:
        raise ConfigError(f"{key}: {value!r} is not a server name ({error})") from error


def check_url(key: str, value: str) -> None:
    """Raises ConfigError unless the value is an http or https URL without user, query and fragment."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        valid = valid and "@" not in parts.netloc and parts.port != 0 and not any(c.isspace() for c in value)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{key}: {value!r} is not an http or https URL")


def check_date(key: str, value: str) -> None:
    """Raises ConfigError unless the value is a date such as 2025-01-31."""
    try:
        valid = len(value) == 10 and date.fromisoformat(value).year >= 1970
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f'{key}: {value!r} is not a date such as "2025-01-31"')


def check_user_id(key: str, value: str) -> None:
    """Raises ConfigError unless the value is a user ID."""
    try:
        parse_user_id(value)
    except InvalidIdentifier as error:
        raise ConfigError(f'{key}: {value!r} is not a user ID, as in "@alice:example.org" ({error})') from error


def is_email_address(value: str) -> bool:
    """Returns whether the value looks like an email address: text around one "@", without spaces."""
    local, _, domain = value.partition("@")
    return bool(local and domain) and "@" not in domain and value.isprintable() and " " not in value


def is_verify_key(value: str) -> bool:
    """Returns whether the value is the unpadded base64 of an ed25519 public key."""
    try:
        return len(decode_base64(value)) == 32 and "=" not in value
    except ValueError:
        return False


def check_range(key: str, value: int, lowest: int, highest: int) -> None:
    """Raises ConfigError unless the value is between the two, inclusive."""
    if not lowest <= value <= highest:
        raise ConfigError(f"{key} must be from {lowest} to {highest}, not {value}")


def check_port(key: str, port: int, *, lowest: int) -> None:
    """Raises ConfigError unless the value is a port; `lowest` 0 allows one that the system chooses."""
    check_range(key, port, lowest, 65535)


def check_positive(key: str, value: int, *, highest: int = JSON_INTEGER_MAX) -> None:
    """Raises ConfigError unless the value is more than 0, and no more than `highest`."""
    if value <= 0:
        raise ConfigError(f"{key} must be more than 0, not {value}")
    if value > highest:
        raise ConfigError(f"{key} must be at most {highest}, not {value}")


def check_database_port(url: str) -> None:
    """Raises ConfigError if a postgresql:// URL has a port that is not a number. Never quotes the URL's password."""
    hosts = url.partition("://")[2].partition("/")[0].rpartition("@")[2].partition("?")[0]
    for host in hosts.split(","):
        _, colon, port = host.rpartition("]")[2].rpartition(":")
        if colon and not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
            raise ConfigError(f"database.url: the port {port!r} is not a number from 1 to 65535; PostgreSQL's is 5432")


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
    """Returns the choices as part of a sentence: '"a"', '"a" or "b"', '"a", "b" or "c"'."""
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
