"""Registrations of application services for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from homeserver.config import ApplicationServices

AS_TOKEN, HS_TOKEN = "the-token-of-the-bridge", "the-token-of-the-homeserver"
URL = "http://bridge.test.example:9000"


def registration(**fields: Any) -> dict[str, Any]:
    """A bridge to IRC, whose users are @irc_…, and whose aliases are #irc_…"""
    return {
        "id": "irc",
        "url": URL,
        "as_token": AS_TOKEN,
        "hs_token": HS_TOKEN,
        "sender_localpart": "ircbot",
        "rate_limited": False,
        "namespaces": {
            "users": [{"regex": "@irc_.*", "exclusive": True}],
            "aliases": [{"regex": "#irc_.*", "exclusive": True}],
            "rooms": [],
        },
        **fields,
    }


def register(folder: Path, *registrations: dict[str, Any]) -> ApplicationServices:
    """The section of the configuration, with a file for each registration."""
    paths = []
    for number, each in enumerate(registrations):
        path = folder / f"registration-{number}.yaml"
        path.write_text(yaml.safe_dump(each))
        paths.append(str(path))
    return ApplicationServices(files=tuple(paths))
