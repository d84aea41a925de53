"""The tokens of /sync, which are positions of the stream. Spec: client-server-api/#syncing"""

from __future__ import annotations

from homeserver.stream import Stream
from tests.support.homeservers import Server


async def test_a_token_of_the_future_is_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    token = (await alice.ok("GET", "sync"))["next_batch"]
    later = f"{token[0]}{int(token[1:]) + 1}"
    assert await alice.refused("GET", f"sync?since={later}") == (400, "M_INVALID_PARAM")


async def test_a_token_may_be_ahead_of_what_the_stream_has_heard_of(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await homeserver.make_room(alice)
    token = (await alice.ok("GET", "sync"))["next_batch"]
    # What is committed is seen by readers at once, and told to the stream a moment later: this is that moment.
    homeserver.hs.stream = Stream(homeserver.hs.stream.position - 1)
    for _ in range(2):
        assert await alice.ok("GET", f"sync?since={token}") == {"next_batch": token}
