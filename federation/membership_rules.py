"""The authorisation rules about m.room.member. Spec: rooms/v12/#authorisation-rules (5) and earlier versions'

Each check stands under the sentence of the spec that it implements, with the room versions that it holds for where
these are not all.
"""

from __future__ import annotations

from homeserver.federation.auth_state import AuthState, Rejection
from homeserver.federation.event import Event
from homeserver.federation.power_levels import is_user_id, room_creator
from homeserver.federation.third_party_invites import find_proving_keys


def check_membership(event: Event, auth: AuthState) -> Rejection | None:
    """Returns None if the rules allow the m.room.member event. `pdu_checks` has checked its signatures."""
    # If there is no state_key property, or no membership property in content, reject.
    if event.state_key is None or "membership" not in event.content:
        return Rejection("An m.room.member event must have a state_key and a membership.")
    # The spec says that the state_key is a user ID, but no rule says what happens if it is not. Other servers reject
    # such an event, and nothing could ever be sent to such a member.
    if not is_user_id(event.state_key):
        return Rejection("The state_key of an m.room.member event must be a user ID.")
    # v8-: If content has a join_authorised_via_users_server key: If the event is not validly signed by the homeserver
    # of the user ID denoted by the key, reject.
    if event.version.join_authorised_signature_checked and "join_authorised_via_users_server" in event.content:
        authorised_via = event.content["join_authorised_via_users_server"]
        if not is_user_id(authorised_via):
            return Rejection("join_authorised_via_users_server must be a user ID.")
    match event.membership:
        case "join":
            return _check_join(event, event.state_key, auth)
        case "invite":
            return _check_invite(event, event.state_key, auth)
        case "leave":
            return _check_leave(event, event.state_key, auth)
        case "ban":
            return _check_ban(event, event.state_key, auth)
        # v7-: If membership is knock:
        case "knock" if event.version.knock:
            return _check_knock(event, event.state_key, auth)
    # Otherwise, the membership is unknown. Reject.
    return Rejection("The membership is unknown.")


def _check_join(event: Event, target: str, auth: AuthState) -> Rejection | None:
    version = event.version
    # If the only previous event is an m.room.create and the state_key is the creator (v11-: the sender of the
    # m.room.create), allow.
    if event.prev_events == (auth.create.event_id,) and target == room_creator(auth.create):
        return None
    # If the sender does not match state_key, reject.
    if event.sender != target:
        return Rejection("Nobody can make another user join.")
    # If the sender is banned, reject.
    membership = auth.membership_of(target)
    if membership == "ban":
        return Rejection("The sender is banned.")
    match auth.join_rule:
        # If the join_rule is invite (v7-: or knock) then allow if membership state is invite or join.
        case "invite":
            allowed = membership in ("invite", "join")
        case "knock" if version.knock:
            allowed = membership in ("invite", "join")
        # v8-: If the join_rule is restricted (v10-: or knock_restricted): If membership state is join or invite, allow.
        case "restricted" if version.restricted_join:
            allowed = membership in ("invite", "join") or _is_join_authorised(event, auth)
        case "knock_restricted" if version.knock_restricted:
            allowed = membership in ("invite", "join") or _is_join_authorised(event, auth)
        # If the join_rule is public, allow.
        case "public":
            allowed = True
        # Otherwise, reject.
        case _:
            allowed = False
    return None if allowed else Rejection("The join rule does not let the sender join.")


def _is_join_authorised(event: Event, auth: AuthState) -> bool:
    # If the join_authorised_via_users_server key in content is not a user with sufficient permission to invite other
    # users or is not a joined member of the room, reject. Otherwise, allow.
    authorised_via = event.content.get("join_authorised_via_users_server")
    return (
        isinstance(authorised_via, str)
        and auth.membership_of(authorised_via) == "join"
        and auth.power_levels.user_level(authorised_via) >= auth.power_levels.invite_level
    )


def _check_invite(event: Event, target: str, auth: AuthState) -> Rejection | None:
    # If content has a third_party_invite property:
    if "third_party_invite" in event.content:
        return _check_third_party_invite(event, target, auth)
    # If the sender's current membership state is not join, reject.
    if auth.membership_of(event.sender) != "join":
        return Rejection("The sender is not in the room.")
    # If target user's current membership state is join or ban, reject.
    if auth.membership_of(target) in ("join", "ban"):
        return Rejection("The invited user is already in the room, or banned.")
    # If the sender's power level is greater than or equal to the invite level, allow.
    if auth.power_levels.user_level(event.sender) >= auth.power_levels.invite_level:
        return None
    # Otherwise, reject.
    return Rejection("The sender lacks the power level to invite.")


