"""Routes: operations as typed functions. A handler's signature is its contract, compiled once when it is registered.

Some parameters have a meaning by their name: `hs` (first), `requester`, `origin`, `body`, `query`, `request`. Every
other parameter is a path parameter. `arguments` reads them and `homeserver.http.asgi` serves them; nothing here depends
on a web framework. Spec: client-server-api/#api-standards
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import trio

from homeserver import limits
from homeserver.api.arguments import Plan, compile_plan, decode_json
from homeserver.errors import MatrixError, invalid_param
from homeserver.process.budgets import Hold

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


class Empty(msgspec.Struct, frozen=True):
    """The response `{}`."""


class Response(msgspec.Struct, frozen=True):
    """A response that is more than a JSON object with status 200. Header names are lower case.

    body: bytes are sent unchanged, with the content type in `headers`; anything else is encoded as JSON.
    stream: the chunks to send as they become available, instead of a body.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = {}
    stream: AsyncIterator[bytes] | None = None


async def _nothing() -> None:
    pass


class Request:
    """One request, as the transport received it. `path` is still percent-encoded; header names are lower case."""

    __slots__ = (
        "_address", "_client_ip", "_fields", "_headers", "_query", "_receive", "asker", "confirm", "content", "method",
        "path", "query_string", "request_id", "token_position", "wait_ended", "wait_gone",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        query_string: str = "",
        headers: list[tuple[bytes, bytes]] | None = None,
        client_ip: Callable[[], str] = str,
        receive: Callable[[], Awaitable[bytes | None]] | None = None,
        wait_gone: Callable[[], Awaitable[None]] = trio.sleep_forever,
    ) -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.request_id = ""  # part of every log entry about this request
        self.content: Any = None  # the decoded JSON body, once it has been read
        self.asker = ""  # the user ID, server name or IP address of the requester
        self.token_position = 0  # the position of the stream before the requester's token was read
        # raises MatrixError if the requester has lost the right to make this request
        self.confirm: Callable[[], Awaitable[None]] = _nothing
        self.wait_gone = wait_gone  # returns when the client has closed the connection
        # For operations with `waits`: raises MatrixError when the client disconnects or the server stops.
        self.wait_ended: Callable[[], Awaitable[None]] = trio.sleep_forever
        self._client_ip = client_ip
        self._headers = headers or []
        self._receive = receive
        # made when they are first asked for
        self._address: str | None = None
        self._fields: dict[str, str] | None = None
        self._query: dict[str, list[str]] | None = None

    @property
    def uri(self) -> str:
        """The path and the query exactly as they were sent, because signatures cover them."""
        return f"{self.path}?{self.query_string}" if self.query_string else self.path

    @property
    def client_ip(self) -> str:
        """The client's IP address; "" if it has none, as on a Unix socket without a proxy."""
        if self._address is None:
            self._address = self._client_ip()
        return self._address

    @property
    def headers(self) -> dict[str, str]:
        """The last value of each header."""
        if self._fields is None:
            self._fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers}
        return self._fields

    def find_header(self, name: bytes) -> str | None:
        """Returns the value of a header (the last one), without decoding all others."""
        for other, value in reversed(self._headers):
            if other == name:
                return value.decode("latin-1")
        return None

    def list_header(self, name: bytes) -> list[str]:
        """Returns all values of a header, in order."""
        return [value.decode("latin-1") for other, value in self._headers if other == name]

    @property
    def query(self) -> dict[str, list[str]]:
        """All values of each query parameter, in order. Raises MatrixError if they are too many or not valid UTF-8."""
        if self._query is None:
            self._query = parse_query(self.query_string)
        return self._query

    async def stream(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Yields the body as it arrives. Raises M_TOO_LARGE once it exceeds `max_bytes`.

        At the end of the body it calls `confirm`, because the requester may have been logged out meanwhile.
        """
        self._check_length(max_bytes)
        seen = 0
        while self._receive is not None and (chunk := await self._receive()) is not None:
            seen += len(chunk)
            if seen > max_bytes:
                raise too_large(max_bytes)
            if chunk:
                yield chunk
        await self.confirm()

    async def body(self, max_bytes: int, hold: Hold | None = None) -> bytes:
        """Returns the whole body, and reserves memory for it from `hold`.

        Raises M_TOO_LARGE if the body is longer than `max_bytes`, 408 if it arrives too slowly and 429 if there is no
        memory for it. Calls `confirm` at the end, because the requester may have been logged out meanwhile.
        """
        self._check_length(max_bytes)
        chunks: list[bytes] = []
        seen = 0
        deadline = trio.current_time() + limits.http.BODY_SECONDS_MAX
        while self._receive is not None and (chunk := await self._receive()) is not None:
            if chunk:
                seen += len(chunk)
                if seen > max_bytes:
                    raise too_large(max_bytes)
                if hold is not None:
                    await hold.take(len(chunk))
                chunks.append(chunk)
                if trio.current_time() > deadline:
                    raise MatrixError(408, "M_UNKNOWN", "The request body arrived too slowly.")
        await self.confirm()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def has_small_body(self) -> bool:
        """Whether the announced length is so small that no memory has to be reserved for the body."""
        for name, value in self._headers:
            if name == b"content-length":
                return value.isdigit() and int(value[:20]) <= limits.http.SMALL_BODY_BYTES
        return not any(name == b"transfer-encoding" for name, _ in self._headers)

    def _check_length(self, max_bytes: int) -> None:
        for name, value in self._headers:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
                raise too_large(max_bytes)


class UpgradeRequest(Request):
    """A request to continue the connection as a WebSocket. The operation agrees with status 101, and sets these:

    requester: None for a client without a token. extension: how messages are compressed; None if they are not.
    is_raw: whether the operation does the handshake; otherwise an ASGI server has done it.
    """

    __slots__ = ("extension", "is_raw", "requester")

    requester: Any
    extension: Any
    is_raw: bool


def parse_query(text: str) -> dict[str, list[str]]:
    """Returns all values of each parameter of a query string. Raises M_INVALID_PARAM if it cannot be read."""
    values: dict[str, list[str]] = {}
    if not text:
        return values
    if "%" in text or "+" in text:
        try:
            pairs = parse_qsl(text, True, errors="strict", max_num_fields=limits.http.QUERY_PARAMETERS_MAX)
        except (ValueError, UnicodeDecodeError) as error:
            raise _bad_query() from error
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        return values
    parts = text.split("&")  # nothing is encoded: this takes a tenth of the time
    if len(parts) > limits.http.QUERY_PARAMETERS_MAX:
        raise _bad_query()
    for part in parts:
        if part:
            name, _, value = part.partition("=")
            values.setdefault(name, []).append(value)
    return values


def _bad_query() -> MatrixError:
    return invalid_param("The query string is not valid UTF-8, or has too many parameters.")


def too_large(max_bytes: int) -> MatrixError:
    """Returns a MatrixError 413 M_TOO_LARGE."""
    return MatrixError(413, "M_TOO_LARGE", f"The body of this request may be at most {max_bytes} bytes long.")


class Operation(msgspec.Struct, frozen=True):
    """A handler and the method and path that it serves. `group` is what listeners name in `serve` to offer it."""

    method: str
    path: str
    name: str
    handler: Callable[..., Awaitable[Any]]
    plan: Plan
    group: str
    rate_limit: str
    max_body_bytes: int
    allow_guest: bool
    allow_suspended: bool
    allow_locked: bool
    waits: bool
    decode: Callable[[bytes], Any]
    max_json_nodes: int
    headers: Mapping[str, str]


class Routes:
    """A table of operations. It is filled when a module is imported, and only read after that."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    def __len__(self) -> int:
        return len(self._operations)

    def include(self, other: Routes) -> None:
        """Adds the operations of another table."""
        self._operations.extend(other)

    def get(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self.route("GET", path, **options)

    def put(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self.route("PUT", path, **options)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self.route("POST", path, **options)

    def delete(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self.route("DELETE", path, **options)

    def options(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        return self.route("OPTIONS", path, **options)

    def route(
        self,
        method: str,
        path: str,
        *,
        rate_limit: str = "default",
        max_body_bytes: int = 0,
        group: str = "",
        allow_guest: bool = False,
        allow_suspended: bool | None = None,
        allow_locked: bool = False,
        waits: bool = False,
        decode: Callable[[bytes], Any] = decode_json,
        max_json_nodes: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> Callable[[Handler], Handler]:
        """Registers a handler. Several routes may be stacked on one function.

        rate_limit: a class of `limits.RATE_LIMITS` or of the feature's `limits`; "" for none.
        max_body_bytes, max_json_nodes: 0 for the group's usual limit. Unauthenticated requests have lower limits.
        allow_guest, allow_suspended, allow_locked: whether guests, suspended or locked accounts may use the operation.
        Suspended accounts may read, so `allow_suspended` defaults to True for GET only.
        Spec: client-server-api/#account-suspension
        waits: the handler may wait a long time. While it waits, it has to await `request.wait_ended` too, which raises
        when the client disconnects or the server stops.
        decode: decodes the JSON body. Use `decode_parts` if a malformed part must not invalidate the others.
        headers: fields that every answer has, refusals included. They may replace those of CORS.
        """
        group = group or guess_group(path)

        def register(handler: Handler) -> Handler:
            self._operations.append(
                Operation(
                    method=method,
                    path=path,
                    name=handler.__name__,
                    handler=handler,
                    plan=compile_plan(handler, path),
                    group=group,
                    rate_limit=rate_limit,
                    max_body_bytes=max_body_bytes or limits.http.BODY_BYTES_MAX[group],
                    allow_guest=allow_guest,
                    allow_suspended=method == "GET" if allow_suspended is None else allow_suspended,
                    allow_locked=allow_locked,
                    waits=waits,
                    decode=decode,
                    max_json_nodes=max_json_nodes or limits.http.JSON_NODES_MAX[group],
                    headers=headers or {},
                )
            )
            return handler

        return register


_GROUPS = (
    ("/_matrix/media/", "media"),
    ("/_matrix/client/v1/media/", "media"),
    ("/_matrix/federation/v1/media/", "federation"),
    ("/_matrix/federation/", "federation"),
    ("/_matrix/key/", "federation"),
    ("/.well-known/matrix/server", "federation"),
    ("/_homeserver/metrics", "metrics"),
    ("/_homeserver/health/", "health"),
    ("/_homeserver/admin", "admin"),
    ("/_synapse/admin/", "admin"),
)


def guess_group(path: str) -> str:
    """Returns the `serve` group of a path. Paths without a prefix in `_GROUPS` belong to "client"."""
    return next((group for prefix, group in _GROUPS if path.startswith(prefix)), "client")
