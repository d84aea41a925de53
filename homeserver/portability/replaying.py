"""Sends exported events again, in the new room: see `importing.py`."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.features.media.storage import find_media
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import InvalidIdentifier, RoomID, UserID, parse_user_id
from homeserver.federation.room_versions import RoomVersion
from homeserver.portability.folders import ExportError
from homeserver.portability.schema import find_imported, store_imported
from homeserver.portability.senders import get_sender
from homeserver.rooms.append import append_create, append_local, choose_room_id
from homeserver.rooms.membership import find_membership
from homeserver.rooms.power import initial_levels

IMPORTED = "org.homeserver.imported"


def new_media_id(folder: str, mxc: str) -> str:
    """Returns the media ID that a file of a folder gets."""
    return f"imported{hashlib.sha256(f'{folder} {mxc}'.encode()).hexdigest()[:32]}"


class Line(msgspec.Struct, frozen=True):
    """An exported event, see docs/export.md."""

    type: str
    sender: str
    content: dict[str, Any]
    event_id: str
    origin_server_ts: int
    state_key: str | None = None
    redacts: str | None = None

    @classmethod
    def parse(cls, file: str, number: int, value: Any) -> Line:
        """Returns the event of a line. Raises ExportError with the number of the line."""
        try:
            line = msgspec.convert(value, cls)
            parse_user_id(line.sender)
        except (msgspec.ValidationError, InvalidIdentifier) as error:
            raise ExportError(f"{file}: line {number} is not an event: {error}") from error
        if max(len(line.event_id), len(line.type), len(line.state_key or "")) > 255:
            raise ExportError(f"{file}: line {number} is not an event: a name is longer than 255 characters")
        return line


class Replay(msgspec.Struct, frozen=True):
    """folder: the ID of the folder. server_name: of the server that exported. is_own: see `senders.get_sender`."""

    folder: str
    server_name: str
    is_own: bool

    # The rules of the room, which are restored at the end.
    RULES: ClassVar[frozenset[str]] = frozenset(
        {"m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "m.room.guest_access",
         "m.room.encryption"}
    )  # fmt: skip
    # What would bind the new room to other servers, other rooms, or to names that it does not have.
    LEFT_OUT: ClassVar[frozenset[str]] = frozenset(
        {"m.room.create", "m.room.server_acl", "m.room.canonical_alias", "m.room.tombstone",
         "m.room.third_party_invite", "m.room.pinned_events", "m.room.policy", "m.space.child", "m.space.parent"}
    )  # fmt: skip

    def append(self, tx: Transaction, room_id: RoomID, keeper: UserID, line: Line) -> bool:
        """Sends one event. Returns whether there is something to send, and it is valid in the room."""
        try:
            if line.state_key is not None:
                event = self._append_state(tx, room_id, keeper, line)
            elif line.type == "m.room.redaction":
                event = self._append_redaction(tx, room_id, keeper, line)
            else:
                event = self._append_message(tx, room_id, line)
        except MatrixError:  # such as a second reaction, or an event that was larger than events may be
            return False
        if event is None:
            return False
        store_imported(tx, room_id, line.event_id, event.event_id)
        return True

    def _append_state(self, tx: Transaction, room_id: RoomID, keeper: UserID, line: Line) -> Event | None:
        if line.type == "m.room.member":
            return self._append_member(tx, room_id, keeper, line)
        if line.type in self.RULES | self.LEFT_OUT or (line.state_key or "").startswith("@"):
            return None
        content = self._content(tx, room_id, line)
        return _send(tx, Draft(room_id, keeper, line.type, content, line.state_key), line)

    def _append_member(self, tx: Transaction, room_id: RoomID, keeper: UserID, line: Line) -> Event | None:
        try:
            exported = parse_user_id(line.state_key)
        except InvalidIdentifier:
            return None
        user_id = get_sender(tx, exported, is_own=self.is_own)
        membership, current = line.content.get("membership"), find_membership(tx, room_id, user_id)
        if membership == "join":
            return self._enter(tx, room_id, user_id, line)
        if current != "join" or user_id == keeper or membership not in ("leave", "ban"):
            return None  # invites and knocks had their effect, if they had one
        sender = user_id if line.sender == line.state_key else keeper
        content = {"membership": "leave", IMPORTED: _origin(line)}
        return _send(tx, Draft(room_id, sender, "m.room.member", content, user_id), line)

    def _enter(self, tx: Transaction, room_id: RoomID, user_id: UserID, line: Line) -> Event:
        """Sends the member event of a user who is in the room from then on, or shows another name."""
        name, picture = line.content.get("displayname"), line.content.get("avatar_url")
        content: dict[str, Any] = {"membership": "join", IMPORTED: _origin(line)}
        content["displayname"] = name if isinstance(name, str) and line.type == "m.room.member" else line.sender
        if isinstance(picture, str) and line.type == "m.room.member":
            content["avatar_url"] = self._uri(tx, picture)
        return _send(tx, Draft(room_id, user_id, "m.room.member", content, user_id), line)

    def _append_message(self, tx: Transaction, room_id: RoomID, line: Line) -> Event | None:
        sender = get_sender(tx, line.sender, is_own=self.is_own)
        if find_membership(tx, room_id, sender) != "join":  # the history begins after they came
            self._enter(tx, room_id, sender, line)
        return _send(tx, Draft(room_id, sender, line.type, self._content(tx, room_id, line)), line)

    def _append_redaction(self, tx: Transaction, room_id: RoomID, keeper: UserID, line: Line) -> Event | None:
        """Sends a redaction. Its target has been exported without its content; this is only who did it, and why."""
        redacts = line.redacts if line.redacts is not None else line.content.get("redacts")
        target = find_imported(tx, room_id, redacts) if isinstance(redacts, str) else None
        if target is None:
            return None
        content = {key: value for key, value in line.content.items() if key == "reason"}
        content[IMPORTED] = _origin(line)
        return _send(tx, Draft(room_id, keeper, line.type, content, redacts=target), line)

    def _content(self, tx: Transaction, room_id: RoomID, line: Line) -> dict[str, Any]:
        """Returns the content of an event with relations and files of the new room, and where it is from."""
        content = {**line.content, IMPORTED: _origin(line)}
        for key in ("url", "file", "info"):
            if key in content:
                content[key] = self._with_uris(tx, content[key])
        relates = content.get("m.relates_to")
        if isinstance(relates, dict):
            content["m.relates_to"] = _related(tx, room_id, relates)
        return content

    def _with_uris(self, tx: Transaction, value: Any) -> Any:
        if isinstance(value, str):
            return self._uri(tx, value)
        if not isinstance(value, dict):
            return value
        places = ("url", "thumbnail_url", "thumbnail_file")
        return {key: self._with_uris(tx, each) if key in places else each for key, each in value.items()}

    def _uri(self, tx: Transaction, mxc: str) -> str:
        """Returns the URI of a file in the new room: the old one if the folder does not have the file."""
        media_id = new_media_id(self.folder, mxc)
        return mxc if find_media(tx, tx.server.name, media_id) is None else f"mxc://{tx.server.name}/{media_id}"


def begin_room(tx: Transaction, replay: Replay, version: RoomVersion, creator: str) -> tuple[RoomID, UserID]:
    """Makes the new room, which everyone may enter who knows its ID. Returns it and its keeper."""
    keeper = get_sender(tx, creator, is_own=replay.is_own)
    content: dict[str, Any] = {"room_version": version.id, IMPORTED: {"server_name": replay.server_name}}
    if version.create_content_has_creator:
        content["creator"] = keeper
    create = append_create(
        tx, Draft(choose_room_id(tx, version), keeper, "m.room.create", content, state_key=""), version
    )
    users: dict[str, int] = {} if version.creators_privileged else {keeper: 100}
    levels = {**initial_levels(version, users, invite=0), "state_default": 50, "events_default": 0}
    for event_type, state_key, state in (
        ("m.room.member", keeper, {"membership": "join", "displayname": creator}),
        ("m.room.power_levels", "", levels),
        ("m.room.join_rules", "", {"join_rule": "public"}),
        ("m.room.history_visibility", "", {"history_visibility": "shared"}),
    ):
        append_local(tx, Draft(create.room_id, keeper, event_type, state, state_key=state_key), is_history=True)
    return create.room_id, keeper


def _send(tx: Transaction, draft: Draft, line: Line) -> Event:
    """Appends the event at its original time, or now if it claims to be from the future."""
    return append_local(
        tx, replace(draft, origin_server_ts=max(1, min(line.origin_server_ts, tx.now_ms))), is_history=True
    )


def _origin(line: Line) -> dict[str, Any]:
    return {"sender": line.sender, "event_id": line.event_id}


def _related(tx: Transaction, room_id: RoomID, relates: dict[str, Any]) -> dict[str, Any]:
    """Returns `m.relates_to` with the events of the new room. What relates to an event that is not there loses that."""
    changed = dict(relates)
    if "event_id" in changed:
        event_id = find_imported(tx, room_id, str(changed["event_id"]))
        if event_id is None:
            return {}
        changed["event_id"] = event_id
    reply = changed.get("m.in_reply_to")
    if isinstance(reply, dict):
        event_id = find_imported(tx, room_id, str(reply.get("event_id")))
        changed.pop("m.in_reply_to")
        if event_id is not None:
            changed["m.in_reply_to"] = {**reply, "event_id": event_id}
    return changed
