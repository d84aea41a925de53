"""The page to talk in: a messenger in a browser, made of static files that this folder holds.

`index.html` is filled in once; all other files are served below a folder named after their content, so browsers may
keep them for ever, and never mix the modules of two versions. docs/chat.md describes what the page does and how.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Literal

import msgspec

PATH = "/_homeserver/chat"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
HTML = "text/html; charset=utf-8"

# Scripts, styles and requests come from this server only, and from nowhere inside the page: what people write is
# never executed, not even if the page made markup of it, which browsers are told to refuse (Trusted Types). Pictures
# come from memory (`blob:`), because their requests need the access token.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
FOR_EVER = "public, max-age=31536000, immutable"
ASK_EACH_TIME = "no-cache"


class Answer(msgspec.Struct, frozen=True):
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Asset(msgspec.Struct, frozen=True):
    """A file in memory, also compressed."""

    content: bytes
    compressed: bytes
    etag: str
    content_type: str
    cache_control: str


class ChatFiles:
    """The files of the page, read once."""

    def __init__(self, server_name: str, registration: Literal["closed", "token", "open"] = "closed") -> None:
        """registration: whether people can create accounts: nobody, those with a token, or anyone."""
        paths = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in TYPES)
        contents = {path.name: path.read_bytes() for path in paths}
        digest = hashlib.sha256()
        for name, content in contents.items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        self.version = digest.hexdigest()[:16]
        self._assets = {
            f"{PATH}/{self.version}/{name}": _asset(content, TYPES[Path(name).suffix], FOR_EVER)
            for name, content in contents.items()
        }
        page = Path(__file__).with_name("index.html").read_text("utf-8")
        # Relative to the page's own address, so a proxy may serve all of it below another path.
        page = page.replace("{{ files }}", f"chat/{self.version}").replace("{{ registration }}", registration)
        page = page.replace("{{ server_name }}", escape(server_name))
        self._assets[PATH] = _asset(page.encode(), HTML, ASK_EACH_TIME)

    def find(self, path: str, request_headers: Mapping[str, str]) -> Answer | None:
        """Returns the answer to a request for a path; None if there is no such file.

        request_headers: looked up by names in lower case.
        """
        asset = self._assets.get(path)
        if asset is None:
            return None
        headers = {**HEADERS, "etag": asset.etag, "cache-control": asset.cache_control, "vary": "Accept-Encoding"}
        if asset.etag in request_headers.get("if-none-match", ""):
            return Answer(304, headers)
        headers["content-type"] = asset.content_type
        if "gzip" in request_headers.get("accept-encoding", ""):
            return Answer(200, {**headers, "content-encoding": "gzip"}, asset.compressed)
        return Answer(200, headers, asset.content)


def _asset(content: bytes, content_type: str, cache_control: str) -> Asset:
    etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return Asset(content, gzip.compress(content, 9, mtime=0), etag, content_type, cache_control)
