"""The servers, started once for all scenarios. Run by `make interop`; see run.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trustme

from tests.interop.servers import OurProgram, Server, ServerFailed, World, make_third, make_world


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Both servers, started once."""
    folder = tmp_path_factory.mktemp("interop")
    print(f"\nconfigurations, databases and logs are in {folder}")
    with running(make_world(folder)) as world:
        yield world


@contextmanager
def running(world: World) -> Iterator[World]:
    """Starts both servers, and stops them whatever happens."""
    servers = (world.synapse, world.ours)
    try:
        for server in servers:
            server.start()
        yield world
        print()
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            with suppress(ServerFailed):  # what is said above matters more
                server.stop()
            server.relay.close()


@pytest.fixture
def world(started: World) -> World:
    """Both servers, running and in reach of one another, whatever the scenario before has left behind."""
    started.mend()
    for server in (started.synapse, started.ours):
        server.ensure_running()
    return started


@pytest.fixture(scope="session")
def third(started: World) -> Iterator[Server]:
    """A third server, a Synapse too."""
    print()
    server = make_third(started)
    try:
        server.start()
        yield server
    finally:
        with suppress(ServerFailed):
            server.stop()
        server.relay.close()


@pytest.fixture(scope="session")
def started_organisations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two of our servers, started once."""
    folder, ca = tmp_path_factory.mktemp("organisations"), trustme.CA()
    print(f"\nconfigurations, databases and logs are in {folder}")
    servers = (
        Server(OurProgram(), folder / "one", "localhost", ca),
        Server(OurProgram(), folder / "other", "127.0.0.1", ca),
    )
    try:
        for server in servers:
            server.start()
        yield servers
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            with suppress(ServerFailed):  # what is said above matters more
                server.stop()
            server.relay.close()


@pytest.fixture
def organisations(started_organisations: tuple[Server, Server]) -> tuple[Server, Server]:
    """Two of our servers, running whatever the scenario before has left behind."""
    for server in started_organisations:
        server.ensure_running()
    return started_organisations


@pytest.fixture(params=["from-ours", "from-synapse"])
def sides(request: pytest.FixtureRequest, world: World) -> tuple[Server, Server]:
    """(here, there): the server where a scenario begins, and the other one. Every scenario is played both ways."""
    return (world.ours, world.synapse) if request.param == "from-ours" else (world.synapse, world.ours)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds the end of both servers' logs to the report of a scenario that failed."""
    outcome = yield
    report = outcome.get_result()
    arguments = getattr(item, "funcargs", {})
    world = arguments.get("world")
    given = arguments.get("sides") or arguments.get("organisations") or ()
    servers = (world.ours, world.synapse) if world is not None else given
    if report.when == "call" and report.failed:
        for server in servers:
            report.sections.append((f"log of {server.kind}", server.log_tail()))
