"""The list of friends, in one read. Its cost is some microseconds a friend: nothing is read for a friend without news.

What is shown of a friend beside status and counts is a `Card`: names, picture, message and last message. It is made
again only if the row of the friend or of the conversation says that something has changed. Counts are kept, too, until
there is an event in the conversation or the user reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from homeserver.database import Transaction
from homeserver.database.tail import find_position
from homeserver.encoding import to_json
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.limits.users import FRIEND_EVENTS_SEARCHED_MAX, FRIEND_TEXT_CHARACTERS_MAX
from homeserver.rooms.bundles import shown_edits
from homeserver.rooms.conversations import MemberPosition, RoomVersions, list_member_positions, list_versions
from homeserver.rooms.membership import find_room_membership
from homeserver.rooms.messages import MESSAGE_TYPES
from homeserver.rooms.storage import (
    StoredEvent,
    TimelineEvent,
    find_stored_at,
)
from homeserver.rooms.timeline import Tokens, after_position, find_since, list_backwards, parse_sync_token
from homeserver.rooms.visibility import filter_visible
from homeserver.users.account_data import list_changes
from homeserver.users.blocking import IGNORED_TYPE, ignored_users
from homeserver.users.friends import FRIEND_BYTES, LISTS_CACHED_BYTES_MAX, Friend, find_deleted_upto, list_friends
from homeserver.users.presence import list_presence_changes
from homeserver.users.push.counts import Counts
from homeserver.users.push.notifications import TAIL, UNREACHED_MAX, count_unread
from homeserver.users.receipts import list_read_rooms
from homeserver.users.status import read_statuses

CARDS_CACHED_BYTES_MAX = 32 << 20
"""Some 30,000 friends."""
_CARD_BYTES = 500
"""What a card takes besides its JSON."""


class ListQuery(msgspec.Struct, frozen=True):
    """since: the `next_batch` of an earlier answer, or of a sync."""

    since: str | None = None


class Card(NamedTuple):
    """What is shown of a friend, as long as `version` is the same. position: of the last message, or of the state.

    head: the JSON up to the fields that may change at any time, which `_describe` adds.
    """

    user_id: UserID
    version: tuple[object, ...]
    position: int
    head: bytes


def read_list(tx: Transaction, user_id: UserID, query: ListQuery, generation: str, language: str) -> JsonObject:
    """Returns the answer of `GET /friends`: all of them, newest conversation first, or what has changed.

    removed: those who are not in the list any more. It may name people whom the client does not know.
    """
    everybody = list_friends(tx, user_id)
    ignored = ignored_users(tx, user_id)
    shown = [each for each in everybody if each.state != "none" and each.user_id not in ignored]
    since = None if query.since is None else _find_since(tx, user_id, query.since)
    answer: JsonObject = {"next_batch": Tokens(tx.position, generation).stream()}
    versions = list_versions(tx, [each.room_id for each in shown if each.room_id is not None])
    if query.since is not None:
        answer["limited"] = since is None
        answer["removed"] = [] if since is None else _list_removed(everybody, ignored, since)
    if since is not None and not _has_list_changed(tx, user_id, since):
        shown = _list_changed(tx, user_id, shown, versions, since)
    answer["friends"] = _describe(tx, user_id, shown, versions, ignored, language)
    return answer


# --- what has changed ---


def _find_since(tx: Transaction, user_id: UserID, token: str) -> int | None:
    """Returns the position of a token, None if the client has to forget its list. Raises M_INVALID_PARAM."""
    since = find_since(tx, parse_sync_token(token))
    return None if since is None or since < find_deleted_upto(tx, user_id) else since


def _has_list_changed(tx: Transaction, user_id: UserID, since: int) -> bool:
    """Returns whether the user has blocked or unblocked anybody: then everybody is shown again."""
    nid = tx.find(IGNORED_TYPE)
    return any(type_nid == nid for _, type_nid, _ in list_changes(tx, user_id, since, tx.position))


def _list_removed(everybody: Iterable[Friend], ignored: Collection[str], since: int) -> list[UserID]:
    ended = (each.user_id for each in everybody if each.state == "none" and each.position > since)
    return sorted({*ended, *(each.user_id for each in everybody if each.user_id in ignored)})


def _list_changed(
    tx: Transaction, user_id: UserID, friends: Sequence[Friend], versions: Mapping[RoomID, RoomVersions], since: int
) -> list[Friend]:
    present = {each.user_id for each in list_presence_changes(tx, since, tx.position)}
    rooms = {each.room_id for each in friends if each.room_id is not None}
    read = list_read_rooms(tx, user_id, rooms, since, tx.position)
    return [
        each
        for each in friends
        if each.position > since
        or each.user_id in present
        or each.room_id in read
        or (each.room_id is not None and each.room_id in versions and versions[each.room_id].newest > since)
    ]


# --- how a friend is shown ---


def _describe(
    tx: Transaction,
    user_id: UserID,
    friends: Sequence[Friend],
    versions: Mapping[RoomID, RoomVersions],
    ignored: frozenset[str],
    language: str,
) -> orjson.Fragment:
    """Returns the JSON of the friends, newest conversation first."""
    cards = _list_cards(tx, user_id, friends, versions, ignored)
    counts = _count(tx, user_id, versions, ignored)
    statuses = read_statuses(tx, user_id, [each.user_id for each in friends], language)
    shown = []
    for friend, card in sorted(zip(friends, cards, strict=True), key=lambda each: each[1].position, reverse=True):
        counted = None if friend.room_id is None else counts.get(friend.room_id)
        unread = _NO_COUNTS if counted is None else counted[1]
        status = msgspec.json.encode(statuses[friend.user_id])
        numbers = b"%d" % unread.notifications, b"%d" % unread.highlights
        shown.append(b'%s,"status":%s,"unread":%s,"highlight":%s}' % (card.head, status, *numbers))
    return orjson.Fragment(b"[%s]" % b",".join(shown))


_NO_COUNTS = Counts()


def _list_cards(
    tx: Transaction,
    user_id: UserID,
    friends: Sequence[Friend],
    versions: Mapping[RoomID, RoomVersions],
    ignored: frozenset[str],
) -> list[Card]:
    """Returns the cards of the friends, in order."""
    cache = tx.sized_cache("friend_cards", CARDS_CACHED_BYTES_MAX)
    cards: dict[UserID, Card] = {}
    stale: dict[Friend, tuple[object, ...]] = {}
    for friend in friends:
        room = None if friend.room_id is None else versions.get(friend.room_id)
        version = (friend.position, room, ignored)
        card: Card | None = cache.get((user_id, friend.user_id))
        if card is not None and card.version == version:
            cards[friend.user_id] = card
        else:
            stale[friend] = version
    if stale:
        for card in _make_cards(tx, user_id, stale, versions, ignored):
            cards[card.user_id] = card
            cache.put((user_id, card.user_id), card, _CARD_BYTES + len(card.head))
    return [cards[friend.user_id] for friend in friends]


def _make_cards(
    tx: Transaction,
    user_id: UserID,
    stale: Mapping[Friend, tuple[object, ...]],
    versions: Mapping[RoomID, RoomVersions],
    ignored: frozenset[str],
) -> Iterable[Card]:
    rooms = {friend.room_id: friend.user_id for friend in stale if friend.room_id is not None}
    own = list_member_positions(tx, [(room_id, user_id) for room_id in rooms])
    others = list_member_positions(tx, list(rooms.items()))
    members = find_stored_at(tx, [member.event_position for member in others.values()])
    messages = _list_last_messages(tx, user_id, own, versions, ignored)
    edits = shown_edits(tx, list(messages.values()), user_id=user_id, ignored=ignored)
    for friend, version in stale.items():
        room_id = friend.room_id
        member = None if room_id is None else others.get(room_id)
        event = None if member is None else members.get(member.event_position)
        content: Mapping[str, Any] = event.content if event is not None else {}
        if friend.state == "incoming" and room_id is not None:
            content, message = _of_invitation(tx, user_id, friend.user_id, room_id, content)
        else:
            message = _text_of(content.get("reason")) if friend.state == "outgoing" else None
        last = None if room_id is None else messages.get(room_id)
        fields: JsonObject = {
            "user_id": friend.user_id,
            "state": friend.state,
            "room_id": room_id,
            "since_ts": friend.since_ms,
            "display_name": _text_of(content.get("displayname")),
            "avatar_url": _text_of(content.get("avatar_url")),
            "message": message,
            "last_message": None if last is None else _last_message(last, edits.get(last.position)),
        }
        position = friend.position if last is None else max(friend.position, last.position)
        yield Card(friend.user_id, version, position, to_json(fields)[:-1])


def _of_invitation(
    tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID, known: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str | None]:
    """Returns what the inviter says about themselves in the stripped state of the room, and their message."""
    membership = find_room_membership(tx, room_id, user_id)
    stripped = [] if membership is None else membership.stripped or []
    about = next((each for each in stripped if each.get("type") == "m.room.member" and each["state_key"] == other), {})
    invitation = stripped[-1].get("content", {}) if stripped else {}
    return about.get("content", known), _text_of(invitation.get("reason"))


def _text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _list_last_messages(
    tx: Transaction,
    user_id: UserID,
    own: Mapping[RoomID, MemberPosition],
    versions: Mapping[RoomID, RoomVersions],
    ignored: frozenset[str],
) -> dict[RoomID, StoredEvent]:
    """Returns the newest message of each room that the user is in and may see it in."""
    newest = find_stored_at(tx, [versions[room_id].last_position for room_id in own if room_id in versions])
    found: dict[RoomID, StoredEvent] = {}
    for room_id, member in own.items():
        if member.membership != "join" or room_id not in versions:
            continue
        event = newest.get(versions[room_id].last_position)
        # As the newest event is later than the user's join, they may see it.
        is_later = event is not None and event.position > member.entered_position
        if isinstance(event, TimelineEvent) and is_later and _is_message(event, ignored):
            found[room_id] = event
        elif (earlier := _find_last_message(tx, user_id, room_id, ignored)) is not None:
            found[room_id] = earlier
    return found


def _find_last_message(
    tx: Transaction, user_id: UserID, room_id: RoomID, ignored: frozenset[str]
) -> TimelineEvent | None:
    events = list_backwards(tx, room_id, after_position(tx.position), FRIEND_EVENTS_SEARCHED_MAX)
    for event in events:
        if _is_message(event, ignored) and filter_visible(tx, user_id, room_id, [event]):
            return event
    return None


def _is_message(event: StoredEvent, ignored: frozenset[str]) -> bool:
    """Returns whether it is a message to show: not redacted, not the edit of another one, and not by a blocked user."""
    if event.type not in MESSAGE_TYPES or event.is_state or event.redacted_by is not None or event.sender in ignored:
        return False
    relates_to = event.content.get("m.relates_to")
    return not (isinstance(relates_to, dict) and relates_to.get("rel_type") == "m.replace")


def _last_message(event: StoredEvent, edit: StoredEvent | None) -> JsonObject:
    content = event.content
    if edit is not None and isinstance(new := edit.content.get("m.new_content"), dict):
        content = new
    body = _text_of(content.get("body"))
    return {
        "event_id": event.event_id,
        "sender": event.sender,
        "origin_server_ts": event.origin_server_ts,
        "type": event.type,
        "text": None if body is None else body[:FRIEND_TEXT_CHARACTERS_MAX],
    }


# --- counts ---


class _Counted(NamedTuple):
    """The unread messages of conversations, as they were at `position`: by room, with its version then."""

    position: int
    ignored: frozenset[str]
    by_room: Mapping[RoomID, tuple[RoomVersions, Counts]]


def _count(
    tx: Transaction, user_id: UserID, versions: Mapping[RoomID, RoomVersions], ignored: frozenset[str]
) -> Mapping[RoomID, tuple[RoomVersions, Counts]]:
    """Returns the unread messages of the conversations. They change with their rooms, and as the user reads."""
    cache = tx.sized_cache("friend_counts", LISTS_CACHED_BYTES_MAX)
    known: _Counted | None = cache.get(user_id)
    by_room: dict[RoomID, tuple[RoomVersions, Counts]] = {}
    if known is not None and known.ignored == ignored and known.position <= tx.position:
        read = set()
        if known.position < tx.position:
            read = list_read_rooms(tx, user_id, versions, known.position, tx.position)
        for room_id, counted in known.by_room.items():
            if versions.get(room_id) == counted[0] and room_id not in read:
                by_room[room_id] = counted
    stale = versions.keys() - by_room.keys()
    if stale:
        counts = count_unread(tx, user_id, stale, ignored)
        for room_id in stale:
            by_room[room_id] = (versions[room_id], counts[room_id].total if room_id in counts else _NO_COUNTS)
    if tx.position - (find_position(tx, TAIL) or 0) <= UNREACHED_MAX:  # otherwise events are missing in the counts
        cache.put(user_id, _Counted(tx.position, ignored, by_room), FRIEND_BYTES * (1 + len(by_room)))
    return by_room
