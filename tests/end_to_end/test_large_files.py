"""Large files over real sockets: uploaded with tuspy, which broke off and goes on, and downloaded from another server.

Nothing of a file is in memory but a few chunks, on either server. `python -m tests.bench.bench_files` measures the same
with a gigabyte.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError
from tusclient.uploader import Uploader

from tests.end_to_end.programs import Homeserver, Place, make_client

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.timeout(300)]

UPLOADS = "/_homeserver/client/v1/uploads"
SIZE = 48 << 20
GROWTH_BYTES_MAX = 24 << 20
"""What a server's memory may grow by while it passes on a file that is twice as large."""


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A large file that does not repeat itself."""
    path = tmp_path / "film.bin"
    with path.open("wb") as file:
        for number in range(SIZE >> 20):
            file.write(hashlib.shake_128(number.to_bytes(4)).digest(1 << 20))
    return path


@pytest.fixture(scope="module")
def servers(place: Place) -> Iterator[tuple[Homeserver, Homeserver]]:
    """Two servers that may know of each other."""
    pair = place.organisation("lender"), place.organisation("borrower")
    try:
        for server in pair:
            server.start()
        yield pair
        for server in pair:
            assert server.stop() == 0
    finally:
        for server in pair:
            server.kill()


def uploader(server: Homeserver, token: str, film: Path, chunk_size: int, url: str | None = None) -> Uploader:
    client = TusClient(server.url + UPLOADS, headers={"Authorization": f"Bearer {token}"})
    return client.uploader(
        str(film), chunk_size=chunk_size, url=url, upload_checksum=chunk_size < SIZE,
        metadata={"filename": "film.bin", "filetype": "video/x-film"},
    )  # fmt: skip


def resident_bytes(server: Homeserver) -> int:
    """The memory that the server has in RAM, without the pages of files."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(server: Homeserver, token: str, uri: str, **headers: str) -> tuple[int, str]:
    """Returns the status of a download and the hash of its content."""
    digest = hashlib.sha256()
    path = f"/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"
    with make_client(60) as http:
        sent = {"authorization": f"Bearer {token}", **headers}
        with http.stream("GET", server.url + path, headers=sent) as answer:
            for chunk in answer.iter_raw():
                digest.update(chunk)
            return answer.status_code, digest.hexdigest()


def test_a_large_file_goes_through_two_servers_in_constant_memory(
    servers: tuple[Homeserver, Homeserver], film: Path
) -> None:
    lender, borrower = servers
    romeo, juliet = lender.register("romeo"), borrower.register("juliet")
    before = [resident_bytes(server) for server in servers]
    upload = uploader(lender, romeo, film, SIZE)
    upload.upload()
    uri = lender.call("GET", upload.url.removeprefix(lender.url), romeo)["content_uri"]
    wanted = digest_of(film)
    assert download(borrower, juliet, uri) == (200, wanted)
    assert download(lender, romeo, uri) == (200, wanted)
    with film.open("rb") as file:
        file.seek(SIZE - 1_000_000)
        end = hashlib.sha256(file.read()).hexdigest()
    for server, token in ((lender, romeo), (borrower, juliet)):
        assert download(server, token, uri, range="bytes=-1000000") == (206, end)
    for server, used in zip(servers, before, strict=True):
        assert resident_bytes(server) - used < GROWTH_BYTES_MAX


def test_an_upload_goes_on_where_it_broke_off(servers: tuple[Homeserver, Homeserver], film: Path) -> None:
    lender, _ = servers
    benvolio = lender.register("benvolio")
    first = uploader(lender, benvolio, film, 10_000_000)
    first.upload(stop_at=20_000_000)
    second = uploader(lender, benvolio, film, 10_000_000, first.url)
    assert second.offset == 20_000_000
    second.upload()
    uri = lender.call("GET", first.url.removeprefix(lender.url), benvolio)["content_uri"]
    assert download(lender, benvolio, uri) == (200, digest_of(film))


def test_an_upload_survives_a_server_that_is_killed(servers: tuple[Homeserver, Homeserver], film: Path) -> None:
    lender, _ = servers
    mercutio = lender.register("mercutio")
    acknowledged = 0
    upload = uploader(lender, mercutio, film, SIZE)
    upload.set_url(upload.create_url())
    url = upload.url
    for delay_s in (0.05, 0.12):
        killer = threading.Timer(delay_s, lender.kill)
        killer.start()
        try:
            upload.upload()
        except TusCommunicationError:
            pass
        killer.join()
        lender.start()
        upload = uploader(lender, mercutio, film, SIZE, url)
        assert upload.offset >= acknowledged  # what was acknowledged is still there
        acknowledged = upload.offset
    upload.upload()
    uri = lender.call("GET", url.removeprefix(lender.url), mercutio)["content_uri"]
    assert download(lender, mercutio, uri) == (200, digest_of(film))
