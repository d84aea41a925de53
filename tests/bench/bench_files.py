"""What large files cost two servers: seconds, CPU and memory. Prints one JSON object.

python -m tests.bench.bench_files [MEBIBYTES]

A file is uploaded with tus in one request, downloaded from its server, fetched by another server for one of its users,
and downloaded there again. Memory is what a process has of its own, without pages of files, sampled while it works.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.programs import Homeserver, make_client, make_place

UPLOADS = "/_homeserver/client/v1/uploads"
CHUNK = 1 << 20


def chunks(mebibytes: int) -> Iterator[bytes]:
    block = hashlib.shake_128(b"film").digest(CHUNK)
    for number in range(mebibytes):
        yield number.to_bytes(8) + block[8:]


def cpu_seconds(server: Homeserver) -> float:
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(server: Homeserver) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def measured(servers: tuple[Homeserver, ...], work: Callable[[], Any]) -> dict[str, Any]:
    """Runs the work, and returns what it cost each of the servers."""
    over = threading.Event()
    peaks = [0.0] * len(servers)

    def watch() -> None:
        while not over.wait(0.05):
            peaks[:] = [max(peak, memory_mb(server)) for peak, server in zip(peaks, servers, strict=True)]

    watcher = threading.Thread(target=watch)
    cpu, began = [cpu_seconds(server) for server in servers], time.monotonic()
    watcher.start()
    work()
    seconds = time.monotonic() - began
    over.set()
    watcher.join()
    spent = [round(cpu_seconds(server) - before, 2) for server, before in zip(servers, cpu, strict=True)]
    return {"seconds": round(seconds, 1), "cpu_seconds": spent, "peak_mb": [round(peak, 1) for peak in peaks]}


def upload(server: Homeserver, token: str, mebibytes: int) -> str:
    size = mebibytes << 20
    headers = {"authorization": f"Bearer {token}", "tus-resumable": "1.0.0"}
    with make_client(600) as http:
        created = http.post(server.url + UPLOADS, headers={**headers, "upload-length": str(size)})
        sent = {
            **headers, "upload-offset": "0", "content-type": "application/offset+octet-stream",
            "content-length": str(size), "accept": "application/json",
        }  # fmt: skip
        url = server.url + created.headers["location"]
        answer = http.patch(url, headers=sent, content=chunks(mebibytes), timeout=600)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["content_uri"])


def download(server: Homeserver, token: str, uri: str, size: int) -> None:
    path = f"/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"
    with httpx.stream("GET", server.url + path, headers={"authorization": f"Bearer {token}"}, timeout=600) as answer:
        assert answer.status_code == 200
        assert sum(len(chunk) for chunk in answer.iter_raw()) == size


def main(mebibytes: int = 1024) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder))
        limits = {"blobs": {"upload_bytes_max": 2 << 30}}
        servers = place.organisation("lender", limits), place.organisation("borrower", limits)
        try:
            for server in servers:
                server.start()
            lender, borrower = servers
            romeo, juliet = lender.register("romeo"), borrower.register("juliet")
            report: dict[str, Any] = {
                "mebibytes": mebibytes,
                "idle_mb": [round(memory_mb(each), 1) for each in servers],
            }
            uris: list[str] = []
            report["upload"] = measured(servers, lambda: uris.append(upload(lender, romeo, mebibytes)))
            size = mebibytes << 20
            report["download"] = measured(servers, lambda: download(lender, romeo, uris[0], size))
            report["fetched by the other server"] = measured(servers, lambda: download(borrower, juliet, uris[0], size))
            report["downloaded there again"] = measured(servers, lambda: download(borrower, juliet, uris[0], size))
            print(json.dumps(report, indent=1))
        finally:
            for server in servers:
                server.kill()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
