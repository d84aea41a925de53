"""Blobs: media and archive segments, by key. A local folder by default; S3, Google or Azure storage by URL."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from homeserver.limits import BLOB_CHUNK_BYTES

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", re.ASCII)


class Blobs:
    """Opened with a URL: "file:PATH", "s3://bucket/prefix", "gs://…", "az://…". Keys are like `media/ab/cd`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: Any = None

    async def put(self, key: str, data: bytes | Path) -> None:
        """Stores `data`, or the content of the file at that path, under `key`; durable when this returns."""

    async def get(self, key: str) -> bytes:
        """The whole blob. KeyError if there is none."""

    def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes start ≤ i < end, in chunks. KeyError if there is none."""

    async def size_bytes(self, key: str) -> int:
        """How long the blob is. KeyError if there is none."""

    async def exists(self, key: str) -> bool:
        """Whether there is such a blob."""

    async def delete(self, key: str) -> None:
        """Removes the blob; nothing happens if there is none."""

    def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Every (key, size in bytes) whose key begins with `prefix`, ordered by key."""
