"""Which members an event notifies: the rules of everybody in a room, applied to its events.

Theory of operation. Most members have the server's default rules, and to them an event means the same: it is judged
once for all of them. Individual judgement is needed only for users who changed their rules in a way that matters in
this room, for those whom the event mentions, and for an invited user. `Audience` remembers who has such rules, so an
event costs nothing for the others, however many they are.

The same functions serve `/sync`, which judges for its own user the few events that the tail has not reached yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec

from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID, server_name_of
from homeserver.federation.power_levels import read_power_levels
from homeserver.rooms.events import to_events
from homeserver.rooms.heads import state_content, state_events
from homeserver.rooms.membership import count_members, find_members_position, find_membership, list_joined_from
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    TimelineEvent,
    find_position,
    find_stored_by_id,
    list_positions,
    list_stored,
)
from homeserver.rooms.versions import get_room_version
from homeserver.users.blocking import ignored_users
from homeserver.users.push.conditions import Subject
from homeserver.users.push.pushers import find_last_pusher, list_with_pushers
from homeserver.users.push.rules import NOTHING, Outcome, Rules, compile_ruleset, rules_of
from homeserver.users.push_rules import default_rules, find_last_change, find_rules_position, list_with_changes
from homeserver.users.receipts import find_thread
from homeserver.users.thread_subscriptions import is_subscribed

AUDIENCES_CACHED_MAX = 1_000
JUDGED_CACHED_MAX = 2_000

_CREATE, _POWER_LEVELS = ("m.room.create", ""), ("m.room.power_levels", "")
_NOBODY = UserID("")
_DEFAULTS = compile_ruleset(_NOBODY, default_rules(_NOBODY))


class EventFacts:
    """What conditions may ask about an event of the timeline. The members are counted as they are now."""

    def __init__(self, tx: Transaction, event: TimelineEvent) -> None:
        self._tx = tx
        self._stored = event
        self.event: JsonObject = {
            "type": event.type,
            "sender": event.sender,
            "room_id": event.room_id,
            "event_id": event.event_id,
            "origin_server_ts": event.origin_server_ts,
            "content": event.content,
        }
        if event.state_key is not None:
            self.event["state_key"] = event.state_key

    @property
    def member_count(self) -> int:
        """How many users are in the room."""
        room_id = self._stored.room_id
        position = find_members_position(self._tx, room_id)
        cache = self._tx.cache("push_member_counts", AUDIENCES_CACHED_MAX)
        known: tuple[int, int] | None = cache.get(room_id)
        if known is not None and known[0] == position:
            return known[1]
        count = count_members(self._tx, room_id, "join")
        if not self._tx.is_write:
            cache.put(room_id, (position, count))
        return count

    def display_name_of(self, user_id: UserID) -> str | None:
        """Returns the user's display name in the room, None if it has none."""
        content = state_content(self._tx, self._stored.state_before, "m.room.member", user_id)
        name = None if content is None else content.get("displayname")
        return name if isinstance(name, str) else None

    def is_in_followed_thread(self, user_id: UserID) -> bool | None:
        """Returns whether the user is subscribed to the event's thread, None if it is in no thread."""
        root = find_thread(self._tx, self._stored)
        position = None if root is None else find_position(self._tx, root)
        return None if position is None else is_subscribed(self._tx, user_id, position)

    def may_notify(self, key: str) -> bool:
        """Returns whether the sender has the power level for notifications of this kind."""
        state = state_events(self._tx, self._stored.state_before, (_CREATE, _POWER_LEVELS))
        version = get_room_version(self._tx, self._stored.room_id)
        levels = read_power_levels(state.get(_CREATE), state.get(_POWER_LEVELS), version)
        return levels.user_level(self._stored.sender) >= levels.notification_level(key)


class Judged(NamedTuple):
    """What an event means to members with the default rules, and its thread: the position of the root, 0 if none.

    mentioned: users who must be judged individually although they have the default rules.
    """

    by_default: Outcome
    thread: int
    mentioned: frozenset[str]


def is_new(event: TimelineEvent) -> bool:
    """Returns whether an event was new when it came. Events fetched from further back notify nobody."""
    return event.ordering == event.position << ORDERING_SHIFT


def judge(tx: Transaction, event: TimelineEvent) -> Judged:
    """Returns what an event means to members with the default rules. Redacted events mean nothing."""
    cache = tx.cache("push_judged", JUDGED_CACHED_MAX)
    known: Judged | None = cache.get((event.position, event.redacted_by))
    if known is not None:
        return known
    if event.redacted_by is not None or not is_new(event):
        judged = Judged(NOTHING, 0, frozenset())
    else:
        facts = EventFacts(tx, event)
        content = facts.event["content"]
        root = find_thread(tx, event)
        thread = 0 if root is None else find_position(tx, root) or 0
        judged = Judged(_DEFAULTS.evaluate(Subject(facts, _NOBODY)), thread, _mentioned(event, content))
    if not tx.is_write:
        cache.put((event.position, event.redacted_by), judged)
    return judged


def _mentioned(event: TimelineEvent, content: JsonObject) -> frozenset[str]:
    mentions = content.get("m.mentions")
    user_ids = mentions.get("user_ids") if isinstance(mentions, dict) else None
    found = {user_id for user_id in user_ids if isinstance(user_id, str)} if isinstance(user_ids, list) else set()
    if event.type == "m.room.member" and event.state_key and content.get("membership") == "invite":
        found.add(event.state_key)
    return frozenset(found)


