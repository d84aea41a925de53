"""Resumable uploads: the rules of the tus protocol, who may resume, and what they cost.

Spec: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from homeserver import limits
from homeserver.errors import MatrixError
from homeserver.features.media import cleanup
from homeserver.features.media.receiving import temporary_folder
from tests.media.servers import V1, V3, blob_keys, server_with_media, upload
from tests.support.homeservers import Client, Server

UPLOADS = "/_homeserver/client/v1/uploads"
OFFSET_TYPE = "application/offset+octet-stream"
BROKEN = MatrixError(400, "M_UNKNOWN", "The request ended before its body did.")  # as listeners say it
TUS = {"tus-resumable": "1.0.0"}


async def ask(client: Client, method: str, path: str, content: Any = b"", **headers: Any) -> httpx.Response:
    """Sends a request of the protocol. A header that is None is left out."""
    sent = {**TUS, "authorization": f"Bearer {client.token}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    kept = {name: str(value) for name, value in sent.items() if value is not None}
    return await client.server.http.request(method, path, content=content, headers=kept)


async def create(client: Client, length: int, **metadata: str) -> str:
    """Creates an upload and returns its path."""
    pairs = [f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items()]
    answer = await ask(client, "POST", UPLOADS, upload_length=length, upload_metadata=",".join(pairs) or None)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


async def append(client: Client, path: str, offset: int, content: Any, **headers: Any) -> httpx.Response:
    """Appends content at an offset."""
    return await ask(
        client, "PATCH", path, content, **{"content_type": OFFSET_TYPE, "upload_offset": offset, **headers}
    )


async def offset_of(client: Client, path: str) -> int:
    """Returns how much of the upload the server has."""
    answer = await ask(client, "HEAD", path)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def part_files(server: Server) -> list[Path]:
    """The files of unfinished uploads."""
    folder = temporary_folder(server.hs)
    return sorted(folder.iterdir()) if folder.exists() else []


def verdict(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["errcode"]


async def test_an_upload_in_parts_becomes_a_file(server: Server, alice: Client) -> None:
    path = await create(alice, 11, filename="Grüße.txt", filetype="text/plain")
    assert await offset_of(alice, path) == 0
    first = await append(alice, path, 0, b"hello ")
    assert (first.status_code, first.headers["upload-offset"]) == (204, "6")
    assert "content-uri" not in first.headers
    assert await offset_of(alice, path) == 6
    last = await append(alice, path, 6, b"world")
    assert (last.status_code, last.headers["upload-offset"], last.content) == (204, "11", b"")
    told = (await ask(alice, "GET", path)).json()
    assert (told["offset"], told["length"]) == (11, 11)
    assert told["content_uri"] == last.headers["content-uri"]
    file = await alice.get(f"{V1}/download/{told['content_uri'].removeprefix('mxc://')}")
    assert (file.content, file.headers["content-type"]) == (b"hello world", "text/plain")
    assert file.headers["content-disposition"] == "inline; filename*=utf-8''Gr%C3%BC%C3%9Fe.txt"
    assert part_files(server) == []


async def test_the_last_part_is_answered_with_the_uri_for_clients_that_ask_for_json(alice: Client) -> None:
    path = await create(alice, 4)
    first = await append(alice, path, 0, b"ab", accept="application/json")
    assert (first.status_code, first.content) == (204, b"")
    last = await append(alice, path, 2, b"cd", accept="application/json")
    assert (last.status_code, last.json()["content_uri"]) == (200, last.headers["content-uri"])


async def test_every_answer_names_the_version_of_the_protocol(server: Server, alice: Client) -> None:
    path = await create(alice, 1)
    stranger = server.with_token("nonsense")
    for answer in (
        await ask(alice, "OPTIONS", UPLOADS),
        await ask(alice, "HEAD", path),
        await append(alice, path, 5, b"x"),
        await append(stranger, path, 0, b"x"),
        await append(alice, path, 0, b"x"),
        await ask(alice, "DELETE", path),
        await ask(alice, "GET", path),
    ):
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_the_protocol_is_described_to_anyone(server: Server, alice: Client) -> None:
    path = await create(alice, 1)
    for where in (UPLOADS, path):
        answer = await server.http.options(where)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["tus-version"] == "1.0.0"
        assert answer.headers["tus-max-size"] == str(server.hs.config.blobs.upload_bytes_max)
        offered = answer.headers["tus-extension"].split(",")
        assert offered == ["creation", "creation-with-upload", "expiration", "checksum", "termination"]
        assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert "Upload-Offset" in answer.headers["access-control-allow-headers"]
        assert "Upload-Offset" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0"])
async def test_other_versions_are_refused_with_the_one_that_is_spoken(alice: Client, version: str | None) -> None:
    path = await create(alice, 1)
    for method, where in (("POST", UPLOADS), ("HEAD", path), ("PATCH", path), ("DELETE", path)):
        headers = {"upload_length": 1, "upload_offset": 0, "content_type": OFFSET_TYPE}
        answer = await ask(alice, method, where, b"x", tus_resumable=version, **headers)
        assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")
    assert await offset_of(alice, path) == 0


async def test_metadata_and_length_are_told_as_they_were_sent(alice: Client) -> None:
    sent = "filename d29ybGQucGRm,is_confidential"
    created = await ask(alice, "POST", UPLOADS, upload_length=100, upload_metadata=sent)
    answer = await ask(alice, "HEAD", created.headers["location"])
    assert (answer.headers["upload-metadata"], answer.headers["upload-length"]) == (sent, "100")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["upload-expires"] == created.headers["upload-expires"]


async def test_an_empty_upload_is_complete_when_it_is_created(alice: Client) -> None:
    created = await ask(alice, "POST", UPLOADS, upload_length=0)
    assert created.status_code == 201
    uri = created.json()["content_uri"]
    assert (await alice.get(f"{V1}/download/{uri.removeprefix('mxc://')}")).content == b""
    assert await offset_of(alice, created.headers["location"]) == 0


@pytest.mark.parametrize("content", [b"hel", b"hello"])
async def test_an_upload_may_be_created_with_content(alice: Client, content: bytes) -> None:
    created = await ask(alice, "POST", UPLOADS, content, upload_length=5, content_type=OFFSET_TYPE)
    assert (created.status_code, created.headers["upload-offset"]) == (201, str(len(content)))
    path = created.headers["location"]
    assert await offset_of(alice, path) == len(content)
    if len(content) < 5:
        await append(alice, path, 3, b"lo")
    uri = (await ask(alice, "GET", path)).json()["content_uri"]
    assert (await alice.get(f"{V1}/download/{uri.removeprefix('mxc://')}")).content == b"hello"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (400, "M_MISSING_PARAM")),
        ({"upload_length": "-1"}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "1.5"}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "9" * 30}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "1001"}, (413, "M_TOO_LARGE")),
        ({"upload_defer_length": "1"}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "5", "upload_metadata": "filename %%%"}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "5", "upload_metadata": "a YQ==,a YQ=="}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "5", "upload_metadata": "a YQ==,,b YQ=="}, (400, "M_INVALID_PARAM")),
        ({"upload_length": "5", "upload_metadata": "k " + "A" * 5000}, (413, "M_TOO_LARGE")),
        ({"upload_length": "5", "upload_metadata": f"filename {'YWFh' * 700}"}, (400, "M_INVALID_PARAM")),
    ],
)
async def test_malformed_creations_are_refused(
    tmp_path: Path, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    async with server_with_media(tmp_path, upload_bytes_max=1000) as server:
        alice = await server.register("alice")
        assert verdict(await ask(alice, "POST", UPLOADS, **headers)) == expected


async def test_content_is_appended_at_the_offset_and_nowhere_else(alice: Client) -> None:
    path = await create(alice, 10)
    await append(alice, path, 0, b"hello")
    for offset in (0, 4, 6, 10):
        assert (await append(alice, path, offset, b"x")).status_code == 409
    assert verdict(await append(alice, path, 5, b"x", upload_offset=None)) == (400, "M_MISSING_PARAM")
    assert verdict(await append(alice, path, 5, b"x", upload_offset="five")) == (400, "M_INVALID_PARAM")
    assert await offset_of(alice, path) == 5


async def test_content_must_have_the_type_of_the_protocol(alice: Client) -> None:
    path = await create(alice, 10)
    for content_type in (None, "application/octet-stream", "text/plain"):
        assert (await append(alice, path, 0, b"x", content_type=content_type)).status_code == 415
    refused = await ask(alice, "POST", UPLOADS, b"x", upload_length=1)
    assert refused.status_code == 415


async def test_content_beyond_the_length_is_refused(alice: Client) -> None:
    path = await create(alice, 5)
    assert verdict(await append(alice, path, 0, b"too long")) == (413, "M_TOO_LARGE")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"too "
        yield b"long"

    assert verdict(await append(alice, path, 0, chunks())) == (413, "M_TOO_LARGE")
    assert await offset_of(alice, path) < 5


async def test_a_finished_upload_takes_nothing_more(alice: Client) -> None:
    path = await create(alice, 5)
    await append(alice, path, 0, b"hello")
    assert (await append(alice, path, 5, b"")).status_code == 204
    assert (await append(alice, path, 5, b"x")).status_code == 413
    assert (await append(alice, path, 0, b"hello")).status_code == 409


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "md5"])
async def test_a_part_with_a_wrong_checksum_is_discarded(alice: Client, algorithm: str) -> None:
    path = await create(alice, 11)
    await append(alice, path, 0, b"hello ")
    right = base64.b64encode(hashlib.new(algorithm, b"world").digest()).decode()
    wrong = base64.b64encode(hashlib.new(algorithm, b"wurld").digest()).decode()
    refused = await append(alice, path, 6, b"world", upload_checksum=f"{algorithm} {wrong}")
    assert refused.status_code == 460
    assert await offset_of(alice, path) == 6
    taken = await append(alice, path, 6, b"world", upload_checksum=f"{algorithm} {right}")
    assert (taken.status_code, taken.headers["upload-offset"]) == (204, "11")
    uri = taken.headers["content-uri"].removeprefix("mxc://")
    assert (await alice.get(f"{V1}/download/{uri}")).content == b"hello world"


async def test_checksums_of_unknown_kinds_are_refused(alice: Client) -> None:
    path = await create(alice, 5)
    for checksum in ("crc32 AAAAAA==", "SHA1 AAAA", "sha1 %", "sha1"):
        answer = await append(alice, path, 0, b"hello", upload_checksum=checksum)
        assert answer.status_code in (400, 460)
    assert await offset_of(alice, path) == 0


async def test_a_terminated_upload_is_gone(server: Server, alice: Client) -> None:
    path = await create(alice, 5)
    await append(alice, path, 0, b"hel")
    assert len(part_files(server)) == 1
    assert (await ask(alice, "DELETE", path)).status_code == 204
    assert part_files(server) == []
    for method in ("HEAD", "GET", "DELETE"):
        assert (await ask(alice, method, path)).status_code == 404
    assert verdict(await append(alice, path, 3, b"lo")) == (404, "M_NOT_FOUND")


async def test_terminating_a_finished_upload_keeps_its_file(alice: Client) -> None:
    path = await create(alice, 5)
    uri = (await append(alice, path, 0, b"hello")).headers["content-uri"]
    assert (await ask(alice, "DELETE", path)).status_code == 204
    assert (await alice.get(f"{V1}/download/{uri.removeprefix('mxc://')}")).content == b"hello"


async def test_methods_may_be_named_in_a_header(alice: Client) -> None:
    path = await create(alice, 5)
    headers = {"content_type": OFFSET_TYPE, "upload_offset": 0, "x_http_method_override": "PATCH"}
    assert (await ask(alice, "POST", path, b"hel", **headers)).headers["upload-offset"] == "3"
    assert (await ask(alice, "POST", path, x_http_method_override="DELETE")).status_code == 204
    assert (await ask(alice, "POST", path)).status_code == 405


async def test_uploads_belong_to_their_owner(server: Server, alice: Client, bob: Client) -> None:
    path = await create(alice, 5)
    for method in ("HEAD", "GET", "DELETE"):
        assert (await ask(bob, method, path)).status_code == 404
        assert (await ask(server.with_token(None), method, path, authorization=None)).status_code == 401
    assert verdict(await append(bob, path, 0, b"hello")) == (404, "M_NOT_FOUND")
    assert await offset_of(alice, path) == 0


async def test_content_that_came_before_a_connection_broke_is_kept(server: Server, alice: Client) -> None:
    path = await create(alice, 10)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"hel"
        yield b"lo"
        raise BROKEN

    assert (await append(alice, path, 0, chunks())).status_code == 400
    assert await offset_of(alice, path) == 5
    assert (await append(alice, path, 5, b"world")).status_code == 204


async def test_a_broken_part_with_a_checksum_is_not_kept(alice: Client) -> None:
    path = await create(alice, 10)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"hel"
        raise BROKEN

    assert (await append(alice, path, 0, chunks(), upload_checksum="sha1 AAAA")).status_code == 400
    assert await offset_of(alice, path) == 0


async def test_a_long_part_is_acknowledged_in_between(server: Server, alice: Client, virtual_clock: None) -> None:
    path = await create(alice, 3 * limits.RESUMABLE_CHECKPOINT_BYTES)
    seen: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(2 * limits.RESUMABLE_CHECKPOINT_BYTES // limits.MEDIA_CHUNK_BYTES + 1):
            yield b"x" * limits.MEDIA_CHUNK_BYTES
        seen.append(await offset_of(alice, path))

    await append(alice, path, 0, chunks())
    assert seen == [2 * limits.RESUMABLE_CHECKPOINT_BYTES]


async def test_one_request_at_a_time_writes_to_an_upload(alice: Client, virtual_clock: None) -> None:
    path = await create(alice, 10)
    answers: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"hello"
        await trio.sleep(limits.RESUMABLE_PATIENCE_S / 2)
        answers.append((await append(alice, path, 0, b"other")).status_code)
        answers.append((await ask(alice, "DELETE", path)).status_code)
        yield b"world"

    assert (await append(alice, path, 0, chunks())).status_code == 204
    assert answers == [423, 423]


async def test_a_request_that_stands_still_makes_way(alice: Client, virtual_clock: None) -> None:
    path = await create(alice, 10)
    answers: list[httpx.Response] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"hello"
        await trio.sleep_forever()  # the network of this client is gone
        yield b""

    async def stand_still() -> None:
        answers.append(await append(alice, path, 0, chunks()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_still)
        await trio.sleep(limits.RESUMABLE_PATIENCE_S + 1)
        assert (await append(alice, path, 0, b"hello")).status_code == 409  # the first five bytes were kept
        assert (await append(alice, path, 5, b"world")).status_code == 204
    assert [verdict(answer) for answer in answers] == [(423, "M_UNKNOWN")]


async def test_an_upload_expires_a_day_after_its_last_byte(server: Server, alice: Client, virtual_clock: None) -> None:
    path = await create(alice, 10)
    other = await create(alice, 10)
    await trio.sleep(3600)
    answer = await append(alice, path, 0, b"hello")
    expires = parsedate_to_datetime(answer.headers["upload-expires"]).timestamp()
    assert expires == pytest.approx(server.hs.now_ms() / 1000 + limits.RESUMABLE_LIFETIME_MS / 1000, abs=1)
    await append(alice, other, 0, b"hello")
    await trio.sleep(limits.RESUMABLE_LIFETIME_MS / 1000 - 10)
    assert await offset_of(alice, path) == 5
    await append(alice, other, 5, b"w")
    await trio.sleep(20)
    assert (await ask(alice, "HEAD", path)).status_code == 404
    assert await offset_of(alice, other) == 6
    await cleanup.clean_up(server.hs)
    assert [each.name.rpartition("resumable-")[2] for each in part_files(server)] == [other.rpartition("/")[2]]


async def test_the_uri_of_a_finished_upload_can_be_asked_for_until_it_expires(
    server: Server, alice: Client, virtual_clock: None
) -> None:
    path = await create(alice, 5)
    uri = (await append(alice, path, 0, b"hello")).headers["content-uri"]
    await trio.sleep(limits.RESUMABLE_LIFETIME_MS / 1000 - 10)
    assert (await ask(alice, "GET", path)).json()["content_uri"] == uri
    await trio.sleep(20)
    await cleanup.clean_up(server.hs)
    assert (await ask(alice, "GET", path)).status_code == 404
    assert (await alice.get(f"{V1}/download/{uri.removeprefix('mxc://')}")).content == b"hello"


async def test_unfinished_uploads_are_limited_in_number(server: Server, alice: Client, bob: Client) -> None:
    server.hs.rate_limits.enabled = False
    paths = [await create(alice, 10) for _ in range(limits.RESUMABLE_PER_USER_MAX)]
    refused = await ask(alice, "POST", UPLOADS, upload_length=10)
    assert verdict(refused) == (429, "M_LIMIT_EXCEEDED")
    assert int(refused.headers["retry-after"]) <= limits.RESUMABLE_LIFETIME_MS / 1000
    await create(bob, 10)
    await append(alice, paths[0], 0, b"0123456789")
    await create(alice, 10)


async def test_unfinished_uploads_count_towards_the_quota(tmp_path: Path) -> None:
    async with server_with_media(tmp_path, user_bytes_max=100) as server:
        alice = await server.register("alice")
        await upload(alice, b"x" * 30)
        path = await create(alice, 60)
        assert verdict(await ask(alice, "POST", UPLOADS, upload_length=11)) == (403, "M_USER_LIMIT_EXCEEDED")
        assert await alice.refused("POST", f"{V3}/upload", content=b"x" * 11) == (403, "M_USER_LIMIT_EXCEEDED")
        assert (await append(alice, path, 0, b"y" * 60)).status_code == 204  # its space was reserved
        assert verdict(await ask(alice, "POST", UPLOADS, upload_length=11)) == (403, "M_USER_LIMIT_EXCEEDED")
        await ask(alice, "DELETE", await create(alice, 10))
        await create(alice, 10)


async def test_content_after_a_crash_goes_on_at_what_was_acknowledged(server: Server, alice: Client) -> None:
    path = await create(alice, 10)
    await append(alice, path, 0, b"hello")
    (part,) = part_files(server)
    with part.open("ab") as file:
        file.write(b"written, but never acknowledged")
    assert await offset_of(alice, path) == 5
    uri = (await append(alice, path, 5, b"world")).headers["content-uri"]
    assert (await alice.get(f"{V1}/download/{uri.removeprefix('mxc://')}")).content == b"helloworld"


@pytest.mark.parametrize("left", [None, b"hel"])
async def test_an_upload_whose_content_is_lost_must_begin_again(
    server: Server, alice: Client, left: bytes | None
) -> None:
    path = await create(alice, 10)
    await append(alice, path, 0, b"hello")
    (part,) = part_files(server)
    part.unlink() if left is None else part.write_bytes(left)
    assert verdict(await append(alice, path, 5, b"world")) == (404, "M_NOT_FOUND")
    assert (await ask(alice, "HEAD", path)).status_code == 404


async def test_the_same_content_is_stored_once(server: Server, alice: Client) -> None:
    await upload(alice, b"same" * 100_000)
    await append(alice, await create(alice, 400_000), 0, b"same" * 100_000)
    assert len(await blob_keys(server)) == 1


async def test_uploads_end_with_the_account(server: Server, alice: Client) -> None:
    await append(alice, await create(alice, 10), 0, b"hello")
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    await cleanup.clean_up(server.hs)
    assert part_files(server) == []
