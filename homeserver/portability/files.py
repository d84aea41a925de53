"""Files of the media repository in an exported folder: `media/`, each under a name that says nothing but its type."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import orjson

from homeserver.blobs import BlobError
from homeserver.database import Transaction
from homeserver.features.media.serving import open_stream
from homeserver.features.media.storage import Media, find_media
from homeserver.federation.identifiers import ServerName
from homeserver.portability.folders import NewFile, NewFolder
from homeserver.resources import Resources

# Types that a browser shows without running anything. Everything else is `.bin`, which it saves.
EXTENSIONS = {
    "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp",
    "video/mp4": "mp4", "video/webm": "webm", "audio/mpeg": "mp3", "audio/ogg": "ogg", "audio/mp4": "m4a",
    "text/plain": "txt", "application/pdf": "pdf",
}  # fmt: skip
PICTURES = frozenset({"png", "jpg", "gif", "webp"})
_MXC = re.compile(r"mxc://([^/\s]{1,255})/([A-Za-z0-9_-]{1,255})", re.ASCII)


def file_name_of(mxc: str, extension: str) -> str:
    """Returns the name of a file in the folder."""
    return f"media/{hashlib.sha256(mxc.encode()).hexdigest()[:40]}.{extension}"


def list_uris(content: dict[str, Any]) -> Iterator[str]:
    """Yields the media that a message or a room's picture consists of."""
    info, file = content.get("info"), content.get("file")
    thumbnail = info.get("thumbnail_file") if isinstance(info, dict) else None
    for place, key in ((content, "url"), (file, "url"), (info, "thumbnail_url"), (thumbnail, "url")):
        value = place.get(key) if isinstance(place, dict) else None
        if isinstance(value, str) and _MXC.fullmatch(value):
            yield value


class MediaWriter:
    """Copies media into a folder, each once, and lists it in `media.jsonl`."""

    def __init__(self, hs: Resources, folder: NewFolder) -> None:
        self._hs = hs
        self._folder = folder
        self._index = folder.begin("media.jsonl")
        self._listed: set[bytes] = set()  # 8 bytes each
        self.files = 0
        self.missing = 0

    async def add(self, mxc: str) -> None:
        """Copies a file, unless that has been done. One that this server does not have is listed as missing."""
        key = hashlib.sha256(mxc.encode()).digest()[:8]
        match = _MXC.fullmatch(mxc)
        if key in self._listed or match is None:
            return
        self._listed.add(key)
        media = await self._hs.database.read(find_media, ServerName(match[1]), match[2])
        row: dict[str, Any] = {"mxc": mxc, "missing": True}
        if media is not None and not media.is_quarantined:
            name = file_name_of(mxc, extension_of(media))
            if await self._copy(media, name):
                about = media.description
                row = {"mxc": mxc, "file": name, "content_type": about.content_type, "bytes": media.blob.size_bytes}
                if about.filename is not None:
                    row["filename"] = about.filename
        self.files += "file" in row
        self.missing += "missing" in row
        self._index.write(orjson.dumps(row) + b"\n")

    async def _copy(self, media: Media, name: str) -> bool:
        file: NewFile = self._folder.begin(name)
        try:
            chunks = await open_stream(self._hs, media.blob.key, media.blob.size_bytes)
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    file.write(bytes(chunk))
        except (KeyError, BlobError):  # the content is lost: the rest can still be exported
            self._folder.abandon(file)
            return False
        self._folder.end(file)
        return True

    def finish(self) -> None:
        """Ends the list."""
        self._folder.end(self._index)


def extension_of(media: Media) -> str:
    """Returns the extension of a file, by what its uploader said it is."""
    return EXTENSIONS.get(media.description.content_type.partition(";")[0].strip().lower(), "bin")


def find_shown_name(tx: Transaction, mxc: str) -> str | None:
    """Returns the name of a file in the folder, None if this server does not have it."""
    match = _MXC.fullmatch(mxc)
    media = None if match is None else find_media(tx, ServerName(match[1]), match[2])
    return None if media is None or media.is_quarantined else file_name_of(mxc, extension_of(media))
