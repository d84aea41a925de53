"""For tests of programs that embed a homeserver: servers in memory, a network that can fail, a virtual clock.

    from homeserver.testing import run, two_servers

    def test_a_message_reaches_the_other_server():
        async def main():
            async with two_servers() as (a, b):
                alice, bob = await a.register("alice"), await b.register("bob")
                room = await alice.create_room(invite=[bob.user_id])
                await bob.join(room)
                await alice.send(room, "Hello?")
                ...

        run(main)

`one_server` and `two_servers` open servers, `FakeNetwork` connects any number of them, and `run` runs a test under a
virtual clock. Nothing here depends on a test runner: with pytest-trio write `async def test_…` and use its fixture
`autojump_clock` instead of `run`. docs/embedding.md shows more.
"""

from __future__ import annotations

from homeserver.testing.network import Exchange, FakeNetwork, FakeWire
from homeserver.testing.servers import START_MS, config_for_tests, now_ms, one_server, run, two_servers

__all__ = [
    "START_MS",
    "Exchange",
    "FakeNetwork",
    "FakeWire",
    "config_for_tests",
    "now_ms",
    "one_server",
    "run",
    "two_servers",
]
