"""Two organisations with a server each, as programs; and people who use them through matrix-nio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.people import Person
from tests.end_to_end.programs import Homeserver, Place, make_place
from tests.support.postgres import missing_reason

Newcomer = Callable[[Homeserver, str], Person]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where servers of this module live, under one certificate authority."""
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
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds what the servers said to the report of a test that failed."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Homeserver):
                report.sections.append((f"{name} said", value.said()[-6000:]))
