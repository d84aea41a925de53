"""Calls: invokes a server's operations by name in the same process. The counterpart of `homeserver.http.asgi`.

A call is decoded like a request: path arguments are validated, and a body is JSON within the same limits, so a program
in the process cannot store anything that an HTTP client could not. The difference is authentication: the program itself
vouches for the user. Rate limits do not apply to it.

Two kinds of mistake are kept apart. If the server refuses a call, it raises the same MatrixError as over HTTP. If a
call does not fit the operation (too few path arguments, an unknown query parameter), it raises TypeError, like any
wrong call in Python.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlencode

import msgspec
import orjson
import trio

from homeserver.api.arguments import decode_json
from homeserver.api.routes import Operation, Request, Response, too_large
from homeserver.authenticate import Requester, check_may_call
from homeserver.database import DatabaseError
from homeserver.encoding import to_json
from homeserver.errors import ClosedError, MatrixError, invalid_param, not_found
from homeserver.http.dispatch import Dispatch

Body = Mapping[str, Any] | bytes | AsyncIterable[bytes] | None
Query = Mapping[str, Any] | None
Headers = Mapping[str, str] | None

_JSON_HEADERS = {"content-type": "application/json"}


class Answer(msgspec.Struct, frozen=True):
    """The answer to a call: its head, and its body in chunks. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Calls(msgspec.Struct):
    """The operations of an open server."""

    dispatch: Dispatch
    is_closed: bool = False
    _scopes: set[trio.CancelScope] = msgspec.field(default_factory=set)

    def close(self) -> None:
        """Refuses new calls. Waiting calls end with ClosedError."""
        self.is_closed = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context manager around a call. Raises ClosedError if the server is closed, or closes during the call."""
        if self.is_closed:
            raise ClosedError
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            except DatabaseError:
                if not self.is_closed:
                    raise
                raise ClosedError from None
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise ClosedError

    async def call(
        self, name: str, path: Sequence[Any], requester: Requester, body: Body, query: Query, headers: Headers
    ) -> Any:
        """Calls an operation. Returns a dict or list if it answers JSON, bytes if it answers a file.

        Raises MatrixError if the server refuses the call, TypeError if the arguments do not fit the operation.
        """
        response = await self._run(name, path, requester, body, query, headers)
        if response.stream is not None:
            async with aclosing(response.stream) as chunks:  # type: ignore[type-var]
                return b"".join([chunk async for chunk in chunks])
        if isinstance(response.body, bytes | memoryview):
            return bytes(response.body)
        return orjson.loads(to_json(response.body))

    @asynccontextmanager
    async def stream(
        self, name: str, path: Sequence[Any], requester: Requester, body: Body, query: Query, headers: Headers
    ) -> AsyncIterator[Answer]:
        """Like `call`, for reading the answer in chunks."""
        response = await self._run(name, path, requester, body, query, headers)
        head, chunks = response.headers, response.stream
        if chunks is None and isinstance(response.body, bytes | memoryview):
            chunks = _chunks(bytes(response.body))
        elif chunks is None:
            head, chunks = {**_JSON_HEADERS, **head}, _chunks(to_json(response.body))
        async with aclosing(chunks):  # type: ignore[type-var]
            yield Answer(response.status, head, chunks)

    async def _run(
        self, name: str, path: Sequence[Any], requester: Requester, body: Body, query: Query, headers: Headers
    ) -> Response:
        operation = self._find(name)
        check_may_call(requester, operation)
        arguments = _path_arguments(operation, path)
        text = _query_string(operation, query)
        receive = None
        content = None
        sent = {key.lower(): value for key, value in (headers or {}).items()}
        if operation.plan.body is not None:
            content = _json_body(operation, body)
        elif body is not None:
            if not operation.plan.request or operation.method == "GET":
                raise TypeError(f"{name} takes no body.")
            if isinstance(body, Mapping):
                body, sent = _encode(body), {**_JSON_HEADERS, **sent}
            if isinstance(body, bytes | bytearray | memoryview):
                sent["content-length"] = str(len(body))
            receive = _receiver(body)
        pairs = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in sent.items()]
        request = Request(operation.method, operation.path, text, pairs, receive=receive)
        request.content = content
        result = await self.dispatch.call(operation, request, requester, arguments)
        response = result if isinstance(result, Response) else Response(200, result)
        if response.status >= 400 and isinstance(response.body, Mapping):
            extra = dict(response.body)
            raise MatrixError(response.status, extra.pop("errcode", "M_UNKNOWN"), extra.pop("error", ""), **extra)
        return (
            response
            if response.body is not None or response.stream is not None
            else msgspec.structs.replace(response, body={})
        )

    def check_fields(self, name: str, body: Mapping[str, Any]) -> None:
        """Raises TypeError if the body has a field that the operation does not know and would ignore."""
        plan = self._find(name).plan.body
        assert plan is not None
        known = [each.encode_name for each in msgspec.structs.fields(plan.kind)]
        for field_name in body:
            if field_name not in known and "." not in field_name:  # fields of extensions have a dot
                raise TypeError(f"{name} has no field {field_name!r}.{_suggest(field_name, known)}")

    def _find(self, name: str) -> Operation:
        if not isinstance(name, str):
            raise TypeError(f"The name of an operation must be a str, not {type(name).__name__}.")
        operation = self.dispatch.by_name.get(name)
        if operation is None:
            raise not_found(f"There is no operation called {name}.{_suggest(name, self.dispatch.by_name)}")
        if operation.plan.origin:
            raise TypeError(f"{name} is called by other servers, not by users.")
        return operation


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _path_arguments(operation: Operation, given: Sequence[Any]) -> list[Any]:
    """Returns the decoded path arguments. Raises TypeError for a wrong number or type, M_INVALID_PARAM otherwise."""
    wanted = operation.plan.path
    if len(given) != len(wanted):
        takes = " and ".join(name for name, _ in wanted) or "no path arguments"
        raise TypeError(f"{operation.name} takes {takes}, but {len(given)} path arguments were given.")
    arguments = []
    for value, (name, decode) in zip(given, wanted, strict=True):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise TypeError(f"{operation.name}: {name} must be a str, not {type(value).__name__}.")
        try:
            arguments.append(decode(str(value)))
        except ValueError as error:
            raise invalid_param(f"{name} is not valid: {error}") from error
    return arguments


def _query_string(operation: Operation, query: Query) -> str:
    """Returns the query as it would appear in a URL. Raises TypeError for an unknown parameter."""
    if not query:
        return ""
    if not isinstance(query, Mapping):
        raise TypeError(f"{operation.name}: the query must be a mapping, not {type(query).__name__}.")
    plan = operation.plan.query
    if plan is None:
        raise TypeError(f"{operation.name} takes no query.")
    known = [each.encode_name for each in msgspec.structs.fields(plan.kind)]
    # An operation that waits takes the request to learn when to stop; others may read parameters of any name from it.
    takes_any = operation.plan.request and not operation.waits
    pairs = []
    for name, value in query.items():
        if name not in known and not takes_any:
            raise TypeError(f"{operation.name} has no query parameter {name!r}; it has {', '.join(known)}.")
        for each in value if isinstance(value, list | tuple | set | frozenset) else (value,):
            if each is not None:
                pairs.append((name, _query_value(operation, name, each)))
    return urlencode(pairs)


def _query_value(operation: Operation, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, Mapping):  # for example a filter
        return _encode(value).decode()
    raise TypeError(f"{operation.name}: the query parameter {name} cannot be a {type(value).__name__}.")


def _json_body(operation: Operation, body: Body) -> Any:
    """Returns the body's JSON value, decoded like that of a request. None if an optional body is missing."""
    plan = operation.plan.body
    assert plan is not None
    if body is None:
        return None if plan.optional else {}
    if isinstance(body, Mapping):
        data = _encode(body)
    elif isinstance(body, bytes | bytearray | memoryview):
        data = bytes(body)
    else:
        raise TypeError(f"{operation.name}: the body must be a mapping, not {type(body).__name__}.")
    if len(data) > operation.max_body_bytes:
        raise too_large(operation.max_body_bytes)
    return decode_json(data)


def _encode(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(
            dict(value), default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"This cannot be written as JSON: {error}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _receiver(body: bytes | AsyncIterable[bytes]) -> Callable[[], Awaitable[bytes | None]]:
    """Returns a function that supplies the body as `Request` expects it: a chunk at each call, then None."""
    if isinstance(body, bytes | bytearray | memoryview):
        chunks = _chunks(bytes(body))
    elif isinstance(body, AsyncIterable):
        chunks = aiter(body)
    else:
        raise TypeError(f"The body must be bytes, a mapping or an async iterable of bytes, not {type(body).__name__}.")

    async def receive() -> bytes | None:
        chunk = await anext(chunks, None)
        if chunk is not None and not isinstance(chunk, bytes | bytearray | memoryview):
            raise TypeError(f"The chunks of a body must be bytes, not {type(chunk).__name__}.")
        return None if chunk is None else bytes(chunk)

    return receive


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
