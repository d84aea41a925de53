"""Made-up event contents of all common types, as clients and bridges send them, to train the compression with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import orjson

from tests.dictionary.pieces import Pieces

_EMOJI = ("👍", "❤️", "😂", "🎉", "😄", "👀", "🚀", "🙏", "😢", "✅", "👎", "🤔", "😮", "💯")
_ALGORITHM_MEGOLM = "m.megolm.v1.aes-sha2"
_ALGORITHM_OLM = "m.olm.v1.curve25519-aes-sha2"
_MIME = (
    "image/jpeg",
    "image/png",
    "image/gif",
    "image/webp",
    "video/mp4",
    "audio/ogg",
    "application/pdf",
    "text/plain",
)


class Samples:
    """Makes up event contents, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._a = Pieces(self._random)
        self._kinds: tuple[tuple[int, Callable[[], Any]], ...] = (
            (30, self.message),
            (25, self.encrypted),
            (14, self.member),
            (8, self.reaction),
            (5, self.edit),
            (4, self.reply),
            (4, self.media),
            (1, self.redaction),
            (2, self.power_levels),
            (3, self.room_state),
            (4, self.account_data),
            (4, self.device_keys),
            (4, self.to_device),
            (1, self.call),
            (1, self.poll),
            (1, self.location),
            (1, self.space),
            (1, self.receipt),
        )

    @staticmethod
    def encode(content: Any) -> bytes:
        """As it is stored: canonical JSON."""
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)

    def one(self) -> bytes:
        """One content, encoded."""
        weights = [weight for weight, _ in self._kinds]
        (kind,) = self._random.choices([kind for _, kind in self._kinds], weights)
        return self.encode(kind())

    # Room events

    def message(self) -> dict[str, Any]:
        content: dict[str, Any] = {"body": self._a.text(), "msgtype": "m.text"}
        chance = self._random.random()
        if chance < 0.05:
            content["msgtype"] = "m.notice"
        elif chance < 0.08:
            content["msgtype"] = "m.emote"
        if self._random.random() < 0.25:
            content["format"] = "org.matrix.custom.html"
            content["formatted_body"] = self._a.html(content["body"])
        if self._random.random() < 0.1:
            content["m.relates_to"] = self._thread()
        return content | self._a.mentions()

    def _thread(self) -> dict[str, Any]:
        return {
            "event_id": self._a.event_id(),
            "is_falling_back": True,
            "m.in_reply_to": {"event_id": self._a.event_id()},
            "rel_type": "m.thread",
        }

    def reply(self) -> dict[str, Any]:
        return self.message() | {"m.relates_to": {"m.in_reply_to": {"event_id": self._a.event_id()}}}

    def edit(self) -> dict[str, Any]:
        new = self.message()
        new.pop("m.relates_to", None)
        edited = new | {"body": "* " + new["body"], "m.new_content": new}
        return edited | {"m.relates_to": {"event_id": self._a.event_id(), "rel_type": "m.replace"}}

    def reaction(self) -> dict[str, Any]:
        key = self._random.choice(_EMOJI)
        return {"m.relates_to": {"event_id": self._a.event_id(), "key": key, "rel_type": "m.annotation"}}

    def redaction(self) -> dict[str, Any]:
        return self._random.choice(
            (
                {},
                {"reason": self._a.text(6)},
                {"redacts": self._a.event_id()},
                {"reason": "Spam", "redacts": self._a.event_id()},
            )
        )

    def encrypted(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "algorithm": _ALGORITHM_MEGOLM,
            "ciphertext": "AwgAE" + self._a.bytes(self._random.choice((140, 160, 180, 200, 260, 320))),
            "device_id": self._a.device_id(),
            "sender_key": self._a.bytes(32),
            "session_id": self._a.bytes(32),
        }
        if self._random.random() < 0.3:
            del content["sender_key"], content["device_id"]
        chance = self._random.random()
        if chance < 0.1:
            content["m.relates_to"] = self._thread()
        elif chance < 0.2:
            content["m.relates_to"] = {"m.in_reply_to": {"event_id": self._a.event_id()}}
        elif chance < 0.25:
            content["m.relates_to"] = {"event_id": self._a.event_id(), "rel_type": "m.replace"}
        return content

    def media(self) -> dict[str, Any]:
        mime = self._random.choice(_MIME)
        kind = mime.split("/")[0]
        msgtype = f"m.{kind}" if kind in ("image", "video", "audio") else "m.file"
        prefix = self._random.choice(("IMG_", "image", "Screenshot from ", "signal-", ""))
        name = f"{prefix}{self._a.localpart()}.{mime.split('/')[1]}"
        info: dict[str, Any] = {"mimetype": mime, "size": self._random.randrange(1000, 10_000_000)}
        if kind in ("image", "video"):
            info |= {"h": self._random.randrange(100, 4000), "w": self._random.randrange(100, 4000)}
            info |= {
                "xyz.amorgan.blurhash": self._a.bytes(20),
                "thumbnail_info": {"h": 600, "mimetype": "image/jpeg", "size": 40_000, "w": 800},
            }
        if kind in ("audio", "video"):
            info["duration"] = self._random.randrange(1000, 600_000)
        content: dict[str, Any] = {"body": name, "info": info, "msgtype": msgtype}
        if self._random.random() < 0.5:
            content["filename"] = name
        if self._random.random() < 0.4:
            info["thumbnail_file"] = self._a.encrypted_file()
            return content | {"file": self._a.encrypted_file()}
        info["thumbnail_url"] = self._a.mxc()
        if kind == "audio" and self._random.random() < 0.5:
            content |= {
                "org.matrix.msc1767.audio": {"duration": 4000, "waveform": [0, 120, 800, 512, 1024]},
                "org.matrix.msc3245.voice": {},
            }
        return content | {"url": self._a.mxc()}

    def member(self) -> dict[str, Any]:
        membership = self._random.choices(("join", "leave", "invite", "ban", "knock"), (80, 12, 6, 1, 1))[0]
        content: dict[str, Any] = {"membership": membership}
        if membership in ("join", "invite", "knock"):
            content["displayname"] = " ".join(
                self._a.localpart().capitalize() for _ in range(self._random.randint(1, 2))
            )
            content["avatar_url"] = self._a.mxc() if self._random.random() < 0.7 else None
            if content["avatar_url"] is None and self._random.random() < 0.5:
                del content["avatar_url"]
        if membership == "join" and self._random.random() < 0.1:
            content["join_authorised_via_users_server"] = self._a.user()
        if membership == "invite" and self._random.random() < 0.5:
            content["is_direct"] = True
        if membership in ("leave", "ban") and self._random.random() < 0.3:
            content["reason"] = self._a.text(5)
        return content

    def power_levels(self) -> dict[str, Any]:
        events = {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.pinned_events": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 100,
            "m.room.topic": 50,
            "m.reaction": 0,
            "m.room.redaction": 0,
            "im.vector.modular.widgets": 50,
            "m.space.child": 50,
            "org.matrix.msc3401.call": 50,
            "org.matrix.msc3401.call.member": 0,
        }
        kept = {name: level for name, level in events.items() if self._random.random() < 0.7}
        levels = {"ban": 50, "events_default": 0, "invite": self._random.choice((0, 50)), "kick": 50, "redact": 50}
        users = {self._a.user(): self._random.choice((50, 100, 100)) for _ in range(self._random.randint(0, 6))}
        return levels | {
            "events": kept,
            "historical": 100,
            "notifications": {"room": 50},
            "state_default": 50,
            "users": users,
            "users_default": 0,
        }

    def room_state(self) -> dict[str, Any]:
        join_rule = {"type": "m.room_membership", "room_id": self._a.room_id()}
        alias = f"#{self._a.localpart()}:{self._a.server()}"
        widget = {
            "avatar_url": self._a.mxc(),
            "conferenceId": self._a.localpart(),
            "domain": "meet.element.io",
            "isAudioOnly": False,
        }
        return self._random.choice(
            (
                {"room_version": self._random.choice(("10", "11", "12")), "creator": self._a.user()},
                {"room_version": "12", "additional_creators": [self._a.user()], "type": "m.space"},
                {
                    "predecessor": {"event_id": self._a.event_id(), "room_id": self._a.room_id()},
                    "room_version": "11",
                },
                {"join_rule": self._random.choice(("invite", "public", "knock"))},
                {"allow": [join_rule], "join_rule": "restricted"},
                {"history_visibility": self._random.choice(("shared", "invited", "joined", "world_readable"))},
                {"guest_access": self._random.choice(("can_join", "forbidden"))},
                {"name": self._a.text(4)},
                {
                    "m.topic": {"m.text": [{"body": self._a.text(), "mimetype": "text/plain"}]},
                    "topic": self._a.text(),
                },
                {"alias": alias, "alt_aliases": [alias]},
                {"url": self._a.mxc(), "info": {"h": 512, "mimetype": "image/png", "size": 120_000, "w": 512}},
                {"algorithm": _ALGORITHM_MEGOLM, "rotation_period_ms": 604800000, "rotation_period_msgs": 100},
                {"pinned": [self._a.event_id() for _ in range(self._random.randint(1, 4))]},
                {"allow": ["*"], "allow_ip_literals": False, "deny": [self._a.server(), "*." + self._a.server()]},
                {"body": "This room has been replaced", "replacement_room": self._a.room_id()},
                {
                    "display_name": self._a.localpart(),
                    "key_validity_url": f"https://{self._a.server()}/_matrix/identity/v2/pubkey/isvalid",
                },
                {
                    "creatorUserId": self._a.user(),
                    "data": widget,
                    "id": self._a.localpart(),
                    "name": "Jitsi",
                    "type": "jitsi",
                },
            )
        )

    def space(self) -> dict[str, Any]:
        via = [self._a.server() for _ in range(self._random.randint(1, 3))]
        return self._random.choice(
            ({"via": via, "suggested": False, "order": "a"}, {"via": via, "canonical": True}, {"via": via})
        )

    def call(self) -> dict[str, Any]:
        call_id = self._a.localpart() + str(self._a.ts())
        candidate = {
            "candidate": "candidate:1 1 udp 2122260223 192.168.1.2 5555 typ host",
            "sdpMLineIndex": 0,
            "sdpMid": "0",
        }
        sdp = "v=0\r\no=- 12345 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
        sdp += "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
        member = {
            "application": "m.call",
            "call_id": "",
            "device_id": self._a.device_id(),
            "expires": 14400000,
            "foci_preferred": [
                {
                    "livekit_alias": self._a.room_id(),
                    "livekit_service_url": f"https://{self._a.server()}",
                    "type": "livekit",
                }
            ],
            "focus_active": {"focus_selection": "oldest_membership", "type": "livekit"},
            "scope": "m.room",
        }
        return self._random.choice(
            (
                {
                    "call_id": call_id,
                    "lifetime": 60000,
                    "offer": {"sdp": sdp, "type": "offer"},
                    "party_id": self._a.device_id(),
                    "version": "1",
                },
                {"call_id": call_id, "candidates": [candidate], "party_id": self._a.device_id(), "version": "1"},
                {"call_id": call_id, "party_id": self._a.device_id(), "reason": "user_hangup", "version": "1"},
                member,
            )
        )

    def poll(self) -> dict[str, Any]:
        answers = [{"id": self._a.bytes(6), "org.matrix.msc1767.text": self._a.text(3)} for _ in range(3)]
        question = {"body": self._a.text(), "msgtype": "m.text", "org.matrix.msc1767.text": self._a.text()}
        start = {
            "answers": answers,
            "kind": "org.matrix.msc3381.poll.disclosed",
            "max_selections": 1,
            "question": question,
        }
        return self._random.choice(
            (
                {"org.matrix.msc1767.text": self._a.text(), "org.matrix.msc3381.poll.start": start},
                {
                    "m.relates_to": {"event_id": self._a.event_id(), "rel_type": "m.reference"},
                    "org.matrix.msc3381.poll.response": {"answers": [self._a.bytes(6)]},
                },
            )
        )

    def location(self) -> dict[str, Any]:
        uri = f"geo:{self._random.uniform(-90, 90):.6f},{self._random.uniform(-180, 180):.6f};u=35"
        return {
            "body": self._a.text(5),
            "geo_uri": uri,
            "msgtype": "m.location",
            "org.matrix.msc3488.asset": {"type": "m.self"},
            "org.matrix.msc3488.location": {"description": self._a.text(4), "uri": uri},
            "org.matrix.msc3488.ts": self._a.ts(),
        }

    # Beside rooms

    def receipt(self) -> dict[str, Any]:
        return {self._a.event_id(): {"m.read": {self._a.user(): {"thread_id": "main", "ts": self._a.ts()}}}}

    def account_data(self) -> dict[str, Any]:
        rule = {
            "actions": ["notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}],
            "conditions": [{"key": "type", "kind": "event_match", "pattern": "m.room.message"}],
            "default": True,
            "enabled": True,
            "rule_id": ".m.rule.message",
        }
        secret = {
            "encrypted": {
                self._a.bytes(24): {
                    "ciphertext": self._a.bytes(32),
                    "iv": self._a.bytes(16),
                    "mac": self._a.bytes(32),
                }
            }
        }
        key = {
            "algorithm": "m.secret_storage.v1.aes-hmac-sha2",
            "iv": self._a.bytes(16),
            "mac": self._a.bytes(32),
            "passphrase": {"algorithm": "m.pbkdf2", "bits": 256, "iterations": 500000, "salt": self._a.bytes(24)},
        }
        return self._random.choice(
            (
                {self._a.user(): [self._a.room_id()] for _ in range(self._random.randint(1, 5))},
                {"event_id": self._a.event_id()},
                {"tags": {"m.favourite": {"order": self._random.random()}}},
                {"ignored_users": {self._a.user(): {}}},
                {"global": {"override": [rule], "underride": [rule]}},
                {"recent_emoji": [[self._random.choice(_EMOJI), 3] for _ in range(5)]},
                {"breadcrumbRooms": [self._a.room_id() for _ in range(4)], "recent_rooms": [self._a.room_id()]},
                secret,
                key,
            )
        )

    def device_keys(self) -> dict[str, Any]:
        user, device = self._a.user(), self._a.device_id()
        keys = {f"curve25519:{device}": self._a.bytes(32), f"ed25519:{device}": self._a.bytes(32)}
        signatures = {user: {f"ed25519:{device}": self._a.bytes(64)}}
        algorithms = [_ALGORITHM_OLM, _ALGORITHM_MEGOLM]
        usage = self._random.choice(("master", "self_signing", "user_signing"))
        public = self._a.bytes(32)
        return self._random.choice(
            (
                {
                    "algorithms": algorithms,
                    "device_id": device,
                    "keys": keys,
                    "signatures": signatures,
                    "user_id": user,
                },
                {"key": self._a.bytes(32), "signatures": signatures},
                {"fallback": True, "key": self._a.bytes(32), "signatures": signatures},
                {"keys": {f"ed25519:{public}": public}, "signatures": signatures, "usage": [usage], "user_id": user},
                {
                    "first_message_index": 0,
                    "forwarded_count": 0,
                    "is_verified": True,
                    "session_data": {
                        "ciphertext": self._a.bytes(500),
                        "ephemeral": self._a.bytes(32),
                        "mac": self._a.bytes(8),
                    },
                },
            )
        )

    def to_device(self) -> dict[str, Any]:
        transaction = self._a.bytes(24)
        return self._random.choice(
            (
                {
                    "algorithm": _ALGORITHM_OLM,
                    "ciphertext": {
                        self._a.bytes(32): {
                            "body": "AwogI" + self._a.bytes(900),
                            "type": self._random.choice((0, 1)),
                        }
                    },
                    "org.matrix.msgid": self._a.bytes(16),
                    "sender_key": self._a.bytes(32),
                },
                {
                    "action": "request_cancellation",
                    "request_id": transaction,
                    "requesting_device_id": self._a.device_id(),
                },
                {
                    "action": "request",
                    "body": {
                        "algorithm": _ALGORITHM_MEGOLM,
                        "room_id": self._a.room_id(),
                        "sender_key": self._a.bytes(32),
                        "session_id": self._a.bytes(32),
                    },
                    "request_id": transaction,
                    "requesting_device_id": self._a.device_id(),
                },
                {
                    "from_device": self._a.device_id(),
                    "methods": ["m.sas.v1", "m.qr_code.show.v1", "m.reciprocate.v1"],
                    "timestamp": self._a.ts(),
                    "transaction_id": transaction,
                },
                {
                    "code": "m.no_olm",
                    "reason": "Unable to establish a secure channel.",
                    "algorithm": _ALGORITHM_MEGOLM,
                    "sender_key": self._a.bytes(32),
                },
            )
        )
