"""Exports a room: `events.jsonl`, `state.jsonl`, its media, and pages that people can read without a program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import RoomID
from homeserver.portability.files import PICTURES, MediaWriter, find_shown_name, list_uris
from homeserver.portability.folders import ExportError, NewFolder
from homeserver.portability.pages import PageWriter
from homeserver.portability.shown import list_members, list_shown
from homeserver.resources import Resources
from homeserver.rooms.client_event import client_event
from homeserver.rooms.heads import find_head, get_head, state_content
from homeserver.rooms.resolve import StateAt, entries_of
from homeserver.rooms.storage import StoredEvent, TimelineEvent, list_stored
from homeserver.rooms.timeline import START, after_position, list_forwards

EVENTS_PER_READ = 500
Tell = Callable[[int, int], object]


async def export_room(
    hs: Resources, room_id: str, target: Path, kind: Literal["json", "html"], tell: Tell
) -> dict[str, Any]:
    """Writes the room's history, as this server has it, to a new folder, and returns a summary. Raises ExportError.

    kind: "html" adds pages for people to the same files. tell(done, of): called for each batch.
    """
    about = await hs.database.read(_describe, RoomID(room_id))
    with NewFolder(target) as folder:
        media = MediaWriter(hs, folder)
        pages = PageWriter(folder, about) if kind == "html" else None
        lines = folder.begin("events.jsonl")
        point, done = START, 0
        while True:
            batch = await hs.database.read(_read_batch, RoomID(room_id), point, after_position(about["position"]))
            if not batch:
                break
            point = batch[-1][0].ordering
            for event, line in batch:
                lines.write(line + b"\n")
                for uri in list_uris(event.content):
                    await media.add(uri)
            if pages is not None:
                for uri in await _write_pages(hs, pages, RoomID(room_id), [event for event, _ in batch]):
                    await media.add(uri)
            done += len(batch)
            tell(batch[-1][0].position, about["position"])
        folder.end(lines)
        await _write_state(hs, folder, RoomID(room_id), media)
        if pages is not None:
            pages.finish()
        media.finish()
        summary = {"kind": "room", **{key: about[key] for key in ("room_id", "room_version", "name")}, "events": done}
        summary |= {"exported_ts": hs.now_ms(), "media": media.files, "media_missing": media.missing}
        folder.finish(summary, hs.server_name, hs.signing_key)
    return {**summary, "folder": str(target)}


async def _write_pages(
    hs: Resources, pages: PageWriter, room_id: RoomID, events: Sequence[TimelineEvent]
) -> Collection[str]:
    """Writes what pages show of some events. Returns the avatars in it."""
    unknown = {event.sender for event in events} - pages.known
    if unknown:
        pages.know(await hs.database.read(list_members, room_id, unknown))
    return pages.write(await hs.database.read(list_shown, events))


def _describe(tx: Transaction, room_id: RoomID) -> dict[str, Any]:
    head = find_head(tx, room_id)
    if head is None:
        raise ExportError(f"this server does not know the room {room_id}")

    def text(kind: str, key: str) -> str:
        value = (state_content(tx, head.state_root, kind) or {}).get(key)
        return value if isinstance(value, str) else ""

    return {
        "room_id": room_id,
        "room_version": head.version.id,
        "name": text("m.room.name", "name") or text("m.room.canonical_alias", "alias") or room_id,
        "topic": text("m.room.topic", "topic"),
        "picture": _find_picture(tx, text("m.room.avatar", "url")),
        "position": tx.position,
        "server_name": tx.server.name,
        "exported_ts": tx.now_ms,
    }


def _find_picture(tx: Transaction, mxc: str) -> str:
    """Returns the name of the room's picture in the folder, empty if there is none."""
    name = find_shown_name(tx, mxc) or ""
    return name if name.rpartition(".")[2] in PICTURES else ""


def _read_batch(tx: Transaction, room_id: RoomID, point: int, upto: int) -> list[tuple[TimelineEvent, bytes]]:
    events = list_forwards(tx, room_id, point, EVENTS_PER_READ, upto)
    return [(event, encode_event(tx, event)) for event in events]


def encode_event(tx: Transaction, event: StoredEvent, *, with_room_id: bool = False) -> bytes:
    """Returns an event as one line: as clients get it, without `unsigned`, but with what redacted it."""
    line = client_event(tx, event, with_room_id=with_room_id)
    del line["unsigned"]
    if event.redacted_by is not None:
        redaction = list_stored(tx, [event.redacted_by])[event.redacted_by]
        line["redacted_by"] = redaction.event_id
    return to_json(line)


async def _write_state(hs: Resources, folder: NewFolder, room_id: RoomID, media: MediaWriter) -> None:
    """Writes the current state: of a room that was joined late, more than what is in its history."""
    positions = await hs.database.read(_list_state, room_id)
    lines = folder.begin("state.jsonl")
    for start in range(0, len(positions), EVENTS_PER_READ):
        for content, line in await hs.database.read(_encode_state, positions[start : start + EVENTS_PER_READ]):
            lines.write(line + b"\n")
            for uri in list_uris(content):
                await media.add(uri)
    folder.end(lines)


def _list_state(tx: Transaction, room_id: RoomID) -> list[int]:
    return sorted(entries_of(tx, StateAt(get_head(tx, room_id).state_root)).values())


def _encode_state(tx: Transaction, positions: Sequence[int]) -> list[tuple[dict[str, Any], bytes]]:
    stored = list_stored(tx, positions)
    return [
        (
            stored[position].content if stored[position].type == "m.room.avatar" else {},
            encode_event(tx, stored[position]),
        )
        for position in positions
    ]
