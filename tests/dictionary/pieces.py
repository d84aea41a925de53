"""Random parts of made-up events: identifiers, keys, text. A dictionary learns shapes, not the words of real users."""

from __future__ import annotations

import base64
import random
import string
from typing import Any

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


class Pieces:
    """Drawn from `random`, in the order of asking."""

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._words = _WORDS.split()
        self._syllables = _SYLLABLES.split()

    def bytes(self, count: int, *, url_safe: bool = False) -> str:
        raw = self._random.randbytes(count)
        encoded = base64.urlsafe_b64encode(raw) if url_safe else base64.b64encode(raw)
        return encoded.decode().rstrip("=")

    def word(self) -> str:
        if self._random.random() < 0.7:
            return self._random.choice(self._words)
        return "".join(self._random.choices(self._syllables, k=self._random.randint(1, 4)))

    def text(self, most: int = 25) -> str:
        count = min(most, int(self._random.expovariate(1 / 8)) + 1)
        text = " ".join(self.word() for _ in range(count))
        if self._random.random() < 0.05:
            text += f" https://{self.word()}.{self._random.choice(('com', 'org', 'net', 'io'))}/{self.word()}"
        return text.capitalize() + self._random.choice(("", "", "", ".", "!", "?", " :)"))

    def html(self, text: str) -> str:
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
                '<a href="https://matrix.to/#/' + self.user() + '">{}</a>',
                "{}<br>",
            )
        )
        return form.format(text)

    def localpart(self) -> str:
        return "".join(self._random.choices(self._syllables, k=self._random.randint(2, 4)))

    def server(self) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(_SERVERS)
        return f"{self.localpart()}.{self._random.choice(('com', 'org', 'net', 'de', 'fr', 'io', 'im', 'chat'))}"

    def user(self) -> str:
        return f"@{self.localpart()}:{self.server()}"

    def event_id(self) -> str:
        return "$" + self.bytes(32, url_safe=True)

    def room_id(self) -> str:
        if self._random.random() < 0.3:
            return "!" + self.bytes(32, url_safe=True)
        return "!" + "".join(self._random.choices(string.ascii_letters, k=18)) + ":" + self.server()

    def mxc(self) -> str:
        return f"mxc://{self.server()}/" + "".join(self._random.choices(string.ascii_letters, k=24))

    def device_id(self) -> str:
        return "".join(self._random.choices(string.ascii_uppercase, k=10))

    def ts(self) -> int:
        return 1_700_000_000_000 + self._random.randrange(200_000_000_000)

    def mentions(self) -> dict[str, Any]:
        chance = self._random.random()
        if chance < 0.6:
            return {"m.mentions": {}}
        return {"m.mentions": {"user_ids": [self.user()]}} if chance < 0.75 else {}

    def encrypted_file(self) -> dict[str, Any]:
        key = {
            "alg": "A256CTR",
            "ext": True,
            "k": self.bytes(32, url_safe=True),
            "key_ops": ["encrypt", "decrypt"],
            "kty": "oct",
        }
        return {
            "hashes": {"sha256": self.bytes(32)},
            "iv": self.bytes(8) + "AAAAAAAAAAA",
            "key": key,
            "url": self.mxc(),
            "v": "v2",
        }
