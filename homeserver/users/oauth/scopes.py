"""Scopes: what a client asks for, which is always everything, on one device. Spec: client-server-api/#scope"""

from __future__ import annotations

import re

import msgspec

from homeserver import limits

_API = "urn:matrix:client:api:*"
_DEVICE = "urn:matrix:client:device:"
# Clients from before v1.15 use the prefix of MSC2967. They are answered in their own words.
_UNSTABLE_API = "urn:matrix:org.matrix.msc2967.client:api:*"
_UNSTABLE_DEVICE = "urn:matrix:org.matrix.msc2967.client:device:"
SCOPES = (_API, f"{_DEVICE}*", _UNSTABLE_API, f"{_UNSTABLE_DEVICE}*")

# Spec: RFC 6749, section 3.3
_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class Scope(msgspec.Struct, frozen=True):
    """A scope that this server grants. text: without the tokens that it does not know."""

    text: str
    device_id: str


class InvalidScope(ValueError):
    """The scope cannot be granted. The message is for the author of the client."""


def parse_scope(text: str) -> Scope:
    """Returns the scope that is granted to a client that asks for `text`. Unknown tokens are left out.

    Raises InvalidScope unless it has the token of the client-server API and exactly one device.
    """
    tokens = list(dict.fromkeys(text.split(" ")))
    known = [token for token in tokens if token in (_API, _UNSTABLE_API)]
    if not known:
        raise InvalidScope(f"The scope must contain {_API}.")
    devices = [token for token in tokens if token.startswith((_DEVICE, _UNSTABLE_DEVICE))]
    device_ids = {token.removeprefix(_DEVICE).removeprefix(_UNSTABLE_DEVICE) for token in devices}
    if len(device_ids) != 1:
        raise InvalidScope(f"The scope must contain one token {_DEVICE}DEVICE_ID.")
    device_id = device_ids.pop()
    if not device_id or len(device_id) > limits.DEVICE_ID_BYTES_MAX or not _TOKEN.fullmatch(device_id):
        raise InvalidScope(f"A device ID has 1 to {limits.DEVICE_ID_BYTES_MAX} printable ASCII characters.")
    return Scope(" ".join(known + devices), device_id)
