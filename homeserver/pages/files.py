"""Files: what the pages need of the content repository, which is a feature. `homeserver.server` passes it in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources


class Files(msgspec.Struct, frozen=True):
    """How files are stored and read, which is a feature's. upload(hs, user_id, content, content_type): returns the
    `mxc://` URI. download(hs, uri): returns content type and content. Both raise MatrixError.
    """

    upload: Callable[[Resources, UserID, bytes, str], Awaitable[str]]
    download: Callable[[Resources, str], Awaitable[tuple[str, bytes]]]