def judge_for(tx: Transaction, event: TimelineEvent, user_id: UserID) -> Outcome:
    """Returns what an event means to one member. Users who are ignored count like all others."""
    judged = judge(tx, event)
    if event.redacted_by is not None or event.sender == user_id or not is_new(event):
        return NOTHING
    if user_id not in judged.mentioned and not find_rules_position(tx, user_id):
        return judged.by_default
    rules = rules_of(tx, user_id)
    if user_id not in judged.mentioned and not rules.affect(event.room_id):
        return judged.by_default
    return rules.evaluate(Subject(EventFacts(tx, event), user_id))


class Audience(msgspec.Struct, frozen=True):
    """The members of a room who are on this server, as far as they matter for notifications.

    individuals: those whose rules may judge an event of this room in another way than the defaults.
    with_pushers: those who have pushers.
    """

    individuals: dict[UserID, Rules]
    with_pushers: frozenset[UserID]


def get_audience(tx: Transaction, room_id: RoomID) -> Audience:
    """Returns the room's audience. It is read again when the members, or anybody's rules or pushers have changed."""
    version = (find_members_position(tx, room_id), find_last_change(tx), find_last_pusher(tx))
    cache = tx.cache("push_audiences", AUDIENCES_CACHED_MAX)
    known: tuple[tuple[int, int, int], Audience] | None = cache.get(room_id)
    if known is not None and known[0] == version:
        return known[1]
    members = list_joined_from(tx, room_id, tx.server.name)
    individuals = {user_id: rules_of(tx, user_id) for user_id in list_with_changes(tx, members)}
    audience = Audience(
        {user_id: rules for user_id, rules in individuals.items() if rules.affect(room_id)},
        frozenset(list_with_pushers(tx, members)),
    )
    if not tx.is_write:
        cache.put(room_id, (version, audience))
    return audience


class Notified(msgspec.Struct):
    """What an event means to the members of its room. others: users whose rules say something else than the defaults.

    pushed: what to tell the pushers of a user.
    """

    event: TimelineEvent
    judged: Judged
    others: dict[UserID, Outcome] = msgspec.field(default_factory=dict)
    pushed: dict[UserID, Outcome] = msgspec.field(default_factory=dict)


class Evaluated(msgspec.Struct):
    """What a span of the stream means for notifications.

    redacted: events that notify nobody any more. written: (user, room, thread, ordering) of messages of local users,
    who have read what came before them.
    """

    notified: list[Notified] = msgspec.field(default_factory=list)
    redacted: list[TimelineEvent] = msgspec.field(default_factory=list)
    written: list[tuple[UserID, RoomID, int, int]] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.notified or self.redacted or self.written)


def evaluate(tx: Transaction, since: int, upto: int) -> Evaluated:
    """Returns what the events at since < position ≤ upto mean to the users of this server."""
    found = Evaluated()
    stored = list_stored(tx, list_positions(tx, since, upto))
    for _, event in sorted(stored.items()):
        if not isinstance(event, TimelineEvent) or not is_new(event):
            continue
        if event.type == "m.room.redaction":
            found.redacted += find_redacted(tx, event)
        notified = _evaluate_event(tx, event)
        if notified is not None:
            found.notified.append(notified)
        if is_written(event) and server_name_of(event.sender) == tx.server.name:
            found.written.append((event.sender, event.room_id, judge(tx, event).thread, event.ordering))
    return found


def is_written(event: TimelineEvent) -> bool:
    """Returns whether the sender of an event has read its thread up to it. Clients send state without anybody reading.

    A redacted event does not tell its thread.

    Spec: client-server-api/#marking-notifications-as-read
    """
    return not event.is_state and event.redacted_by is None and event.type != "m.room.redaction"


def find_redacted(tx: Transaction, redaction: TimelineEvent) -> Iterator[TimelineEvent]:
    """Yields the event that a redaction has redacted, if it has."""
    (event,) = to_events(tx, [redaction])
    target = find_stored_by_id(tx, event.redacts) if isinstance(event.redacts, str) else None
    if isinstance(target, TimelineEvent) and target.redacted_by is not None and target.room_id == redaction.room_id:
        yield target


def _evaluate_event(tx: Transaction, event: TimelineEvent) -> Notified | None:
    judged = judge(tx, event)
    audience = get_audience(tx, event.room_id)
    notified = Notified(event, judged)
    if event.redacted_by is not None:
        return None
    facts = EventFacts(tx, event)
    for user_id in _individuals(tx, event, judged, audience):
        rules = audience.individuals.get(user_id) or rules_of(tx, user_id)
        outcome = rules.evaluate(Subject(facts, user_id))
        if outcome != judged.by_default:
            notified.others[user_id] = outcome
    candidates = audience.with_pushers if judged.by_default.level else frozenset[UserID]()
    for user_id in (candidates | notified.others.keys()) - {event.sender}:
        outcome = notified.others.get(user_id, judged.by_default)
        if outcome.level and event.sender not in ignored_users(tx, user_id):
            notified.pushed[user_id] = outcome
    return notified if judged.by_default.level or notified.others else None


def _individuals(tx: Transaction, event: TimelineEvent, judged: Judged, audience: Audience) -> Collection[UserID]:
    """Returns the users who are judged on their own."""
    found = set(audience.individuals)
    for name in judged.mentioned:
        user_id = UserID(name)
        if name.endswith(f":{tx.server.name}") and user_id not in found:
            membership = find_membership(tx, event.room_id, user_id)
            if membership == "join" or (membership == "invite" and event.state_key == user_id):
                found.add(user_id)
    return found - {event.sender}
