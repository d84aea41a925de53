"""Heavy work does not hold up the event loop; hostile input can harm only a process that is thrown away."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from homeserver.process.workers import Service, WorkerFailed, Workers

FUNCTIONS = "tests.database.worker_functions"


@asynccontextmanager
async def started(**options: Any) -> AsyncIterator[Workers]:
    workers = Workers(**options)
    try:
        yield workers
    finally:
        await workers.aclose()


async def test_the_number_of_threads_is_limited() -> None:
    running, most = 0, 0
    lock, pair = threading.Lock(), threading.Barrier(2)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait()  # two run at once
        with lock:
            running -= 1

    async with started(threads=2) as workers, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(workers.run, work)
    assert most == 2


async def test_threads_return_results_and_errors() -> None:
    async with started() as workers:
        assert await workers.run(hashlib.sha256, b"x")
        with pytest.raises(ZeroDivisionError):
            await workers.run(divmod, 1, 0)


THUMBNAIL = """
import trio
from homeserver.process.workers import Workers

async def main():
    workers = Workers()
    try:
        await workers.run_process(
            "homeserver.features.media.thumbnail_maker:make_thumbnail", b"no picture", "scale", 1, 1, False
        )
    except ValueError as error:
        print(error)
    finally:
        await workers.aclose()

trio.run(main)
"""


def test_the_worker_process_imports_the_running_package(tmp_path: Path) -> None:
    """From any folder, and in an editable installation, where an import hook knows the package and no path does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", THUMBNAIL], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "unsupported\n", done.stderr


async def test_values_travel_to_the_process_and_back() -> None:
    values = [None, True, 1.5, -(2**60), "ü👍", b"\0\xff", [1, [2]], {"a": {"b": [b"x"]}}]
    async with started() as workers:
        assert await workers.run_process(f"{FUNCTIONS}:echo", *values) == values
        big = os.urandom(20_000_000)  # far more than a pipe holds
        assert await workers.run_process(f"{FUNCTIONS}:echo", big) == [big]


async def test_one_process_serves_many_calls() -> None:
    async with started() as workers:
        first = await workers.run_process(f"{FUNCTIONS}:describe")
        results: list[int] = []

        async def call() -> None:
            results.append((await workers.run_process(f"{FUNCTIONS}:describe"))["pid"])

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call)
        assert set(results) == {first["pid"]} and first["pid"] != os.getpid()


async def test_the_process_inherits_nothing_unnecessary() -> None:
    """No secrets in its environment, and not the whole server in its memory."""
    async with started() as workers:
        found = await workers.run_process(f"{FUNCTIONS}:describe")
        assert set(found["environment"]) <= {"PYTHONPATH", "PATH", "LC_CTYPE"}
        assert not {"trio", "sqlite3", "homeserver.server", "psycopg"} & set(found["modules"])
        await workers.run_process("homeserver.database.compression:compress", b"x")
        found = await workers.run_process(f"{FUNCTIONS}:describe")
        assert not {"trio", "sqlite3", "homeserver.server", "psycopg"} & set(found["modules"])


async def test_a_refusal_is_a_value_error() -> None:
    async with started() as workers:
        with pytest.raises(ValueError, match="not an image"):
            await workers.run_process(f"{FUNCTIONS}:refuse", "not an image")


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        ("fail", (), "IndexError: out of range"),
        ("return_object", (), "TypeError"),
        ("no_such_function", (), "AttributeError"),
        ("take_memory", (3 << 30,), "MemoryError"),
        ("die", (1,), "died"),
        ("die", (0,), "ended"),
        ("crash", (), "died"),
        ("take_time", (30,), "too long"),
        ("spin", (), "too long"),
    ],
)
async def test_failures_do_not_affect_other_calls(function: str, args: tuple[object, ...], reason: str) -> None:
    async with started() as workers:
        with pytest.raises(WorkerFailed, match=reason):
            timeout_s = 1.0 if reason == "too long" else 60.0
            await workers.run_process(f"{FUNCTIONS}:{function}", *args, timeout_s=timeout_s)
        assert await workers.run_process(f"{FUNCTIONS}:echo", 1) == [1]


async def test_the_process_writes_no_files(tmp_path: Path) -> None:
    async with started() as workers:
        with pytest.raises(WorkerFailed):
            await workers.run_process(f"{FUNCTIONS}:write_a_file", str(tmp_path / "file"))
    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size == 0


async def test_printed_output_is_not_taken_for_an_answer() -> None:
    async with started() as workers:
        assert await workers.run_process(f"{FUNCTIONS}:chatter") == "answer"


async def test_an_idle_process_ends_and_is_started_again() -> None:
    async with started(idle_seconds=0.2) as workers:
        first = (await workers.run_process(f"{FUNCTIONS}:describe"))["pid"]
        while not is_gone(first):  # noqa: ASYNC110
            await trio.sleep(0.01)
        second = (await workers.run_process(f"{FUNCTIONS}:describe"))["pid"]
        assert second != first


async def test_no_process_is_started_before_it_is_needed_nor_left_behind() -> None:
    workers = Workers()
    assert workers._process._running is None
    pid = (await workers.run_process(f"{FUNCTIONS}:describe"))["pid"]
    await workers.aclose()
    assert is_gone(pid)


async def test_closing_ends_a_call_under_way() -> None:
    async with trio.open_nursery() as nursery:
        workers = Workers()

        async def call() -> None:
            with pytest.raises(WorkerFailed):
                await workers.run_process(f"{FUNCTIONS}:take_time", 1000, timeout_s=1000)

        nursery.start_soon(call)
        while workers._process._running is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await workers.aclose()


def test_inline_works_under_a_virtual_clock() -> None:
    async def main() -> None:
        async with started(inline=True) as workers:
            with trio.fail_after(0.001):
                assert await workers.run(divmod, 7, 2) == (3, 1)
                assert await workers.run_process(f"{FUNCTIONS}:echo", 1) == [1]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def is_gone(pid: int) -> bool:
    """Returns whether the process has ended. It stays a zombie until its parent collects it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


async def test_a_service_keeps_an_object_in_a_process_of_its_own(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    service = Service(f"{FUNCTIONS}:Notebook", str(notes), idle_seconds=0.2)
    pid, words = await service.call("note", "a")
    assert pid != os.getpid() and words == ["a"]
    assert await service.call("note", "b") == [pid, ["a", "b"]]
    with pytest.raises(ValueError, match="no"):
        await service.call("refuse")
    with pytest.raises(WorkerFailed, match="LookupError: nothing there"):
        await service.call("fail")
    for _ in range(1000):  # it closes itself when it is idle
        if notes.exists():
            break
        await trio.sleep(0.01)
    assert await service.call("note", "c") != [pid, ["a", "b", "c"]], "a new process begins with what is in files"
    await service.aclose()


async def test_a_call_of_a_service_is_repeated_if_its_process_dies(tmp_path: Path) -> None:
    service = Service(f"{FUNCTIONS}:Notebook", str(tmp_path / "notes"))
    assert await service.call("die_once") == "died"
    await service.aclose()


async def test_an_inline_service_behaves_like_one_in_a_process(tmp_path: Path) -> None:
    service = Service(f"{FUNCTIONS}:Notebook", str(tmp_path / "notes"), inline=True)
    assert await service.call("note", "a") == [os.getpid(), ["a"]]
    with pytest.raises(ValueError, match="no"):
        await service.call("refuse")
    with pytest.raises(WorkerFailed, match="LookupError: nothing there"):
        await service.call("fail")
    await service.aclose()
    assert (tmp_path / "notes").read_text() == "a"
