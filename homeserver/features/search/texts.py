"""What of an event is searched, and how an index gets to know it. Spec: client-server-api/#room_events"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from homeserver import limits
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.lane import try_each
from homeserver.rooms.client_event import find_redacts
from homeserver.rooms.erasure import find_erased, list_erased
from homeserver.rooms.forgetting import list_forgotten
from homeserver.rooms.relations import EDIT, find_relation
from homeserver.rooms.retention import list_expired
from homeserver.rooms.storage import StoredEvent, find_stored_at, find_stored_by_id, list_positions
from homeserver.search.documents import Document

_log = logging.getLogger(__name__)

BODY, NAME, TOPIC = "content.body", "content.name", "content.topic"
KEYS = (BODY, NAME, TOPIC)
TYPES = {"m.room.message": BODY, "m.room.name": NAME, "m.room.topic": TOPIC}

# Labels of documents: bits.
KEY_LABELS = {BODY: 1, NAME: 2, TOPIC: 4}
EDITED, URL = 8, 16
HAS_LABELS = {"image": 32, "file": 64, "link": 128}
_HAS_FILE = frozenset({"m.file", "m.audio", "m.video"})


class Span(NamedTuple):
    """What changed in since < position ≤ upto. deleted: what to remove, by positions, and by numbers of rooms and of
    authors.
    """

    since: int
    upto: int
    documents: list[Document]
    deleted_positions: list[int]
    deleted_rooms: list[int]
    deleted_authors: list[int]


def text_of(event: StoredEvent) -> str:
    """Returns the text of an event that is searched; empty if there is none. An edit has the new text."""
    return "\n".join(_texts(_shown_content(event), TYPES.get(event.type)))[: limits.search.INDEX_TEXT_CHARACTERS_MAX]


def labels_of(event: StoredEvent) -> int:
    """Returns the labels of a document: what was searched in, and what else is in the content."""
    content = _shown_content(event)
    labels = KEY_LABELS[TYPES[event.type]] | (EDITED if is_edit(event) else 0) | (URL if "url" in event.content else 0)
    kind, body = content.get("msgtype"), content.get("body")
    if kind == "m.image":
        labels |= HAS_LABELS["image"]
    elif isinstance(kind, str) and kind in _HAS_FILE:
        labels |= HAS_LABELS["file"]
    if isinstance(body, str) and ("https://" in body or "http://" in body):
        labels |= HAS_LABELS["link"]
    return labels


def _shown_content(event: StoredEvent) -> dict[str, Any]:
    """Returns the content that clients show: that of an edit is the new one."""
    content = event.content
    if not is_edit(event):
        return content
    edited = content.get("m.new_content")
    return edited if isinstance(edited, dict) else {}


def is_edit(event: StoredEvent) -> bool:
    """Returns whether the event claims to replace another one."""
    if event.type != "m.room.message":
        return False
    relation = find_relation(event.content)
    return relation is not None and relation.rel_type == EDIT


def find_edited(tx: Transaction, event: StoredEvent) -> StoredEvent | None:
    """Returns the event that an edit claims to replace, if it is stored and in the same room."""
    relation = find_relation(event.content)
    edited = None if relation is None else find_stored_by_id(tx, relation.parent_id)
    return edited if edited is not None and edited.room_id == event.room_id else None


def read_span(tx: Transaction, since: int, upto: int) -> Span:
    """Returns what changed in since < position ≤ upto, or in the beginning of this span if its texts are long."""
    documents: list[Document] = []
    characters = 0
    for position, document in _read_documents(tx, since, upto, newest_first=False):
        characters += len(document.text)
        if documents and characters > limits.search.INDEX_SPAN_CHARACTERS_MAX:
            upto = position - 1
            break
        documents.append(document)
    redactions = _find_readable(tx, list_positions(tx, since, upto, "m.room.redaction")).values()
    redacted, _ = try_each(tx, list(redactions), partial(_list_redacted, tx))
    deleted = [*redacted, *list_expired(tx, since, upto)]
    forgotten = list_forgotten(tx, since, upto)
    return Span(since, upto, documents, deleted, forgotten, list_erased(tx, since, upto))


def read_span_before(tx: Transaction, since: int, upto: int) -> Span:
    """Returns the documents of since < position ≤ upto, or of the end of this span if its texts are long.

    What these changes have deleted is left out already, here and in what came after them.
    """
    documents: list[Document] = []
    characters = 0
    for position, document in _read_documents(tx, since, upto, newest_first=True):
        characters += len(document.text)
        if documents and characters > limits.search.INDEX_SPAN_CHARACTERS_MAX:
            since = position
            break
        documents.append(document)
    return Span(since, upto, documents, [], [], [])


def _read_documents(tx: Transaction, since: int, upto: int, *, newest_first: bool) -> Iterator[tuple[int, Document]]:
    """Yields the documents of a span, as they are now, with their positions."""
    positions = sorted((each for kind in TYPES for each in list_positions(tx, since, upto, kind)), reverse=newest_first)
    events = _find_readable(tx, positions)
    erased = find_erased(tx, {event.sender for event in events.values()})
    for position in positions:
        event = events.get(position)
        if event is not None and event.redacted_by is None and event.sender not in erased:
            document = _document(tx, event)
            if document is not None:
                yield position, document


def _find_readable(tx: Transaction, positions: Sequence[int]) -> dict[int, StoredEvent]:
    """Returns the events at these positions, without damaged ones, which must not hide the others."""
    events, failed = try_each(tx, positions, lambda some: find_stored_at(tx, some).values())
    for position, error in failed:
        if not isinstance(error, DatabaseDamaged):
            raise error
        _log.warning("a damaged event is left out of the search index", extra={"position": position})
    return {event.position: event for event in events}


def _document(tx: Transaction, event: StoredEvent) -> Document | None:
    text = text_of(event)
    if not text:
        return None
    # An edit is sorted by the time of the message, which is what is shown.
    edited = _find_edited_readable(tx, event) if is_edit(event) else None
    room_nid, sender_nid = tx.find(event.room_id), tx.find(event.sender)
    assert room_nid is not None and sender_nid is not None
    moment = event.origin_server_ts if edited is None else edited.origin_server_ts
    return Document(event.position, moment, room_nid, sender_nid, labels_of(event), text)


def _find_edited_readable(tx: Transaction, event: StoredEvent) -> StoredEvent | None:
    try:
        return find_edited(tx, event)
    except DatabaseDamaged:  # the edit is found at its own time
        return None


def _list_redacted(tx: Transaction, redactions: Iterable[StoredEvent]) -> list[int]:
    """Returns the positions of the events that these redactions have redacted."""
    named = [(find_redacts(tx, event), event.room_id) for event in redactions]
    targets = [(find_stored_by_id(tx, redacts), room_id) for redacts, room_id in named if redacts is not None]
    return [
        target.position
        for target, room_id in targets
        if target is not None and target.room_id == room_id and target.redacted_by is not None
    ]


def _texts(content: dict[str, Any], key: str | None) -> Sequence[str]:
    if key == BODY:
        values: Collection[Any] = (content.get("body"),)
    elif key == NAME:
        values = (content.get("name"),)
    elif key == TOPIC:
        values = dict.fromkeys((_text(content.get("topic")), _plain_topic(content)))
    else:
        values = ()
    return [text for value in values if (text := _text(value))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _plain_topic(content: dict[str, Any]) -> str:
    """Returns the plain text of an extensible topic. Spec: client-server-api/#mroomtopic"""
    extensible = content.get("m.topic")
    representations = extensible.get("m.text") if isinstance(extensible, dict) else None
    for each in representations if isinstance(representations, list) else ():
        if isinstance(each, dict) and each.get("mimetype", "text/plain") == "text/plain":
            return _text(each.get("body"))
    return ""
