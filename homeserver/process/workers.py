"""Workers: for work that would block the event loop. Threads if it releases the GIL, a process if input is hostile.

A `Service` is an object in a process of its own, which is started by the first call and ends when it is idle.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import msgspec
import trio

from homeserver.limits import (
    WORKER_ANSWER_BYTES_MAX,
    WORKER_IDLE_SECONDS,
    WORKER_MEMORY_BYTES_MAX,
    WORKER_SECONDS_MAX,
    WORKER_THREADS_MAX,
)
from homeserver.process.worker_process import find_function

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PROGRAM = Path(__file__).with_name("worker_process.py")


class WorkerFailed(Exception):
    """The separate process took too long or too much memory, died, or raised an unexpected error."""


class ProcessDied(WorkerFailed):
    """The separate process ended, with an error or by a signal, before it answered."""


class Workers:
    """`run` uses a limited number of threads. `run_process` uses a separate process, started when it is needed."""

    def __init__(
        self,
        *,
        threads: int = WORKER_THREADS_MAX,
        memory_bytes: int = WORKER_MEMORY_BYTES_MAX,
        idle_seconds: float = WORKER_IDLE_SECONDS,
        inline: bool = False,
    ) -> None:
        """inline: work runs on the trio thread and blocks it; for tests under a virtual clock."""
        self._inline = inline
        self._limiter = trio.CapacityLimiter(threads)
        self._process = _Process(memory_bytes, idle_seconds)
        self._process_limiter = trio.CapacityLimiter(1)

    async def run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Runs fn(*args) in a thread; waits while all are busy. For work that releases the GIL: argon2, zstd, …"""
        if self._inline:
            await trio.lowlevel.checkpoint()
            return fn(*args)
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)

    async def wait_for(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Runs fn(*args) in a thread of its own. For what waits for others: it is left alone when it is cancelled."""
        if self._inline:
            return await self.run(fn, *args)
        return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True)

    async def run_process(self, function: str, *args: Any, timeout_s: float = WORKER_SECONDS_MAX) -> Any:
        """Calls `function` ("package.module:name") in the separate process, one call at a time.

        Arguments and result: None, bool, int, float, str, bytes, and lists and dicts of them. A ValueError raised by
        the function is raised here too; every other failure is WorkerFailed. The module should import little.
        """
        if self._inline:
            await trio.lowlevel.checkpoint()
            return self._process.call(function, args, timeout_s)
        return await trio.to_thread.run_sync(
            self._process.call, function, args, timeout_s, limiter=self._process_limiter
        )

    async def aclose(self) -> None:
        """Ends the separate process, and with it any running call."""
        self._process.kill()
        await trio.lowlevel.checkpoint()


class Service:
    """An object in a process of its own. Its arguments, and those of calls, are as for `Workers.run_process`.

    The process ends by itself when it is idle, and the next call starts it again: what the object has to remember must
    be in files. If it dies, the call is repeated once, so methods must be repeatable. `lock` is for callers whose calls
    belong together.
    """

    def __init__(
        self,
        factory: str,
        *args: str,
        memory_bytes: int = WORKER_MEMORY_BYTES_MAX,
        idle_seconds: float = WORKER_IDLE_SECONDS,
        inline: bool = False,
        first_call: Sequence[Any] = (),
    ) -> None:
        """factory: "package.module:Class". inline: the object is in this process, and calls block; for tests.

        first_call: a method and its arguments, which each new process is called with before anything else. Secrets
        belong there: the arguments of the factory can be seen in the list of processes.
        """
        self.lock = trio.Lock()
        self._factory = factory
        self._args = args
        self._inline = inline
        self._object: Any = None
        self._is_closed = False
        self._memory_bytes = memory_bytes
        self._first_call = first_call
        self._process = _Process(memory_bytes, idle_seconds, factory, *args, first_call=first_call)
        self._limiter = trio.CapacityLimiter(1)

    def beside(self) -> Service:
        """Returns another one of the same kind, for a call that takes long. The caller closes it."""
        return Service(
            self._factory,
            *self._args,
            memory_bytes=self._memory_bytes,
            inline=self._inline,
            first_call=self._first_call,
        )

    async def call(self, method: str, *args: Any, timeout_s: float = WORKER_SECONDS_MAX) -> Any:
        """Returns what the method returns, one call at a time. Raises ValueError if it does, else WorkerFailed.

        Cancelling the wait does not undo the call.
        """
        if not self._inline:
            return await trio.to_thread.run_sync(
                self._call, method, args, timeout_s, limiter=self._limiter, abandon_on_cancel=True
            )
        await trio.lowlevel.checkpoint()
        if self._object is None:
            self._object = find_function(self._factory)(*self._args)
            if self._first_call:
                name, *first = self._first_call
                getattr(self._object, name)(*first)
        try:
            return getattr(self._object, method)(*msgspec.msgpack.decode(msgspec.msgpack.encode(args)))
        except ValueError:
            raise
        except Exception as error:  # as the separate process does
            raise WorkerFailed(f"{method}: {type(error).__name__}: {error}") from error

    def _call(self, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        try:
            return self._process.call(method, args, timeout_s)
        except ProcessDied:
            if self._is_closed:
                raise
            return self._process.call(method, args, timeout_s)

    async def aclose(self) -> None:
        """Ends the process at once, and with it any running call."""
        self._is_closed = True
        self._process.kill()
        if self._object is not None:
            self._object.close()
            self._object = None
        await trio.lowlevel.checkpoint()


class _Process:
    """Talks to the process. Synchronous, one call at a time."""

    def __init__(self, memory_bytes: int, idle_seconds: float, *service: str, first_call: Sequence[Any] = ()) -> None:
        """service: the factory of a service and its arguments. first_call: see `Service`."""
        self._first_call = first_call
        self._arguments = (str(memory_bytes), str(idle_seconds), *service)
        self._running: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def call(self, function: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        request = msgspec.msgpack.encode([function, args])
        with self._lock:
            deadline = time.monotonic() + timeout_s
            reply = self._exchange(request, deadline)
            if reply is None:  # it has just exited because it was idle for long: start a new one
                reply = self._exchange(request, deadline)
        if reply is None:
            raise WorkerFailed(f"{function}: the process ended")
        if reply[0] is True:
            return reply[1]
        if reply[1] == "ValueError":
            raise ValueError(reply[2])
        raise WorkerFailed(f"{function}: {reply[1]}: {reply[2]}")

    def kill(self) -> None:
        process = self._running
        if process is not None:
            process.kill()
            process.wait()

    def _exchange(self, request: bytes, deadline: float) -> Any:
        """Returns the decoded answer, None if the process had exited on its own before it read the call."""
        process = self._running
        is_new = process is None or process.poll() is not None
        if process is None or is_new:
            process = self._running = self._start()
        try:
            if is_new and self._first_call:
                name, *args = self._first_call
                self._send_and_receive(process, msgspec.msgpack.encode([name, args]), deadline)
            body = self._send_and_receive(process, request, deadline)
            if body is not None:
                answer = msgspec.msgpack.decode(body)
                if isinstance(answer, list) and len(answer) in (2, 3):
                    return answer
        except (WorkerFailed, msgspec.DecodeError) as error:
            self._end(process)
            raise WorkerFailed(str(error)) from None
        status = self._end(process)
        if status != 0:
            raise ProcessDied(f"the process died (status {status})")
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        # Editable installations find this package without an entry in sys.path, so the process is told where it lies.
        root = str(_PROGRAM.parents[2])
        path = os.pathsep.join([root, *(entry for entry in sys.path if entry and entry != root)])
        return subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": path, "PATH": os.defpath},
            bufsize=0,
        )

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Returns the exit status. Waits a moment for a process that has closed its end by itself."""
        self._running = None
        try:
            status = process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return status

    def _send_and_receive(self, process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes | None:
        """Returns the bytes of the answer, None if the process closed its end."""
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(stdin, False)
        unsent = memoryview(struct.pack("<Q", len(request)) + request)
        received = bytearray()
        length: int | None = None
        poll = select.poll()  # select() cannot look at descriptors above 1023
        poll.register(stdout, select.POLLIN)
        poll.register(stdin, select.POLLOUT)
        while length is None or len(received) < 8 + length:
            timeout_s = deadline - time.monotonic()
            if timeout_s <= 0:
                process.kill()
                raise WorkerFailed("the process took too long")
            ready = [descriptor for descriptor, _ in poll.poll(timeout_s * 1000)]
            if stdin in ready:
                try:
                    unsent = unsent[os.write(stdin, unsent) :]
                except BrokenPipeError:
                    return None
                if not unsent:
                    poll.unregister(stdin)
            if stdout in ready:
                part = os.read(stdout, 1 << 20)
                if not part:
                    return None
                received += part
            if length is None and len(received) >= 8:
                (length,) = struct.unpack_from("<Q", received)
                if length > WORKER_ANSWER_BYTES_MAX:
                    process.kill()
                    raise WorkerFailed("the answer of the process is too long")
        return bytes(received[8:])
