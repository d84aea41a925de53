"""Calls of any operation, files included; and what a program that calls wrongly is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from homeserver import File, MatrixError
from tests.embedding.conftest import Open


async def _pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_file_is_returned_as_it_was_stored(homeservers: Open) -> None:
    async with homeservers("a.example") as a, homeservers("b.example") as b:
        alice, bob = await a.register("alice"), await b.register("bob")
        mxc = await alice.upload("Tee für zwei".encode(), "text/plain", "zwei Tassen.txt")
        stored = File("Tee für zwei".encode(), "text/plain", "zwei Tassen.txt")
        assert await alice.download(mxc) == stored
        assert await bob.download(mxc) == stored


async def test_a_large_file_is_transferred_in_chunks(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        piece = bytes(range(256)) * 4096
        mxc = await alice.upload(_pieces(piece, piece, piece), "application/x-pattern")
        server_name, media_id = mxc.removeprefix("mxc://").split("/")
        async with alice.stream("get_content_authed", server_name, media_id) as answer:
            assert answer.headers["content-type"] == "application/x-pattern"
            sizes = [len(chunk) async for chunk in answer.chunks]
        assert sum(sizes) == 3 * len(piece) and len(sizes) > 1
        part = await alice.call("get_content_authed", server_name, media_id, headers={"Range": "bytes=0-2"})
        assert part == b"\0\1\2"


async def test_bytes_and_mappings_are_accepted_as_bodies(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        for body in (b'{"name":"Kitchen"}', {"name": "Kitchen"}):
            room_id = (await alice.call("create_room", body=body))["room_id"]
            assert (await alice.call("get_room_state_with_key", room_id, "m.room.name", "")) == {"name": "Kitchen"}
        answer = await alice.call("upload_content", body=b"tea", headers={"Content-Type": "text/plain"})
        assert (await alice.download(answer["content_uri"])).content == b"tea"


async def test_objects_passed_to_a_call_can_be_changed_afterwards(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        room_id = await alice.create_room()
        content: dict[str, Any] = {"msgtype": "m.text", "body": "tea", "cups": [1]}
        await alice.send(room_id, content)
        content["cups"].append(2)
        assert (await alice.messages(room_id, limit=1))[0].content["cups"] == [1]


@pytest.mark.parametrize(
    ("operation", "path", "given", "sentence"),
    [
        ("leave_room", (), {}, "leave_room takes room_id, but 0 path arguments were given"),
        ("leave_room", ("!a:b", "c"), {}, "leave_room takes room_id, but 2 path arguments were given"),
        ("get_joined_rooms", ("!a:b",), {}, "takes no path arguments, but 1"),
        ("leave_room", (None,), {}, "room_id must be a str, not NoneType"),
        ("sync_events", (), {"query": {"timeuot": 1}}, "no query parameter 'timeuot'; it has .*timeout"),
        ("sync_events", (), {"query": {"since": object()}}, "parameter since cannot be a object"),
        ("sync_events", (), {"query": "timeout=3"}, "query must be a mapping, not str"),
        ("get_joined_rooms", (), {"query": {"limit": 1}}, "takes no query"),
        ("get_joined_rooms", (), {"body": {}}, "takes no body"),
        ("create_room", (), {"body": ["name"]}, "body must be a mapping, not list"),
        ("create_room", (), {"body": {"name": object()}}, "cannot be written as JSON"),
        ("create_room", (), {"body": {"initial": float("nan")}}, "cannot be written as JSON"),
        ("upload_content", (), {"body": "text"}, "must be bytes, a mapping or an async iterable"),
        ("send_transaction", ("t1",), {"body": {}}, "called by other servers"),
    ],
)
async def test_a_call_with_the_wrong_signature_is_a_type_error(
    homeservers: Open, operation: str, path: tuple[Any, ...], given: dict[str, Any], sentence: str
) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        with pytest.raises(TypeError, match=sentence):
            await alice.call(operation, *path, **given)


async def test_a_wrong_argument_is_a_type_error_with_an_explanation(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice: Any = await a.register("alice")
        any_a: Any = a
        room_id = await alice.create_room()
        for attempt, sentence in (
            (any_a.register(7), "localpart must be a str, not int"),
            (any_a.register("bob", 7), "password must be a str, not int"),
            (any_a.log_in(None), "user must be a str, not NoneType"),
            (alice.send(room_id, 7), "send takes a str or a mapping, not int"),
            (alice.upload("text"), "upload takes bytes or an async iterable of bytes, not str"),
            (alice.download(b"mxc://"), "download takes an mxc:// URI, not bytes"),
            (alice.create_room(nmae="Kitchen"), "create_room has no field 'nmae'. Did you mean name?"),
            (alice.call(7), "name of an operation must be a str, not int"),
        ):
            with pytest.raises(TypeError) as wrong:
                await attempt
            assert sentence in str(wrong.value)


async def test_refusals_have_an_error_code_and_an_explanation(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        room_id = await alice.create_room()
        where = (await alice.upload(b"tea")).removeprefix("mxc://").split("/")
        deep: dict[str, Any] = {}
        for _ in range(200):
            deep = {"deeper": deep}
        for attempt, code in (
            (alice.call("send_mesage", room_id), "M_NOT_FOUND"),
            (alice.leave("the kitchen"), "M_INVALID_PARAM"),
            (alice.call("sync_events", query={"timeout": "soon"}), "M_INVALID_PARAM"),
            (alice.call("invite_user", room_id), "M_MISSING_PARAM"),
            (alice.call("create_room", body={"name": 7}), "M_BAD_JSON"),
            (alice.call("create_room", body=b"name: Kitchen"), "M_NOT_JSON"),
            (alice.send(room_id, deep), "M_NOT_JSON"),
            (alice.send(room_id, "x" * 70_000), "M_TOO_LARGE"),
            (alice.download("https://a.example/tea.png"), "M_INVALID_PARAM"),
            (alice.download("mxc://a.example/nothing"), "M_NOT_FOUND"),
            (alice.call("get_content_authed", *where, headers={"range": "bytes=9-"}), "M_INVALID_PARAM"),
        ):
            with pytest.raises(MatrixError) as refused:
                await attempt
            assert refused.value.errcode == code, refused.value
            assert refused.value.error.endswith((".", "?")), refused.value
    assert "Did you mean send_message?" in str(await _unknown(homeservers))


async def _unknown(homeservers: Open) -> MatrixError:
    async with homeservers("a.example") as a:
        with pytest.raises(MatrixError) as unknown:
            await (await a.register("carol")).call("send_mesage")
        return unknown.value
