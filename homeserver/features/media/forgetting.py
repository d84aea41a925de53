"""Files that nobody shows any more, because their room is forgotten or their messages have expired, are deleted, and
their keys with them. Those that a user of this server shows everywhere, as an avatar, stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.database import Transaction
from homeserver.features.media.storage import Media, delete_media, find_media
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.media_references import File, forget_references, list_only_here
from homeserver.users.profile import list_avatars


def forget_room(tx: Transaction, room_id: RoomID) -> None:
    """Deletes the files that only this room refers to."""
    room_nid = tx.find(room_id)
    assert room_nid is not None
    forget_files(tx, list_only_here(tx, room_nid), False)
    forget_references(tx, room_nid)


def forget_files(tx: Transaction, files: Sequence[File], is_estimate: bool) -> tuple[int, int]:
    """Does what `ForgetFiles` says."""
    stored: dict[File, Media] = {file: media for file in files if (media := find_media(tx, *file)) is not None}
    avatars = set(list_avatars(tx)) if stored else set()
    needless = {file: media for file, media in stored.items() if "mxc://{}/{}".format(*file) not in avatars}
    if not is_estimate:
        for server_name, media_id in needless:
            delete_media(tx, server_name, media_id)
    return len(needless), sum(media.blob.size_bytes for media in needless.values())
