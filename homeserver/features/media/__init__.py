"""The content repository: files by `mxc://` URI, uploaded here or fetched from other servers, and thumbnails of images.

Spec: client-server-api/#content-repository, server-server-api/#content-repository
"""

from __future__ import annotations

from homeserver.feature import Feature
from homeserver.features.media import (  # noqa: F401  some of them only register routes
    administration,
    cleanup,
    federation_media,
    previews,
    resumable,
    storage,
)
from homeserver.features.media.downloads import download, parse_mxc
from homeserver.features.media.forgetting import forget_files, forget_room
from homeserver.features.media.operations import routes
from homeserver.features.media.schema import SCHEMA
from homeserver.features.media.sealing_old import seal_old_files
from homeserver.features.media.uploads import upload
from homeserver.federation.identifiers import ServerName
from homeserver.limits import Bucket
from homeserver.resources import Resources

__all__ = ["FEATURE", "delete", "download", "upload"]


async def delete(hs: Resources, mxc: str) -> bool:
    """Deletes a file and its thumbnails. Returns False if there is none. Raises M_NOT_FOUND if it is not an mxc URI."""
    server_name, media_id = parse_mxc(mxc)
    deleted = await hs.database.write(storage.delete_media, ServerName(server_name), media_id)
    await cleanup.delete_released(hs)
    return deleted


FEATURE = Feature(
    name="media",
    spec="client-server-api/#content-repository",
    schema=SCHEMA,
    routes=routes,
    limits={
        "media": Bucket(100, 20),  # a timeline full of thumbnails
        "upload": Bucket(30, 2),  # uploads fill the disk
        "upload_part": Bucket(300, 30),  # some clients send pieces of a few kilobytes
        "url_preview": Bucket(20, 0.5),  # pages to fetch: a timeline full of links, then one link every other second
    },
    background=(cleanup.clean_up_forever, seal_old_files),
    forget_user=cleanup.forget_media,
    forget_room=forget_room,
    forget_files=forget_files,
)
