"""The cleanup of the content repository: unreachable files are deleted."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from homeserver import limits
from homeserver.features.media import cleanup
from homeserver.features.media.receiving import new_blob_key
from tests.media import images
from tests.media.servers import V1, blob_keys, create, upload
from tests.support.homeservers import Client, Server


async def test_blobs_without_a_row_are_deleted(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    hs = server.hs
    kept = await upload(alice, b"kept")
    await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    old = [new_blob_key(bytes([number]) * 32, hs.now_ms()) for number in range(256)]
    for key in old:
        await hs.blobs.put(key, b"orphan")
    await trio.sleep(limits.MEDIA_ORPHAN_AGE_MS / 1000 + 1)
    young = new_blob_key(b"\x07" * 32, hs.now_ms())
    await hs.blobs.put(young, b"under way")
    for _ in range(cleanup.SHARDS // 2 + 1):
        await cleanup.find_orphans(hs)
    # A crash here loses nothing: what was found is in a table, and the search goes on where it was.
    for _ in range(cleanup.SHARDS):
        await cleanup.find_orphans(hs)
    await cleanup.delete_released(hs)
    found = await blob_keys(server)
    assert young in found and not set(old) & set(found) and len(found) == 3
    assert (await alice.get(f"{V1}/download/{kept}")).content == b"kept"


async def test_the_background_task_does_all_cleanup(autojump_clock: MockClock, server: Server, alice: Client) -> None:
    hs = server.hs
    await create(alice)
    orphan = new_blob_key(b"\0" * 32, hs.now_ms())
    await hs.blobs.put(orphan, b"orphan")
    await trio.sleep(2 * limits.MEDIA_ORPHAN_AGE_MS / 1000)
    assert await blob_keys(server) == []
    assert await hs.database.read(lambda tx: tx.values("SELECT COUNT(*) FROM media_pending")) == [0]
