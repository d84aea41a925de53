"""Uploads to a URI that was created before. Spec: client-server-api/#post_matrixmediav1create"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from homeserver import limits
from tests.media.servers import V1, V3, blob_keys, create, upload
from tests.support.clock import let_days_pass
from tests.support.homeservers import Client, Server


async def test_a_created_uri_can_be_uploaded_to(
    autojump_clock: MockClock, server: Server, alice: Client, bob: Client
) -> None:
    answer = await alice.ok("POST", "/_matrix/media/v1/create")
    assert answer["unused_expires_at"] == server.hs.now_ms() + 24 * 60 * 60 * 1000
    place = answer["content_uri"].removeprefix("mxc://")
    assert await bob.refused("PUT", f"{V3}/upload/{place}", content=b"x") == (403, "M_FORBIDDEN")
    headers = {"content-type": "image/png"}
    await alice.ok("PUT", f"{V3}/upload/{place}?filename=a.png", content=b"x", headers=headers)
    response = await bob.get(f"{V1}/download/{place}")
    assert response.content == b"x"
    assert response.headers["content-disposition"] == "inline; filename=a.png"
    assert await alice.refused("PUT", f"{V3}/upload/{place}", content=b"y") == (409, "M_CANNOT_OVERWRITE_MEDIA")
    assert await bob.refused("PUT", f"{V3}/upload/{place}", content=b"y") == (403, "M_FORBIDDEN")


async def test_uploads_to_uncreated_uris_are_refused(alice: Client) -> None:
    assert await alice.refused("PUT", f"{V3}/upload/test.example/abc", content=b"x") == (404, "M_NOT_FOUND")
    place = await create(alice)
    other = place.replace("test.example", "other.example")
    assert await alice.refused("PUT", f"{V3}/upload/{other}", content=b"x") == (404, "M_NOT_FOUND")
    normal = await upload(alice, b"x")
    assert await alice.refused("PUT", f"{V3}/upload/{normal}", content=b"y") == (409, "M_CANNOT_OVERWRITE_MEDIA")


async def test_a_created_uri_expires(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    place = await create(alice)
    await let_days_pass(1)
    assert await alice.refused("PUT", f"{V3}/upload/{place}", content=b"x") == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", f"{V1}/download/{place}") == (404, "M_NOT_FOUND")


async def test_pending_uploads_are_limited(server: Server, alice: Client, bob: Client) -> None:
    places = [await create(alice) for _ in range(limits.MEDIA_PENDING_PER_USER_MAX)]
    response = await alice.post("/_matrix/media/v1/create")
    assert response.status_code == 429 and response.json()["errcode"] == "M_LIMIT_EXCEEDED"
    assert 0 < response.json()["retry_after_ms"] <= limits.MEDIA_PENDING_LIFETIME_MS
    await create(bob)
    await alice.ok("PUT", f"{V3}/upload/{places[0]}", content=b"x")
    await create(alice)


async def test_downloads_wait_for_a_pending_upload(
    autojump_clock: MockClock, server: Server, alice: Client, bob: Client
) -> None:
    place = await create(alice)
    began = trio.current_time()
    assert await bob.refused("GET", f"{V1}/download/{place}?timeout_ms=5000") == (504, "M_NOT_YET_UPLOADED")
    assert trio.current_time() - began == pytest.approx(5, abs=0.1)
    assert await bob.refused("GET", f"{V1}/download/{place}?timeout_ms=0") == (504, "M_NOT_YET_UPLOADED")
    began = trio.current_time()
    assert await bob.refused("GET", f"{V1}/download/{place}") == (504, "M_NOT_YET_UPLOADED")
    assert trio.current_time() - began == pytest.approx(20, abs=0.1)
    assert await bob.refused("GET", f"{V1}/thumbnail/{place}?timeout_ms=99999999&width=9&height=9") == (
        504,
        "M_NOT_YET_UPLOADED",
    )
    assert trio.current_time() - began == pytest.approx(80, abs=0.1)
    assert await bob.refused("GET", f"{V1}/download/{place}?timeout_ms=-1") == (400, "M_INVALID_PARAM")

    async with trio.open_nursery() as nursery:

        async def upload_later() -> None:
            await trio.sleep(3)
            await alice.ok("PUT", f"{V3}/upload/{place}", content=b"at last")

        nursery.start_soon(upload_later)
        began = trio.current_time()
        assert (await bob.get(f"{V1}/download/{place}")).content == b"at last"
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_one_of_two_simultaneous_uploads_wins(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    place = await create(alice)
    results: list[tuple[int, bytes]] = []

    async def put(content: bytes) -> None:
        async def slowly() -> AsyncIterator[bytes]:
            await trio.sleep(1)
            yield content

        response = await alice.request("PUT", f"{V3}/upload/{place}", content=slowly())
        results.append((response.status_code, content))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(put, b"%d" % number)
    assert sorted(status for status, _ in results) == [200, 409, 409]
    (winner,) = (content for status, content in results if status == 200)
    assert (await alice.get(f"{V1}/download/{place}")).content == winner
    assert len(await blob_keys(server)) == 1
