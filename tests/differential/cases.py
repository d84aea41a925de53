"""Random single events in random rooms: mostly what clients and servers send, partly what an attacker would."""

from __future__ import annotations

import copy
import random
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nacl.signing import SigningKey

from homeserver.federation import canonical_json
from homeserver.federation.hashing import event_id_of
from homeserver.federation.room_versions import RoomVersion
from tests.differential.values import FLOATS, NUMBERS, STRINGY_LEVELS, chance, odd, pick, text, value

SERVERS = ("alpha.test", "beta.test:8448", "127.0.0.1:1", "[::1]")
CREATOR = "@creator:alpha.test"
USERS = (
    CREATOR, "@admin:alpha.test", "@mod:beta.test:8448", "@user:beta.test:8448", "@guest:127.0.0.1:1",
    "@Old User/é:[::1]", "@:alpha.test",
)  # fmt: skip
MEMBERSHIPS = ("join", "invite", "leave", "ban", "knock")
JOIN_RULES = ("public", "invite", "knock", "restricted", "knock_restricted", "private")
TOKENS = ("token", "other token", "")
LEVEL_KEYS = ("users_default", "events_default", "state_default", "ban", "kick", "redact", "invite")
EVENT_TYPES = (
    "m.room.message", "m.room.name", "m.room.topic", "m.room.power_levels", "m.room.member", "m.room.join_rules",
    "m.room.redaction",
    "m.room.server_acl", "m.room.history_visibility", "m.room.aliases", "m.room.create", "org.example.custom",
    "m.room.third_party_invite",
)  # fmt: skip

Pdu = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """An event and the room state to judge it by. `state` begins with the create event."""

    version: RoomVersion
    event: Pdu
    state: tuple[Pdu, ...] = field(default=())


