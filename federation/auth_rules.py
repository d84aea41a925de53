"""The authorisation rules of every room version. Spec: server-server-api/#authorisation-rules, rooms/v12 and earlier

Theory of operation. Each check follows the sentence of the spec that it implements, prefixed with the room versions it
applies to unless it applies to all. The checks run in the spec's order and the first one that decides ends the matter:
a function returns None if the event is allowed, and a Rejection with the reason otherwise. The rules about
m.room.member are in `membership_rules`, and those about m.room.power_levels in `power_level_rules`.

The result depends only on the event and the state it is given: no clock, no database, no network. So the same function
serves all three checks on receipt of a PDU (its auth events, the state before it, the current state) and our own
events. Nothing here raises, whatever the events contain: a value of the wrong type is treated as the spec says, or
rejected.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from homeserver.federation.auth_events import CREATE_KEY, StateKey, select_auth_keys_of
from homeserver.federation.auth_state import AuthState, Rejection, domain_of, read_auth_state
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.federation.membership_rules import check_membership
from homeserver.federation.power_level_rules import check_power_levels
from homeserver.federation.power_levels import are_user_ids
from homeserver.federation.room_versions import ROOM_VERSIONS

__all__ = ["Rejection", "StateKey", "check", "check_auth_events", "create_event_id_of", "may_apply_redaction"]


def create_event_id_of(room_id: RoomID) -> EventID:
    """Returns the ID of the create event of a room, for room version 12 and later."""
    return EventID("$" + room_id[1:])


def check(event: Event, state: Mapping[StateKey, Event], *, create: Event | None = None) -> Rejection | None:
    """Returns None if the rules allow the event in this state of its room, and the reason if they do not.

    `state` needs only the keys that `select_auth_keys` returns. Pass the room's create event as `create` if it is not
    in `state`; the caller makes sure that it was accepted. `check_auth_events` checks the event's own `auth_events`.
    """
    # If type is m.room.create:
    if event.type == "m.room.create":
        return _check_create(event)
    create = create or state.get(CREATE_KEY)
    if create is None:
        return Rejection("The room has no m.room.create event.")
    # v12-: If the event's room_id is not an event ID for an accepted (not rejected) m.room.create event, with the sigil
    # ! instead of $, reject.
    if event.version.room_id_must_be_accepted_create_event and event.room_id != create.room_id:
        return Rejection("The room_id does not match the room's m.room.create event.")
    # If the content of the m.room.create event in the room state has the property m.federate set to false, and the
    # sender domain of the event does not match the sender domain of the create event, reject.
    if create.content.get("m.federate") is False and domain_of(event.sender) != domain_of(create.sender):
        return Rejection("The room is not federated, and the sender's server is not the creator's.")
    # v1-v5: If type is m.room.aliases:
    if event.type == "m.room.aliases" and event.version.aliases_special_case:
        return _check_aliases(event)
    auth = read_auth_state(event.version, create, state)
    # If type is m.room.member:
    if event.type == "m.room.member":
        return check_membership(event, auth)
    return _check_other(event, auth)


def check_auth_events(event: Event, auth_events: Sequence[Event], rejected: Container[EventID]) -> Rejection | None:
    """Returns None if the event may cite its auth events, and the reason if it may not.

    `auth_events` are the events that it cites. `rejected` holds the IDs of those that were not accepted. From room
    version 12 on it must also hold the ID of the room's create event if that was not accepted.
    """
    if event.type == "m.room.create":
        return None  # `check` has decided about it before its auth events matter
    if event.version.room_id_must_be_accepted_create_event and create_event_id_of(event.room_id) in rejected:
        return Rejection("The room's m.room.create event was rejected.")
    # If there are duplicate entries for a given type and state_key pair, reject.
    if len(set(event.auth_events)) != len(event.auth_events):
        return Rejection("An auth event is cited twice.")
    selected = set(select_auth_keys_of(event))
    seen = set()
    for auth_event in auth_events:
        key = auth_event.key if auth_event.is_state else None
        if key in seen:
            return Rejection(f"There are two auth events of type {auth_event.type} with the same state_key.")
        seen.add(key)
        # If there are entries whose type and state_key don't match those specified by the auth events selection
        # algorithm described in the server specification, reject. (v12-: which never selects m.room.create)
        if key not in selected:
            return Rejection(f"The event may not cite an auth event of type {auth_event.type} with this state_key.")
        # If there are entries which were themselves rejected under the checks performed on receipt of a PDU, reject.
        if auth_event.event_id in rejected:
            return Rejection(f"The auth event {auth_event.event_id} was rejected.")
        # If any event in auth_events has a room_id which does not match that of the event being authorised, reject.
        if auth_event.room_id != event.room_id:
            return Rejection(f"The auth event {auth_event.event_id} is from another room.")
    # v1-v11: If there is no m.room.create event among the entries, reject.
    if event.version.create_event_in_auth_events == "required" and CREATE_KEY not in seen:
        return Rejection("There is no m.room.create event among the auth events.")
    return None


def may_apply_redaction(
    redaction: Event, target: Event, state: Mapping[StateKey, Event], *, create: Event | None = None
) -> bool:
    """Returns whether an accepted m.room.redaction takes effect on the event that it redacts.

    `state` is the room's state before the redaction. Spec: rooms/v3/#handling-redactions
    """
    if redaction.room_id != target.room_id or redaction.redacts != target.event_id:
        return False
    # v1-v2: the authorisation rules have already checked this
    if not redaction.version.redaction_applied_if_power_or_same_sender_domain:
        return True
    # The domain of the redaction event's sender matches that of the original event's sender.
    if domain_of(redaction.sender) == domain_of(target.sender):
        return True
    create = create or state.get(CREATE_KEY)
    if create is None:
        return False
    # The power level of the redaction event's sender is greater than or equal to the redact level.
    levels = read_auth_state(redaction.version, create, state).power_levels
    return levels.user_level(redaction.sender) >= levels.redact_level


def _check_create(event: Event) -> Rejection | None:
    version = event.version
    # If it has any prev_events, reject.
    if event.prev_events:
        return Rejection("An m.room.create event must have no prev_events.")
    # v12-: If the event has a room_id, reject.
    if version.room_id_is_create_event_id and "room_id" in event.pdu:
        return Rejection("An m.room.create event of this room version must have no room_id.")
    # v1-v11: If the domain of the room_id does not match the domain of the sender, reject.
    if version.create_room_id_domain_must_match_sender and domain_of(event.room_id) != domain_of(event.sender):
        return Rejection("The domain of the room_id is not that of the room's creator.")
    # If content.room_version is present and is not a recognised version, reject.
    if "room_version" in event.content:
        room_version = event.content["room_version"]
        if not isinstance(room_version, str) or room_version not in ROOM_VERSIONS:
            return Rejection("The room_version is unknown.")
    # v1-v10: If content has no creator property, reject.
    if version.create_requires_creator and "creator" not in event.content:
        return Rejection("The content of an m.room.create event must have a creator.")
    # v12-: If additional_creators is present in content and is not an array of strings where each string passes the
    # same user ID validation applied to sender, reject.
    if version.additional_creators and not are_user_ids(event.content.get("additional_creators", [])):
        return Rejection("additional_creators must be an array of user IDs.")
    # Otherwise, allow.
    return None


def _check_aliases(event: Event) -> Rejection | None:
    # If event has no state_key, reject.
    if event.state_key is None:
        return Rejection("An m.room.aliases event must have a state_key.")
    # If sender's domain doesn't match state_key, reject.
    if domain_of(event.sender) != event.state_key:
        return Rejection("The state_key of an m.room.aliases event must be the domain of its sender.")
    # Otherwise, allow.
    return None


def _check_other(event: Event, auth: AuthState) -> Rejection | None:
    # If the sender's current membership state is not join, reject.
    if auth.membership_of(event.sender) != "join":
        return Rejection("The sender is not in the room.")
    sender_level = auth.power_levels.user_level(event.sender)
    # If type is m.room.third_party_invite: Allow if and only if sender's current power level is greater than or equal
    # to the invite level.
    if event.type == "m.room.third_party_invite":
        if sender_level >= auth.power_levels.invite_level:
            return None
        return Rejection("The sender lacks the power level to invite.")
    # If the event type's required power level is greater than the sender's power level, reject.
    if auth.power_levels.event_level(event.type, event.is_state) > sender_level:
        return Rejection(f"The sender lacks the power level to send {event.type}.")
    # If the event has a state_key that starts with an @ and does not match the sender, reject.
    if event.state_key is not None and event.state_key.startswith("@") and event.state_key != event.sender:
        return Rejection("The state_key is another user's ID.")
    # If type is m.room.power_levels:
    if event.type == "m.room.power_levels":
        return check_power_levels(event, auth, sender_level)
    # v1-v2: If type is m.room.redaction:
    if event.type == "m.room.redaction" and event.version.redaction_checked_by_auth_rules:
        return _check_redaction(event, auth, sender_level)
    # Otherwise, allow.
    return None


def _check_redaction(event: Event, auth: AuthState, sender_level: int) -> Rejection | None:
    # If the sender's power level is greater than or equal to the redact level, allow.
    if sender_level >= auth.power_levels.redact_level:
        return None
    # If the domain of the event_id of the event being redacted is the same as the domain of the event_id of the
    # m.room.redaction, allow.
    domain = domain_of(event.event_id)
    if domain and event.redacts is not None and domain_of(event.redacts) == domain:
        return None
    # Otherwise, reject.
    return Rejection("The sender lacks the power level to redact.")