def _check_third_party_invite(event: Event, target: str, auth: AuthState) -> Rejection | None:
    # If target user is banned, reject.
    if auth.membership_of(target) == "ban":
        return Rejection("The invited user is banned.")
    # If content.third_party_invite does not have a signed property, reject.
    third_party_invite = event.content["third_party_invite"]
    signed = third_party_invite.get("signed") if isinstance(third_party_invite, dict) else None
    if not isinstance(signed, dict):
        return Rejection("The third_party_invite must have a signed object.")
    # If signed does not have mxid and token properties, reject.
    mxid, token = signed.get("mxid"), signed.get("token")
    if not isinstance(mxid, str) or not isinstance(token, str):
        return Rejection("The signed object of a third_party_invite must have mxid and token.")
    # If mxid does not match state_key, reject.
    if mxid != target:
        return Rejection("The third-party invite was signed for another user.")
    # If there is no m.room.third_party_invite event in the current room state with state_key matching token, reject.
    invite = auth.state.get(("m.room.third_party_invite", token))
    if invite is None:
        return Rejection("The room has no such third-party invite.")
    # If sender does not match sender of the m.room.third_party_invite, reject.
    if event.sender != invite.sender:
        return Rejection("The third-party invite was sent by another user.")
    # If any signature in signed matches any public key in the m.room.third_party_invite event, allow.
    if any(find_proving_keys(signed, invite.content)):
        return None
    # Otherwise, reject.
    return Rejection("No key of the third-party invite has signed its signed object.")


def _check_leave(event: Event, target: str, auth: AuthState) -> Rejection | None:
    target_membership = auth.membership_of(target)
    # If the sender matches state_key, allow if and only if that user's current membership state is invite, join (v7-:
    # or knock).
    if event.sender == target:
        leavable = ("invite", "join", "knock") if event.version.leave_from_knock else ("invite", "join")
        return None if target_membership in leavable else Rejection("The sender is neither in the room nor invited.")
    # If the sender's current membership state is not join, reject.
    if auth.membership_of(event.sender) != "join":
        return Rejection("The sender is not in the room.")
    levels = auth.power_levels
    sender_level = levels.user_level(event.sender)
    # If the target user's current membership state is ban, and the sender's power level is less than the ban level,
    # reject.
    if target_membership == "ban" and sender_level < levels.ban_level:
        return Rejection("The sender lacks the power level to unban.")
    # If the sender's power level is greater than or equal to the kick level, and the target user's power level is less
    # than the sender's power level, allow.
    if sender_level >= levels.kick_level and levels.user_level(target) < sender_level:
        return None
    # Otherwise, reject.
    return Rejection("The sender lacks the power level to kick that user.")


def _check_ban(event: Event, target: str, auth: AuthState) -> Rejection | None:
    # If the sender's current membership state is not join, reject.
    if auth.membership_of(event.sender) != "join":
        return Rejection("The sender is not in the room.")
    # If the sender's power level is greater than or equal to the ban level, and the target user's power level is less
    # than the sender's power level, allow.
    levels = auth.power_levels
    sender_level = levels.user_level(event.sender)
    if sender_level >= levels.ban_level and levels.user_level(target) < sender_level:
        return None
    # Otherwise, reject.
    return Rejection("The sender lacks the power level to ban that user.")


def _check_knock(event: Event, target: str, auth: AuthState) -> Rejection | None:
    # If the join_rule is anything other than knock (v10-: or knock_restricted), reject.
    knockable = ("knock", "knock_restricted") if event.version.knock_restricted else ("knock",)
    if auth.join_rule not in knockable:
        return Rejection("The join rule does not allow knocking.")
    # If sender does not match state_key, reject.
    if event.sender != target:
        return Rejection("Nobody can knock for another user.")
    # If the sender's current membership is not ban, invite, or join, allow. Otherwise, reject.
    if auth.membership_of(event.sender) in ("ban", "invite", "join"):
        return Rejection("The sender is already in the room, invited, or banned.")
    return None
