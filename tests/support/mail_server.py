"""A mail server on loopback that takes email, on a thread of its own, so that it answers while a test waits.

with MailServer() as mail:
    server = await homeservers.start(email=mail.settings())
    ...
    (message,) = mail.to("alice@example.org")
"""

from __future__ import annotations

import base64
import email
import email.policy
import re
import socketserver
import ssl
import threading
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from homeserver.config import Email


class _Session(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        mail = self.server.mail
        if mail.silent:
            return
        self._say("220 mail.example")
        recipient = ""
        while line := self.rfile.readline().decode().strip():
            verb = line.partition(" ")[0].upper()
            if verb == "EHLO":
                offers = ["STARTTLS"] if mail.context and not isinstance(self.request, ssl.SSLSocket) else []
                offers += ["AUTH PLAIN"] if mail.password else []
                lines = ["mail.example", *offers]
                for number, offer in enumerate(lines):
                    self._say(f"250{' ' if number == len(lines) - 1 else '-'}{offer}")
            elif verb == "STARTTLS":
                self._say("220 go ahead")
                assert mail.context is not None
                self.request = mail.context.wrap_socket(self.request, server_side=True)
                self.setup()
            elif verb == "AUTH":
                given = base64.b64decode(line.split()[2]).split(b"\0")[1:]
                self._say("235 ok" if given == [b"us", mail.password.encode()] else "535 wrong")
            elif verb == "RCPT":
                recipient = line[line.index("<") + 1 : line.index(">")]
                self._say(mail.answers.get(recipient, "250 ok"))
            elif verb == "DATA":
                self._say("354 go ahead")
                data = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    data += part.removeprefix(b".") if part.startswith(b"..") else part
                message = email.message_from_bytes(data, policy=email.policy.default)
                assert isinstance(message, EmailMessage)
                mail.received.append((recipient, message))
                self._say("250 taken")
            else:
                self._say("221 bye" if verb == "QUIT" else "250 ok")

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    mail: MailServer


class MailServer:
    """answers: what it says to a recipient. silent: it hangs up at once, as one that is broken."""

    def __init__(self, *, certificate: Path | None = None, password: str = "") -> None:
        self.received: list[tuple[str, EmailMessage]] = []
        self.answers: dict[str, str] = {}
        self.silent = False
        self.password = password
        self.context: ssl.SSLContext | None = None
        if certificate is not None:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.context.load_cert_chain(certificate)
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.mail = self

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def settings(self, **changes: Any) -> Email:
        """The section of the configuration of a homeserver that sends email here."""
        chosen: dict[str, Any] = {
            "smtp_host": "localhost",
            "smtp_port": self._server.server_address[1],
            "from_address": "Example <noreply@example.org>",
            "smtp_tls": "none",
        }
        return Email(**{**chosen, **changes})

    def to(self, address: str) -> list[EmailMessage]:
        return [message for recipient, message in self.received if recipient == address]


def text_of(message: EmailMessage) -> str:
    content = message.get_content()
    assert isinstance(content, str)
    return content


def link_in(message: EmailMessage) -> tuple[str, dict[str, str]]:
    """The path and the query of the only link to a homeserver in an email."""
    (link,) = re.findall(r"https?://\S+/_homeserver/\S+", text_of(message))
    parts = urlsplit(link)
    return parts.path, dict(parse_qsl(parts.query))
