"""Duration and size of films and recordings in Matroska and WebM files, from their headers.

A file is a tree of elements, each with an ID, a length and a content. Spec: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

_EBML, _SEGMENT, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B
_TIMESTAMP_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK_ENTRY, _VIDEO, _WIDTH, _HEIGHT = 0xAE, 0xE0, 0xB0, 0xBA
_CLUSTER = 0x1F43B675

# A file has a few elements before its first cluster, and a handful of tracks with a dozen parts each.
_ELEMENTS_MAX = 200
_NANOSECONDS_DEFAULT = 1_000_000

Span = tuple[int, int]
"""Where the content of an element begins and ends."""


def read_facts(file: BinaryIO) -> tuple[float, int, int] | None:
    """Returns seconds, width and height, each 0 if unknown; None if the file is not in this format.

    Raises ValueError or struct.error for a broken file.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(4) != _EBML.to_bytes(4):
        return None
    top = _elements(file, (0, end))
    segment = next((span for element, span in top if element == _SEGMENT), (0, 0))
    found: dict[int, Span] = {}
    for element, span in _elements(file, segment):
        if element == _CLUSTER:
            break  # what follows is the film itself
        found.setdefault(element, span)
    seconds = _read_duration(file, found[_INFO]) if _INFO in found else 0.0
    return (seconds, *(_read_size(file, found[_TRACKS]) if _TRACKS in found else (0, 0)))


def _read_duration(file: BinaryIO, info: Span) -> float:
    scale, duration = _NANOSECONDS_DEFAULT, 0.0
    for element, span in _elements(file, info):
        if element == _TIMESTAMP_SCALE:
            scale = _read_number(file, span)
        elif element == _DURATION:
            content = _read(file, span)
            (duration,) = struct.unpack(">f" if len(content) == 4 else ">d", content)
    return duration * scale / 1e9


def _read_size(file: BinaryIO, tracks: Span) -> tuple[int, int]:
    """Returns width and height of the first track with a picture, (0, 0) if there is none."""
    for element, track in _elements(file, tracks):
        for part, video in _elements(file, track) if element == _TRACK_ENTRY else ():
            if part == _VIDEO:
                found = {each: _read_number(file, span) for each, span in _elements(file, video) if each in _SIDES}
                return found.get(_WIDTH, 0), found.get(_HEIGHT, 0)
    return 0, 0


_SIDES = (_WIDTH, _HEIGHT)


def _elements(file: BinaryIO, within: Span) -> Iterator[tuple[int, Span]]:
    """Yields the elements in a span, each with the span of its content."""
    at, end = within
    for _ in range(_ELEMENTS_MAX):
        if at >= end:
            return
        file.seek(at)
        header = file.read(12)
        element, id_bytes = _read_variable(header, keeps_marker=True)
        length, length_bytes = _read_variable(header[id_bytes:], keeps_marker=False)
        begin = at + id_bytes + length_bytes
        is_unknown = length == (1 << 7 * length_bytes) - 1  # up to the end, as in a live recording
        at = end if is_unknown else min(begin + length, end)
        yield element, (begin, at)


def _read_variable(data: bytes, *, keeps_marker: bool) -> tuple[int, int]:
    """Returns a number of variable length, and how many bytes it takes. Spec: RFC 8794, section 4"""
    if not data or not data[0]:
        raise ValueError("an element without an ID or length")
    size = 9 - data[0].bit_length()
    if len(data) < size:
        raise ValueError("the file ends within an element")
    number = int.from_bytes(data[:size])
    return number if keeps_marker else number & ((1 << 7 * size) - 1), size


def _read_number(file: BinaryIO, span: Span) -> int:
    return int.from_bytes(_read(file, span))


def _read(file: BinaryIO, span: Span) -> bytes:
    begin, end = span
    if end - begin > 8:
        raise ValueError("a number of more than eight bytes")
    file.seek(begin)
    return file.read(end - begin)
