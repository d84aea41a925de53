"""Makes a room of an exported one, with the original times and senders.

Theory of operation. An event cannot be stored as it was: its room is another server's, its signatures do not fit, and
nobody may sign for another server. So a new room of this server is made, and every event is sent again in it, valid and
signed by this server, at its original time, by a user of this server:

    exported sender                                                     sender in the new room
    a user of this server, in a folder that this server has signed      the same user
    everyone else                                                       a placeholder, see `senders.py`

What the event was is in its content, `org.homeserver.imported`: `sender` and `event_id`. Relations and files are
changed to those of the new room. The user who made the room, the keeper, sends its state. During the import everyone
may enter and speak; at the end the room gets the power levels, join rules, bans, and so on of the exported room, see
`restoring.py`.

    checked    the whole folder is read: checksums, names, every line. Nothing is written before that
    files      each is stored under a URI that follows from the folder and its old URI, unless it is there already
    begun      one write makes the room and stores how far the import is
    lines      a write appends some events and stores how far the import is
    done       one write restores the rules, bans, invites and aliases of the room

Each step may be repeated and each write is whole, so after an interruption the same command goes on, and nothing comes
twice. Imported events are history: they notify nobody and are not counted as activity. An event that cannot be valid
in the new room is left out and counted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from homeserver.database import Transaction
from homeserver.features.media.content_headers import clean_content_type, clean_filename
from homeserver.features.media.receiving import keep, receive
from homeserver.features.media.storage import Description, find_media, insert_unowned
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_user_id
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.signing import verify_json
from homeserver.portability.folders import ExportError, OldFolder
from homeserver.portability.replaying import Line, Replay, begin_room, new_media_id
from homeserver.portability.restoring import finish_room, is_restored
from homeserver.portability.schema import Progress, find_progress, store_progress
from homeserver.remote.identity import list_old_keys
from homeserver.resources import Resources

LINES_PER_WRITE = 50  # some 30 ms, for which other writes wait
EVENTS, STATE, MEDIA = "events.jsonl", "state.jsonl", "media.jsonl"
Tell = Callable[[int, int], object]


class MediaLine(msgspec.Struct, frozen=True):
    """A line of `media.jsonl`."""

    mxc: str
    file: str = ""
    content_type: str = "application/octet-stream"
    filename: str | None = None
    missing: bool = False


async def import_room(hs: Resources, path: Path, tell: Tell) -> dict[str, Any]:
    """Makes a room of the folder, or goes on with it, and returns a summary. Raises ExportError.

    tell(done, of): called after each write, with numbers of events.
    """
    folder = OldFolder(path)
    total = check_folder(folder)
    is_own = await _is_own(hs, folder)
    await _store_media(hs, folder)
    replay = Replay(folder.id, folder.manifest.server_name, is_own)
    progress = await hs.database.write(_begin, replay, folder.manifest.room_version, _find_creator(folder))
    for batch in _batches(folder, progress.lines):
        progress = await hs.database.write(_append, replay, batch, progress)
        tell(progress.lines, total)
    if not progress.is_done:
        state = (Line.parse(STATE, number, value) for number, value in enumerate(folder.lines(STATE), 1))
        progress = await hs.database.write(_finish, replay, [*filter(is_restored, state)], progress)
    counts = {"events": progress.appended, "left_out": progress.left_out}
    return {"room_id": progress.room_id, **counts, "own_senders": is_own}


def check_folder(folder: OldFolder) -> int:
    """Reads the whole folder, and returns the number of events. Raises ExportError if anything in it is wrong."""
    manifest = folder.manifest
    if manifest.kind != "room":
        raise ExportError(f"{folder.path} is not the export of a room")
    if manifest.room_version not in ROOM_VERSIONS:
        raise ExportError(f"{folder.path}: this server does not know room version {manifest.room_version[:20]!r}")
    total = 0
    for total, value in enumerate(folder.lines(EVENTS), 1):
        Line.parse(EVENTS, total, value)
    for number, value in enumerate(folder.lines(STATE), 1):
        Line.parse(STATE, number, value)
    for line in _media_lines(folder):
        if line.file:
            folder.check(line.file)
    return total


async def _is_own(hs: Resources, folder: OldFolder) -> bool:
    """Returns whether this server has signed the manifest, now or with a former key."""
    keys = {hs.signing_key.key_id: hs.signing_key.verify_key_base64}
    keys |= {key_id: key.key_base64 for key_id, key in (await hs.database.read(list_old_keys)).items()}
    return folder.manifest.server_name == hs.server_name and any(
        verify_json(folder.raw, hs.server_name, key_id, key) for key_id, key in keys.items()
    )


# --- files ---


def _media_lines(folder: OldFolder) -> Iterator[MediaLine]:
    for number, value in enumerate(folder.lines(MEDIA), 1):
        try:
            yield msgspec.convert(value, MediaLine)
        except msgspec.ValidationError as error:
            raise ExportError(f"{MEDIA}: line {number} is not an entry of the list of files: {error}") from error


async def _store_media(hs: Resources, folder: OldFolder) -> None:
    """Stores the folder's files under URIs of this server, except those that it has."""
    for line in _media_lines(folder):
        media_id = new_media_id(folder.id, line.mxc)
        if not line.file or await hs.database.read(find_media, hs.server_name, media_id) is not None:
            continue
        size = folder.manifest.files[line.file].bytes
        if size > hs.config.blobs.upload_bytes_max:
            raise ExportError(f"{line.file} has {size} bytes, more than [blobs] upload_bytes_max allows")
        filename = None if line.filename is None else clean_filename(line.filename)
        description = Description(clean_content_type(line.content_type), filename)
        store = partial(_insert_file, server_name=hs.server_name, media_id=media_id, description=description)
        async with receive(hs, _as_async(folder.chunks(line.file))) as received:
            await keep(hs, received, description.content_type, store)


