"""HTTP/1.1, read strictly: from bytes to the head of a request and the chunks of its body. Does no input or output.

Theory of operation. A reverse proxy and this server must agree where each request begins and ends, and what it asks
for. Wherever they read a message differently, somebody can smuggle a request past the proxy's rules. So a message that
RFC 9112 allows to be read in more than one way is refused, and its connection is closed. Two readers look at each
head, and both must accept it:
- `_WHOLE` checks the raw bytes: every line ends with CRLF, no line is folded, there are no control characters, and the
  parts of the first line are separated by one space each. `check_head` does the same for the part of a head that has
  arrived so far, so nonsense is refused at once.
- llhttp (httptools) splits the header fields. It gets nothing but this head, and a new parser for each request, so it
  never decides where a message ends.
`_find_framing` then finds the length of the body, and `_find_target` checks the target and the Host header. A target in
absolute form is converted to origin form.

A body with a length is cut by that length alone. Chunks are decoded by llhttp, which does not tell where the last one
ended: a connection ends after a chunked body, and bytes after it are never taken for a request. The protocol never
changes: `Upgrade` is ignored, except for a WebSocket if the application serves them, and the preface of HTTP/2 is an
unknown version. HTTP/2 is only spoken if TLS has agreed on it (ALPN), so a proxy knows about it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import httptools

from homeserver import limits

Headers = list[tuple[bytes, bytes]]

HEAD_BYTES_MAX = limits.http.PATH_CHARACTERS_MAX + limits.http.HEADERS_BYTES_MAX
# What a length may have: a body of 18 digits takes longer than a connection lives.
_LENGTH_DIGITS_MAX = 18
_CONTROLS = bytes({*range(32), 127} - set(b"\t\r\n"))
# A whole head: the request line, and lines that begin with no space and contain no control characters but tabs.
_WHOLE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n"
    rb"(?:[^\x00-\x20\x7f][^\x00-\x08\x0a-\x1f\x7f]*\r\n)*\r\n"
)
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+;=:\[\]]*")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)(.*)")
# A request has one of each of these at most: two might be read differently.
_SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
CHUNKED = -1


class Refused(Exception):
    """The request is not safe to process; `status` is the status of the answer."""

    def __init__(self, status: int = 400) -> None:
        super().__init__(status)
        self.status = status


class Head:
    """The head of a request. Also what httptools calls while it parses one (`on_header`).

    length: of the body; CHUNKED if only its chunks tell. headers: in order, with lower-case names. fields: the same by
    name. is_last: the connection ends after the answer. expects_continue: the client waits for 100 Continue before it
    sends the body (RFC 9110, section 10.1.1). raw: the bytes of the head.
    """

    __slots__ = (
        "expects_continue", "fields", "headers", "is_last", "is_modern", "length", "method", "path", "query", "raw",
    )  # fmt: skip

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.headers: Headers = []
        self.fields: Mapping[bytes, bytes] = {}
        self.method = self.path = self.query = ""
        self.length = 0
        self.is_modern = True  # HTTP/1.1 rather than HTTP/1.0
        self.is_last = False
        self.expects_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header field. llhttp leaves the spaces behind a value."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    @property
    def connection_options(self) -> Sequence[bytes]:
        """What the client says about the connection, in lower case. Spec: RFC 9110, section 7.6.1"""
        if b"connection" not in self.fields:
            return ()
        values = b",".join([value for name, value in self.headers if name == b"connection"])
        return [option.strip(b" \t") for option in values.lower().split(b",")]

    @property
    def asks_for_websocket(self) -> bool:
        """Whether the client asks to go on with the WebSocket protocol. Spec: RFC 6455, section 4.1"""
        if self.method != "GET" or not self.is_modern or self.length:
            return False
        return self.fields.get(b"upgrade", b"").lower() == b"websocket" and b"upgrade" in self.connection_options


def parse_head(raw: bytes) -> Head:
    """Returns the head of a request. raw: up to and including the empty line. Raises Refused."""
    if len(raw) > HEAD_BYTES_MAX or raw.count(b"\n") > limits.http.HEADERS_MAX + 2:
        raise Refused(431)
    whole = _WHOLE.fullmatch(raw)
    if whole is None:
        raise Refused
    method, target, major, minor = whole.groups()
    if major != b"1" or minor not in b"01":
        raise Refused(505)
    if method == b"CONNECT":
        raise Refused(405)
    head = Head(raw)
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # of any kind: the connection decides whether to do as it asks
    except httptools.HttpParserInvalidMethodError as error:
        raise Refused(405) from error
    except httptools.HttpParserError as error:
        raise Refused from error
    head.method = method.decode("ascii")
    head.is_modern = minor == b"1"
    fields = head.fields = dict(head.headers)
    if len(fields) != len(head.headers):
        names = [name for name, _ in head.headers]
        if any(names.count(name) > 1 for name in _SINGLE):
            raise Refused
    head.is_last = not head.is_modern or b"close" in head.connection_options
    _find_framing(head, fields)
    _find_target(head, fields, target)
    return head


def check_head(data: bytes) -> None:
    """Checks the received part of a request's head, which may lack its end. Raises Refused.

    Spec: RFC 9112, sections 2.2 (line ends) and 5.2 (folding); RFC 9110, section 5.5 (controls)
    """
    lines = data.count(b"\r\n")
    # The last byte may be one half of a line end.
    if data.count(b"\n") != lines or data.count(b"\r") - data.endswith(b"\r") != lines:
        raise Refused
    if len(data.translate(None, _CONTROLS)) != len(data) or b"\r\n " in data or b"\r\n\t" in data:
        raise Refused
    if lines > limits.http.HEADERS_MAX + 1 or len(data) > HEAD_BYTES_MAX:
        raise Refused(431)


def _find_framing(head: Head, fields: Mapping[bytes, bytes]) -> None:
    """Sets the length of the body. Spec: RFC 9112, sections 6.1 and 6.3; RFC 9110, section 10.1.1"""
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is not None:
        if length is not None or not head.is_modern:
            raise Refused
        if coding.lower() != b"chunked":
            raise Refused(501)
        head.length = CHUNKED
        head.is_last = True
    elif length is not None:
        if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
            raise Refused
        head.length = int(length)
    if head.length and head.is_modern and b"expect" in fields:
        head.expects_continue = fields[b"expect"].lower() == b"100-continue"


def _find_target(head: Head, fields: Mapping[bytes, bytes], target: bytes) -> None:
    """Sets path and query. Spec: RFC 9112, section 3.2 (target, Host)"""
    host = fields.get(b"host")
    if host is None:
        if head.is_modern:
            raise Refused
    elif _HOST.fullmatch(host) is None:
        raise Refused
    if b"#" in target:
        raise Refused
    if not target.startswith(b"/") and not (target == b"*" and head.method == "OPTIONS"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or _HOST.fullmatch(absolute[1]) is None:
            raise Refused
        authority, target = absolute.groups()
        if not target.startswith(b"/"):
            target = b"/" + target
        head.headers = [*((name, value) for name, value in head.headers if name != b"host"), (b"host", authority)]
        head.fields = dict(head.headers)
    path, _, query = target.decode("ascii").partition("?")
    head.path = path
    head.query = query


class Chunks:
    """Decodes the chunks of a body. Also what httptools calls meanwhile (`on_…`).

    Each chunk costs as much as kilobytes do, so a body in tiny chunks is refused.
    """

    __slots__ = ("_bytes", "_count", "_fed", "_parser", "_parts", "is_done")

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        # A head of our own, whatever the client's was: the parser expects one.
        self._parser.feed_data(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        self._parts: list[bytes] = []
        self._count = self._bytes = self._fed = 0
        self.is_done = False

    def feed(self, data: bytes) -> bytes:
        """Returns the part of the body that `data` contains. Raises Refused for malformed chunks."""
        self._parts = []
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_done:  # otherwise the body was followed by something that nobody will read
                raise Refused from error
        part = b"".join(self._parts)
        self._bytes += len(part)
        self._fed += len(data)
        if self._count > limits.http.SMALL_CHUNKS_MAX + self._bytes // limits.http.CHUNK_BYTES_USUAL:
            raise Refused
        ignored_max = limits.http.TRAILER_BYTES_MAX + self._count * limits.http.CHUNK_EXTENSION_BYTES_USUAL
        if not self.is_done and self._fed - self._bytes > ignored_max:
            raise Refused
        return part

    def on_chunk_header(self) -> None:
        """Counts a chunk."""
        self._count += 1

    def on_body(self, data: bytes) -> None:
        """Takes a part of the body."""
        if not self.is_done:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """Notes that the last chunk and the trailer, which is ignored, have arrived."""
        self.is_done = True
