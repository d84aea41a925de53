"""The admin API for registration tokens."""

from __future__ import annotations

from tests.support.homeservers import Client

TOKENS = "/_synapse/admin/v1/registration_tokens"


async def test_administrators_manage_registration_tokens(boss: Client) -> None:
    made = await boss.ok("POST", f"{TOKENS}/new", json={"uses_allowed": 2})
    assert (made["uses_allowed"], made["completed"], made["expiry_time"]) == (2, 0, None)
    named = await boss.ok("POST", f"{TOKENS}/new", json={"token": "come-in"})
    assert named["token"] == "come-in"
    assert await boss.ok("GET", f"{TOKENS}/come-in") == named
    assert {each["token"] for each in (await boss.ok("GET", TOKENS))["registration_tokens"]} == {
        made["token"], "come-in",
    }  # fmt: skip
    assert await boss.ok("DELETE", f"{TOKENS}/come-in") == {}
    assert await boss.refused("DELETE", f"{TOKENS}/come-in") == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", f"{TOKENS}/come-in") == (404, "M_NOT_FOUND")
    for body in ({"token": "a b"}, {"uses_allowed": 0}, {"expiry_time": 1}, {"token": made["token"]}):
        assert await boss.refused("POST", f"{TOKENS}/new", json=body) == (400, "M_INVALID_PARAM"), body


async def test_administrators_change_tokens_and_list_those_that_are_valid(boss: Client) -> None:
    made = await boss.ok("POST", f"{TOKENS}/new", json={"length": 7})
    assert len(made["token"]) == 7
    changed = await boss.ok("PUT", f"{TOKENS}/{made['token']}", json={"uses_allowed": 0})
    assert (changed["uses_allowed"], changed["expiry_time"]) == (0, None)
    assert (await boss.ok("GET", f"{TOKENS}?valid=true"))["registration_tokens"] == []
    assert (await boss.ok("GET", f"{TOKENS}?valid=false"))["registration_tokens"] == [changed]
    again = await boss.ok("PUT", f"{TOKENS}/{made['token']}", json={"uses_allowed": None})
    assert again["uses_allowed"] is None
    assert (await boss.ok("GET", f"{TOKENS}?valid=true"))["registration_tokens"] == [again]
    for body in ({"uses_allowed": -1}, {"uses_allowed": 2**63}, {"expiry_time": 1}, {"expiry_time": 2**63}):
        assert await boss.refused("PUT", f"{TOKENS}/{made['token']}", json=body) == (400, "M_INVALID_PARAM"), body
    assert await boss.refused("PUT", f"{TOKENS}/unknown", json={}) == (404, "M_NOT_FOUND")
    for length in (0, 65):
        assert await boss.refused("POST", f"{TOKENS}/new", json={"length": length}) == (400, "M_INVALID_PARAM")
