"""URL previews: what a page says about itself, with its picture as a file of this server.

Users choose the URLs, and the pages behind them may be hostile. So every request goes through the guard of
`[outbound_http]`, redirects included; everything has a limit in `limits/previews.py`; pages and pictures are read in
the separate process. A preview is stored, and requests for the same page share one fetch.

Spec: client-server-api/#get_matrixclientv1mediapreview_url
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from urllib.parse import urldefrag, urlsplit

import msgspec
import trio

from homeserver.api.routes import Response
from homeserver.authenticate import Requester, limit_requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, forbidden, invalid_param, not_found
from homeserver.features.media import preview_storage
from homeserver.features.media.operations import routes
from homeserver.features.media.page_fetching import Picture, make_preview
from homeserver.features.media.preview_storage import Preview
from homeserver.features.media.storage import Blob
from homeserver.features.media.uploads import mxc_uri
from homeserver.federation.wire import WireError
from homeserver.federation.wire.client import parse_url
from homeserver.limits.previews import (
    PREVIEW_FAILURE_MS,
    PREVIEW_LIFETIME_MS,
    PREVIEW_QUEUE_S,
    PREVIEW_URL_CHARACTERS_MAX,
    PREVIEWS_AT_ONCE_MAX,
)
from homeserver.moments import is_recent
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.previews")


class PreviewQuery(msgspec.Struct, frozen=True):
    """ts: the preferred age of the preview. Only the newest is kept."""

    url: str
    ts: int | None = None


@routes.get("/_matrix/client/v1/media/preview_url")
async def get_url_preview_authed(hs: Resources, requester: Requester, query: PreviewQuery) -> Response:
    return await _answer(hs, requester, query)


@routes.get("/_matrix/media/v3/preview_url")
async def get_url_preview(hs: Resources, requester: Requester, query: PreviewQuery) -> Response:
    """Deprecated name of `get_url_preview_authed`."""
    return await _answer(hs, requester, query)


async def _answer(hs: Resources, requester: Requester, query: PreviewQuery) -> Response:
    if not hs.config.url_previews.enabled:
        raise forbidden("This server makes no URL previews.")
    url = read_url(query.url)
    url_sha256 = hashlib.sha256(url.encode()).digest()
    found = await hs.database.read(preview_storage.find_preview, url_sha256)
    if found is None or not _is_fresh(found, hs.now_ms()):
        limit_requester(hs, requester, "url_preview")
        found = await hs.flights.join(hs.nursery, ("url preview", url), _preview, hs, url, url_sha256)
    if not found.body:
        raise not_found("There is no preview: the page could not be fetched.")
    return Response(200, found.body, {"content-type": "application/json"})


def read_url(url: str) -> str:
    """Returns the URL of a page without its fragment. Raises M_INVALID_PARAM unless it is one for http or https."""
    if len(url) > PREVIEW_URL_CHARACTERS_MAX:
        raise invalid_param("The URL is too long.")
    try:
        parse_url(url, ("https", "http"))
        return urldefrag(url.strip()).url
    except (WireError, ValueError) as error:
        raise invalid_param("The url must be the http or https URL of a page, without a user name.") from error


def _is_fresh(preview: Preview, now_ms: int) -> bool:
    return is_recent(preview.fetched_ms, now_ms, PREVIEW_LIFETIME_MS if preview.body else PREVIEW_FAILURE_MS)


async def _preview(hs: Resources, url: str, url_sha256: bytes) -> Preview:
    """Fetches the page and stores its preview, or that it could not be fetched. Raises 503 if there are too many."""
    limiter, place = hs.flights.limiter("url previews", PREVIEWS_AT_ONCE_MAX), object()
    with trio.move_on_after(PREVIEW_QUEUE_S) as waiting:
        await limiter.acquire_on_behalf_of(place)
    if waiting.cancelled_caught:
        raise MatrixError(503, "M_UNKNOWN", "The server is too busy. Try again later.")
    try:
        found = await hs.database.read(preview_storage.find_preview, url_sha256)
        if found is not None and _is_fresh(found, hs.now_ms()):  # another fetch ended while this one was started
            return found
        return await make_preview(hs, url, partial(_store, hs, url_sha256))
    except WireError as error:
        # Paths and queries are between the user and the web site.
        _log.info("page not fetched", extra={"host": urlsplit(url).hostname, "reason": error.reason})
        return await hs.database.write(_store_failure, url_sha256)
    finally:
        limiter.release_on_behalf_of(place)


def _store(
    hs: Resources,
    url_sha256: bytes,
    tx: Transaction,
    properties: dict[str, str],
    picture: Picture | None,
    blob: Blob | None,
) -> Preview:
    media_id, of_picture = "", {}
    if picture is not None and blob is not None:
        media_id = preview_storage.store_picture(
            tx, blob, hs.server_name, url_sha256, picture.content_type, hs.config.url_previews.bytes_max
        )
        of_picture = {
            "og:image": mxc_uri(hs.server_name, media_id),
            "og:image:type": picture.content_type,
            "og:image:width": picture.width,
            "og:image:height": picture.height,
            "matrix:image:size": blob.size_bytes,
        }
    body = to_json({**properties, **of_picture})
    preview_storage.store_preview(tx, url_sha256, body, media_id)
    return Preview(body, tx.now_ms)


def _store_failure(tx: Transaction, url_sha256: bytes) -> Preview:
    preview_storage.store_preview(tx, url_sha256, b"", "")
    return Preview(b"", tx.now_ms)