class Maker:
    """Makes the PDUs of one room from one random generator."""

    def __init__(self, rng: random.Random, version: RoomVersion) -> None:
        self.rng = rng
        self.version = version
        self.strict = version.canonical_json_strict
        self.room_id = "!room:alpha.test"
        self.identity_seed = rng.randbytes(32)
        self._count = 0

    def pdu(self, event_type: str, sender: str, content: Any, state_key: str | None = None, **fields: Any) -> Pdu:
        """A well-formed PDU, neither signed nor hashed; it cites nothing that exists unless `fields` says so."""
        self._count += 1
        pdu: Pdu = {
            "type": event_type,
            "room_id": self.room_id,
            "sender": sender,
            "content": content,
            "depth": self._count,
            "origin_server_ts": 1_700_000_000_000 + self.rng.randrange(1000),
            "prev_events": [self.reference()],
            "auth_events": [],
            "hashes": {"sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"},
            "signatures": {"alpha.test": {"ed25519:1": "c2lnbmF0dXJl"}},
        }
        if state_key is not None:
            pdu["state_key"] = state_key
        if not self.version.event_id_is_reference_hash:
            pdu["event_id"] = f"$event{self._count}:{self.rng.choice(SERVERS)}"
        if event_type == "m.room.create" and self.version.room_id_is_create_event_id:
            del pdu["room_id"]
        pdu.update(fields)
        return pdu

    def reference(self, pdu: Pdu | None = None) -> Any:
        """Returns the form in which prev_events and auth_events cite an event. Without one, cites an unknown event."""
        if pdu is not None:
            event_id = event_id_of(pdu, self.version)
        else:
            event_id = "$" + b64encode(self.rng.randbytes(32), b"-_").decode()[:43]
        return (
            [event_id, {"sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"}]
            if self.version.references_with_hashes
            else event_id
        )

    def user(self) -> str:
        return self.rng.choice(USERS)

    def level(self, *, hostile: float = 0.1) -> Any:
        """A power level, and sometimes what older versions take for one."""
        if not chance(self.rng, hostile):
            return self.rng.choice((0, 0, 1, 50, 50, 50, 51, 99, 100, 100))
        options = [self.rng.choice(NUMBERS), self.rng.choice(STRINGY_LEVELS), odd(self.rng, strict=self.strict)]
        if not self.strict:
            options.append(self.rng.choice(FLOATS))
        return self.rng.choice(options)

    # -- contents ----------------------------------------------------------------------------------

    def create_content(self, *, hostile: float = 0.1) -> Pdu:
        rng = self.rng
        content: Pdu = {"room_version": self.version.id}
        if self.version.create_content_has_creator or chance(rng, 0.1):
            content["creator"] = CREATOR
        if chance(rng, 0.1):
            content["m.federate"] = pick(rng, (3, False), (1, True), (1, odd(rng, strict=self.strict)))
        if chance(rng, 0.6 if self.version.additional_creators else 0.05):
            creators: list[Any] = rng.sample(USERS[1:], rng.randrange(3))
            if chance(rng, hostile):
                creators.append(odd(rng, strict=self.strict))
            content["additional_creators"] = creators
        if chance(rng, hostile):
            self.spoil(content)
        if self.version.id == "1" and chance(rng, 0.3):
            content.pop("room_version", None)
        return content

    def power_levels_content(self, *, hostile: float = 0.1) -> Pdu:
        rng = self.rng
        content: Pdu = {key: self.level(hostile=hostile / 3) for key in LEVEL_KEYS if chance(rng, 0.5)}
        if chance(rng, 0.9):
            users = {user: self.level(hostile=hostile / 3) for user in rng.sample(USERS, rng.randrange(len(USERS)))}
            if chance(rng, 0.8) and not self.version.creators_privileged:
                users[CREATOR] = 100
            elif chance(rng, 0.9) and self.version.creators_privileged:
                users.pop(CREATOR, None)
            content["users"] = users
        if chance(rng, 0.7):
            content["events"] = {
                kind: self.level(hostile=hostile / 3) for kind in rng.sample(EVENT_TYPES, rng.randrange(5))
            }
        if chance(rng, 0.3):
            content["notifications"] = {
                key: self.level(hostile=hostile / 3) for key in rng.sample(("room", "x"), rng.randrange(3))
            }
        if chance(rng, hostile):
            self.spoil(content)
        return content

    def join_rules_content(self, *, hostile: float = 0.1) -> Pdu:
        content: Pdu = {"join_rule": self.rng.choice(JOIN_RULES)}
        if chance(self.rng, 0.3):
            content["allow"] = [{"type": "m.room_membership", "room_id": "!other:alpha.test"}]
        if chance(self.rng, hostile):
            self.spoil(content)
        return content

    def member_content(self, target: str, *, membership: str | None = None, hostile: float = 0.1) -> Pdu:
        rng = self.rng
        content: Pdu = {"membership": membership or rng.choice(MEMBERSHIPS)}
        if chance(rng, 0.2):
            content["displayname"] = text(rng)
        if chance(rng, 0.35 if content["membership"] == "join" else 0.02):
            content["join_authorised_via_users_server"] = self.user()
        if chance(rng, 0.3 if content["membership"] == "invite" else 0.02):
            content["third_party_invite"] = self.third_party_signed(target, hostile=hostile)
        if chance(rng, hostile):
            self.spoil(content)
        return content

    def third_party_signed(self, mxid: str, *, hostile: float = 0.1) -> Pdu:
        rng = self.rng
        signed: Pdu = {"mxid": mxid if chance(rng, 0.9) else self.user(), "token": rng.choice(TOKENS)}
        key = SigningKey(self.identity_seed if chance(rng, 0.9) else rng.randbytes(32))
        signature = b64encode(key.sign(canonical_json.encode(signed)).signature).decode().rstrip("=")
        signed["signatures"] = {"identity.test": {pick(rng, (9, "ed25519:0"), (1, "ed448:0"), (1, "0")): signature}}
        content = {"display_name": "somebody", "signed": signed}
        if chance(rng, hostile):
            self.spoil(content)
        return content

    def third_party_invite_content(self, *, hostile: float = 0.1) -> Pdu:
        rng = self.rng
        public_key = b64encode(bytes(SigningKey(self.identity_seed).verify_key)).decode().rstrip("=")
        other_key = b64encode(rng.randbytes(32)).decode().rstrip("=")
        content: Pdu = {"display_name": "some…", "key_validity_url": "https://identity.test/valid"}
        if chance(rng, 0.7):
            content["public_key"] = public_key if chance(rng, 0.7) else other_key
        if chance(rng, 0.5):
            content["public_keys"] = [
                {"public_key": rng.choice((public_key, other_key))} for _ in range(rng.randrange(3))
            ]
        if chance(rng, hostile):
            self.spoil(content)
        return content

    # -- hostility ---------------------------------------------------------------------------------

    def spoil(self, target: Pdu) -> None:
        """Changes one thing somewhere inside an object: gone, something odd, or something more."""
        rng = self.rng
        while True:
            inner = [item for item in target.values() if isinstance(item, dict)]
            if not inner or chance(rng, 0.5):
                break
            target = rng.choice(inner)
        keys = list(target)
        if keys and chance(rng, 0.3):
            del target[rng.choice(keys)]
        elif keys and chance(rng, 0.8):
            target[rng.choice(keys)] = odd(rng, strict=self.strict)
        else:
            target[text(rng)] = value(rng, strict=self.strict)

    # -- whole cases -------------------------------------------------------------------------------

    def create(self, *, hostile: float = 0.0) -> Pdu:
        pdu = self.pdu("m.room.create", CREATOR, self.create_content(hostile=hostile), "", prev_events=[])
        if self.version.room_id_is_create_event_id:
            self.room_id = "!" + event_id_of(pdu, self.version)[1:]
        return pdu

    def state(self, *, hostile: float = 0.03) -> list[Pdu]:
        """A room state as it may have come about, in no particular order after the create event."""
        rng = self.rng
        state = [self.create(hostile=hostile)]
        for user in USERS:
            if chance(rng, 0.85):
                membership = pick(rng, (14, "join"), (1, "invite"), (1, "leave"), (1, "ban"), (1, "knock"))
                content = self.member_content(user, membership=membership, hostile=hostile)
                state.append(self.pdu("m.room.member", self.user(), content, user))
        if chance(rng, 0.85):
            state.append(self.pdu("m.room.power_levels", CREATOR, self.power_levels_content(hostile=hostile), ""))
        if chance(rng, 0.85):
            state.append(self.pdu("m.room.join_rules", CREATOR, self.join_rules_content(hostile=hostile), ""))
        for token in TOKENS:
            if chance(rng, 0.3):
                content = self.third_party_invite_content(hostile=hostile)
                state.append(self.pdu("m.room.third_party_invite", self.user(), content, token))
        return state

    def event(self, create: Pdu, *, hostile: float = 0.1) -> Pdu:
        """The event to be judged."""
        rng = self.rng
        kinds: tuple[tuple[float, Callable[[], Pdu]], ...] = (
            (45, lambda: self._membership(create, hostile)),
            (20, lambda: self.pdu("m.room.power_levels", self.user(), self.power_levels_content(hostile=hostile), "")),
            (6, lambda: self._redaction(hostile)),
            (5, lambda: self._aliases()),
            (
                5,
                lambda: self.pdu(
                    "m.room.third_party_invite", self.user(), self.third_party_invite_content(), rng.choice(TOKENS)
                ),
            ),
            (6, lambda: self._other_create(hostile)),
            (3, lambda: self.pdu("m.room.join_rules", self.user(), self.join_rules_content(hostile=hostile), "")),
            (10, lambda: self._other()),
        )
        pdu = pick(rng, *kinds)()
        if chance(rng, hostile / 2):
            self._spoil_top_level(pdu)
        return pdu

    def _membership(self, create: Pdu, hostile: float) -> Pdu:
        rng = self.rng
        sender = self.user()
        target = sender if chance(rng, 0.5) else self.user()
        pdu = self.pdu("m.room.member", sender, self.member_content(target, hostile=hostile), target)
        if chance(rng, 0.1):
            pdu["prev_events"] = [self.reference(create)] + ([self.reference()] if chance(rng, 0.2) else [])
        return pdu

    def _redaction(self, hostile: float) -> Pdu:
        rng = self.rng
        target: Any = self.rng.choice(("$x:" + rng.choice(SERVERS), "$nodomain", "$a:b:c", "$" + "A" * 43))
        if chance(rng, hostile):
            target = odd(rng, strict=self.strict)
        content = {"reason": "x"} | ({"redacts": target} if self.version.redacts_in_content or chance(rng, 0.1) else {})
        pdu = self.pdu("m.room.redaction", self.user(), content)
        if not self.version.redacts_in_content or chance(rng, 0.1):
            pdu["redacts"] = target
        return pdu

    def _aliases(self) -> Pdu:
        state_key = pick(self.rng, (6, self.rng.choice(SERVERS)), (1, ""), (1, None), (1, "alpha"), (1, self.user()))
        return self.pdu("m.room.aliases", self.user(), {"aliases": ["#a:alpha.test"]}, state_key)

    def _other_create(self, hostile: float) -> Pdu:
        rng = self.rng
        prev_events = [] if chance(rng, 0.9) else [self.reference()]
        pdu = self.pdu("m.room.create", self.user(), self.create_content(hostile=0.4), "", prev_events=prev_events)
        if chance(rng, 0.15):
            pdu["room_id"] = self.room_id
        if chance(rng, hostile):
            pdu["content"]["room_version"] = rng.choice(("12", "99", "", 1, None, "org.example"))
        return pdu

    def _other(self) -> Pdu:
        rng = self.rng
        kind = rng.choice(EVENT_TYPES)
        state_key = pick(
            rng, (3, None), (3, ""), (2, self.user()), (1, "@"), (1, "_@creator:alpha.test"), (1, text(rng))
        )
        return self.pdu(
            kind, self.user(), value(rng, strict=self.strict) if chance(rng, 0.1) else {"body": "x"}, state_key
        )

    def _spoil_top_level(self, pdu: Pdu) -> None:
        """Changes one field of the PDU itself."""
        key = self.rng.choice(
            [
                *pdu,
                "state_key",
                "origin",
                "membership",
                "prev_state",
                "redacts",
                "unsigned",
                "auth_events",
                text(self.rng),
            ]
        )
        if chance(self.rng, 0.3):
            pdu.pop(key, None)
        else:
            pdu[key] = odd(self.rng, strict=self.strict)


def case(seed: int, version: RoomVersion) -> Case:
    """The case that a seed stands for."""
    rng = random.Random(f"{version.id} {seed}")
    maker = Maker(rng, version)
    state = maker.state(hostile=pick(rng, (5, 0.0), (3, 0.03), (2, 0.2)))
    event = maker.event(state[0], hostile=pick(rng, (5, 0.0), (3, 0.1), (2, 0.5)))
    event, *state = copy.deepcopy([event, *state])  # nothing shared, so that one can be cut without the other
    return Case(version, event, tuple(state))
