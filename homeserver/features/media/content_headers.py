"""The headers that media is served with: its type, its name, and what a browser may do with it.

Spec: client-server-api/#content-repository, #serving-inline-content; Content-Disposition is RFC 6266 with RFC 8187.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, unquote_to_bytes

from homeserver.limits import MEDIA_CONTENT_TYPE_CHARACTERS_MAX, MEDIA_FILENAME_BYTES_MAX

OCTET_STREAM = "application/octet-stream"

INLINE_TYPES = frozenset(
    {
        "text/css",
        "text/plain",
        "text/csv",
        "application/json",
        "application/ld+json",
        "image/jpeg",
        "image/gif",
        "image/png",
        "image/apng",
        "image/webp",
        "image/avif",
        "video/mp4",
        "video/webm",
        "video/ogg",
        "video/quicktime",
        "audio/mp4",
        "audio/webm",
        "audio/aac",
        "audio/mpeg",
        "audio/ogg",
        "audio/wave",
        "audio/wav",
        "audio/x-wav",
        "audio/x-pn-wav",
        "audio/flac",
        "audio/x-flac",
    }
)
"""Types that browsers display without running any of it; all others are `attachment`. Spec: #serving-inline-content"""

SAFETY_HEADERS = {
    # The policy that the spec recommends, word for word.
    "content-security-policy": (
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf;"
        " style-src 'unsafe-inline'; object-src 'self';"
    ),
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_CONTENT_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN})[ \t]*((?:;[ \t]*[\x20-\x7e\t]*)?)", re.ASCII)
_PARAMETER = re.compile(
    rf'[ \t]*;[ \t]*({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")', re.ASCII | re.DOTALL
)
_PLAIN_FILENAME = re.compile(rf"{_TOKEN}", re.ASCII)
_QUOTABLE_FILENAME = re.compile(r"[\x20-\x7e]+", re.ASCII)
_EXTENDED_VALUE = re.compile(r"(utf-8|iso-8859-1)'[A-Za-z0-9-]*'([A-Za-z0-9!#$&+.^_`|~%-]*)", re.ASCII | re.IGNORECASE)


def clean_content_type(value: str | None) -> str:
    """Returns the content type to store: the given one if well-formed and short, else application/octet-stream."""
    if value is None or len(value) > MEDIA_CONTENT_TYPE_CHARACTERS_MAX:
        return OCTET_STREAM
    value = value.strip(" \t")
    return value if _CONTENT_TYPE.fullmatch(value) else OCTET_STREAM


def bare_type(content_type: str) -> str:
    """Returns the type without its parameters, in lower case: `text/plain`."""
    return content_type.partition(";")[0].strip().lower()


def content_disposition(content_type: str, filename: str | None) -> str:
    """Returns `inline` if the spec's list allows it, else `attachment`; plus the file name if there is one."""
    kind = "inline" if bare_type(content_type) in INLINE_TYPES else "attachment"
    return f"{kind}; {_filename_parameter(filename)}" if filename else kind


def stored_headers(content_type: str) -> dict[str, str]:
    """Returns the headers with which an object store serves the content to clients that are redirected to it.

    Files share content, so they contain no name, and no type that a browser would run.
    """
    kind = bare_type(content_type)
    if kind in INLINE_TYPES:
        return {"Content-Type": kind, "Content-Disposition": "inline"}
    return {"Content-Type": OCTET_STREAM, "Content-Disposition": "attachment"}


def _filename_parameter(filename: str) -> str:
    if _PLAIN_FILENAME.fullmatch(filename):
        return f"filename={filename}"
    if _QUOTABLE_FILENAME.fullmatch(filename) and "%" not in filename:
        # Some clients decode percent signs inside quotes, so a name with one uses the extended form.
        escaped = filename.replace("\\", "\\\\").replace('"', '\\"')
        return f'filename="{escaped}"'
    return f"filename*=utf-8''{quote(filename, safe='')}"


def read_filename(disposition: str | None) -> str | None:
    """Returns the file name in a Content-Disposition header, `filename*` before `filename`. None if none is usable."""
    if disposition is None:
        return None
    plain: str | None = None
    for name, value in _parameters(disposition):
        if name == "filename*":
            extended = _EXTENDED_VALUE.fullmatch(value)
            if extended is not None:
                decoded = unquote_to_bytes(extended[2]).decode(extended[1].lower(), "replace")
                if (usable := clean_filename(decoded)) is not None:
                    return usable
        elif name == "filename" and plain is None:
            plain = clean_filename(_as_utf8(value))
    return plain


def _parameters(header: str) -> Iterator[tuple[str, str]]:
    """Yields the parameters after the first word: (lower-case name, unquoted value). Stops at malformed ones."""
    at = len(header) - len(header.lstrip(" \t"))
    first = re.compile(_TOKEN, re.ASCII).match(header, at)
    at = first.end() if first else at
    while (found := _PARAMETER.match(header, at)) is not None:
        name, token, quoted = found.groups()
        yield name.lower(), token if token is not None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        at = found.end()


def _as_utf8(value: str) -> str:
    """Decodes UTF-8. Header values arrive as latin-1, but some servers put raw UTF-8 into a quoted file name."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def clean_filename(value: str) -> str | None:
    """Returns the name to store; None if it is empty, too long, or has characters that databases cannot store."""
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        return None
    return value if 0 < size <= MEDIA_FILENAME_BYTES_MAX and "\0" not in value else None


def header_parameter(header: str, name: str) -> str | None:
    """Returns one parameter of a header such as Content-Type, unquoted; None if it is missing."""
    bare, semicolon, rest = header.partition(";")
    if not semicolon:
        return None
    return next((value for found, value in _parameters(f"{'x' if bare else ''};{rest}") if found == name), None)
