"""An object store that speaks as much of S3's protocol over HTTP as blobs need, in a thread of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

GATE_SECONDS_MAX = 20
MODIFIED = "2024-01-01T00:00:00.000Z"


class Objects(dict[str, bytes]):
    """The objects by key. While `fails` is set, the store answers every request with 500; while `is_full` is set, it
    takes no object.

    headers: those that an object was stored with, and is served with. gate: getting an object waits for it.
    """

    fails = False
    is_full = False

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, dict[str, str]] = {}
        self.gate = threading.Event()
        self.gate.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.objects.fails:
            self._read_body()
            self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
            return False
        return True

    def do_PUT(self) -> None:
        body = self._read_body()
        if self.objects.is_full:
            self._answer(403, {}, b"<Error><Code>QuotaExceeded</Code></Error>")
            return
        self.objects[self._key()] = body
        stored = ("Content-Type", "Content-Disposition")
        self.objects.headers[self._key()] = {name: self.headers[name] for name in stored if name in self.headers}
        self._answer(200, {"ETag": '"1"'})

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
            return
        self.objects.gate.wait(GATE_SECONDS_MAX)
        data = self.objects.get(self._key())
        if data is None:
            self._answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        headers |= self.objects.headers.get(self._key(), {})
        asked = self.headers.get("Range")
        if asked is None:
            self._answer(200, headers, data)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._answer(206, headers, part)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.objects.pop(self._key(), None)
        self._answer(204, {})

    def do_POST(self) -> None:
        """Multiple objects are deleted by a POST."""
        body = self._read_body().decode()
        deleted = [unquote(part.split("</Key>")[0]) for part in body.split("<Key>")[1:]]
        for key in deleted:
            self.objects.pop(key, None)
        found = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in deleted)
        self._answer(200, {}, f"<DeleteResult>{found}</DeleteResult>".encode())

    def _list(self, prefix: str) -> None:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{MODIFIED}</LastModified>"
            f"<Size>{len(data)}</Size><ETag>1</ETag></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self._answer(200, {"Content-Type": "application/xml"}, body.encode())

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextmanager
def running_object_store() -> Iterator[tuple[dict[str, str], Objects]]:
    """The environment that leads obstore to a new, empty store with the bucket `bucket`, and its objects by key."""
    objects = Objects()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"objects": objects}))
    # A server looks that often whether it is to stop: by default every half second.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield (
            {
                "AWS_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "eu-west-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            },
            objects,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
