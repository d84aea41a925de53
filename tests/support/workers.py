"""All tests in several processes: `--workers 3`. Everything is collected once, and reports of passed tests cost little.

Theory of operation. This process collects the tests and cuts them into pieces: the tests of a module or a folder that
share a fixture, otherwise some tests of a module. The numbers of all pieces are in a pipe, from which each worker takes
one at a time, so that all end at about the same time. Workers are forks of this process, which runs no test itself and
has a single thread; they share its modules and its tests, and send their reports through pipes. A worker says in shared
memory where it is: if it dies, the test that killed it has failed, and another worker is forked for what was left to
it.
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import struct
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NoReturn

import pytest

PIECE_TESTS_MAX = 25
_NUMBER = struct.Struct("<I")
_PLACE = struct.Struct("<qqq")
_NOTHING = -1

Piece = range
"""Positions among the tests of the session."""


def cut(items: Sequence[pytest.Item]) -> list[Piece]:
    """Cuts the tests into pieces, the large and the slow ones first: what is left for the end must be short."""
    pieces, at = [], 0
    for _, group in groupby(items, key=_place):
        tests = list(group)
        step = len(tests) if any(_scopes(item) & {"class", "module", "package"} for item in tests) else PIECE_TESTS_MAX
        end = at + len(tests)
        pieces += [range(start, min(start + step, end)) for start in range(at, end, step)]
        at = end

    def is_light(piece: Piece) -> bool:
        return len(piece) <= PIECE_TESTS_MAX and not any(items[at].get_closest_marker("slow") for at in piece)

    return sorted(pieces, key=is_light)


def _place(item: pytest.Item) -> str:
    """Returns the module of a test, or its folder if that has a fixture for all of its modules."""
    module = item.nodeid.partition("::")[0]
    return module.rpartition("/")[0] if "package" in _scopes(item) else module


def _scopes(item: pytest.Item) -> set[str]:
    """Returns how far the fixtures of a test reach."""
    found = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    return {each.scope for fixtures in found for each in fixtures}


def _temporary(config: pytest.Config) -> Any:
    """Returns what makes the temporary folders of tests."""
    return config._tmp_path_factory  # type: ignore[attr-defined]


@dataclass(slots=True)
class _Worker:
    """A worker as seen from here. `place`: the memory in which it says at which piece, test and next piece it is."""

    pid: int
    reports: Connection
    place: mmap.mmap


@dataclass(slots=True, eq=False)
class Workers:
    """The plugin that runs the tests in `count` workers."""

    count: int
    _pieces: list[Piece] = field(default_factory=list)
    _queue: int = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Runs all tests, unless collecting failed."""
        option = session.config.option
        if session.testsfailed and not option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        if option.collectonly:
            return True
        self._pieces = cut(session.items)
        self._queue, filling = os.pipe()
        os.write(filling, b"".join(map(_NUMBER.pack, range(len(self._pieces)))))
        os.close(filling)
        _temporary(session.config).getbasetemp()
        workers = {}
        try:
            for _ in range(self.count):
                worker = self._fork(session, [])
                workers[worker.reports] = worker
            while workers:
                for ready in wait(list(workers)):
                    self._hear(session, workers, workers[ready])  # type: ignore[index]
                if session.shouldfail or session.shouldstop:
                    while os.read(self._queue, 4096):
                        pass
        finally:
            for worker in workers.values():
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            os.close(self._queue)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _fork(self, session: pytest.Session, first: list[Piece]) -> _Worker:
        """Forks a worker, which begins with the pieces `first`."""
        ours, theirs = Pipe(duplex=False)
        place = mmap.mmap(-1, _PLACE.size)
        place[:] = _PLACE.pack(_NOTHING, _NOTHING, _NOTHING)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _Life(session, self._pieces, self._queue, theirs, place).live(first)
        theirs.close()
        return _Worker(pid, ours, place)

    def _hear(self, session: pytest.Session, workers: dict[Connection, _Worker], worker: _Worker) -> None:
        """Takes what a worker sends, or its death."""
        try:
            said = worker.reports.recv()
        except EOFError:
            said = None
        if said is None:
            del workers[worker.reports]
            worker.reports.close()
            code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
            if code != 0:
                another = self._fork(session, self._bury(session, worker, code))
                workers[another.reports] = another
            return
        for kind, *values in said:
            if kind == "passed":
                at, when, duration = values
                item = session.items[at]
                report = pytest.TestReport(item.nodeid, item.location, {}, "passed", None, when, duration=duration)
                session.config.hook.pytest_runtest_logreport(report=report)
            elif kind == "report":
                hook = session.config.hook
                report = hook.pytest_report_from_serializable(config=session.config, data=values[0])
                hook.pytest_runtest_logreport(report=report)
            else:
                session.config.hook.pytest_warning_recorded.call_historic(kwargs=values[0])

    def _bury(self, session: pytest.Session, worker: _Worker, code: int) -> list[Piece]:
        """Reports the test in which a worker has died. Returns what was left to it."""
        piece, at, following = _PLACE.unpack(worker.place[:])
        if at == _NOTHING or code == os.EX_SOFTWARE:
            raise RuntimeError(f"a worker ended with {code}: see above")
        item = session.items[at]
        text = f"The process that ran this test ended with {code}."
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
        session.config.hook.pytest_runtest_logreport(report=report)
        left = [range(at + 1, self._pieces[piece].stop)] if piece != _NOTHING else []
        return left + ([self._pieces[following]] if following != _NOTHING else [])


