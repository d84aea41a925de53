"""`AsyncioHomeserver.app` in web applications on asyncio: mounted in FastAPI, and served by itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig

from homeserver import AsyncioHomeserver, Config
from homeserver.config import RateLimitsSection, Registration

PASSWORD = "a good password"
CLIENT = "/_matrix/client/v3/"


def _make_homeserver(folder: Path) -> AsyncioHomeserver:
    return AsyncioHomeserver(
        Config(
            server_name="example.org",
            data_dir=str(folder),
            registration=Registration(enabled=True),
            rate_limits=RateLimitsSection(enabled=False),
        )
    )


def _make_site(hs: AsyncioHomeserver) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with hs:
            yield

    site = FastAPI(lifespan=lifespan)

    @site.get("/hello")
    async def hello() -> dict[str, str]:
        return {"server": hs.server_name}

    site.mount("/", hs.app)
    return site


def _in_site(folder: Path, program: Callable[[httpx.AsyncClient, AsyncioHomeserver], Awaitable[None]]) -> None:
    async def main() -> None:
        hs = _make_homeserver(folder)
        site = _make_site(hs)
        async with asyncio.timeout(60), site.router.lifespan_context(site):
            transport = httpx.ASGITransport(site)
            async with httpx.AsyncClient(transport=transport, base_url="https://example.org") as http:
                await program(http, hs)

    asyncio.run(main())


async def _register(http: httpx.AsyncClient, name: str) -> dict[str, str]:
    """The header of a new user."""
    body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    answer = await http.post(CLIENT + "register", json=body)
    return {"authorization": f"Bearer {answer.json()['access_token']}"}


def test_the_site_and_the_server_answer_in_one_application(tmp_path: Path) -> None:
    async def program(http: httpx.AsyncClient, _: AsyncioHomeserver) -> None:
        assert (await http.get("/hello")).json() == {"server": "example.org"}
        assert "versions" in (await http.get("/_matrix/client/versions")).json()
        assert (await http.get(CLIENT + "account/whoami")).json()["errcode"] == "M_MISSING_TOKEN"
        assert (await http.get("/_matrix/nothing")).status_code == 404
        assert "example.org" in (await http.get("/")).text

    _in_site(tmp_path, program)


def test_http_clients_and_the_program_can_talk_to_each_other(tmp_path: Path) -> None:
    async def program(http: httpx.AsyncClient, hs: AsyncioHomeserver) -> None:
        token = await _register(http, "alice")
        bot = await hs.register("bot")
        created = await http.post(CLIENT + "createRoom", json={"invite": [bot.user_id]}, headers=token)
        room_id = created.json()["room_id"]
        await bot.join(room_id)
        since = (await http.get(CLIENT + "sync", headers=token)).json()["next_batch"]
        waiting = asyncio.create_task(
            http.get(CLIENT + "sync", params={"since": since, "timeout": "30000"}, headers=token)
        )
        await asyncio.sleep(0.05)
        await bot.send(room_id, "At your service.")
        (message,) = (await waiting).json()["rooms"]["join"][room_id]["timeline"]["events"]
        assert message["content"]["body"] == "At your service."

    _in_site(tmp_path, program)


def test_files_are_transferred_both_ways(tmp_path: Path) -> None:
    async def program(http: httpx.AsyncClient, _: AsyncioHomeserver) -> None:
        token = await _register(http, "alice")
        data = bytes(range(256)) * 8192
        answer = await http.post("/_matrix/media/v3/upload", content=data, headers=token)
        where = answer.json()["content_uri"].removeprefix("mxc://")
        got = await http.get(f"/_matrix/client/v1/media/download/{where}", headers=token)
        assert got.content == data

    _in_site(tmp_path, program)


def test_cancelling_a_request_ends_it_in_the_server(tmp_path: Path) -> None:
    async def program(http: httpx.AsyncClient, hs: AsyncioHomeserver) -> None:
        token = await _register(http, "alice")
        since = (await http.get(CLIENT + "sync", headers=token)).json()["next_batch"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                http.get(CLIENT + "sync", params={"since": since, "timeout": "30000"}, headers=token), 0.1
            )

        async def count_active(server: Any) -> int:
            active: int = server.app.dispatch.active
            return active

        assert await hs.run(count_active) == 0

    _in_site(tmp_path, program)


def test_it_can_be_mounted_but_not_called_before_it_is_open(tmp_path: Path) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(_make_homeserver(tmp_path).app)
        async with httpx.AsyncClient(transport=transport, base_url="https://example.org") as http:
            with pytest.raises(RuntimeError, match="not open"):
                await http.get("/_matrix/client/versions")

    asyncio.run(main())


@pytest.mark.sockets
def test_an_asyncio_asgi_server_can_serve_it(tmp_path: Path) -> None:
    """By itself, lifespan included."""

    async def main() -> None:
        stop = asyncio.Event()
        sock = socket.create_server(("127.0.0.1", 0))
        config = HypercornConfig.from_mapping(bind=[f"fd://{sock.fileno()}"], accesslog=None, errorlog=None)
        async with asyncio.timeout(60), _make_homeserver(tmp_path) as hs, asyncio.TaskGroup() as tasks:
            tasks.create_task(hypercorn_serve(hs.app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
            async with httpx.AsyncClient(verify=False) as http:
                answer = await http.get(f"http://127.0.0.1:{sock.getsockname()[1]}/_matrix/client/versions", timeout=30)
            assert answer.status_code == 200
            stop.set()
        sock.detach()  # the server has closed it

    asyncio.run(main())
