"""What has no thumbnail, and a process that makes none. Spec: client-server-api/#thumbnails"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from homeserver import limits
from homeserver.process.workers import WorkerFailed
from tests.media import images
from tests.media.servers import V1, upload
from tests.support.homeservers import Client, Server


@pytest.mark.parametrize(
    ("content", "content_type", "status", "errcode"),
    [
        (b"no image", "image/png", 400, "M_UNKNOWN"),
        (images.encoded(images.gradient(300, 300), "PNG"), "application/octet-stream", 400, "M_UNKNOWN"),
        (b"%PDF", "application/pdf", 400, "M_UNKNOWN"),
        (b"", "image/png", 400, "M_UNKNOWN"),
        (images.encoded(images.gradient(300, 300), "PNG")[:40], "image/png", 400, "M_UNKNOWN"),
        (images.png_claim(60_000, 60_000), "image/png", 413, "M_TOO_LARGE"),
    ],
    ids=["text", "encrypted", "pdf", "empty", "truncated", "bomb"],
)
async def test_files_without_a_thumbnail_are_reported(
    autojump_clock: MockClock,
    server: Server,
    alice: Client,
    content: bytes,
    content_type: str,
    status: int,
    errcode: str,
) -> None:
    place = await upload(alice, content, content_type)
    calls = 0
    inner = server.hs.workers.run_process

    async def run_process(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return await inner(*args, **options)  # type: ignore[arg-type]

    object.__setattr__(server.hs.workers, "run_process", run_process)
    for _ in range(3):
        for query in ("width=32&height=32&method=crop", "width=320&height=240"):
            assert await alice.refused("GET", f"{V1}/thumbnail/{place}?{query}") == (status, errcode)
    assert calls <= 1
    await trio.sleep(limits.THUMBNAIL_FAILURE_MS / 1000 + 1)
    assert await alice.refused("GET", f"{V1}/thumbnail/{place}?width=32&height=32") == (status, errcode)
    assert (await alice.get(f"{V1}/download/{place}")).content == content


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [b"x", "text/html", ["image/png", 1, 1, False]],
        [b"x", "image/png\r\nSet-Cookie: a=b", ["image/png", 1, 1, False]],
        [b"x", "image/png", ["text/html", 1, 1, False]],
        [b"x", "image/png", ["image/png", -1, 1, False]],
        ["x", "image/png", ["image/png", 1, 1]],
    ],
)
async def test_results_of_a_compromised_process_are_checked(server: Server, alice: Client, answer: object) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")

    async def run_process(*args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        return answer

    object.__setattr__(server.hs.workers, "run_process", run_process)
    assert await alice.refused("GET", f"{V1}/thumbnail/{place}?width=96&height=96") == (400, "M_UNKNOWN")


async def test_a_dying_process_is_replaced(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")

    async def run_process(*args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        raise WorkerFailed("out of memory")

    object.__setattr__(server.hs.workers, "run_process", run_process)
    assert await alice.refused("GET", f"{V1}/thumbnail/{place}?width=96&height=96") == (413, "M_TOO_LARGE")