def _insert_file(
    tx: Transaction, blob: Any, *, server_name: ServerName, media_id: str, description: Description
) -> None:
    if find_media(tx, server_name, media_id) is None:  # otherwise another import of the same folder was faster
        insert_unowned(tx, blob, server_name, media_id, description)


async def _as_async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


# --- events ---


def _find_creator(folder: OldFolder) -> str:
    """Returns the creator of the exported room; someone who does not exist if the folder does not tell."""
    for value in folder.lines(STATE):
        if value.get("type") == "m.room.create":
            return str(value["sender"])
    return f"@unknown:{folder.manifest.server_name}"


def _batches(folder: OldFolder, skipped: int) -> Iterator[list[Line]]:
    lines = islice(enumerate(folder.lines(EVENTS), 1), skipped, None)
    while batch := [Line.parse(EVENTS, number, value) for number, value in islice(lines, LINES_PER_WRITE)]:
        yield batch


def _begin(tx: Transaction, replay: Replay, version: str, creator: str) -> Progress:
    progress = find_progress(tx, replay.folder)
    if progress is None:
        try:
            parse_user_id(creator)
        except InvalidIdentifier as error:
            raise ExportError(f"the creator of the exported room is not a user: {error}") from error
        room_id, keeper = begin_room(tx, replay, ROOM_VERSIONS[version], creator)
        progress = Progress(room_id, keeper, 0, 0, 0, False)
        store_progress(tx, replay.folder, progress)
    return progress


def _append(tx: Transaction, replay: Replay, lines: Sequence[Line], progress: Progress) -> Progress:
    _check_current(tx, replay, progress)
    appended = sum(replay.append(tx, progress.room_id, progress.keeper, line) for line in lines)
    after = progress._replace(
        lines=progress.lines + len(lines),
        appended=progress.appended + appended,
        left_out=progress.left_out + len(lines) - appended,
    )
    store_progress(tx, replay.folder, after)
    return after


def _finish(tx: Transaction, replay: Replay, state: Sequence[Line], progress: Progress) -> Progress:
    _check_current(tx, replay, progress)
    finish_room(tx, replay, progress.room_id, progress.keeper, state)
    after = progress._replace(is_done=True)
    store_progress(tx, replay.folder, after)
    return after


def _check_current(tx: Transaction, replay: Replay, progress: Progress) -> None:
    if find_progress(tx, replay.folder) != progress:
        raise ExportError("another import of this folder is running")
