"""Every malformed request body gets an error that says what is wrong, and leaves nothing half-written.

Every operation with a body gets bytes that are not JSON, JSON that is not an object, too much JSON, and a valid body
with each value replaced by others.

Spec: client-server-api/#standard-error-response, #common-error-codes
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from homeserver import limits
from homeserver.api.arguments import decode_json, decode_parts, decode_wrapped
from homeserver.api.routes import Operation
from tests.hostile.asking import check_answer_of, check_client_answer
from tests.hostile.values import NOT_AN_OBJECT, NOT_JSON, changes
from tests.hostile.world import CLIENT_OPERATIONS, ENDING, World, identify, in_groups, make_world

JSON = (decode_json, decode_parts, decode_wrapped)  # forms have tests of their own
WITH_BODY = tuple(
    operation for operation in CLIENT_OPERATIONS if operation.plan.body is not None and operation.decode in JSON
)
every_operation_with_a_body = in_groups(WITH_BODY)


@every_operation_with_a_body
async def test_bodies_that_are_not_json_are_refused(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        before = await world.contents()
        for body in NOT_JSON:
            answer = await world.ask(operation, body=body)
            check_client_answer(operation.method, world.path(operation), answer)
            assert answer.verdict == (400, "M_NOT_JSON"), str(answer)
        assert await world.contents() == before


@every_operation_with_a_body
async def test_bodies_that_are_not_objects_are_refused(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        before = await world.contents()
        for body in NOT_AN_OBJECT:
            answer = await world.ask(operation, body=body)
            check_client_answer(operation.method, world.path(operation), answer)
            if body == b"null" and operation.plan.body is not None and operation.plan.body.optional:
                world = await _after(world, operation)  # it stands for no body
                before = await world.contents()
                continue
            assert answer.verdict == (400, "M_BAD_JSON"), str(answer)
            assert await world.contents() == before


@every_operation_with_a_body
async def test_a_missing_body_is_refused_or_not_needed(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        answer = await world.ask(operation, body=b"")
        check_client_answer(operation.method, world.path(operation), answer)
        assert operation.plan.body is not None
        if operation.plan.body.optional:
            world = await _after(world, operation)
        else:
            assert answer.verdict == (400, "M_NOT_JSON"), str(answer)


@every_operation_with_a_body
async def test_an_oversized_body_is_refused_unread(world: World, operations: Sequence[Operation]) -> None:
    for operation in operations:
        large = b'{"a": "' + b"x" * operation.max_body_bytes + b'"}'
        lies = (str(len(large)), "999999999999999999999999", None)
        for length in lies:
            answer = await world.ask(operation, body=large if length is None else b"{}", length=length)
            check_client_answer(operation.method, world.path(operation), answer)
            assert answer.verdict == (413, "M_TOO_LARGE"), str(answer)
        assert operation.max_body_bytes <= limits.http.BODY_BYTES_MAX["client"]


@pytest.mark.parametrize("operation", WITH_BODY, ids=identify)
async def test_any_value_may_be_wrong(world: World, operation: Operation) -> None:
    plan = operation.plan.body
    assert plan is not None
    written = await world.contents()
    number = 0
    for change in changes(world.body(operation), plan.kind, world.schema(operation)):
        path = world.path(operation)
        answer = await world.ask(operation, path=path, body=change.body)
        check_answer_of(operation, path, answer)
        if change.is_refused:
            assert answer.status in (400, 413), f"{change.where}: {answer}"
        if answer.status >= 400:
            now = await world.contents()
            assert now == written, f"{change.where} left something in {_changed(written, now)}: {answer}"
            continue
        if operation.name in ENDING:
            number += 1
            world = await make_world(world.server, f"alice{number}")
        written = await world.contents()
    await _is_well(world)


async def _after(world: World, operation: Operation) -> World:
    """Returns the world to go on with after a request that may have succeeded."""
    return await make_world(world.server, operation.name) if operation.name in ENDING else world


def _changed(before: object, after: object) -> list[str]:
    assert isinstance(before, dict) and isinstance(after, dict)
    return [name for name in before if before[name] != after[name]]


async def _is_well(world: World) -> None:
    """The server still answers well-formed requests afterwards."""
    await world.server.anonymous.ok("GET", "/_matrix/client/versions")
    await world.bob.ok("GET", "sync")
