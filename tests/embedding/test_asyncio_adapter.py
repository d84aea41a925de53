"""A homeserver in an asyncio program: what is not shown by docs/embedding.md."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio

from homeserver import (
    AsyncioClient,
    AsyncioHomeserver,
    Client,
    ClosedError,
    Config,
    ConfigError,
    DatabaseError,
    Homeserver,
    Listener,
    MatrixError,
)
from homeserver.config import FederationSection

Program = Callable[[AsyncioHomeserver], Awaitable[None]]


def _run(folder: Path, program: Program, **sections: object) -> None:
    """Runs an asyncio program with a homeserver. It must end within a minute, and leave no thread behind."""
    config = Config(server_name="example.org", data_dir=str(folder), **sections)  # type: ignore[arg-type]

    async def main() -> None:
        async with asyncio.timeout(60), AsyncioHomeserver(config) as hs:
            await program(hs)

    try:
        asyncio.run(main())
    finally:
        assert [thread for thread in threading.enumerate() if thread.name == "homeserver"] == []


@pytest.mark.parametrize(("ours", "theirs"), [(AsyncioClient, Client), (AsyncioHomeserver, Homeserver)])
def test_the_adapter_has_the_same_methods_as_the_trio_api(ours: type, theirs: type) -> None:
    """Whoever adds a method to one adds it to the other, with the same arguments."""
    left_to_trio = {"open", "resources"}
    public = {name for name in vars(theirs) if not name.startswith("_")} - left_to_trio
    assert public <= set(vars(ours))
    for name in public - {"serve"}:
        theirs_is, ours_is = getattr(theirs, name), getattr(ours, name)
        if not isinstance(theirs_is, property):
            assert list(inspect.signature(theirs_is).parameters) == list(inspect.signature(ours_is).parameters), name


def test_refusals_cross_the_bridge(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        with pytest.raises(MatrixError) as refused:
            await alice.send("!nowhere:example.org", "Anybody?")
        assert refused.value.errcode == "M_NOT_FOUND"
        with pytest.raises(TypeError, match="takes room_id"):
            await alice.call("leave_room")

    _run(tmp_path, program)


def test_accounts_can_be_managed(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        assert hs.server_name == "example.org"
        alice = await hs.register("alice", "a good password", exist_ok=True)
        assert (alice.user_id, alice.device_id) == ("@alice:example.org", "EMBEDDED")
        await hs.set_password("alice", "a better password")

    for _ in range(2):
        _run(tmp_path, program)

    async def end(hs: AsyncioHomeserver) -> None:
        alice = await hs.log_in("alice")
        await hs.deactivate("alice")
        with pytest.raises(MatrixError, match="deactivated"):
            await alice.create_room()

    _run(tmp_path, end)


def test_files_are_transferred_whole_and_in_chunks(tmp_path: Path) -> None:
    piece = bytes(range(256)) * 2048

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0)
            yield piece

    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        assert (await alice.download(await alice.upload(b"tea", "text/plain", "tea.txt"))).filename == "tea.txt"
        mxc = await alice.upload(pieces(), "application/x-pattern")
        where = mxc.removeprefix("mxc://").split("/")
        async with alice.stream("get_content_authed", *where) as answer:
            assert answer.headers["content-type"] == "application/x-pattern"
            assert b"".join([chunk async for chunk in answer.chunks]) == piece * 4
        async with alice.stream("get_content_authed", *where) as answer:
            assert await anext(answer.chunks)  # and no more of it
        with pytest.raises(MatrixError):
            async with alice.stream("get_content_authed", "example.org", "nothing"):
                raise AssertionError("there is nothing to stream")

    _run(tmp_path, program)


def test_an_exception_in_an_upload_is_raised_to_the_program(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"the beginning"
        raise ZeroDivisionError

    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        with pytest.raises(ZeroDivisionError):
            await alice.upload(broken())
        await alice.create_room()

    _run(tmp_path, program)


def test_a_cancelled_call_leaves_the_server_running(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        await alice.sync()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alice.sync(timeout_ms=30_000), 0.05)
        room_id = await alice.create_room()
        assert room_id in (await alice.sync())["rooms"]["join"]

    _run(tmp_path, program)


def test_events_can_be_awaited_while_others_send(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        room_id = await alice.create_room()
        listener = await hs.log_in("@alice:example.org", "LISTENER")

        async def listen() -> list[str]:
            texts: list[str] = []
            async for event in listener.events():
                texts.append(event.body)
                if len(texts) == 20:
                    return texts
            return texts

        listening = asyncio.create_task(listen())
        for number in range(20):
            await alice.send(room_id, str(number))
        assert await listening == [str(number) for number in range(20)]

    _run(tmp_path, program)


def test_calls_that_wait_when_the_server_closes_end_with_an_error(tmp_path: Path) -> None:
    async def program() -> None:
        config = Config(server_name="example.org", data_dir=str(tmp_path))
        async with asyncio.timeout(60):
            async with AsyncioHomeserver(config) as hs:
                alice = await hs.register("alice")
                await alice.sync()
                waiting = asyncio.create_task(alice.sync(timeout_ms=30_000))
                listening = asyncio.create_task(_exhaust(alice))
                await alice.messages(await alice.create_room())
                await alice.sync()
                again = asyncio.create_task(alice.sync(timeout_ms=30_000))
                await asyncio.sleep(0)
            answers = await asyncio.gather(waiting, again, return_exceptions=True)
            assert isinstance(answers[1], ClosedError)
            await listening
            with pytest.raises(ClosedError):
                await hs.log_in("@alice:example.org")
            with pytest.raises(RuntimeError, match="opened once"):
                await hs.__aenter__()

    asyncio.run(program())


async def _exhaust(client: AsyncioClient) -> None:
    async for _ in client.events():
        pass


def test_use_before_opening_is_refused_with_an_explanation(tmp_path: Path) -> None:
    async def program() -> None:
        hs = AsyncioHomeserver(Config(server_name="example.org", data_dir=str(tmp_path)))
        with pytest.raises(RuntimeError, match="inside `async with AsyncioHomeserver"):
            await hs.register("alice")

    asyncio.run(program())


def test_errors_at_the_start_are_raised_on_opening(tmp_path: Path) -> None:
    async def program(_: AsyncioHomeserver) -> None:
        raise AssertionError("it must not open")

    with pytest.raises(ConfigError, match=r"ca_file"):
        _run(tmp_path, program, federation=FederationSection(ca_file=str(tmp_path / "absent.pem")))

    async def open_another(_: AsyncioHomeserver) -> None:
        async with AsyncioHomeserver(Config(server_name="example.org", data_dir=str(tmp_path))):
            raise AssertionError("it must not open")

    with pytest.raises(DatabaseError, match=r"in use"):
        _run(tmp_path, open_another)


def test_background_failures_are_raised_on_exit(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        await alice.sync()
        waiting = asyncio.create_task(alice.sync(timeout_ms=30_000))
        await asyncio.sleep(0.05)

        with pytest.raises(ClosedError):
            await hs.run(_fail_in_background)
        with pytest.raises(ClosedError):
            await waiting
        with pytest.raises(ClosedError):
            await alice.create_room()

    with pytest.raises(ZeroDivisionError, match="a fault of the server"):
        _run(tmp_path, program)


async def _fail_in_background(server: Homeserver) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a fault of the server")

    server.resources.nursery.start_soon(fail)
    await trio.sleep_forever()


def test_cancelling_the_program_closes_the_server(tmp_path: Path) -> None:
    opened: list[AsyncioHomeserver] = []

    async def run_for_ever() -> None:
        async with AsyncioHomeserver(Config(server_name="example.org", data_dir=str(tmp_path))) as hs:
            opened.append(hs)
            await asyncio.sleep(3600)

    async def program() -> None:
        for pause in (0.0, 0.02, 0.3, 1.0):  # while it opens, and when it is open
            task = asyncio.create_task(run_for_ever())
            await asyncio.sleep(pause)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [thread for thread in threading.enumerate() if thread.name == "homeserver"] == []

    asyncio.run(program())
    assert opened


@pytest.mark.sockets
def test_the_server_serves_until_it_is_stopped(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        started: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hs.serve(started=started))  # type: ignore[arg-type]
            (bound,) = await started
            async with httpx.AsyncClient(verify=False) as http:
                answer = await http.get(f"{bound.url}/_matrix/client/versions")  # type: ignore[attr-defined]
            assert answer.status_code == 200
            hs.stop()

    _run(tmp_path, program, listeners=(Listener(bind="127.0.0.1:0"),))


@pytest.mark.sockets
def test_a_listener_that_cannot_listen_fails_the_start(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        started: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(hs.serve(started=started))  # type: ignore[arg-type]
        for refused in (started, serving):
            with pytest.raises(ConfigError):
                await refused

    _run(tmp_path, program, listeners=(Listener(bind="192.0.2.1:8008"),))


@pytest.mark.sockets
def test_serving_can_be_cancelled(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        serving = asyncio.create_task(hs.serve())
        await asyncio.sleep(0.05)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await hs.register("alice")

    _run(tmp_path, program, listeners=(Listener(bind="127.0.0.1:0"),))