@dataclass(slots=True, eq=False)
class _Life:
    """A worker, in its own process."""

    session: pytest.Session
    pieces: list[Piece]
    queue: int
    reports: Connection
    place: mmap.mmap
    said: list[tuple[Any, ...]] = field(default_factory=list)
    at: int = 0

    def live(self, first: list[Piece]) -> NoReturn:
        """Runs pieces until none is left, and ends the process."""
        code = os.EX_SOFTWARE
        try:
            self._begin()
            self._run(first)
            self._end()
            code = 0
        except KeyboardInterrupt:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _begin(self) -> None:
        """Gives this process its own output, folder and end."""
        atexit._clear()
        config = self.session.config
        capture = config.pluginmanager.get_plugin("capturemanager")
        assert capture is not None
        capture.stop_global_capturing()
        capture.start_global_capturing()
        terminal = config.pluginmanager.unregister(name="terminalreporter")
        config.get_terminal_writer = lambda: terminal._tw  # type: ignore[method-assign, union-attr]
        config.pluginmanager.register(self, "reports of this worker")
        self.said = []  # nothing of what has been said before
        temporary = _temporary(config)
        temporary._basetemp = temporary.getbasetemp() / f"worker-{os.getpid()}"
        temporary._basetemp.mkdir(mode=0o700)

    def _end(self) -> None:
        config = self.session.config
        coverage = config.pluginmanager.get_plugin("_cov")
        if coverage is not None:
            coverage.cov_controller.cov.stop()
            coverage.cov_controller.cov.save()
        capture = config.pluginmanager.get_plugin("capturemanager")
        assert capture is not None
        capture.stop_global_capturing()
        atexit._run_exitfuncs()

    def _run(self, first: list[Piece]) -> None:
        """Runs the tests. The last one of a piece has to know which one follows, so the next piece is taken before."""
        taken = self._take(first)
        piece, number = next(taken, (range(0), _NOTHING))
        while piece:
            following, number_following = next(taken, (range(0), _NOTHING))
            for at in piece:
                self.place[:] = _PLACE.pack(number, at, number_following)
                if at + 1 in piece:
                    then = self.session.items[at + 1]
                else:
                    then = self.session.items[following.start] if following else None
                self.at = at
                item = self.session.items[at]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=then)
                self.reports.send(self.said)
                self.said = []
                if self.session.shouldfail or self.session.shouldstop:
                    return
            piece, number = following, number_following

    def _take(self, first: list[Piece]) -> Iterator[tuple[Piece, int]]:
        for piece in first:
            if piece:
                number = next(number for number, each in enumerate(self.pieces) if piece.start in each)
                yield piece, number
        while said := os.read(self.queue, _NUMBER.size):
            (number,) = _NUMBER.unpack(said)
            yield self.pieces[number], number

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a report: all of it only if there is something to tell."""
        config = self.session.config
        if report.outcome != "passed" or hasattr(report, "wasxfail"):
            said = config.hook.pytest_report_to_serializable(config=config, report=report)
            self.said.append(("report", said))
        elif report.when == "call" or config.option.durations:
            self.said.append(("passed", self.at, report.when, report.duration))

    def pytest_warning_recorded(self, warning_message: Any, when: Any, nodeid: str, location: Any) -> None:
        """Notes a warning."""
        said = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self.said.append(("warning", said))
