"""Two organisations with a server each, as programs; and people who use them through matrix-nio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.end_to_end.people import Person
from tests.end_to_end.programs import Failed, Homeserver, Place, make_place
from tests.support.postgres import missing_reason

Newcomer = Callable[[Homeserver, str], Person]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The folder of this module's servers, with one certificate authority."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def montague(place: Place) -> Iterator[Homeserver]:
    """The server of one organisation, running."""
    yield from _running(place.organisation("montague"))


@pytest.fixture(scope="module")
def capulet(place: Place, request: pytest.FixtureRequest) -> Iterator[Homeserver]:
    """The server of the other one, whose database is PostgreSQL wherever that is installed."""
    sections = {}
    if missing_reason() is None:
        sections["database"] = {"url": request.getfixturevalue("postgres_cluster").make_database()}
    yield from _running(place.organisation("capulet", sections))


def _running(server: Homeserver) -> Iterator[Homeserver]:
    try:
        server.start()
        yield server
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    """`romeo = newcomer(montague, "romeo")`: a new user, logged in. Everyone logs out when the test ends."""
    people: list[Person] = []
    with asyncio.Runner() as loop:

        def arrive(server: Homeserver, localpart: str) -> Person:
            person = Person(loop, server, localpart)
            people.append(person)
            person.register()
            return person

        try:
            yield arrive
        finally:
            for person in people:
                person.go()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A server that dies is reported once, by the test in which it did, and runs again for the tests that follow."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "setup" and call.excinfo is not None and isinstance(call.excinfo.value, Failed):
        shorten(report, call.excinfo.value)
    elif report.when == "call":
        servers = {name: value for name, value in item.funcargs.items() if isinstance(value, Homeserver)}  # type: ignore[attr-defined]
        bury(report, servers)


def shorten(report: Any, error: Failed) -> None:
    """Leaves out of a report what an earlier one has: why a server did not start."""
    if error.is_reported:
        report.longrepr = "A server that this test needs did not start. An earlier report says why."
    error.is_reported = True


def bury(report: Any, servers: Mapping[str, Homeserver]) -> None:
    """Makes the death of a server the report of the test; without one, adds what the servers said to a failure."""
    epitaphs = {name: server.epitaph() for name, server in servers.items()}
    died = [name for name, epitaph in epitaphs.items() if epitaph]
    if not died:
        if report.failed:
            report.sections += [(f"{name} said", server.said()[-6000:]) for name, server in servers.items()]
        return
    report.outcome = "failed"
    report.longrepr = "\n".join(f"{name} died: {epitaphs[name]}" for name in died)
    for name in died:
        try:
            servers[name].start()
        except Failed:
            report.longrepr += f"\n{name} does not start again: tests that follow fail for that."
            servers[name].kill()
