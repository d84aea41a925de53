"""Paths, methods, queries and tokens that no operation can want. Spec: client-server-api/#api-standards"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

import msgspec
import pytest

from homeserver import limits
from homeserver.api.arguments import PARSERS
from homeserver.api.routes import Operation
from tests.hostile.asking import ask, check_answer_of, check_client_answer
from tests.hostile.values import wrong_query_values
from tests.hostile.world import CLIENT_OPERATIONS, ENDING, OPERATIONS, World, in_groups, make_world

WITH_PATH = tuple(operation for operation in CLIENT_OPERATIONS if operation.plan.path)
WITH_QUERY = tuple(operation for operation in CLIENT_OPERATIONS if operation.plan.query is not None)
WITH_TOKEN = tuple(operation for operation in CLIENT_OPERATIONS if operation.plan.requester)
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 100)

NO_UTF8 = ("%FF", "%C3%28", "%ED%A0%80", "%F8%88%80%80%80", "a%80")
UNKIND = (
    "%00", "%", "%2", "%zz", "%25", "%2F", "%2e%2e", "..", ".", "%20", "%0d%0aset-cookie:x", "%E2%80%AE", "a" * 300,
    "a" * 7_000, "%F0%9F%98%80" * 100, "@", "@:", "@a", "@a:", "@a:b:c", "@:b", "@%00:b", "@a:b%2Fc", "@a:[::1", "@A:b",
    "@a:b.", "!", "!:", "!a", "!a:", "!%00:b", "!" + "a" * 43, "$", "$:", "$" + "a" * 43, "$a:b", "#", "#:", "#a",
    "#a:", "#%00:b", "b", "b:", "b:x", "b:99999", "[", "[::1]", "[::1]:8448", "1.2.3.4", "127.0.0.1:1", "localhost",
    "-1", "0", "9" * 400, "m.room.message", "m.read", "displayname", "profile", "~", "*", "?x", "'--", "${x}", "null",
)  # fmt: skip


def unkind_paths(world: World, operation: Operation) -> Iterator[tuple[str, str, str]]:
    """Parameter, what it is replaced by, and the path."""
    for name, _ in operation.plan.path:
        for text in (*NO_UTF8, *UNKIND):
            yield name, text, world.path(operation, **{name: text})


@in_groups(WITH_PATH)
async def test_any_part_of_a_path_may_be_wrong(world: World, operations: Sequence[Operation]) -> None:
    for place, operation in enumerate(operations):
        is_changed = False
        for number, (_, text, path) in enumerate(unkind_paths(world, operation)):
            if "?" in text:
                continue
            answer = await world.ask(operation, path=path)
            check_answer_of(operation, path, answer)
            if text in NO_UTF8:
                assert answer.verdict == (400, "M_INVALID_PARAM"), str(answer)
            if answer.status < 300 and operation.name in ENDING:
                world = await make_world(world.server, f"alice{place}-{number}")
            elif answer.status < 300 and operation.method != "GET":
                is_changed = True
        await world.bob.ok("GET", "sync")
        if is_changed:
            world = await make_world(world.server, f"alice{place}")


@in_groups(WITH_PATH)
async def test_malformed_identifiers_are_refused(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        before = await world.contents()
        kinds = {name: decode for name, decode in operation.plan.path if decode in PARSERS.values()}
        for name in kinds:
            for text in ("%00", "nonsense%20", "%20", "a" * 300, "@%00:b", "!%00", "%23"):
                answer = await world.ask(operation, path=world.path(operation, **{name: text}))
                assert answer.verdict == (400, "M_INVALID_PARAM"), str(answer)
        assert await world.contents() == before


@in_groups(WITH_QUERY)
async def test_any_parameter_of_a_query_may_be_wrong(world: World, operations: Sequence[Operation]) -> None:
    many = "a=1&" * limits.http.QUERY_PARAMETERS_MAX
    for place, operation in enumerate(operations):
        plan = operation.plan.query
        assert plan is not None
        is_changed = False
        for name, text, is_refused in wrong_query_values(plan.kind):
            for query in (f"{name}={text}", f"{name}={text}&{name}={text}", f"dir=b&{name}={text}"):
                path = world.path(operation)
                answer = await world.ask(operation, path=path, query=query)
                check_answer_of(operation, path, answer)
                if is_refused:
                    assert answer.verdict == (400, "M_INVALID_PARAM"), str(answer)
                is_changed |= answer.status < 300 and operation.method != "GET"
        for query in ("&&&", "=", "==&=x", many, "%=%", "\xff=1", "x" * 60_000, "?", "#"):
            answer = await world.ask(operation, query=query)
            check_client_answer(operation.method, world.path(operation), answer)
            is_changed |= answer.status < 300 and operation.method != "GET"
        await world.alice.ok("GET", "sync")
        if is_changed:
            world = await make_world(world.server, f"alice{place}")


@in_groups(WITH_QUERY)
async def test_a_parameter_of_the_wrong_type_is_refused(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        plan = operation.plan.query
        assert plan is not None
        for field in msgspec.structs.fields(plan.kind):
            if any(kind in (int, bool) for kind in kinds_of(field.type)) and str not in kinds_of(field.type):
                answer = await world.ask(operation, query=f"dir=b&{field.encode_name}=nonsense")
                assert answer.verdict == (400, "M_INVALID_PARAM"), str(answer)


def kinds_of(kind: Any) -> set[Any]:
    """The plain types in a union, or under an annotation."""
    inner = get_args(kind) if get_origin(kind) is not None else ()
    return {kind}.union(*(kinds_of(each) for each in inner if isinstance(each, type) or get_args(each)))


@in_groups(CLIENT_OPERATIONS)
async def test_other_methods_are_not_allowed(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        path = world.path(operation)
        offered = {each.method for each in OPERATIONS if match(each.path, operation.path)}
        if "GET" in offered:
            offered.add("HEAD")
        for method in METHODS:
            if method in offered:
                continue
            answer = await ask(
                world.server.app, method, path, headers=[("authorization", f"Bearer {world.alice.token}")]
            )
            assert answer.verdict == (405, "M_UNRECOGNIZED"), str(answer)
            check_client_answer("GET", "/", answer)
        preflight = await ask(world.server.app, "OPTIONS", path)
        assert (preflight.status, preflight.body) == (204, b"")
        assert preflight.headers["access-control-allow-origin"] == "*"


def match(one: str, other: str) -> bool:
    """Returns whether a path can match both."""
    parts, others = one.split("/"), other.split("/")
    return len(parts) == len(others) and all(
        a == b or a.startswith("{") or b.startswith("{") for a, b in zip(parts, others, strict=True)
    )


PREFIXES = ("/_matrix", "/_matrix/client", "/_matrix/client/v3", "/_matrix/media/v3", "/_homeserver", "/_synapse")
NOWHERE = (
    "", "/", "/nonsense", "//", "/./", "/../", "/%00", "/%FF", "/login/", "/login//", "/LOGIN", "/login%2F", "/%",
    "/a" * 500, "/rooms", "/rooms/", "/rooms//send", "/rooms/!a:b/send", "/login;x", "/..%2flogin", "/\xff", "/é",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_unknown_paths_are_unrecognized(world: World, prefix: str) -> None:
    for suffix, method in itertools.product(NOWHERE, ("GET", "POST", "PUT")):
        answer = await ask(world.server.app, method, prefix + suffix)
        assert answer.verdict == (404, "M_UNRECOGNIZED"), str(answer)
        check_client_answer("GET", "/", answer)


@in_groups(WITH_TOKEN)
async def test_missing_credentials_are_refused_first(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        before = await world.contents()
        optional = operation.plan.requester_optional
        for body in (b"", b"{", b"{}", b"x" * 10_000):
            answer = await world.ask(operation, headers=[], body=body)
            check_client_answer(operation.method, world.path(operation), answer)
            assert optional or answer.verdict == (401, "M_MISSING_TOKEN"), str(answer)
        tokens = ("x", "\xff", "a" * 5_000, f"{world.alice.token}x", "null", "Bearer", "%00", '"')
        for token in tokens:
            answer = await world.ask(operation, headers=[("authorization", f"Bearer {token}")])
            check_client_answer(operation.method, world.path(operation), answer)
            assert optional or answer.verdict == (401, "M_UNKNOWN_TOKEN"), str(answer)
        schemes = ("", "Bearer", "Bearer ", f"Basic {world.alice.token}", f"{world.alice.token}", "X-Matrix origin=x")
        for scheme in schemes:
            answer = await world.ask(operation, headers=[("authorization", scheme)])
            check_client_answer(operation.method, world.path(operation), answer)
            assert optional or answer.status == 401, str(answer)
        answer = await world.ask(operation, headers=[], query="access_token=")
        assert optional or answer.status == 401, str(answer)
        assert optional or await world.contents() == before
