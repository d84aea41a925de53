"""Identifiers and their grammar. Spec: appendices/#identifier-grammar"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import NewType, cast

ServerName = NewType("ServerName", str)
UserID = NewType("UserID", str)
RoomID = NewType("RoomID", str)
EventID = NewType("EventID", str)
RoomAlias = NewType("RoomAlias", str)

ID_BYTES_MAX = 255
"""The longest identifier, including its sigil and domain."""


class InvalidIdentifier(ValueError):
    """The value is not an identifier of the expected kind; the message says why in one sentence."""


_DNS_NAME = re.compile(r"([A-Za-z0-9.-]{1,255})(?::([0-9]{1,5}))?", re.ASCII)
_IPV4_SHAPE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", re.ASCII)
_IPV6_NAME = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{1,5}))?", re.ASCII)
_NEW_LOCALPART = re.compile(r"[a-z0-9._=\-/+]+", re.ASCII)
_HASH_ID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_PORT_MAX = 65535


def parse_server_name(value: object) -> ServerName:
    """Returns the server name: a DNS name, an IPv4 literal or a bracketed IPv6 literal, with or without a port."""
    if not isinstance(value, str):
        raise InvalidIdentifier("A server name must be a string.")
    match = _DNS_NAME.fullmatch(value)
    if match is not None:
        host, port = match.groups()
        if _IPV4_SHAPE.fullmatch(host) is not None and any(int(part) > 255 for part in host.split(".")):
            raise InvalidIdentifier("The IPv4 literal of a server name is out of range.")
    else:
        match = _IPV6_NAME.fullmatch(value)
        if match is None:
            raise InvalidIdentifier("The value is not a server name.")
        host, port = match.groups()
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise InvalidIdentifier("The IPv6 literal of a server name is malformed.") from None
    if port is not None and int(port) > _PORT_MAX:
        raise InvalidIdentifier("The port of a server name is out of range.")
    if len(value) > ID_BYTES_MAX:
        raise InvalidIdentifier("A server name must not exceed 255 bytes.")
    return ServerName(value)


def parse_user_id(value: object) -> UserID:
    """Returns the user ID. Historical localparts are allowed: any code points but ":" and NUL, even none at all."""
    _parse_with_domain(value, "@", "user ID")
    return UserID(value)  # type: ignore[arg-type]


def parse_user_ids(values: Collection[str]) -> Collection[UserID]:
    """Returns the user IDs. Does the same as `parse_user_id` with each, but parses the name of each server once."""
    domains: set[str] = set()
    for value in values:
        localpart, _, domain = value.partition(":")
        if (
            domain not in domains
            or localpart[:1] != "@"
            or "\0" in localpart
            or not value.isascii()
            or len(value) > ID_BYTES_MAX
        ):
            parse_user_id(value)
            domains.add(domain)
    return cast(Collection[UserID], values)


def parse_room_alias(value: object) -> RoomAlias:
    """Returns the room alias, "#localpart:domain"."""
    _parse_with_domain(value, "#", "room alias")
    return RoomAlias(value)  # type: ignore[arg-type]


def parse_room_id(value: object) -> RoomID:
    """Returns the room ID of any room version: "!opaque:domain", or from version 12 "!" and the create event's hash."""
    text = _parse_sigil(value, "!", "room ID")
    if ":" in text:
        _parse_with_domain(value, "!", "room ID")
    elif _HASH_ID.fullmatch(text, 1) is None:
        raise InvalidIdentifier("A room ID without a domain must be the hash of a create event.")
    return RoomID(text)


def parse_event_id(value: object) -> EventID:
    """Returns the event ID of any room version. It is opaque: "$" and at least one code point."""
    text = _parse_sigil(value, "$", "event ID")
    if len(text) < 2 or "\0" in text:
        raise InvalidIdentifier("An event ID must have an opaque part without NUL.")
    return EventID(text)


def is_valid_localpart(localpart: str) -> bool:
    """Returns whether a new user may have this localpart. This is the current grammar, not the historical one."""
    return _NEW_LOCALPART.fullmatch(localpart) is not None


def server_name_of(identifier: str) -> ServerName:
    """Returns the domain of an identifier: everything after the first ":". Does not check the identifier's grammar."""
    _, colon, domain = identifier.partition(":")
    if not colon or not domain:
        raise InvalidIdentifier("The identifier has no domain.")
    return ServerName(domain)


def localpart_of(identifier: str) -> str:
    """Returns the part between the sigil and the first ":"."""
    return identifier[1:].partition(":")[0]


def _parse_sigil(value: object, sigil: str, kind: str) -> str:
    if not isinstance(value, str):
        raise InvalidIdentifier(f"A {kind} must be a string.")
    if not value.startswith(sigil):
        raise InvalidIdentifier(f'A {kind} must begin with "{sigil}".')
    if not fits(value):
        raise InvalidIdentifier(f"A {kind} must not exceed 255 bytes of UTF-8.")
    return value


def _parse_with_domain(value: object, sigil: str, kind: str) -> None:
    localpart, colon, domain = _parse_sigil(value, sigil, kind).partition(":")
    if not colon:
        raise InvalidIdentifier(f"A {kind} must have a domain.")
    if "\0" in localpart:
        raise InvalidIdentifier(f"A {kind} must not contain NUL.")
    parse_server_name(domain)


def fits(value: str) -> bool:
    """Returns whether the text is at most 255 bytes of UTF-8. A lone surrogate has no UTF-8 and does not fit."""
    if value.isascii():
        return len(value) <= ID_BYTES_MAX
    try:
        return len(value.encode()) <= ID_BYTES_MAX
    except UnicodeEncodeError:
        return False
