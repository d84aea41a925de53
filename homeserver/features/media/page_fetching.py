"""Fetches a page, its oEmbed description and its picture, and decides what to show of them.

oEmbed: https://oembed.com/, discovered through the page's <link> only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urljoin

import msgspec
import trio
from msgspec.structs import replace

from homeserver.database import Transaction
from homeserver.features.media.content_headers import bare_type, header_parameter
from homeserver.features.media.receiving import Received, keep, limited, receive
from homeserver.features.media.storage import Blob
from homeserver.features.media.text import clean
from homeserver.features.media.thumbnails import SOURCE_TYPES, ImageType, Side
from homeserver.federation.wire import WireError, WireStream
from homeserver.federation.wire.client import parse_url
from homeserver.limits.previews import (
    PREVIEW_DESCRIPTION_CHARACTERS_MAX,
    PREVIEW_OEMBED_BYTES_MAX,
    PREVIEW_OEMBED_DEADLINE_S,
    PREVIEW_PAGE_BYTES_MAX,
    PREVIEW_PAGE_DEADLINE_S,
    PREVIEW_PICTURE_BYTES_MAX,
    PREVIEW_PICTURE_DEADLINE_S,
    PREVIEW_PICTURES_TRIED_MAX,
    PREVIEW_PROPERTIES_MAX,
    PREVIEW_PROPERTY_CHARACTERS_MAX,
    PREVIEW_READ_TIMEOUT_S,
    PREVIEW_SILENCE_S,
    PREVIEW_TITLE_CHARACTERS_MAX,
)
from homeserver.process.workers import WorkerFailed
from homeserver.resources import Resources

_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_HEADERS = {
    # Sites describe themselves to programs that say what they are.
    "User-Agent": "homeserver (bot; Matrix URL previews)",
    "Accept-Encoding": "identity",
}
_PAGE_READER = "homeserver.features.media.page_reader:read_page"
_IMAGE_READER = "homeserver.features.media.thumbnail_maker:read_image"
_BYTES_MAX = 1 << 62  # a page may announce any length: reading it ends early

T = TypeVar("T")
R = TypeVar("R", bound=msgspec.Struct)

_Text = Annotated[str, msgspec.Meta(max_length=PREVIEW_PROPERTY_CHARACTERS_MAX)]
_Title = Annotated[str, msgspec.Meta(max_length=PREVIEW_TITLE_CHARACTERS_MAX)]
_About = Annotated[str, msgspec.Meta(max_length=PREVIEW_DESCRIPTION_CHARACTERS_MAX)]


class _Read(msgspec.Struct, frozen=True):
    """The result of the separate process. It has read a hostile page, so it is trusted as little as the page."""

    properties: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=PREVIEW_PROPERTIES_MAX)] = {}
    title: _Title = ""
    description: _About = ""
    pictures: Annotated[list[_Text], msgspec.Meta(max_length=PREVIEW_PICTURES_TRIED_MAX)] = []
    oembed: _Text = ""
    base: _Text = ""


class _ReadImage(msgspec.Struct, array_like=True, frozen=True):
    content_type: ImageType
    width: Side
    height: Side


class Picture(msgspec.Struct, frozen=True):
    """What the decoder says about a picture: its type and, as it is shown, its size in pixels."""

    content_type: str
    width: int
    height: int


class _Page(msgspec.Struct, frozen=True):
    """What there is to show of a page. `pictures`: URLs to try."""

    properties: dict[str, str]
    pictures: Sequence[str] = ()


Store = Callable[[Transaction, dict[str, str], Picture | None, Blob | None], T]
"""store(tx, properties, picture, blob): stores a preview, with the picture and its content if there is one."""


async def make_preview(hs: Resources, url: str, store: Store[T]) -> T:
    """Fetches a page and what belongs to it, and runs `store` in one write. Raises WireError if there is no page.

    A URL that is neither a page nor a picture has a preview without properties.
    """
    began_s = trio.current_time()
    async with _open(hs, url, began_s + PREVIEW_PAGE_DEADLINE_S) as answer:
        if answer.status != 200:
            raise WireError(f"the page answered {answer.status}", "protocol")
        kind = bare_type(answer.headers.get("content-type", ""))
        if kind in SOURCE_TYPES:
            kept = await _keep_picture(hs, answer, {}, store)
            return kept[0] if kept else await hs.database.write(store, {}, None, None)
        if kind not in _PAGE_TYPES or answer.headers.get("content-encoding", "identity").lower() != "identity":
            return await hs.database.write(store, {}, None, None)
        charset = header_parameter(answer.headers.get("content-type", ""), "charset") or ""
        data = await _read_beginning(answer.chunks, PREVIEW_PAGE_BYTES_MAX)
    page = await _understand(hs, answer.url or url, data, charset, began_s + PREVIEW_OEMBED_DEADLINE_S)
    for picture_url in page.pictures:
        try:
            async with _open(hs, picture_url, began_s + PREVIEW_PICTURE_DEADLINE_S) as answer:
                if answer.status == 200 and bare_type(answer.headers.get("content-type", "")) in SOURCE_TYPES:
                    kept = await _keep_picture(hs, answer, page.properties, store)
                    if kept:
                        return kept[0]
        except WireError:
            continue  # the page is worth showing without it
    return await hs.database.write(store, page.properties, None, None)


async def _keep_picture(hs: Resources, answer: WireStream, properties: dict[str, str], store: Store[T]) -> list[T]:
    """Stores a preview with the picture. Returns what `store` returns; nothing if it cannot be decoded."""
    error = WireError(f"the picture is larger than {PREVIEW_PICTURE_BYTES_MAX} bytes", "too_large")
    chunks = limited(answer.chunks, PREVIEW_PICTURE_BYTES_MAX, error)
    async with aclosing(chunks), receive(hs, chunks) as received:
        picture = await _read_picture(hs, received)
        if picture is None:
            return []
        return [await keep(hs, received, picture.content_type, lambda tx, blob: store(tx, properties, picture, blob))]


async def _read_picture(hs: Resources, received: Received) -> Picture | None:
    data = received.data
    content = await hs.workers.run(data.read_bytes) if isinstance(data, Path) else data
    read = await _run(hs, _ReadImage, _IMAGE_READER, content)
    return None if read is None else Picture(read.content_type, read.width, read.height)


async def _understand(hs: Resources, url: str, data: bytes, charset: str, deadline_s: float) -> _Page:
    """Returns what to show of a page. What it lacks is taken from its oEmbed description, if it has one."""
    read = await _run(hs, _Read, _PAGE_READER, data, charset) or _Read()
    base = _join(url, read.base) or url
    other = _Read()
    if read.oembed and not ("og:title" in read.properties and read.description and read.pictures):
        other = await _fetch_oembed(hs, _join(base, read.oembed), deadline_s)
    properties = {**other.properties, **read.properties}
    for name, value in (
        ("og:title", read.title if "og:title" in read.properties else other.title or read.title),
        ("og:description", read.description or other.description),
    ):
        if value:
            properties[name] = value
    pictures = [_join(base, each) for each in (*read.pictures, *other.pictures)]
    return _Page(properties, [each for each in dict.fromkeys(pictures) if each][:PREVIEW_PICTURES_TRIED_MAX])


async def _fetch_oembed(hs: Resources, url: str, deadline_s: float) -> _Read:
    """Returns what an oEmbed description says; nothing if it is malformed or cannot be fetched."""
    if not url:
        return _Read()
    try:
        async with _open(hs, url, deadline_s) as answer:
            if answer.status != 200:
                return _Read()
            data = await _read_beginning(answer.chunks, PREVIEW_OEMBED_BYTES_MAX)
    except WireError:
        return _Read()
    try:
        described = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Read()
    if not isinstance(described, dict):
        return _Read()

    def text(name: str, characters_max: int) -> str:
        value = described.get(name)
        return clean(value, characters_max) if isinstance(value, str) else ""

    site = text("provider_name", PREVIEW_TITLE_CHARACTERS_MAX)
    is_photo = described.get("type") == "photo"
    pictures = [text(name, PREVIEW_PROPERTY_CHARACTERS_MAX) for name in ("url" if is_photo else "", "thumbnail_url")]
    description = text("description", PREVIEW_DESCRIPTION_CHARACTERS_MAX)
    if not description and isinstance(html := described.get("html"), str):
        embedded = await _run(hs, _Read, _PAGE_READER, html.encode("utf-8", "replace"), "utf-8")
        description = embedded.description if embedded is not None else ""
    return _Read(
        {"og:site_name": site} if site else {},
        text("title", PREVIEW_TITLE_CHARACTERS_MAX) or text("author_name", PREVIEW_TITLE_CHARACTERS_MAX),
        description,
        [each for each in pictures if each],
    )


async def _run(hs: Resources, kind: type[R], function: str, *args: Any) -> R | None:
    """Calls the separate process. Returns None if it cannot read what it is given within its limits."""
    try:
        return msgspec.convert(await hs.workers.run_process(function, *args, timeout_s=PREVIEW_READ_TIMEOUT_S), kind)
    except (WorkerFailed, ValueError):  # msgspec.ValidationError is a ValueError: the process is not trustworthy
        return None


@asynccontextmanager
async def _open(hs: Resources, url: str, deadline_s: float) -> AsyncIterator[WireStream]:
    """Yields the response to a GET, whose body must arrive by the deadline. Raises WireError."""
    timeout_s = min(PREVIEW_SILENCE_S, deadline_s - trio.current_time())
    if timeout_s <= 0:
        raise WireError("the page took too long already", "timeout")
    async with hs.wire.stream_page(url, headers=_HEADERS, timeout_s=timeout_s, max_bytes=_BYTES_MAX) as answer:
        async with aclosing(_until(deadline_s, answer.chunks)) as chunks:
            yield replace(answer, chunks=chunks)


async def _until(deadline_s: float, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    while True:
        chunk = None
        with trio.move_on_at(deadline_s):
            chunk = await anext(chunks, b"")
        if chunk is None:
            raise WireError("the body arrived too slowly", "timeout")
        if not chunk:
            return
        yield chunk


async def _read_beginning(chunks: AsyncIterator[bytes], bytes_max: int) -> bytes:
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) >= bytes_max:
            break
    return bytes(data[:bytes_max])


def _join(base: str, url: str) -> str:
    """Returns the absolute URL; "" if it is empty, or none that may be fetched."""
    if not url:
        return ""
    try:
        joined = urljoin(base, url)
        parse_url(joined, ("https", "http"))
    except (ValueError, WireError):
        return ""
    return joined if len(joined) <= PREVIEW_PROPERTY_CHARACTERS_MAX else ""
