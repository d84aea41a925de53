"""Accounts in the hands of the embedding program: made, found again, given a password, ended."""

from __future__ import annotations

import httpx
import pytest

from homeserver import Homeserver, MatrixError
from tests.embedding.conftest import Open

LOGIN = "https://a.example/_matrix/client/v3/login"


async def _may_log_in(hs: Homeserver, user: str, password: str) -> bool:
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(hs.app)) as http:
        return (await http.post(LOGIN, json=body)).status_code == 200


async def test_a_program_finds_its_account_at_the_second_run(homeservers: Open) -> None:
    for _ in range(2):
        async with homeservers("a.example") as a:
            alice = await a.register("alice", "a good password", exist_ok=True)
            await alice.create_room()
    assert len(await _rooms_of_alice(homeservers)) == 2


async def _rooms_of_alice(homeservers: Open) -> list[str]:
    async with homeservers("a.example") as a:
        joined: list[str] = (await (await a.log_in("alice")).call("get_joined_rooms"))["joined_rooms"]
        return joined


async def test_an_existing_account_is_left_unchanged(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        await a.register("alice", "the first password")
        await a.register("alice", "another password", admin=True, exist_ok=True)
        assert await _may_log_in(a, "alice", "the first password")
        assert not await _may_log_in(a, "alice", "another password")


async def test_users_can_be_given_by_localpart_or_id(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        for name in ("alice", "@alice:a.example"):
            assert (await a.log_in(name)).user_id == alice.user_id
        with pytest.raises(MatrixError, match=r"@alice:b\.example is not a user of a\.example"):
            await a.log_in("@alice:b.example")


async def test_a_new_password_replaces_the_old_one(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        await a.register("alice", "the first password")
        await a.set_password("alice", "the second password")
        assert not await _may_log_in(a, "alice", "the first password")
        assert await _may_log_in(a, "alice", "the second password")
        await a.set_password("alice", None)
        assert not await _may_log_in(a, "alice", "the second password")


async def test_deactivation_ends_open_clients_of_the_account(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice, bob = await a.register("alice"), await a.register("bob")
        room_id = await bob.create_room(invite=[alice.user_id])
        await alice.join(room_id)
        await a.deactivate("@alice:a.example")
        with pytest.raises(MatrixError) as over:
            await alice.send(room_id, "Still here?")
        assert over.value.errcode == "M_USER_DEACTIVATED"
        with pytest.raises(MatrixError):
            await a.log_in("alice")
        with pytest.raises(MatrixError):
            await a.register("alice", exist_ok=True)
        left = (await bob.messages(room_id, limit=1))[0]
        assert (left.type, left.content["membership"]) == ("m.room.member", "leave")


async def test_an_unknown_account_is_not_found(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        for attempt in (a.set_password("nobody", "a good password"), a.deactivate("nobody"), a.log_in("nobody")):
            with pytest.raises(MatrixError) as unknown:
                await attempt
            assert unknown.value.status == 404
