"""Server ACLs: which servers may take part in a room. Spec: client-server-api/#mroomserver_acl

Anyone who may send state to the room wrote the content, so no value in it can be trusted to have the right type.
Matching takes time proportional to the lengths of the pattern and the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_PORT = re.compile(r":[0-9]*\Z", re.ASCII)
_IPV4_SHAPE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", re.ASCII)


class _Globs(msgspec.Struct, frozen=True):
    """Patterns in lower case, grouped by how expensive they are to match."""

    literals: frozenset[str]
    suffixes: tuple[str, ...]
    """The part after the `*`, for patterns like `*.example.org`."""
    others: tuple[str, ...]

    def match(self, host: str) -> bool:
        return (
            host in self.literals
            or host.endswith(self.suffixes)
            or any(glob_matches(pattern, host) for pattern in self.others)
        )


class ServerAcl(msgspec.Struct, frozen=True):
    """A compiled `m.room.server_acl`. It is immutable, so it can be cached by event ID."""

    allow_ip_literals: bool
    allow: _Globs
    deny: _Globs

    def is_allowed(self, server_name: str) -> bool:
        """Returns whether the server may take part. Ignores the port, and case."""
        host = _PORT.sub("", server_name).lower()
        # 2. If the server name is an IP address (v4 or v6) literal, and `allow_ip_literals` is present and `false`,
        #    deny.
        if not self.allow_ip_literals and _is_ip_literal(host):
            return False
        # 3. If the server name matches an entry in the `deny` list, deny.
        if self.deny.match(host):
            return False
        # 4. If the server name matches an entry in the `allow` list, allow.  5. Otherwise, deny.
        return self.allow.match(host)


def compile_acl(acl_content: object) -> ServerAcl:
    """Returns the ACL for the content of an `m.room.server_acl` event. Never raises: ignores values of a wrong type."""
    content: Mapping[object, object] = acl_content if isinstance(acl_content, dict) else {}
    return ServerAcl(
        # "Defaults to `true` if missing or otherwise not a boolean."
        allow_ip_literals=content.get("allow_ip_literals") is not False,
        allow=_compile_globs(content.get("allow")),
        deny=_compile_globs(content.get("deny")),
    )


def is_allowed(server_name: str, acl_content: object | None) -> bool:
    """Returns whether a server may take part. `acl_content` is None if the room has no `m.room.server_acl`."""
    # 1. If there is no `m.room.server_acl` event in the room state, allow.
    return acl_content is None or compile_acl(acl_content).is_allowed(server_name)


def glob_matches(pattern: str, text: str) -> bool:
    """Returns whether the whole text matches: `*` is any run of characters, `?` exactly one. Case matters.

    Spec: appendices/#glob-style-matching. Each piece between two `*` is placed at the first position where it matches,
    so no backtracking is needed.
    """
    first, *middle = pattern.split("*")
    if not middle:
        return len(first) == len(text) and _fits(first, text, 0)
    last = middle.pop()
    end = len(text) - len(last)
    if len(first) > end or not _fits(first, text, 0) or not _fits(last, text, end):
        return False
    at = len(first)
    for piece in middle:
        at = _find(piece, text, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _compile_globs(patterns: object) -> _Globs:
    literals, suffixes, others = set(), set(), set()
    for pattern in patterns if isinstance(patterns, list) else ():
        if not isinstance(pattern, str):
            continue
        lowered = pattern.lower()
        rest = lowered.lstrip("*")
        if "*" in rest or "?" in rest:
            others.add(lowered)
        elif rest != lowered:
            suffixes.add(rest)
        else:
            literals.add(lowered)
    return _Globs(frozenset(literals), tuple(sorted(suffixes)), tuple(sorted(others)))


def _is_ip_literal(host: str) -> bool:
    return host.startswith("[") or _IPV4_SHAPE.fullmatch(host) is not None


def _fits(piece: str, text: str, at: int) -> bool:
    if "?" not in piece:
        return text.startswith(piece, at)
    return all(want in ("?", got) for want, got in zip(piece, text[at : at + len(piece)], strict=True))


def _find(piece: str, text: str, start: int, end: int) -> int:
    if "?" not in piece:
        return text.find(piece, start, end)
    return next((at for at in range(start, end - len(piece) + 1) if _fits(piece, text, at)), -1)
