"""Trains the dictionary that `compression` ships: `python -m homeserver.database.train_dictionary dictionary_2.dict`.

A new dictionary gets a new number; the old ones stay, since stored data names the one it was written with. The samples
are made up here: event contents of all common types as clients and bridges send them, with random identifiers and text,
so that the dictionary learns keys and shapes and nobody's words.
"""

from __future__ import annotations

import base64
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import zstandard

DICTIONARY_BYTES = 32 * 1024
SAMPLES = 40_000
LEVEL = 5

_SYLLABLES = """
    a be ca da e fo ge ha i ja ko la me no o pe ri sa ti u vo we ya zu th ing er on st an ion ed al en
    is or it ou nd tion der die und che ein sch ver les des que ent ra lo na ta mi ko re
"""
_WORDS = """
    the be to of and a in that have I it for not on with he as you do at this but his by from they we
    say her she or an will my one all would there their what so up out if about who get which go me when
    make can like time no just him know take people into year your good some could them see other than
    then now look only come its over think also back after use two how our work first well way even new
    want because any these give day most us thanks yes hello ok done meeting server build test link
    please tomorrow today der die das und ist nicht ich es ein wir sie auf mit für le la les et est pas
    que une pour dans je de en el los por con no sí
"""
_SERVERS = ("matrix.org", "example.org", "example.com", "chat.example.net", "home.example", "mozilla.org", "kde.org")
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
        self._words = _WORDS.split()
        self._syllables = _SYLLABLES.split()
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

    def one(self) -> bytes:
        """One content as canonical JSON."""
        weights = [weight for weight, _ in self._kinds]
        (kind,) = self._random.choices([kind for _, kind in self._kinds], weights)
        return orjson.dumps(kind(), option=orjson.OPT_SORT_KEYS)

    # Pieces

    def _bytes(self, count: int, *, url_safe: bool = False) -> str:
        raw = self._random.randbytes(count)
        encoded = base64.urlsafe_b64encode(raw) if url_safe else base64.b64encode(raw)
        return encoded.decode().rstrip("=")

    def _word(self) -> str:
        if self._random.random() < 0.7:
            return self._random.choice(self._words)
        return "".join(self._random.choices(self._syllables, k=self._random.randint(1, 4)))

    def _text(self, most: int = 25) -> str:
        count = min(most, int(self._random.expovariate(1 / 8)) + 1)
        text = " ".join(self._word() for _ in range(count))
        if self._random.random() < 0.05:
            text += f" https://{self._word()}.{self._random.choice(('com', 'org', 'net', 'io'))}/{self._word()}"
        return text.capitalize() + self._random.choice(("", "", "", ".", "!", "?", " :)"))

    def _html(self, text: str) -> str:
        form = self._random.choice(
            (
                "{}",
                "<p>{}</p>\n",
                "<strong>{}</strong>",
                "<em>{}</em>",
                "<code>{}</code>",
                '<pre><code class="language-python">{}\n</code></pre>\n',
                "<ul>\n<li>{}</li>\n</ul>\n",
                "<blockquote>\n<p>{}</p>\n</blockquote>\n",
                '<a href="https://matrix.to/#/' + self._user() + '">{}</a>',
                "{}<br>",
            )
        )
        return form.format(text)

    def _localpart(self) -> str:
        return "".join(self._random.choices(self._syllables, k=self._random.randint(2, 4)))

    def _server(self) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(_SERVERS)
        return f"{self._localpart()}.{self._random.choice(('com', 'org', 'net', 'de', 'fr', 'io', 'im', 'chat'))}"

    def _user(self) -> str:
        return f"@{self._localpart()}:{self._server()}"

    def _event_id(self) -> str:
        return "$" + self._bytes(32, url_safe=True)

    def _room_id(self) -> str:
        if self._random.random() < 0.3:
            return "!" + self._bytes(32, url_safe=True)
        return "!" + "".join(self._random.choices(string.ascii_letters, k=18)) + ":" + self._server()

    def _mxc(self) -> str:
        return f"mxc://{self._server()}/" + "".join(self._random.choices(string.ascii_letters, k=24))

    def _device_id(self) -> str:
        return "".join(self._random.choices(string.ascii_uppercase, k=10))

    def _ts(self) -> int:
        return 1_700_000_000_000 + self._random.randrange(200_000_000_000)

    def _mentions(self) -> dict[str, Any]:
        chance = self._random.random()
        if chance < 0.6:
            return {"m.mentions": {}}
        return {"m.mentions": {"user_ids": [self._user()]}} if chance < 0.75 else {}

    def _encrypted_file(self) -> dict[str, Any]:
        key = {
            "alg": "A256CTR",
            "ext": True,
            "k": self._bytes(32, url_safe=True),
            "key_ops": ["encrypt", "decrypt"],
            "kty": "oct",
        }
        return {
            "hashes": {"sha256": self._bytes(32)},
            "iv": self._bytes(8) + "AAAAAAAAAAA",
            "key": key,
            "url": self._mxc(),
            "v": "v2",
        }

    # Room events

    def message(self) -> dict[str, Any]:
        content: dict[str, Any] = {"body": self._text(), "msgtype": "m.text"}
        chance = self._random.random()
        if chance < 0.05:
            content["msgtype"] = "m.notice"
        elif chance < 0.08:
            content["msgtype"] = "m.emote"
        if self._random.random() < 0.25:
            content["format"] = "org.matrix.custom.html"
            content["formatted_body"] = self._html(content["body"])
        if self._random.random() < 0.1:
            content["m.relates_to"] = self._thread()
        return content | self._mentions()

    def _thread(self) -> dict[str, Any]:
        return {
            "event_id": self._event_id(),
            "is_falling_back": True,
            "m.in_reply_to": {"event_id": self._event_id()},
            "rel_type": "m.thread",
        }

    def reply(self) -> dict[str, Any]:
        return self.message() | {"m.relates_to": {"m.in_reply_to": {"event_id": self._event_id()}}}

    def edit(self) -> dict[str, Any]:
        new = self.message()
        new.pop("m.relates_to", None)
        edited = new | {"body": "* " + new["body"], "m.new_content": new}
        return edited | {"m.relates_to": {"event_id": self._event_id(), "rel_type": "m.replace"}}

    def reaction(self) -> dict[str, Any]:
        key = self._random.choice(_EMOJI)
        return {"m.relates_to": {"event_id": self._event_id(), "key": key, "rel_type": "m.annotation"}}

    def redaction(self) -> dict[str, Any]:
        return self._random.choice(
            (
                {},
                {"reason": self._text(6)},
                {"redacts": self._event_id()},
                {"reason": "Spam", "redacts": self._event_id()},
            )
        )

    def encrypted(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "algorithm": _ALGORITHM_MEGOLM,
            "ciphertext": "AwgAE" + self._bytes(self._random.choice((140, 160, 180, 200, 260, 320))),
            "device_id": self._device_id(),
            "sender_key": self._bytes(32),
            "session_id": self._bytes(32),
        }
        if self._random.random() < 0.3:
            del content["sender_key"], content["device_id"]
        chance = self._random.random()
        if chance < 0.1:
            content["m.relates_to"] = self._thread()
        elif chance < 0.2:
            content["m.relates_to"] = {"m.in_reply_to": {"event_id": self._event_id()}}
        elif chance < 0.25:
            content["m.relates_to"] = {"event_id": self._event_id(), "rel_type": "m.replace"}
        return content

    def media(self) -> dict[str, Any]:
        mime = self._random.choice(_MIME)
        kind = mime.split("/")[0]
        msgtype = f"m.{kind}" if kind in ("image", "video", "audio") else "m.file"
        prefix = self._random.choice(("IMG_", "image", "Screenshot from ", "signal-", ""))
        name = f"{prefix}{self._localpart()}.{mime.split('/')[1]}"
        info: dict[str, Any] = {"mimetype": mime, "size": self._random.randrange(1000, 10_000_000)}
        if kind in ("image", "video"):
            info |= {"h": self._random.randrange(100, 4000), "w": self._random.randrange(100, 4000)}
            info |= {
                "xyz.amorgan.blurhash": self._bytes(20),
                "thumbnail_info": {"h": 600, "mimetype": "image/jpeg", "size": 40_000, "w": 800},
            }
        if kind in ("audio", "video"):
            info["duration"] = self._random.randrange(1000, 600_000)
        content: dict[str, Any] = {"body": name, "info": info, "msgtype": msgtype}
        if self._random.random() < 0.5:
            content["filename"] = name
        if self._random.random() < 0.4:
            info["thumbnail_file"] = self._encrypted_file()
            return content | {"file": self._encrypted_file()}
        info["thumbnail_url"] = self._mxc()
        if kind == "audio" and self._random.random() < 0.5:
            content |= {
                "org.matrix.msc1767.audio": {"duration": 4000, "waveform": [0, 120, 800, 512, 1024]},
                "org.matrix.msc3245.voice": {},
            }
        return content | {"url": self._mxc()}

    def member(self) -> dict[str, Any]:
        membership = self._random.choices(("join", "leave", "invite", "ban", "knock"), (80, 12, 6, 1, 1))[0]
        content: dict[str, Any] = {"membership": membership}
        if membership in ("join", "invite", "knock"):
            content["displayname"] = " ".join(self._localpart().capitalize() for _ in range(self._random.randint(1, 2)))
            content["avatar_url"] = self._mxc() if self._random.random() < 0.7 else None
            if content["avatar_url"] is None and self._random.random() < 0.5:
                del content["avatar_url"]
        if membership == "join" and self._random.random() < 0.1:
            content["join_authorised_via_users_server"] = self._user()
        if membership == "invite" and self._random.random() < 0.5:
            content["is_direct"] = True
        if membership in ("leave", "ban") and self._random.random() < 0.3:
            content["reason"] = self._text(5)
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
        users = {self._user(): self._random.choice((50, 100, 100)) for _ in range(self._random.randint(0, 6))}
        return levels | {
            "events": kept,
            "historical": 100,
            "notifications": {"room": 50},
            "state_default": 50,
            "users": users,
            "users_default": 0,
        }

    def room_state(self) -> dict[str, Any]:
        join_rule = {"type": "m.room_membership", "room_id": self._room_id()}
        alias = f"#{self._localpart()}:{self._server()}"
        widget = {
            "avatar_url": self._mxc(),
            "conferenceId": self._localpart(),
            "domain": "meet.element.io",
            "isAudioOnly": False,
        }
        return self._random.choice(
            (
                {"room_version": self._random.choice(("10", "11", "12")), "creator": self._user()},
                {"room_version": "12", "additional_creators": [self._user()], "type": "m.space"},
                {"predecessor": {"event_id": self._event_id(), "room_id": self._room_id()}, "room_version": "11"},
                {"join_rule": self._random.choice(("invite", "public", "knock"))},
                {"allow": [join_rule], "join_rule": "restricted"},
                {"history_visibility": self._random.choice(("shared", "invited", "joined", "world_readable"))},
                {"guest_access": self._random.choice(("can_join", "forbidden"))},
                {"name": self._text(4)},
                {"m.topic": {"m.text": [{"body": self._text(), "mimetype": "text/plain"}]}, "topic": self._text()},
                {"alias": alias, "alt_aliases": [alias]},
                {"url": self._mxc(), "info": {"h": 512, "mimetype": "image/png", "size": 120_000, "w": 512}},
                {"algorithm": _ALGORITHM_MEGOLM, "rotation_period_ms": 604800000, "rotation_period_msgs": 100},
                {"pinned": [self._event_id() for _ in range(self._random.randint(1, 4))]},
                {"allow": ["*"], "allow_ip_literals": False, "deny": [self._server(), "*." + self._server()]},
                {"body": "This room has been replaced", "replacement_room": self._room_id()},
                {
                    "display_name": self._localpart(),
                    "key_validity_url": f"https://{self._server()}/_matrix/identity/v2/pubkey/isvalid",
                },
                {
                    "creatorUserId": self._user(),
                    "data": widget,
                    "id": self._localpart(),
                    "name": "Jitsi",
                    "type": "jitsi",
                },
            )
        )

    def space(self) -> dict[str, Any]:
        via = [self._server() for _ in range(self._random.randint(1, 3))]
        return self._random.choice(
            ({"via": via, "suggested": False, "order": "a"}, {"via": via, "canonical": True}, {"via": via})
        )

    def call(self) -> dict[str, Any]:
        call_id = self._localpart() + str(self._ts())
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
            "device_id": self._device_id(),
            "expires": 14400000,
            "foci_preferred": [
                {
                    "livekit_alias": self._room_id(),
                    "livekit_service_url": f"https://{self._server()}",
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
                    "party_id": self._device_id(),
                    "version": "1",
                },
                {"call_id": call_id, "candidates": [candidate], "party_id": self._device_id(), "version": "1"},
                {"call_id": call_id, "party_id": self._device_id(), "reason": "user_hangup", "version": "1"},
                member,
            )
        )

    def poll(self) -> dict[str, Any]:
        answers = [{"id": self._bytes(6), "org.matrix.msc1767.text": self._text(3)} for _ in range(3)]
        question = {"body": self._text(), "msgtype": "m.text", "org.matrix.msc1767.text": self._text()}
        start = {
            "answers": answers,
            "kind": "org.matrix.msc3381.poll.disclosed",
            "max_selections": 1,
            "question": question,
        }
        return self._random.choice(
            (
                {"org.matrix.msc1767.text": self._text(), "org.matrix.msc3381.poll.start": start},
                {
                    "m.relates_to": {"event_id": self._event_id(), "rel_type": "m.reference"},
                    "org.matrix.msc3381.poll.response": {"answers": [self._bytes(6)]},
                },
            )
        )

    def location(self) -> dict[str, Any]:
        uri = f"geo:{self._random.uniform(-90, 90):.6f},{self._random.uniform(-180, 180):.6f};u=35"
        return {
            "body": self._text(5),
            "geo_uri": uri,
            "msgtype": "m.location",
            "org.matrix.msc3488.asset": {"type": "m.self"},
            "org.matrix.msc3488.location": {"description": self._text(4), "uri": uri},
            "org.matrix.msc3488.ts": self._ts(),
        }

    # Beside rooms

    def receipt(self) -> dict[str, Any]:
        return {self._event_id(): {"m.read": {self._user(): {"thread_id": "main", "ts": self._ts()}}}}

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
                self._bytes(24): {"ciphertext": self._bytes(32), "iv": self._bytes(16), "mac": self._bytes(32)}
            }
        }
        key = {
            "algorithm": "m.secret_storage.v1.aes-hmac-sha2",
            "iv": self._bytes(16),
            "mac": self._bytes(32),
            "passphrase": {"algorithm": "m.pbkdf2", "bits": 256, "iterations": 500000, "salt": self._bytes(24)},
        }
        return self._random.choice(
            (
                {self._user(): [self._room_id()] for _ in range(self._random.randint(1, 5))},
                {"event_id": self._event_id()},
                {"tags": {"m.favourite": {"order": self._random.random()}}},
                {"ignored_users": {self._user(): {}}},
                {"global": {"override": [rule], "underride": [rule]}},
                {"recent_emoji": [[self._random.choice(_EMOJI), 3] for _ in range(5)]},
                {"breadcrumbRooms": [self._room_id() for _ in range(4)], "recent_rooms": [self._room_id()]},
                secret,
                key,
            )
        )

    def device_keys(self) -> dict[str, Any]:
        user, device = self._user(), self._device_id()
        keys = {f"curve25519:{device}": self._bytes(32), f"ed25519:{device}": self._bytes(32)}
        signatures = {user: {f"ed25519:{device}": self._bytes(64)}}
        algorithms = [_ALGORITHM_OLM, _ALGORITHM_MEGOLM]
        usage = self._random.choice(("master", "self_signing", "user_signing"))
        public = self._bytes(32)
        return self._random.choice(
            (
                {
                    "algorithms": algorithms,
                    "device_id": device,
                    "keys": keys,
                    "signatures": signatures,
                    "user_id": user,
                },
                {"key": self._bytes(32), "signatures": signatures},
                {"fallback": True, "key": self._bytes(32), "signatures": signatures},
                {"keys": {f"ed25519:{public}": public}, "signatures": signatures, "usage": [usage], "user_id": user},
                {
                    "first_message_index": 0,
                    "forwarded_count": 0,
                    "is_verified": True,
                    "session_data": {
                        "ciphertext": self._bytes(500),
                        "ephemeral": self._bytes(32),
                        "mac": self._bytes(8),
                    },
                },
            )
        )

    def to_device(self) -> dict[str, Any]:
        transaction = self._bytes(24)
        return self._random.choice(
            (
                {
                    "algorithm": _ALGORITHM_OLM,
                    "ciphertext": {
                        self._bytes(32): {"body": "AwogI" + self._bytes(900), "type": self._random.choice((0, 1))}
                    },
                    "org.matrix.msgid": self._bytes(16),
                    "sender_key": self._bytes(32),
                },
                {
                    "action": "request_cancellation",
                    "request_id": transaction,
                    "requesting_device_id": self._device_id(),
                },
                {
                    "action": "request",
                    "body": {
                        "algorithm": _ALGORITHM_MEGOLM,
                        "room_id": self._room_id(),
                        "sender_key": self._bytes(32),
                        "session_id": self._bytes(32),
                    },
                    "request_id": transaction,
                    "requesting_device_id": self._device_id(),
                },
                {
                    "from_device": self._device_id(),
                    "methods": ["m.sas.v1", "m.qr_code.show.v1", "m.reciprocate.v1"],
                    "timestamp": self._ts(),
                    "transaction_id": transaction,
                },
                {
                    "code": "m.no_olm",
                    "reason": "Unable to establish a secure channel.",
                    "algorithm": _ALGORITHM_MEGOLM,
                    "sender_key": self._bytes(32),
                },
            )
        )


def train(dictionary_bytes: int = DICTIONARY_BYTES, samples: int = SAMPLES) -> bytes:
    """A dictionary of at most `dictionary_bytes`, always the same for the same version of zstd."""
    source = Samples(seed=1)
    return zstandard.train_dictionary(dictionary_bytes, [source.one() for _ in range(samples)], level=LEVEL).as_bytes()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(train())
