"""Bodies: what reading one may cost, before it is known who has sent it, and after.

Theory of operation
What JSON costs is decided by the number of its values, not by its length: 1 MiB of `[]` takes 400,000 objects and half
a second, 1 MiB of text a millisecond. So, in this order:
1. Who asks is found out from the head: an access token, or an X-Matrix header with a key that is known. A request
   without them is refused with its body unread.
2. The body is read as bytes, within the limit of its operation and a budget (`budgets.py`) that all bodies share.
3. The signature of another server is checked on the bytes as they came.
4. The values are counted. Text without its strings is looked at only if there seem to be too many: commas in a message
   are no values. What goes beyond a small number is charged to who has sent it, in the rate limits.
5. It is decoded, on a thread if it is large; one at a time if it is very large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from homeserver import limits
from homeserver.api.routes import Operation, Request
from homeserver.errors import MatrixError
from homeserver.process.budgets import Hold
from homeserver.process.workers import Workers

# Of the text that is looked at in one step, so that a thread which does so lets others go on.
_SLICE = 1 << 18
# A shorter text has too few values to be worth counting.
_TINY = 1_000


def count_nodes(text: bytes) -> int:
    """At least as many as there are values and keys in JSON text; more if its strings look like JSON."""
    return 1 + sum(
        part.count(b",") + part.count(b"[") + part.count(b"{") + part.count(b":")
        for part in (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
    )


def count_nodes_exactly(text: bytes) -> int:
    """As `count_nodes`, without what is in strings. Text that is no JSON is counted up to where it is none."""
    nodes, in_string, carried = 1, 0, b""
    for at in range(0, len(text), _SLICE):
        part = (carried + text[at : at + _SLICE]).replace(b"\\\\", b"")
        carried = b"\\" if part.endswith(b"\\") else b""  # it escapes what comes next
        pieces = part[: len(part) - len(carried)].replace(b'\\"', b"").split(b'"')
        nodes += count_nodes(b"".join(pieces[in_string::2])) - 1
        in_string = (in_string + len(pieces) - 1) % 2
    return nodes


def is_large(text: bytes, nodes: int) -> bool:
    """Whether decoding JSON text with so many values would hold up the event loop."""
    return nodes > limits.http.INLINE_JSON_NODES_MAX or len(text) > limits.http.INLINE_BODY_BYTES_MAX


@dataclass(slots=True)
class Body:
    """A body that has been read. nodes: see `count_nodes`; `decoder` makes its content of the text."""

    text: bytes
    nodes: int
    decoder: Callable[[bytes], Any]
    _content: Any = None
    _is_decoded: bool = False

    @property
    def is_large(self) -> bool:
        """Whether work on all of it would hold up the event loop."""
        return is_large(self.text, self.nodes)

    async def decode(self, workers: Workers) -> Any:
        """The content. Raises M_NOT_JSON."""
        if not self._is_decoded:
            decode = self.decoder
            self._content = await workers.run(decode, self.text) if self.is_large else decode(self.text)
            self._is_decoded = True
        return self._content


async def read_body(
    operation: Operation, request: Request, workers: Workers, hold: Hold | None, *, is_anonymous: bool
) -> Body:
    """The body of a request, within the limit for its length. Raises M_TOO_LARGE, and 429 if the budget is used up."""
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
    """Raises M_TOO_LARGE if the body has more values than its operation takes."""
    nodes_max = limits.http.ANONYMOUS_JSON_NODES_MAX if is_anonymous else operation.max_json_nodes
    if body.nodes > nodes_max:
        body.nodes = await workers.run(count_nodes_exactly, body.text)
        if body.nodes > nodes_max:
            raise MatrixError(413, "M_TOO_LARGE", f"The body of this request may hold {nodes_max} values at most.")
