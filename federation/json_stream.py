"""Splits large JSON responses while they arrive, and hands out the elements of their arrays one at a time.

Theory of operation. A response such as that to `/state` is one object with a few members. One or two of these are
arrays with up to a hundred thousand elements. `Splitter` is fed the bytes as they arrive and finds where each element
begins and ends: it counts brackets and steps over strings with regular expressions. It decodes nothing. An element is
handed out as its bytes, and `canonical_json.decode` decides later whether they are JSON.

States: `_At` says what must come next in the object. `_depth`, `_in_string` and `_looked` hold the position inside a
value of which only the beginning has arrived. Anything that no state allows raises NotCanonical, and the splitter
cannot be used any more.

Memory: the chunk that was fed last, and the beginning of one element or member. A value larger than its limit is
stepped over and not kept. Time: a few steps for each element and for each run of brackets, none for each byte.

    splitter = Splitter({"pdus", "auth_chain"})
    for chunk in body:
        for name, element in splitter.feed(chunk): ...
    members = splitter.close()
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from enum import Enum, auto
from typing import Any

from homeserver.federation.canonical_json import NotCanonical, decode

MEMBERS_MAX = 200
"""The limit for members of the outermost object. The spec names about a dozen."""

DEPTH_MAX = 5_000
"""The nesting at which the whole text is refused. Less deep elements are handed out, even if too deep for an event."""

_KEY_BYTES_MAX = 256
_SCALAR_BYTES_MAX = 1_024
"""Longer than any number that has canonical JSON."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_WRAPPER = re.compile(rb"\[[ \t\r\n]*+\d{1,3}[ \t\r\n]*+,")
# Possessive quantifiers only follow a single character or class. After a group, several releases of Python 3.11 match
# what a failed iteration had begun (Debian 12 has one of them). Atomic groups do not have that fault.
_STRING_TEXT = rb'[^"\\]*+(?>(?:\\.[^"\\]*+)*)'
_STRING = re.compile(rb'"%b"' % _STRING_TEXT, re.DOTALL)
_STRING_REST = re.compile(_STRING_TEXT, re.DOTALL)
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
_OPENING = re.compile(rb"[\[{]++")
_CLOSING = re.compile(rb"[\]}]++")


def _nested(levels: int) -> bytes:
    """Returns a pattern for a string, or for brackets nested at most this deep. Matching it never backtracks."""
    string = rb'"%b"' % _STRING_TEXT
    pattern = string
    for _ in range(levels):
        pattern = rb'(?:%b|[\[{](?>(?:[^"\[\]{}]++|%b)*)[\]}])' % (string, pattern)
    return pattern


# The contents of a value, including everything that opens and closes within this piece of the text.
_INSIDE = re.compile(rb'(?>(?:[^"\[\]{}]++|%b)*)' % _nested(3), re.DOTALL)
# A whole element with the comma after it. Nearly all elements match, and take one step instead of twenty.
_USUAL = re.compile(rb"(%b)[ \t\r\n]*+,[ \t\r\n]*+" % _nested(5), re.DOTALL)


class _At(Enum):
    START = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    MEMBER = auto()
    AFTER_MEMBER = auto()
    FIRST_ELEMENT = auto()
    ELEMENT = auto()
    AFTER_ELEMENT = auto()
    WRAPPER_END = auto()
    END = auto()


class Splitter:
    """Splits one JSON object, or an array of a status and an object, which version 1 of some endpoints returns.

    arrays: the members whose elements are handed out. members: those that `close` returns; all others are skipped.
    element_bytes_max: the limit for one element or member; for a larger element None is handed out.
    """

    def __init__(
        self, arrays: Collection[str], members: Collection[str] = (), *, element_bytes_max: int = 256 * 1024
    ) -> None:
        self._arrays = arrays
        self._wanted = members
        self._element_bytes_max = element_bytes_max
        self._members: dict[str, bytes] = {}
        self._seen: set[str] = set()
        self._count = 0
        self._name = ""
        self._at = _At.START
        self._is_wrapped = False
        self._buffer = bytearray()
        # Within the value that is being read: how far it was read, and what is open at that point.
        self._looked = 0
        self._depth = 0
        self._in_string = False
        self._is_skipped = False

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes | None]]:
        """Yields the elements that are complete now, as (name of the array, bytes). Raises NotCanonical.

        Exhaust the iterator before feeding more.
        """
        self._buffer += data
        position = 0
        while True:
            if not self._depth and not self._in_string and not self._looked:
                match = _SPACE.match(self._buffer, position)
                assert match is not None
                position = match.end()
                if self._at is _At.ELEMENT:
                    while match := _USUAL.match(self._buffer, position):
                        yield self._name, match[1] if len(match[1]) <= self._element_bytes_max else None
                        position = match.end()
            if position == len(self._buffer) and not self._looked:
                break
            if self._at in (_At.MEMBER, _At.ELEMENT, _At.FIRST_ELEMENT):
                end, value = self._step(position)
            else:
                end, value = self._punctuation(position), None
            if end is None:
                break
            if value is not None:
                yield self._name, value or None
            position = end
        del self._buffer[:position]
        if self._is_skipped:
            del self._buffer[: self._looked]
            self._looked = 0

    def close(self) -> dict[str, Any]:
        """Returns the wanted members. Raises NotCanonical if the text is incomplete."""
        if self._at is not _At.END or self._buffer.strip():
            raise NotCanonical("Not JSON: the text ends too early.")
        return self.members()

    def members(self) -> dict[str, Any]:
        """Returns the wanted members that have arrived so far. Raises NotCanonical."""
        return {name: decode(value) for name, value in self._members.items()}

    def _punctuation(self, position: int) -> int | None:
        """Reads the text between values. Returns the new position, or None if more bytes are needed."""
        byte = bytes(self._buffer[position : position + 1])
        match self._at:
            case _At.START:
                return self._start(position, byte)
            case _At.FIRST_KEY | _At.KEY:
                if byte == b"}" and self._at is _At.FIRST_KEY:
                    return self._end_object(position)
                return self._key(position)
            case _At.COLON if byte == b":":
                self._at = _At.MEMBER
            case _At.AFTER_MEMBER if byte == b",":
                self._at = _At.KEY
            case _At.AFTER_MEMBER if byte == b"}":
                return self._end_object(position)
            case _At.AFTER_ELEMENT if byte == b",":
                self._at = _At.ELEMENT
            case _At.AFTER_ELEMENT if byte == b"]":
                self._at = _At.AFTER_MEMBER
            case _At.WRAPPER_END if byte == b"]":
                self._at = _At.END
            case _:
                raise NotCanonical(f"Not JSON: unexpected {byte!r}.")
        return position + 1

    def _start(self, position: int, byte: bytes) -> int | None:
        if byte == b"{":
            self._at = _At.FIRST_KEY
            return position + 1
        match = _WRAPPER.match(self._buffer, position)
        if match is not None and not self._is_wrapped:
            self._is_wrapped = True
            return match.end()
        if byte == b"[" and len(self._buffer) - position < _SCALAR_BYTES_MAX and not self._is_wrapped:
            return None
        raise NotCanonical("Not a JSON object.")

    def _end_object(self, position: int) -> int:
        self._at = _At.WRAPPER_END if self._is_wrapped else _At.END
        return position + 1

    def _key(self, position: int) -> int | None:
        match = _STRING.match(self._buffer, position)
        if match is None:
            if self._buffer[position] != 0x22 or len(self._buffer) - position > _KEY_BYTES_MAX:
                raise NotCanonical("Not JSON: a key is missing or too long.")
            return None
        if match.end() - position > _KEY_BYTES_MAX:
            raise NotCanonical("A key is too long.")
        self._count += 1
        if self._count > MEMBERS_MAX:
            raise NotCanonical(f"The object has more than {MEMBERS_MAX} members.")
        self._name = str(decode(match[0]))
        if self._name in self._seen:
            raise NotCanonical("An object has the same key twice.")
        self._seen.add(self._name)
        self._at = _At.COLON
        return match.end()

    def _step(self, position: int) -> tuple[int | None, bytes | None]:
        """Reads on in a value. Returns its end, and the bytes if it is an element.

        The bytes are b"" if the element is too large. The end is None if more bytes are needed.
        """
        byte = self._buffer[position : position + 1]
        if not self._looked and not self._depth and not self._in_string:
            if self._at is _At.MEMBER and byte == b"[" and self._name in self._arrays:
                self._at = _At.FIRST_ELEMENT
                return position + 1, None
            if self._at is _At.FIRST_ELEMENT and byte == b"]":
                self._at = _At.AFTER_MEMBER
                return position + 1, None
        end = self._find_end(position)
        if end is None:
            self._is_skipped = self._is_skipped or len(self._buffer) - position > self._element_bytes_max
            return None, None
        is_kept = not self._is_skipped and end - position <= self._element_bytes_max
        is_element = self._at is not _At.MEMBER
        value = bytes(self._buffer[position:end]) if is_kept and (is_element or self._name in self._wanted) else b""
        if not is_element and value:
            self._members[self._name] = value
        self._at = _At.AFTER_ELEMENT if is_element else _At.AFTER_MEMBER
        self._looked, self._is_skipped = 0, False
        return end, value if is_element else None

    def _find_end(self, position: int) -> int | None:
        """Returns the end of the value that begins at the position; None if it has not arrived, then sets `_looked`."""
        buffer, at = self._buffer, position + self._looked
        while True:
            if self._in_string:
                match = _STRING_REST.match(buffer, at)
                assert match is not None
                at = match.end()
                if buffer[at : at + 1] != b'"':
                    break  # the end, or a backslash whose character is still to come
                at += 1
                self._in_string = False
            elif self._depth:
                match = _INSIDE.match(buffer, at)
                assert match is not None
                at = match.end()
                byte = buffer[at : at + 1]
                if not byte:
                    break
                if byte == b'"':
                    at += 1
                    self._in_string = True
                    continue
                at = self._brackets(at)
            elif buffer[at] == 0x22:
                at += 1
                self._in_string = True
                continue
            elif _OPENING.match(buffer, at):
                at = self._brackets(at)
                continue
            else:
                match = _SCALAR.match(buffer, at)
                if match is None:
                    raise NotCanonical(f"Not JSON: unexpected {bytes(buffer[at : at + 1])!r}.")
                if match.end() < len(buffer):
                    return match.end()
                if match.end() - at > _SCALAR_BYTES_MAX:
                    raise NotCanonical("Not JSON: a number is too long.")
                return None
            if not self._depth and not self._in_string:
                return at
        self._looked = at - position
        return None

    def _brackets(self, at: int) -> int:
        """Steps over a run of brackets, but not beyond the last one of the value."""
        match = _OPENING.match(self._buffer, at)
        if match is not None:
            self._depth += match.end() - at
            if self._depth > DEPTH_MAX:
                raise NotCanonical(f"Nested deeper than {DEPTH_MAX}.")
            return match.end()
        match = _CLOSING.match(self._buffer, at)
        assert match is not None
        closed = min(match.end() - at, self._depth)
        self._depth -= closed
        return at + closed
