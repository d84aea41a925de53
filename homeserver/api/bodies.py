"""Bodies: limits what reading a body may cost, before and after we know who sent it.

Theory of operation. The cost of JSON depends on the number of its values, not on its length: 1 MiB of `[]` takes
400,000 objects and half a second, 1 MiB of text a millisecond. So the steps are, in this order:
1. The requester is identified from the head: by an access token, or by an X-Matrix header with a known key. A request
   without either is refused and its body is not read.
2. The body is read as bytes, within the limit of its operation and a budget (`budgets.py`) shared by all bodies.
3. The signature of another server is checked on the bytes as received.
4. The values are counted. A cheap count comes first; only if it is too high are strings left out of the count, because
   commas in a message are not values. Counts above a small number are charged to the sender's rate limit.
5. The body is decoded: on a thread if it is large, one at a time if it is very large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from homeserver import limits
from homeserver.api.routes import Operation, Request
from homeserver.errors import MatrixError
from homeserver.process.budgets import Hold
from homeserver.process.workers import Workers

# How much text is processed in one step, so that a thread that does it lets others run.
_SLICE = 1 << 18
# Shorter text has too few values to be worth counting.
_TINY = 1_000


def count_nodes(text: bytes) -> int:
    """Returns an upper bound for the number of values and keys in JSON text. Strings that look like JSON raise it."""
    return 1 + sum(
        part.count(b",") + part.count(b"[") + part.count(b"{") + part.count(b":")
        for part in (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
    )


def count_nodes_exactly(text: bytes) -> int:
    """Does the same as `count_nodes`, without the contents of strings. Stops counting where the text is not JSON."""
    nodes, in_string, carried = 1, 0, b""
    for at in range(0, len(text), _SLICE):
        part = (carried + text[at : at + _SLICE]).replace(b"\\\\", b"")
        carried = b"\\" if part.endswith(b"\\") else b""  # it escapes the next character
        pieces = part[: len(part) - len(carried)].replace(b'\\"', b"").split(b'"')
        nodes += count_nodes(b"".join(pieces[in_string::2])) - 1
        in_string = (in_string + len(pieces) - 1) % 2
    return nodes


def is_large(text: bytes, nodes: int) -> bool:
    """Returns whether decoding JSON text with this many values would block the event loop for long."""
    return nodes > limits.http.INLINE_JSON_NODES_MAX or len(text) > limits.http.INLINE_BODY_BYTES_MAX


class Body(msgspec.Struct):
    """A body that has been read. nodes: see `count_nodes`. `decoder` turns its text into the content."""

    text: bytes
    nodes: int
    decoder: Callable[[bytes], Any]
    _content: Any = None
    _is_decoded: bool = False

    @property
    def is_large(self) -> bool:
        """Whether work on the whole body would block the event loop for long."""
        return is_large(self.text, self.nodes)

    async def decode(self, workers: Workers) -> Any:
        """Returns the content. Raises M_NOT_JSON."""
        if not self._is_decoded:
            decode = self.decoder
            self._content = await workers.run(decode, self.text) if self.is_large else decode(self.text)
            self._is_decoded = True
        return self._content


async def read_body(
    operation: Operation, request: Request, workers: Workers, hold: Hold | None, *, is_anonymous: bool
) -> Body:
    """Returns the body of a request, within the limit for its length. Raises M_TOO_LARGE, or 429 if memory is short."""
    bytes_max = operation.max_body_bytes
    if is_anonymous:
        bytes_max = min(bytes_max, limits.http.ANONYMOUS_BODY_BYTES_MAX)
    text = await request.body(bytes_max, hold)
    nodes = 0
    if len(text) > limits.http.INLINE_BODY_BYTES_MAX:
        nodes = await workers.run(count_nodes, text)
    elif len(text) > _TINY:
        nodes = count_nodes(text)
    return Body(text, nodes, operation.decode)


async def check_nodes(operation: Operation, body: Body, workers: Workers, *, is_anonymous: bool) -> None:
    """Raises M_TOO_LARGE if the body has more values than its operation accepts."""
    nodes_max = limits.http.ANONYMOUS_JSON_NODES_MAX if is_anonymous else operation.max_json_nodes
    if body.nodes > nodes_max:
        body.nodes = await workers.run(count_nodes_exactly, body.text)
        if body.nodes > nodes_max:
            raise MatrixError(413, "M_TOO_LARGE", f"The body of this request may contain at most {nodes_max} values.")
