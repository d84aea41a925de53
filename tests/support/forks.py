"""Programs without the time of their start: a process that has imported the server forks one at each request.

What is forked is the command `homeserver …` with its own arguments, variables, folder, standard streams, signals and
exit code. Only the imports are saved, half a second of CPU time each. Tests of the start itself run the real program.

Theory of operation. The process that forks has a single thread and reads requests from a socket; with each come the
three standard streams and a pipe, into which it writes how the child ended. It ends, and kills its children, when the
socket is closed: at the latest when the process of the tests has ended. Run as a program, it takes the number of the
socket.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
REQUEST_BYTES_MAX = 1 << 20
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL


@dataclass(slots=True)
class Forked:
    """A command that runs; as subprocess.Popen. `stdout` and `stderr` are there if they were to be pipes."""

    pid: int
    _end: int
    stdout: IO[str] | None = None
    stderr: IO[str] | None = None
    returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal's number; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"homeserver, forked as {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; what was still to be read of both pipes, which hold 64 KB until then. Closes them."""
        self.wait(timeout)
        return _read_and_close(self.stdout), _read_and_close(self.stderr)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], timeout)[0]:
            said = os.read(self._end, 100)
            os.close(self._end)
            if not said:
                raise RuntimeError("the process that forks programs has ended")
            self.returncode = int(said)
        return self.returncode


@dataclass(slots=True)
class Forks:
    """The process that forks."""

    _requests: socket.socket
    _process: subprocess.Popen[bytes]

    def start(
        self,
        *arguments: str | Path,
        stdin: int = DEVNULL,
        stdout: int = DEVNULL,
        stderr: int = DEVNULL,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        program: str = "homeserver.cli:main",
    ) -> Forked:
        """Starts `homeserver …`, or another function. A stream is a descriptor, DEVNULL or, for output, PIPE."""
        request: dict[str, Any] = {"program": program, "arguments": [str(each) for each in arguments]}
        request["cwd"] = os.fspath(cwd or Path.cwd())
        request["env"] = dict(os.environ if env is None else env)
        nothing = os.open(os.devnull, os.O_RDWR)
        passed, pipes = [nothing], []
        try:
            streams = []
            for stream in (stdin, stdout, stderr):
                if stream == PIPE:
                    reading, stream = os.pipe()
                    passed.append(stream)
                    pipes.append(os.fdopen(reading, encoding="utf-8"))
                else:
                    pipes.append(None)
                streams.append(nothing if stream == DEVNULL else stream)
            end, ended = os.pipe()
            passed.append(ended)
            socket.send_fds(self._requests, [json.dumps(request).encode()], [*streams, ended])
        finally:
            for each in passed:
                os.close(each)
        return Forked(int(self._requests.recv(100)), end, pipes[1], pipes[2])

    def run(
        self, *arguments: str | Path, stdin: str = "", timeout: float, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `homeserver …` to its end, as subprocess.run with captured output."""
        files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        try:
            os.pwrite(files[0], stdin.encode(), 0)
            program = self.start(*arguments, stdin=files[0], stdout=files[1], stderr=files[2], cwd=cwd)
            try:
                code = program.wait(timeout)
            finally:
                program.kill()
            output = [os.pread(file, os.fstat(file).st_size, 0).decode() for file in files[1:]]
        finally:
            for file in files:
                os.close(file)
        return subprocess.CompletedProcess(arguments, code, *output)

    def close(self) -> None:
        """Ends the process, and with it every program."""
        self._requests.close()
        self._process.wait(30)


@cache
def forks() -> Forks:
    """The one process that forks for the tests of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_BYTES_MAX)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd=ROOT,
        )  # fmt: skip
    made = Forks(ours, process)
    atexit.register(made.close)
    return made


def _read_and_close(pipe: IO[str] | None) -> str:
    if pipe is None:
        return ""
    with pipe:
        return pipe.read()


@dataclass(slots=True)
class _Server:
    """What the process that forks knows. `ends`: where to write how each child ended."""

    requests: socket.socket
    woken: int
    wake: int
    ends: dict[int, int] = field(default_factory=dict)

    def serve(self) -> None:
        """Forks until the socket is closed."""
        while True:
            ready, _, _ = select.select([self.requests, self.woken], [], [])
            if self.woken in ready:
                os.read(self.woken, 4096)
                self.reap()
            if self.requests in ready:
                said, descriptors, _, _ = socket.recv_fds(self.requests, REQUEST_BYTES_MAX, 4)
                if not said:
                    break
                self.fork(json.loads(said), descriptors)
        for pid in self.ends:
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Tells how children have ended."""
        while self.ends:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            end = self.ends.pop(pid)
            with suppress(BrokenPipeError):  # nobody asks any more
                os.write(end, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(end)

    def fork(self, request: dict[str, Any], descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self.become(request, descriptors)
        self.ends[pid] = descriptors.pop()
        for each in descriptors:
            os.close(each)
        self.requests.send(str(pid).encode())

    def become(self, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
        """Is the command, as a Python that was started for it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        self.requests.close()
        for descriptor in (*descriptors, self.woken, self.wake, *self.ends.values()):
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = ["homeserver", *request["arguments"]]
        module, _, name = request["program"].partition(":")
        os._exit(_end_as_python(getattr(import_module(module), name)))


def _end_as_python(main: Callable[[], int]) -> int:
    """Runs what Python runs at the end, without taking apart a process that is about to go; returns the exit code."""
    try:
        code = main()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except SystemExit as ended:  # argparse has answered
        sys.stdout.flush()
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    return code


def serve_forks(requests: socket.socket) -> None:
    """The program. Everything that a command imports later is imported before the first is forked."""
    import homeserver.cli.demo_story
    import homeserver.server

    assert homeserver.server
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which close the socket
    gc.collect()
    gc.freeze()
    _Server(requests, woken, wake).serve()


if __name__ == "__main__":
    serve_forks(socket.socket(fileno=int(sys.argv[1])))
