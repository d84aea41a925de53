"""Spec: client-server-api/#user-interactive-authentication-api"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.resources import Resources
from homeserver.users.user_interactive import (
    DUMMY,
    Authentication,
    AuthenticationRequired,
    Stage,
    delete_session,
    require_stages,
)
from tests.support.homeservers import Server


async def check_word(hs: Resources, auth: dict[str, Any], loaded: Any) -> str:
    if auth.get("word") != "please":
        raise forbidden("That is not the word.")
    return "said"


WORD = Stage("example.word", check_word, params={"length": 6})
OTHER = Stage("example.other", check_word)
FLOWS = [(WORD, DUMMY), (WORD, OTHER)]


async def ask(server: Server, auth: dict[str, Any] | None, operation: str = "operation") -> Authentication | dict:
    """The authentication, or the body of the 401."""
    try:
        return await require_stages(server.hs, operation, auth, FLOWS)
    except AuthenticationRequired as error:
        return error.body()


async def test_stages_are_completed_in_order(homeserver: Server) -> None:
    first = await ask(homeserver, None)
    assert first == {
        "flows": [{"stages": ["example.word", "m.login.dummy"]}, {"stages": ["example.word", "example.other"]}],
        "params": {"example.word": {"length": 6}},
        "session": first["session"],
    }
    session = first["session"]

    failed = await ask(homeserver, {"session": session, "type": "example.word", "word": "now"})
    assert failed["errcode"] == "M_FORBIDDEN"
    assert failed["session"] == session
    assert "completed" not in failed

    second = await ask(homeserver, {"session": session, "type": "example.word", "word": "please"})
    assert second["completed"] == ["example.word"]
    assert second["session"] == session
    assert "errcode" not in second

    again = await ask(homeserver, {"session": session, "type": "example.word", "word": "now"})
    assert again["completed"] == ["example.word"]  # "Completed stages cannot be retried"
    assert "errcode" not in again

    done = await ask(homeserver, {"session": session, "type": "m.login.dummy"})
    assert done == Authentication(session, {"example.word": "said", "m.login.dummy": True})
    await homeserver.write(delete_session, done)
    with pytest.raises(MatrixError, match="M_FORBIDDEN"):
        await homeserver.write(delete_session, done)


async def test_stages_out_of_order_are_refused(homeserver: Server) -> None:
    session = (await ask(homeserver, None))["session"]
    for kind in ("m.login.dummy", "example.other", "m.login.nonsense"):
        refusal = await ask(homeserver, {"session": session, "type": kind, "word": "please"})
        assert refusal["errcode"] == "M_FORBIDDEN"
        assert "completed" not in refusal


async def test_a_session_is_valid_for_one_operation(homeserver: Server) -> None:
    session = (await ask(homeserver, None))["session"]
    with pytest.raises(MatrixError, match="M_FORBIDDEN"):
        await ask(homeserver, {"session": session, "type": "example.word", "word": "please"}, operation="another")


async def test_unknown_and_expired_sessions_start_again(homeserver: Server) -> None:
    session = (await ask(homeserver, None))["session"]
    await trio.sleep(limits.USER_INTERACTIVE_LIFETIME_MS / 1000)
    for old in (session, "nonsense"):
        answer = await ask(homeserver, {"session": old, "type": "example.word", "word": "please"})
        assert answer["errcode"] == "M_UNKNOWN"
        assert answer["session"] not in (session, "nonsense")
        assert "completed" not in answer


async def test_the_number_of_sessions_is_limited(homeserver: Server) -> None:
    sessions = [(await ask(homeserver, None))["session"] for _ in range(2)]

    def grow_old(tx: Transaction) -> None:
        """As if the second had been begun as many sessions later as may be stored."""
        number = limits.USER_INTERACTIVE_SESSIONS_MAX
        tx.run("UPDATE user_interactive_sessions SET number = ? WHERE session = ?", number, sessions[1])

    await homeserver.write(grow_old)
    sessions.append((await ask(homeserver, None))["session"])
    right = {"type": "example.word", "word": "please"}
    newest, second, oldest = [await ask(homeserver, {**right, "session": each}) for each in reversed(sessions)]
    assert "completed" in newest
    assert "completed" in second
    assert oldest["errcode"] == "M_UNKNOWN"


async def test_no_request_succeeds_without_auth(homeserver: Server) -> None:
    for auth in (None, {}):
        with pytest.raises(AuthenticationRequired):
            await require_stages(homeserver.hs, "operation", auth, [(DUMMY,)])
    done = await require_stages(homeserver.hs, "operation", {"type": "m.login.dummy"}, [(DUMMY,)])
    assert done == Authentication(None, {"m.login.dummy": True})
