"""Dispatch: turns a request into an answer: authentication, limits, decoding, handler, encoding. Knows no transport.

Spec: client-server-api/#api-standards
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import trio

from homeserver import limits
from homeserver.api.arguments import Constant
from homeserver.api.bodies import Body, check_nodes, read_body
from homeserver.api.router import Router
from homeserver.api.routes import Empty, Operation, Request, Response, guess_group
from homeserver.authenticate import (
    FindAppservice,
    IdentifyOrigin,
    OriginClaim,
    Requester,
    check_may_call,
    find_requester,
    limit_requester,
    note_heartbeat,
    read_token,
    refuse_origin,
)
from homeserver.background import single_error
from homeserver.blobs import BlobDamaged, BlobError
from homeserver.database import DatabaseDamaged, DatabaseError
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, unrecognized
from homeserver.federation.identifiers import ServerName
from homeserver.process.budgets import Hold
from homeserver.process.metrics import Counter
from homeserver.process.outages import STORAGE_RETRY_AFTER_MS
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.http")

JSON = "application/json"
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "X-Requested-With, Content-Type, Authorization, Date",
}
# Browsers repeat a preflight after this time. A day is the longest that any of them honours.
PREFLIGHT = {**CORS, "access-control-max-age": "86400"}
# Federation requests with these methods have a signed body. Others have none, and any body of theirs is not read.
_SIGNED_WITH_BODY = frozenset({"PUT", "POST"})
# These groups answer servers and programs only, never a page in a browser.
WITHOUT_CORS = frozenset({"federation", "metrics"})
# In the metrics: the status of a request whose client disconnected before the answer. It is never sent.
CLIENT_GONE = 499


@dataclass(slots=True)
class Dispatch:
    """The operations of a server and what they need. `answer` raises nothing but Cancelled.

    requested: set by every request; the task that waits for it replaces it.
    """

    hs: Resources
    operations: Iterable[Operation]
    identify_origin: IdentifyOrigin = refuse_origin
    find_appservice: FindAppservice | None = None
    is_draining: bool = False
    requested: trio.Event = field(default_factory=trio.Event)
    active: int = 0
    _waiting: dict[str, int] = field(default_factory=dict)  # long-waiting requests, by user
    _scopes: set[trio.CancelScope] = field(default_factory=set)  # of the waiting requests: draining cancels them
    router: Router = field(default_factory=Router)
    by_name: dict[str, Operation] = field(default_factory=dict)
    _counters: dict[tuple[str, int], tuple[Counter, Counter]] = field(default_factory=dict)
    _ids: Any = None

    def __post_init__(self) -> None:
        self.operations = tuple(self.operations)
        self.hs.rate_limits.enabled = self.hs.config.rate_limits.enabled
        self.router.add(self.operations)
        self.by_name = {operation.name: operation for operation in reversed(self.operations)}
        prefix = secrets.token_hex(3)
        self._ids = (f"{prefix}-{number}" for number in itertools.count(1))
        metrics = self.hs.metrics
        metrics.describe("homeserver_requests_total", "Requests answered, by operation and status.")
        metrics.describe("homeserver_request_seconds_total", "Time from a request to the start of its answer.")
        metrics.gauge("homeserver_requests_active", lambda: self.active, "Requests that are being answered.")

    async def answer(
        self, request: Request, groups: Collection[str], named: tuple[Operation, list[str]] | None = None
    ) -> Response:
        """Returns the answer to a request at a listener for `groups`. Either its body is bytes or its stream is set.

        named: the operation and its percent-encoded path parameters, if they do not follow from the request's path.
        """
        request.request_id = next(self._ids)
        self.requested.set()
        started = perf_counter()
        self.active += 1
        operation = None
        try:
            self._check_size(request)
            operation, raw = named or self._find(request, groups)
            if operation is None:
                return Response(204, b"", PREFLIGHT)
            result = await self._run(operation, request, raw)
            response = _encode(result)
        except MatrixError as error:
            response = error_response(error)
        except Exception as error:  # an unexpected exception must not reach the client or end the server
            name = operation.name if operation is not None else "none"
            response = error_response(self.explain(error, name, request.request_id, request.method))
        finally:
            self.active -= 1
        requests, seconds = self._counters_of(operation, response.status)
        requests.value += 1
        seconds.value += perf_counter() - started
        if operation is not None and operation.group in WITHOUT_CORS:
            return response
        if operation is not None and operation.headers:
            headers: Mapping[str, str] = {**CORS, **response.headers, **operation.headers}
        else:
            headers = _JSON_CORS if response.headers is _JSON_HEADERS else {**CORS, **response.headers}
        return Response(response.status, response.body, headers, response.stream)

    def _counters_of(self, operation: Operation | None, status: int) -> tuple[Counter, Counter]:
        """Returns what counts the requests with this outcome, and their seconds."""
        name = operation.name if operation is not None else "none"
        found = self._counters.get((name, status))
        if found is None:
            metrics = self.hs.metrics
            found = self._counters[name, status] = (
                metrics.counter("homeserver_requests_total", (("operation", name), ("status", str(status)))),
                metrics.counter("homeserver_request_seconds_total", (("operation", name),)),
            )
        if status == 429:
            self.hs.metrics.count("homeserver_rate_limited_total", (("operation", name),))
        return found

    @contextmanager
    def hold_answer(self, request: Request, response: Response) -> Iterator[Response]:
        """Counts a large answer while it is being sent. Yields it, or a refusal if its requester has too many."""
        size, answers = len(response.body or b""), self.hs.budgets.answers
        with answers.hold(request.asker) as hold:
            if answers.has_room_for_one(request.asker, size):
                hold.become(size)
            else:
                said = "Receive the large answers to your earlier requests before you send more."
                wait_ms = limits.http.LARGE_ANSWERS_RETRY_MS
                response = error_response(MatrixError(429, "M_LIMIT_EXCEEDED", said, retry_after_ms=wait_ms))
            yield response

    def drain(self) -> None:
        """Ends waiting operations; the others finish. From now on nothing waits."""
        self.hs.is_ready = False
        self.hs.stopping.set()
        self.is_draining = True
        for scope in self._scopes:
            scope.cancel()

    async def call(self, operation: Operation, request: Request, requester: Requester | None, path: list[Any]) -> Any:
        """Returns the handler's result, for transports that are not HTTP. `path`: decoded path arguments in order."""
        if requester is not None and requester.device_id:
            note_heartbeat(self.hs, requester.user_id)
        return await self._handle(operation, request, requester, None, path)

    def _check_size(self, request: Request) -> None:
        """Raises 414 M_TOO_LARGE for a long path, and 503 if too many requests are being answered."""
        if len(request.path) > limits.http.PATH_CHARACTERS_MAX:
            raise MatrixError(414, "M_TOO_LARGE", "The path is too long.")
        if self.active > limits.http.REQUESTS_AT_ONCE_MAX:
            raise MatrixError(503, "M_UNKNOWN", "This server is too busy.")

    def _find(self, request: Request, groups: Collection[str]) -> tuple[Operation | None, list[str]]:
        """Returns the operation and its path parameters; the operation is None for a preflight request."""
        match = self.router.match(request.path)
        method = request.method
        if match is not None:
            operation = match.operations.get(method) or (match.operations.get("GET") if method == "HEAD" else None)
            if operation is not None and operation.group in groups:
                return operation, match.parameters
        if method == "OPTIONS" and guess_group(request.path) in groups:
            return None, []
        if match is not None and operation is None and any(each.group in groups for each in match.operations.values()):
            raise unrecognized(405)
        raise unrecognized(404)

    async def _run(self, operation: Operation, request: Request, raw: list[str]) -> Any:
        """Runs the steps in the order of their cost: see `homeserver.api.bodies`."""
        hs, plan = self.hs, operation.plan
        requester = None
        if plan.requester:
            requester = await find_requester(hs, operation, request, self.find_appservice)
        request.asker = requester.user_id if requester is not None else address_key(request.client_ip)
        if operation.rate_limit and hs.rate_limits.enabled and not plan.origin:
            self._limit(operation, request, requester)
        path = plan.path_arguments(raw) if raw else raw
        claim = await self.identify_origin(hs, request) if plan.origin else None
        has_body = plan.body is not None or (claim is not None and request.method in _SIGNED_WITH_BODY)
        if not has_body or request.has_small_body:
            return await self._take(operation, request, requester, claim, path, has_body=has_body)
        budget = hs.budgets.peers if operation.group == "federation" else hs.budgets.clients
        with budget.hold(request.asker) as hold, hs.budgets.heavy.hold(request.asker) as heavy:
            return await self._take(operation, request, requester, claim, path, has_body=True, holds=(hold, heavy))

    async def _take(
        self,
        operation: Operation,
        request: Request,
        requester: Requester | None,
        claim: OriginClaim | None,
        path: list[Any],
        *,
        has_body: bool,
        holds: tuple[Hold, Hold] | None = None,
    ) -> Any:
        """Reads the body, authenticates its sender, runs the handler. holds: memory, and the turn of heavy bodies."""
        hs, origin, body = self.hs, None, None
        is_anonymous = requester is None and claim is None
        if has_body:
            body = await read_body(
                operation, request, hs.workers, holds[0] if holds else None, is_anonymous=is_anonymous
            )
        if claim is not None:
            await claim.check(hs, request, body)
            origin = request.asker = claim.origin
            hs.rate_limits.take(operation.rate_limit, origin, hs.now_ms())
        if body is not None and (body.text or (operation.plan.body is not None and not operation.plan.body.optional)):
            if body.nodes > limits.http.FREE_JSON_NODES:
                await check_nodes(operation, body, hs.workers, is_anonymous=is_anonymous)
                self._charge(body, requester, origin)
            if holds is not None:
                if body.nodes > limits.http.HEAVY_JSON_NODES:
                    await holds[1].take(1)
                else:
                    holds[0].become(max(len(body.text), body.nodes * limits.http.JSON_NODE_BYTES))
            request.content = await body.decode(hs.workers)
            body = None  # frees its text
        if not operation.waits:
            return await self._handle(operation, request, requester, origin, path)
        request.wait_ended = partial(self._wait_ended, request)
        user_id = "" if requester is None else requester.user_id
        self._begin_wait(user_id)
        try:
            return await self._handle(operation, request, requester, origin, path)
        finally:
            request.wait_ended = trio.sleep_forever  # no cycle of objects: those cost a collection of garbage
            waiting = self._waiting.pop(user_id) - 1
            if waiting:
                self._waiting[user_id] = waiting

    def _charge(self, body: Body, requester: Requester | None, origin: ServerName | None) -> None:
        """Raises M_LIMIT_EXCEEDED if the sender has recently sent too many values in large bodies."""
        if origin is not None:
            self.hs.rate_limits.take("federation_json", origin, self.hs.now_ms(), body.nodes)
        elif requester is not None:
            limit_requester(self.hs, requester, "json", body.nodes)

    async def _handle(
        self, operation: Operation, request: Request, requester: Requester | None, origin: Any, path: list[Any]
    ) -> Any:
        plan, hs = operation.plan, self.hs
        arguments: list[Any] = []
        for source in plan.order:
            if isinstance(source, int):
                arguments.append(path[source])
            elif source == "requester":
                arguments.append(requester)
            elif source == "body":
                assert plan.body is not None
                arguments.append(plan.body.decode(request.content))
            elif source == "query":
                assert plan.query is not None
                arguments.append(plan.query.decode(request.query))
            elif source == "origin":
                arguments.append(origin)
            elif source == "request":
                arguments.append(request)
            else:
                assert isinstance(source, Constant)
                arguments.append(source.value)
        return await operation.handler(hs, *arguments)

    def _begin_wait(self, user_id: str) -> None:
        """Raises 429 M_LIMIT_EXCEEDED if too many requests of the user are already waiting, because users share."""
        waiting = self._waiting.get(user_id, 0)
        if user_id and waiting >= limits.http.WAITING_PER_USER_MAX:
            raise MatrixError(
                429, "M_LIMIT_EXCEEDED", "Too many of your requests are waiting.",
                retry_after_ms=limits.http.WAITING_RETRY_MS,
            )  # fmt: skip
        self._waiting[user_id] = waiting + 1

    async def _wait_ended(self, request: Request) -> None:
        """Raises MatrixError as soon as the client has disconnected or the server stops."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self.is_draining:
                scope.cancel()
            try:
                await request.wait_gone()
            finally:
                self._scopes.discard(scope)
            raise MatrixError(CLIENT_GONE, "M_UNKNOWN", "You have gone.")
        raise MatrixError(503, "M_UNKNOWN", "This server is restarting.")

    def _limit(self, operation: Operation, request: Request, requester: Requester | None) -> None:
        if requester is None:
            token = read_token(request) if self.hs.application_services else None
            service = self.hs.application_services.find_by_token(token) if token else None
            if service is None or service.rate_limited:  # a bridge registers many users, all from one address
                self.hs.rate_limits.take(operation.rate_limit, address_key(request.client_ip), self.hs.now_ms())
        else:
            limit_requester(self.hs, requester, operation.rate_limit)

    def admit(self, operation: Operation, requester: Requester) -> None:
        """Raises MatrixError if the requester may not call the operation, or not now: for other ways to call it."""
        check_may_call(requester, operation)
        if operation.rate_limit and self.hs.rate_limits.enabled:
            limit_requester(self.hs, requester, operation.rate_limit)

    def explain(self, error: Exception, operation: str, request_id: str = "", method: str = "") -> MatrixError:
        """Returns the error for an exception: the MatrixError in a group, else 500 M_UNKNOWN with a log entry."""
        inner = single_error(error)
        if isinstance(inner, MatrixError):
            return inner
        if isinstance(inner, (DatabaseDamaged, BlobDamaged)):
            return MatrixError(500, "M_UNKNOWN", "This server cannot read its stored data. See its log for details.")
        if isinstance(inner, (DatabaseError, BlobError)):  # logged once for the whole outage
            return MatrixError(
                503,
                "M_UNKNOWN",
                "The storage of this server is not working at the moment. Try again later.",
                retry_after_ms=STORAGE_RETRY_AFTER_MS,
            )
        request_id = request_id or next(self._ids)
        about = {"request_id": request_id, "operation": operation, "method": method}
        _log.error("request failed", exc_info=error, extra=about)
        return MatrixError(500, "M_UNKNOWN", f"An unexpected error happened; it is logged as {request_id}.")


def error_response(error: MatrixError) -> Response:
    """Returns the answer for an error, with Retry-After if the client should wait."""
    headers = {"content-type": JSON, **CORS}
    wait_ms = error.extra.get("retry_after_ms")
    if error.status in (429, 503) and isinstance(wait_ms, int):
        headers["retry-after"] = str(max(1, math.ceil(wait_ms / 1000)))
    return Response(error.status, to_json(error.body()), headers)


def _encode(result: Any) -> Response:
    if isinstance(result, Response):
        if result.stream is not None or result.body is None:
            return result if result.stream is not None else Response(result.status, b"", result.headers)
        if isinstance(result.body, (bytes, memoryview)):
            return result
        return Response(result.status, to_json(result.body), {"content-type": JSON, **result.headers})
    if isinstance(result, Empty) or result is None:
        return _EMPTY
    return Response(200, to_json(result), _JSON_HEADERS)


_JSON_HEADERS = {"content-type": JSON}
_JSON_CORS = {**CORS, **_JSON_HEADERS}
_EMPTY = Response(200, b"{}", _JSON_HEADERS)
