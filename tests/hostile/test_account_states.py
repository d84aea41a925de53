"""What each operation answers each kind of account: a table of all operations and all states, tested whole.

The table follows from the specification's lists, which `tests/tidy/test_contract.py` has, with a reason for what is
added to them:

| account       | operations                            | answer                                                       |
|---------------|---------------------------------------|--------------------------------------------------------------|
| deactivated   | all                                   | 401 M_UNKNOWN_TOKEN                                          |
| locked        | all but `/logout` and `/logout/all`   | 401 M_USER_LOCKED, a soft logout                             |
| guest         | all but those for guests              | 403 M_GUEST_ACCESS_FORBIDDEN                                 |
| suspended     | all but reading, and what is listed   | 403 M_USER_SUSPENDED                                         |
| shadow-banned | all                                   | what anybody gets                                            |

Spec: client-server-api/#account-locking, #account-suspension, #guest-access, #account-deactivation
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from homeserver.api.routes import Operation
from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.users.accounts import set_deactivated
from tests.hostile.asking import Answer
from tests.hostile.values import encode
from tests.hostile.world import ENDING, OPERATIONS, STREAMS, World, make_world
from tests.support.homeservers import Server
from tests.tidy.test_contract import (
    FOR_GUESTS_BY_SPEC,
    FOR_GUESTS_TOO,
    FOR_SUSPENDED_BY_SPEC,
    FOR_SUSPENDED_TOO,
    bare,
)

WITH_ACCOUNT = tuple(each for each in OPERATIONS if each.plan.requester and each.name not in STREAMS)
FOR_GUESTS = {*FOR_GUESTS_BY_SPEC.strip().splitlines(), *FOR_GUESTS_TOO.strip().splitlines()}
FOR_SUSPENDED = {*FOR_SUSPENDED_BY_SPEC.strip().splitlines(), *FOR_SUSPENDED_TOO.strip().splitlines()}
FOR_LOCKED = {"POST logout", "POST logout/all"}


class State(NamedTuple):
    """A kind of account. is_served: whether an operation is for it. refusal: what all other operations answer."""

    flags: AccountFlags | None
    refusal: tuple[int, str]
    is_served: Callable[[Operation], bool]


STATES = {
    "deactivated": State(None, (401, "M_UNKNOWN_TOKEN"), lambda operation: False),
    "locked": State(
        AccountFlags(is_locked=True), (401, "M_USER_LOCKED"), lambda operation: bare(operation) in FOR_LOCKED
    ),
    "locked administrator": State(
        AccountFlags(is_locked=True, is_admin=True), (401, "M_USER_LOCKED"),
        lambda operation: bare(operation) in FOR_LOCKED,
    ),
    "guest": State(
        AccountFlags(is_guest=True), (403, "M_GUEST_ACCESS_FORBIDDEN"),
        lambda operation: operation.plan.requester_optional or bare(operation) in FOR_GUESTS,
    ),
    "suspended": State(
        AccountFlags(is_suspended=True), (403, "M_USER_SUSPENDED"),
        lambda operation: (
            operation.plan.requester_optional or operation.method == "GET" or bare(operation) in FOR_SUSPENDED
        ),
    ),
    "locked and suspended": State(
        AccountFlags(is_locked=True, is_suspended=True), (401, "M_USER_LOCKED"),
        lambda operation: bare(operation) in FOR_LOCKED,
    ),
}  # fmt: skip
# These are for some purposes only, and the request of this test is for another one, so the handler refuses it.
FOR_SOME_PURPOSES = {
    "guest": {"POST account/password"},
    "suspended": {
        "PUT rooms/{}/send/{}/{}", "POST rooms/{}/send/{}", "PUT rooms/{}/state/{}", "PUT rooms/{}/state/{}/{}",
        "POST org.matrix.msc4140/delayed_events/{}", "POST org.matrix.msc4140/delayed_events/{}/send",
    },
}  # fmt: skip


async def become(world: World, state: State) -> None:
    """Puts alice's account into the state."""
    path = f"rooms/{quote(world.room_id)}/state/m.room.guest_access"
    await world.alice.ok("PUT", path, json={"guest_access": "can_join"})
    if state.flags is None:
        await world.server.write(set_deactivated, world.alice.user_id, erase=False)
    else:
        await world.server.write(store_account_flags, world.alice.user_id, state.flags)


async def ask(world: World, operation: Operation) -> Answer:
    """Asks as alice. Operations of administrators, of which the world has no examples, get any path and body."""
    try:
        path = world.path(operation)
    except KeyError:
        path = re.sub(r"\{\w+\}", "x", operation.path)
    options: dict[str, Any] = {"path": path}
    if operation.plan.body is not None and operation.group == "admin":
        options["body"] = encode({})
    return await world.ask(operation, **options)


@pytest.mark.parametrize("name", STATES)
async def test_an_account_in_each_state_may_use_the_listed_operations_and_no_others(world: World, name: str) -> None:
    state = STATES[name]
    await become(world, state)
    before = await world.contents()
    for operation in WITH_ACCOUNT:
        if not state.is_served(operation):
            answer = await ask(world, operation)
            assert answer.verdict == state.refusal, str(answer)
            assert answer.errcode != "M_USER_LOCKED" or answer.json["soft_logout"] is True
    assert await world.contents() == before
    number = 0
    for operation in WITH_ACCOUNT:
        if state.is_served(operation):
            answer = await ask(world, operation)
            is_refused = answer.verdict == state.refusal
            assert is_refused == (bare(operation) in FOR_SOME_PURPOSES.get(name, ())), str(answer)
            if answer.status < 300 and operation.name in ENDING:
                number += 1
                world = await make_world(world.server, f"alice{number}")
                await become(world, state)


async def make_banned_world(server: Server, name: str) -> World:
    """A world like the other one, of a shadow-banned account."""
    banned = await make_world(server, name)
    banned.numbers = itertools.count(1_000_000)  # what both worlds name must not be the same
    await server.write(store_account_flags, banned.alice.user_id, AccountFlags(is_shadow_banned=True))
    return banned


async def test_a_shadow_banned_account_gets_the_answers_that_anybody_gets(world: World) -> None:
    banned, number = await make_banned_world(world.server, "banned"), 0
    for operation in WITH_ACCOUNT:
        ordinary, answer = await ask(world, operation), await ask(banned, operation)
        assert answer.verdict == ordinary.verdict, f"{answer}\n{ordinary}"
        if answer.status < 300 and operation.name in ENDING:
            number += 1
            world = await make_world(world.server, f"alice{number}")
            banned = await make_banned_world(world.server, f"banned{number}")
