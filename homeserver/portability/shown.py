"""What a page shows of an event: its text after edits, its picture, its reactions, and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.portability.files import PICTURES, find_shown_name
from homeserver.portability.formatted import clean
from homeserver.rooms.heads import find_head
from homeserver.rooms.relations import EDIT, Kind, Wanted, find_relation, list_aggregations, list_children, list_edits
from homeserver.rooms.resolve import StateAt, positions_in
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored_by_id, list_stored
from homeserver.rooms.timeline import END, START

REACTIONS_MAX = 500  # of one message, in all
QUOTE_CHARACTERS = 120
_HIDDEN = frozenset({"m.reaction", "m.room.redaction"})
_STATES = {
    "m.room.create": "made the room",
    "m.room.topic": "changed the topic",
    "m.room.avatar": "changed the picture of the room",
    "m.room.encryption": "turned on encryption",
    "m.room.tombstone": "closed the room for another one",
    "m.room.power_levels": "changed who may do what",
    "m.room.join_rules": "changed who may come in",
    "m.room.history_visibility": "changed who may read what was said before",
    "m.room.guest_access": "changed what guests may do",
    "m.room.canonical_alias": "changed the address",
    "m.room.server_acl": "changed which servers may take part",
    "m.room.pinned_events": "changed the pinned messages",
    "m.room.retention": "changed how long messages are kept",
}
_MEMBERSHIPS = {"invite": "invited", "ban": "banned", "leave": "removed", "join": "let in", "knock": "announced"}


class Quote(msgspec.Struct, frozen=True):
    """The message that another one answers, or the one that its thread began with."""

    event_id: str
    ordering: int | None
    sender: str
    text: str


class Member(NamedTuple):
    """How a member is shown. avatar: the URI of a file that this server has; file: its name in the folder."""

    user_id: str
    name: str
    avatar: str = ""
    file: str = ""


class Shown(msgspec.Struct, frozen=True):
    """One entry of a page. kind: "text", "notice", "emote", "file", "state", "deleted" or "encrypted".

    html: the formatted text, cleaned; None if there is none. member: of a member event. before_edit: the first text, if
    the message was edited. file: its name in the folder; filename: what the sender calls it.
    """

    event_id: str
    ordering: int
    ts: int
    sender: str
    kind: str
    text: str
    html: str | None = None
    member: Member | None = None
    before_edit: str | None = None
    file: str | None = None
    filename: str = ""
    reply: Quote | None = None
    thread: Quote | None = None
    reactions: Mapping[str, Sequence[str]] = {}


def list_members(tx: Transaction, room_id: RoomID, user_ids: Collection[str]) -> list[Member]:
    """Returns how some users are shown who may have come before the history began: as they are in the room now."""
    head = find_head(tx, room_id)
    keys = [("m.room.member", user_id) for user_id in user_ids]
    positions = [] if head is None else positions_in(tx, StateAt(head.state_root), keys).values()
    members = [_member_of(tx, event) for event in list_stored(tx, set(positions)).values()]
    return [member for member in members if member is not None]


def list_shown(tx: Transaction, events: Sequence[TimelineEvent]) -> list[Shown]:
    """Returns what pages show of these events. Reactions and edits are shown with their message."""
    edited = {each.parent for each in list_aggregations(tx, [e.position for e in events]) if each.kind == Kind.EDITS}
    shown = (_show(tx, event, event.position in edited) for event in events)
    return [each for each in shown if each is not None]


def _show(tx: Transaction, event: TimelineEvent, is_edited: bool) -> Shown | None:
    relation = find_relation(event.content)
    if event.type in _HIDDEN or (relation is not None and relation.rel_type == EDIT and not event.is_state):
        return None
    about: dict[str, Any] = {
        "event_id": event.event_id,
        "ordering": event.ordering,
        "ts": event.origin_server_ts,
        "sender": event.sender,
    }
    if event.redacted_by is not None and not event.is_state:
        return Shown(**about, kind="deleted", text="")
    if event.is_state:
        return Shown(**about, kind="state", text=_describe_state(event), member=_member_of(tx, event))
    if event.type == "m.room.encrypted":
        return Shown(**about, kind="encrypted", text="", reactions=_list_reactions(tx, event))
    return _show_message(tx, event, is_edited, about)


def _show_message(tx: Transaction, event: TimelineEvent, is_edited: bool, about: dict[str, Any]) -> Shown:
    content, before = event.content, None
    if is_edited and (edits := list_edits(tx, event.position, 1)):
        before = _text_of(content)
        content = edits[0].content.get("m.new_content", content)
        content = content if isinstance(content, dict) else event.content
    relates = event.content.get("m.relates_to")
    relates = relates if isinstance(relates, dict) else {}
    replied = relates.get("m.in_reply_to")
    is_fallback = relates.get("is_falling_back") is True
    reply_id = replied.get("event_id") if isinstance(replied, dict) and not is_fallback else None
    thread_id = relates.get("event_id") if relates.get("rel_type") == "m.thread" else None
    file = content.get("url")
    kind = content.get("msgtype")
    name = find_shown_name(tx, file) if isinstance(file, str) else None
    is_file = event.type == "m.sticker" or "url" in content or "file" in content
    return Shown(
        **about,
        kind="file" if is_file else {"m.notice": "notice", "m.emote": "emote"}.get(str(kind), "text"),
        text=_text_of(content) or ("" if is_file else f"({event.type})"),
        html=_html_of(content),
        before_edit=before,
        file=name,
        filename=_string(content.get("filename")) or _string(content.get("body")),
        reply=_quote(tx, event, reply_id),
        thread=_quote(tx, event, thread_id),
        reactions=_list_reactions(tx, event),
    )


def _quote(tx: Transaction, event: TimelineEvent, event_id: Any) -> Quote | None:
    if not isinstance(event_id, str):
        return None
    parent = find_stored_by_id(tx, event_id)
    if parent is None or parent.room_id != event.room_id or parent.ordering is None:
        return Quote(event_id, None, "", "")
    text = "" if parent.redacted_by is not None else _text_of(parent.content)[:QUOTE_CHARACTERS]
    return Quote(parent.event_id, parent.ordering, parent.sender, text)


def _list_reactions(tx: Transaction, event: TimelineEvent) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    wanted = Wanted("m.annotation", "m.reaction")
    for child in list_children(tx, [event.position], wanted, START, END, REACTIONS_MAX, forwards=True):
        relates = child.content.get("m.relates_to")
        key = relates.get("key") if isinstance(relates, dict) else None
        if isinstance(key, str):
            found.setdefault(key[:50], []).append(child.sender)
    return found


def _describe_state(event: StoredEvent) -> str:
    """Returns what a state event says its sender did. Names follow the sender's."""
    content = event.content
    if event.type == "m.room.member":
        membership = _string(content.get("membership"))
        if event.state_key == event.sender:
            return {"join": "is here", "leave": "left", "knock": "asked to come in"}.get(membership, membership)
        return f"{_MEMBERSHIPS.get(membership, membership)} {event.state_key}"
    if event.type == "m.room.name":
        return f"named the room “{_string(content.get('name'))}”"
    if event.type == "m.room.topic" and content.get("topic"):
        return f"changed the topic to “{_string(content['topic'])}”"
    return _STATES.get(event.type, f"changed {event.type}")


def _member_of(tx: Transaction, event: StoredEvent) -> Member | None:
    content = event.content
    if event.type != "m.room.member" or event.state_key is None or content.get("membership") != "join":
        return None
    avatar = _string(content.get("avatar_url"))
    file = find_shown_name(tx, avatar) if avatar else None
    if file is None or file.rpartition(".")[2] not in PICTURES:
        return Member(event.state_key, _string(content.get("displayname")))
    return Member(event.state_key, _string(content.get("displayname")), avatar, file)


def _html_of(content: Mapping[str, Any]) -> str | None:
    html = _string(content.get("formatted_body"))
    return clean(html) if html and content.get("format") == "org.matrix.custom.html" else None


def _text_of(content: Mapping[str, Any]) -> str:
    text = _string(content.get("body"))
    if text.startswith("> <") and "\n\n" in text:  # clients used to repeat what they answer
        text = text.partition("\n\n")[2]
    return text


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
