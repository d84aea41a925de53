"""A homeserver in an asyncio program: what is not shown by docs/embedding.md."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from homeserver import Config, MatrixError
from homeserver.asyncio_adapter import AsyncioHomeserver
from homeserver.config import ConfigError, FederationSection, Listener

Program = Callable[[AsyncioHomeserver], Awaitable[None]]


def _run(folder: Path, program: Program, **sections: object) -> None:
    """Runs an asyncio program beside a homeserver; it has to end within a minute."""
    config = Config(server_name="example.org", data_dir=str(folder), **sections)  # type: ignore[arg-type]

    async def main() -> None:
        async with asyncio.timeout(60), AsyncioHomeserver(config) as hs:
            await program(hs)

    asyncio.run(main())


def test_refusals_are_carried_across(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        with pytest.raises(MatrixError) as refused:
            await alice.send("!nowhere:example.org", "Anybody?")
        assert refused.value.errcode == "M_NOT_FOUND"

    _run(tmp_path, program)


def test_a_cancelled_call_leaves_the_server_at_work(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        alice = await hs.register("alice")
        await alice.sync()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alice.sync(timeout_ms=30_000), 0.05)
        room_id = await alice.create_room()
        assert room_id in (await alice.sync())["rooms"]["join"]

    _run(tmp_path, program)


def test_events_are_awaited_while_others_send(tmp_path: Path) -> None:
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
    waiting: list[asyncio.Task[object]] = []
    closed: list[AsyncioHomeserver] = []

    async def program() -> None:
        config = Config(server_name="example.org", data_dir=str(tmp_path))
        async with asyncio.timeout(60):
            async with AsyncioHomeserver(config) as hs:
                alice = await hs.register("alice")
                await alice.sync()
                waiting.append(asyncio.create_task(alice.sync(timeout_ms=30_000)))
                await alice.messages(await alice.create_room())
                await alice.sync()
                closed.append(hs)
                waiting.append(asyncio.create_task(alice.sync(timeout_ms=30_000)))
                await asyncio.sleep(0)
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(answers[1], RuntimeError)
            with pytest.raises(RuntimeError, match="closed"):
                await hs.log_in("@alice:example.org")

    asyncio.run(program())


def test_what_is_wrong_at_the_start_is_raised_where_it_is_opened(tmp_path: Path) -> None:
    async def program(_: AsyncioHomeserver) -> None:
        raise AssertionError("it must not open")

    with pytest.raises(ConfigError, match=r"ca_file"):
        _run(tmp_path, program, federation=FederationSection(ca_file=str(tmp_path / "absent.pem")))


@pytest.mark.sockets
def test_it_serves(tmp_path: Path) -> None:
    async def program(hs: AsyncioHomeserver) -> None:
        serving = asyncio.create_task(hs.serve())
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    _run(tmp_path, program, listeners=(Listener(bind="127.0.0.1:0"),))
