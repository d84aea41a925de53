"""Downloads: what comes back, to whom, and how much of it. Spec: client-server-api/#content-repository"""

from __future__ import annotations

import email
import hashlib

import pytest

from homeserver import authenticate, limits
from homeserver.authenticate import AccountFlags
from homeserver.features.media.receiving import temporary_folder
from homeserver.features.media.serving import read_ranges
from tests.media.servers import V1, V3, blob_keys, get_raw, upload
from tests.support.homeservers import Client, Server


async def test_uploaded_files_can_be_downloaded(server: Server, alice: Client, bob: Client) -> None:
    answer = await alice.ok(
        "POST", f"{V3}/upload?filename=notes.txt", content=b"hello", headers={"content-type": "text/plain"}
    )
    uri = answer["content_uri"]
    assert uri.startswith("mxc://test.example/")
    response = await bob.get(f"{V1}/download/{uri[6:]}")
    assert response.status_code == 200
    assert response.content == b"hello"
    assert response.headers["content-type"] == "text/plain"
    assert response.headers["content-disposition"] == "inline; filename=notes.txt"
    assert response.headers["content-length"] == "5"
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["content-security-policy"] == (
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf;"
        " style-src 'unsafe-inline'; object-src 'self';"
    )


@pytest.mark.parametrize("size", [0, 1, limits.MEDIA_CHUNK_BYTES, limits.MEDIA_CHUNK_BYTES + 1, 3_000_000])
async def test_files_of_any_size_can_be_downloaded(server: Server, alice: Client, size: int) -> None:
    data = (hashlib.sha256(b"x").digest() * (size // 32 + 1))[:size]
    place = await upload(alice, data)
    response = await alice.get(f"{V1}/download/{place}")
    assert response.content == data
    assert response.headers["content-length"] == str(size)
    head = await alice.request("HEAD", f"{V1}/download/{place}")
    assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == str(size)
    folder = temporary_folder(server.hs)
    assert not folder.exists() or list(folder.iterdir()) == []


async def test_type_and_filename_are_optional(alice: Client) -> None:
    response = await alice.get(f"{V1}/download/{await upload(alice, b'x', None)}")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == "attachment"


async def test_downloads_cannot_run_scripts(alice: Client) -> None:
    response = await alice.get(f"{V1}/download/{await upload(alice, b'<script>', 'text/html', 'a.html')}")
    assert response.headers["content-type"] == "text/html"
    assert response.headers["content-disposition"] == "attachment; filename=a.html"
    assert response.headers["content-security-policy"].startswith("sandbox;")


async def test_a_filename_in_the_path_overrides_that_of_the_upload(alice: Client) -> None:
    place = await upload(alice, b"x", "image/png", 'Käse "1".png')
    response = await alice.get(f"{V1}/download/{place}")
    assert response.headers["content-disposition"] == "inline; filename*=utf-8''K%C3%A4se%20%221%22.png"
    response = await alice.get(f"{V1}/download/{place}/other%20name.png")
    assert response.headers["content-disposition"] == 'inline; filename="other name.png"'
    response = await alice.get(f"{V1}/download/{place}/a%0D%0Ab")
    assert response.headers["content-disposition"] == "inline; filename*=utf-8''a%0D%0Ab"


async def test_an_impossible_filename_is_refused(alice: Client) -> None:
    for filename in ("a%00b", "x" * 2000):
        answer = await alice.refused("POST", f"{V3}/upload?filename={filename}", content=b"x")
        assert answer == (400, "M_INVALID_PARAM")


async def test_access_tokens_are_required(server: Server, alice: Client) -> None:
    place = await upload(alice, b"x")
    for method, path in (
        ("POST", f"{V3}/upload"), ("POST", "/_matrix/media/v1/create"), ("PUT", f"{V3}/upload/{place}"),
        ("GET", f"{V1}/config"), ("GET", f"{V3}/config"), ("GET", f"{V1}/download/{place}"),
        ("GET", f"{V1}/download/{place}/name"), ("GET", f"{V1}/thumbnail/{place}?width=1&height=1"),
    ):  # fmt: skip
        assert await server.anonymous.refused(method, path) == (401, "M_MISSING_TOKEN")


async def test_guests_may_download_and_not_upload(server: Server, alice: Client) -> None:
    place = await upload(alice, b"x")
    guest = await server.register("guest")
    flags = AccountFlags(is_guest=True)
    await server.write(authenticate.store_account_flags, guest.user_id, flags)
    assert (await guest.get(f"{V1}/download/{place}")).status_code == 200
    for method, path in (
        ("POST", f"{V3}/upload"), ("POST", "/_matrix/media/v1/create"), ("PUT", f"{V3}/upload/{place}"),
        ("GET", f"{V1}/config"),
    ):  # fmt: skip
        assert await guest.refused(method, path) == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_suspended_users_may_not_upload(server: Server, alice: Client) -> None:
    flags = AccountFlags(is_suspended=True)
    await server.write(authenticate.store_account_flags, alice.user_id, flags)
    assert await alice.refused("POST", f"{V3}/upload", content=b"x") == (403, "M_USER_SUSPENDED")
    assert await alice.refused("POST", "/_matrix/media/v1/create") == (403, "M_USER_SUSPENDED")


async def test_unknown_media_are_not_found(alice: Client) -> None:
    for place in (
        "test.example/unknown", "test.example/..%2F..%2Fetc%2Fpasswd", "test.example/a.b", "test.example/%C3%A4",
        "test.example/" + "a" * 300, "test.example/a%00",
    ):  # fmt: skip
        status, _ = await alice.refused("GET", f"{V1}/download/{place}")
        assert status in (400, 404)
        status, _ = await alice.refused("GET", f"{V1}/thumbnail/{place}?width=10&height=10")
        assert status in (400, 404)
    assert await alice.refused("GET", f"{V1}/download/..%2F..%2Fetc/passwd") == (404, "M_UNRECOGNIZED")


async def test_etags_are_honoured(alice: Client) -> None:
    place = await upload(alice, b"x" * 1000)
    etag = (await alice.get(f"{V1}/download/{place}")).headers["etag"]
    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = await get_raw(alice, f"{V1}/download/{place}", if_none_match=value)
        assert response.status_code == 304 and response.content == b"" and response.headers["etag"] == etag
    response = await alice.get(f"{V1}/download/{place}", headers={"if-none-match": '"other"'})
    assert response.status_code == 200


@pytest.mark.parametrize("size", [1000, limits.MEDIA_CHUNK_BYTES * 3])
async def test_ranges_are_honoured(alice: Client, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    place = await upload(alice, data, "video/mp4")
    for value, start, end in (
        ("bytes=0-0", 0, 1), ("bytes=0-99", 0, 100), ("bytes=500-", 500, size), ("bytes=-10", size - 10, size),
        ("bytes=-99999999", 0, size), ("bytes=990-99999999", 990, size),
    ):  # fmt: skip
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert response.status_code == 206
        assert response.content == data[start:end]
        assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert response.headers["content-length"] == str(end - start)
        assert response.headers["content-type"] == "video/mp4"
    for value in (f"bytes={size}-", "bytes=-0"):
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert response.status_code == 416 and response.headers["content-range"] == f"bytes */{size}"
    for value in ("bytes=5-2", "bytes=-", "items=0-1", "bytes=0-1,x", "bytes=a-b", "bytes"):
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert response.status_code == 200 and response.content == data
    headers = {"range": "bytes=0-0", "if-range": '"other"'}
    assert (await alice.get(f"{V1}/download/{place}", headers=headers)).status_code == 200


@pytest.mark.parametrize("size", [1000, limits.MEDIA_CHUNK_BYTES * 3])
async def test_several_ranges_come_as_parts_of_one_answer(alice: Client, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    place = await upload(alice, data, "video/mp4")
    response = await get_raw(alice, f"{V1}/download/{place}", range=f"bytes=0-9, 500-599,{size + 1}-,-5")
    assert response.status_code == 206
    assert int(response.headers["content-length"]) == len(response.content)
    head = f"content-type: {response.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + response.content).get_payload()
    assert [(part["content-type"], part["content-range"]) for part in parts] == [
        ("video/mp4", f"bytes 0-9/{size}"),
        ("video/mp4", f"bytes 500-599/{size}"),
        ("video/mp4", f"bytes {size - 5}-{size - 1}/{size}"),
    ]
    assert [part.get_payload(decode=True) for part in parts] == [data[:10], data[500:600], data[-5:]]
    one = await get_raw(alice, f"{V1}/download/{place}", range=f"bytes={size}-,0-0")
    assert (one.status_code, one.content) == (206, data[:1])


async def test_ranges_that_would_cost_more_than_the_file_are_ignored(alice: Client) -> None:
    data = bytes(1000)
    place = await upload(alice, data, "video/mp4")
    for value in ("bytes=0-,0-", "bytes=0-700,200-900", "bytes=" + "0-0," * limits.MEDIA_RANGES_MAX + "0-0"):
        response = await get_raw(alice, f"{V1}/download/{place}", range=value)
        assert (response.status_code, response.content) == (200, data)


async def test_a_range_is_honoured_only_of_the_version_that_the_client_has(alice: Client) -> None:
    place = await upload(alice, b"0123456789", "video/mp4")
    etag = (await alice.get(f"{V1}/download/{place}")).headers["etag"]
    for condition, status in (
        (etag, 206),
        ('"other"', 200),
        (f"W/{etag}", 200),
        ("Mon, 30 Nov 2026 00:00:00 GMT", 200),
    ):
        response = await get_raw(alice, f"{V1}/download/{place}", range="bytes=2-3", if_range=condition)
        assert response.status_code == status


def test_ranges_of_an_empty_file_are_refused() -> None:
    assert read_ranges("bytes=0-", 0) == []
    assert read_ranges("bytes=-5", 0) == []


async def test_lost_content_is_reported_as_missing(server: Server, alice: Client) -> None:
    small, large = await upload(alice, b"x"), await upload(alice, b"x" * 1_000_000)
    for key in await blob_keys(server):
        await server.hs.blobs.delete(key)
    for place in (small, large):
        assert await alice.refused("GET", f"{V1}/download/{place}") == (404, "M_NOT_FOUND")
