"""Routes: operations as typed functions. A handler's signature is its contract, compiled once when it is registered.

Parameters have their meaning by name: `hs` (first), `requester`, `origin`, `body`, `query`, `request`; every other one
is a path parameter. `arguments` reads them, `homeserver.http.asgi` serves them; nothing here knows a framework.
Spec: client-server-api/#api-standards
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
    """The answer `{}`."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that is more than a JSON object with status 200.

    body: bytes are sent as they are, with the content type in `headers`; anything else is encoded as JSON.
    stream: chunks sent as they come, instead of a body. Header names are lower case.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None


async def _nothing() -> None:
    pass


class Request:
    """One request, as the transport received it. `path` is still percent-encoded; header names are lower case."""

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
        self.request_id = ""  # in every log entry about this request
        self.content: Any = None  # the JSON that the body held, once it has been read
        self.asker = ""  # the user, server or address that is known to ask
        self.confirm: Callable[[], Awaitable[None]] = _nothing  # raises if the asker may no longer ask
        self.wait_gone = wait_gone  # returns when the client has closed the connection
        self._client_ip = client_ip
        self._headers = headers or []
        self._receive = receive

    @property
    def uri(self) -> str:
        """Path and query, as they were sent and signed."""
        return f"{self.path}?{self.query_string}" if self.query_string else self.path

    @cached_property
    def client_ip(self) -> str:
        """The address of the client; "" where there is none, as on a unix socket without a proxy."""
        return self._client_ip()

    @cached_property
    def headers(self) -> dict[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers}

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """All values of each query parameter, in order. Raises MatrixError where they are not UTF-8."""
        values: dict[str, list[str]] = {}
        try:
            for name, value in parse_qsl(
                self.query_string, True, errors="strict", max_num_fields=limits.http.QUERY_PARAMETERS_MAX
            ):
                values.setdefault(name, []).append(value)
        except (ValueError, UnicodeDecodeError) as error:
            raise invalid_param("The query string is not valid UTF-8, or has too many parameters.") from error
        return values

    async def stream(self, max_bytes: int) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises M_TOO_LARGE once it is longer than `max_bytes`, at its end as `confirm`."""
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
        """The whole body, for which memory is taken from `hold`.

        Raises M_TOO_LARGE if it is longer than `max_bytes`, 408 if it comes too slowly, 429 if there is no memory,
        and as `confirm`, because the asker may have been logged out meanwhile.
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
                    raise MatrixError(408, "M_UNKNOWN", "The body of the request came too slowly.")
        await self.confirm()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def has_small_body(self) -> bool:
        """Whether the body was announced to be so short that no memory has to be reserved for it."""
        for name, value in self._headers:
            if name == b"content-length":
                return value.isdigit() and int(value[:20]) <= limits.http.SMALL_BODY_BYTES
        return not any(name == b"transfer-encoding" for name, _ in self._headers)

    def _check_length(self, max_bytes: int) -> None:
        for name, value in self._headers:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
                raise too_large(max_bytes)


def too_large(max_bytes: int) -> MatrixError:
    """413 M_TOO_LARGE."""
    return MatrixError(413, "M_TOO_LARGE", f"The body of this request may hold {max_bytes} bytes at most.")


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler and where it answers. `group` is the part of a listener's `serve` that it belongs to."""

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


class Routes:
    """A table of operations. Filled when a module is imported and only read after that."""

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
    ) -> Callable[[Handler], Handler]:
        """Registers a handler. Several may be stacked on one function.

        rate_limit: a class of `limits.RATE_LIMITS` or of the feature's own, or "" for none. max_body_bytes,
        max_json_nodes: 0 for the usual limit of the group; requests without a token or signature have lower ones.
        allow_guest, allow_suspended, allow_locked: whether the account of a guest may use it, and one that is suspended
        or locked. Suspended accounts may read, so None stands for GET; see client-server-api/#account-suspension.
        waits: the handler may wait for long, and is cancelled when the client goes away or the server stops.
        decode: reads the JSON of the body; `decode_parts` if each of its parts is to be
        judged alone.
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
    """The `serve` group of a path: what no other claims is the clients'."""
    return next((group for prefix, group in _GROUPS if path.startswith(prefix)), "client")
