"""Misuse of the library, and the parts of the program's process that it leaves alone."""

from __future__ import annotations

import io
import locale
import logging
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from PIL import Image, ImageFile

from homeserver import Client, ClosedError, Config, DatabaseError, Homeserver, Listener
from tests.embedding.conftest import Open
from tests.support.homeservers import NoWire, config_for_tests


def _config(folder: Path, **sections: Any) -> Config:
    return config_for_tests("a.example", folder, listeners=(Listener(bind="127.0.0.1:0"),), **sections)


async def test_using_a_server_that_is_not_open_is_an_error(tmp_path: Path) -> None:
    hs = Homeserver(_config(tmp_path), wire=NoWire())
    uses: list[Callable[[], Any]] = [lambda: hs.app, lambda: hs.resources]
    calls = [hs.register, hs.log_in, hs.deactivate, lambda name: hs.set_password(name, None), lambda _: hs.serve()]
    for error, sentence in ((RuntimeError, "Use it inside `async with Homeserver"), (ClosedError, "is closed")):
        for use in uses:
            with pytest.raises(error, match=sentence):
                use()
        for call in calls:
            with pytest.raises(error, match=sentence):
                await call("alice")
        if error is RuntimeError:
            async with hs:
                pass
    with pytest.raises(RuntimeError, match="opened once"):
        async with hs:
            pass


async def test_a_folder_can_be_opened_by_one_server_only(tmp_path: Path) -> None:
    async with Homeserver(_config(tmp_path), wire=NoWire()):
        with pytest.raises(DatabaseError, match="in use by another server"):
            async with Homeserver(_config(tmp_path), wire=NoWire()):
                raise AssertionError("it must not open")
    async with Homeserver(_config(tmp_path), wire=NoWire()):
        pass


@pytest.mark.sockets
async def test_a_server_can_be_served_once(tmp_path: Path) -> None:
    async with Homeserver(_config(tmp_path), wire=NoWire()) as hs, trio.open_nursery() as nursery:
        (bound,) = await nursery.start(hs.serve)
        assert not bound.url.endswith(":0")
        with pytest.raises(RuntimeError, match="already serving"):
            await hs.serve()
        hs.stop()
        with pytest.raises(RuntimeError, match="Open a new one"):
            await hs.serve()


async def test_waiting_calls_end_when_the_server_closes(homeservers: Open) -> None:
    ended: list[str] = []

    async def wait(client: Client) -> None:
        with pytest.raises(ClosedError):
            await client.sync(timeout_ms=3_600_000)
        ended.append("sync")

    async def listen(client: Client) -> None:
        async for _ in client.events():
            pass
        ended.append("events")

    async with trio.open_nursery() as nursery:
        async with homeservers("a.example") as a:
            alice, bob = await a.register("alice"), await a.register("bob")
            await alice.sync()
            nursery.start_soon(wait, alice)
            nursery.start_soon(listen, bob)
            await trio.sleep(1)
    assert sorted(ended) == ["events", "sync"]
    with pytest.raises(ClosedError):
        await alice.create_room()


@pytest.mark.parametrize("failure", [ZeroDivisionError("a fault of the server"), KeyboardInterrupt()])
async def test_a_failure_of_the_server_is_raised_unwrapped(homeservers: Open, failure: BaseException) -> None:
    async def fail() -> None:
        raise failure

    with pytest.raises(type(failure)) as raised:
        async with homeservers("a.example") as a:
            a.resources.nursery.start_soon(fail)
            await trio.sleep_forever()
    assert raised.value is failure


async def test_an_exception_of_the_program_propagates_through_all_blocks(homeservers: Open) -> None:
    with pytest.raises(KeyboardInterrupt):
        async with homeservers("a.example") as a, homeservers("b.example"):
            await a.register("alice")
            raise KeyboardInterrupt


@pytest.mark.sockets
def test_control_c_while_it_serves_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    class Interrupt:
        def started(self, _: object = None) -> None:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    async def main() -> None:
        async with Homeserver(_config(tmp_path), wire=NoWire(), inline_database=True) as hs:
            await hs.serve(task_status=Interrupt())

    # A shell starts background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, before)


async def test_servers_and_nurseries_can_be_nested_in_any_order(homeservers: Open) -> None:
    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as outer, homeservers("a.example") as a, trio.open_nursery() as inner:
            alice = await a.register("alice")
            inner.start_soon(trio.sleep_forever)
            outer.start_soon(trio.sleep_forever)
            await alice.create_room()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    async with homeservers("a.example") as a:
        rooms = (await (await a.log_in("alice")).call("get_joined_rooms"))["joined_rooms"]
    assert len(rooms) == 1


def _surroundings() -> dict[str, Any]:
    mask = os.umask(0)
    os.umask(mask)
    loggers = [logging.getLogger(), logging.getLogger("homeserver")]
    return {
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "environment": dict(os.environ),
        "umask": mask,
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": list(warnings.filters),
        "logging": [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "limits": [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)],
        "folder": Path.cwd(),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
    }


@pytest.mark.sockets
async def test_a_server_leaves_global_state_of_the_process_alone(tmp_path: Path) -> None:
    before = _surroundings()
    async with Homeserver(_config(tmp_path), wire=NoWire()) as hs, trio.open_nursery() as nursery:
        await nursery.start(hs.serve)
        alice = await hs.register("alice", "a good password")
        await alice.send(await alice.create_room(), "Hello?")
        during = _surroundings()
        hs.stop()
    assert during == before


async def test_test_servers_leave_global_state_of_the_process_alone(homeservers: Open) -> None:
    """Even if thumbnails are made in the process itself."""
    picture = io.BytesIO()
    Image.new("RGB", (600, 400)).save(picture, "PNG")
    before = _surroundings()
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        where = (await alice.upload(picture.getvalue(), "image/png")).removeprefix("mxc://").split("/")
        query = {"width": 96, "height": 96, "method": "crop"}
        made = await alice.call("get_content_thumbnail_authed", *where, query=query)
        assert Image.open(io.BytesIO(made)).size == (96, 96)
    assert _surroundings() == before
