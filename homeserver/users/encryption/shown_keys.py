"""The keys of this server's users as a viewer is shown them. Spec: client-server-api/#key-and-signature-security"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import UserID
from homeserver.federation.signing import ALGORITHM
from homeserver.users.accounts import list_active
from homeserver.users.devices import list_device_names
from homeserver.users.encryption.cross_signing import UserSignature, list_cross_signing_keys, list_user_signatures
from homeserver.users.encryption.device_keys import list_device_keys

Wanted = Mapping[UserID, Collection[str]]
"""The users whose keys are wanted, each with the device IDs, or none for all devices."""


@dataclass(slots=True)
class ShownKeys:
    """Keys by user, and those of devices by device ID: JSON, as fragments or decoded."""

    device_keys: dict[UserID, dict[str, Any]] = field(default_factory=dict)
    master_keys: dict[UserID, Any] = field(default_factory=dict)
    self_signing_keys: dict[UserID, Any] = field(default_factory=dict)
    user_signing_keys: dict[UserID, Any] = field(default_factory=dict)

    def add(self, other: ShownKeys) -> None:
        """Adds the keys of other users."""
        self.device_keys |= other.device_keys
        self.master_keys |= other.master_keys
        self.self_signing_keys |= other.self_signing_keys
        self.user_signing_keys |= other.user_signing_keys


def list_shown_keys(tx: Transaction, wanted: Wanted, viewer: UserID | None) -> ShownKeys:
    """Returns the keys of local users that the viewer may see; None is another server. Unknown users are left out."""
    shown = ShownKeys()
    stored = list_device_keys(tx, wanted)
    names = list_device_names(tx, stored)
    keyless = list_active(tx, wanted.keys() - stored.keys())
    for user_id, device_ids in wanted.items():
        devices = stored.get(user_id)
        if devices is None:
            if user_id in keyless:
                shown.device_keys[user_id] = {}
            continue
        named, chosen = names.get(user_id, {}), frozenset(device_ids)
        shown.device_keys[user_id] = {
            device_id: _with_name(keys, named.get(device_id))
            for device_id, keys in devices.items()
            if not chosen or device_id in chosen
        }
    _add_cross_signing_keys(tx, shown, wanted, viewer)
    return shown


def sign_for(key: Mapping[str, Any], viewer: UserID, signature: UserSignature) -> dict[str, Any]:
    """Returns another user's master key with the signature that the viewer has made on it."""
    by_viewer = {f"{ALGORITHM}:{signature.signing_key}": signature.signature}
    return {**key, "signatures": {**key.get("signatures", {}), viewer: by_viewer}}


def _add_cross_signing_keys(tx: Transaction, shown: ShownKeys, wanted: Wanted, viewer: UserID | None) -> None:
    keys = list_cross_signing_keys(tx, wanted)
    signatures = {} if viewer is None else list_user_signatures(tx, viewer, keys)
    for user_id, by_usage in keys.items():
        for usage, (public_key, key) in by_usage.items():
            signature = signatures.get(user_id)
            if usage == "master" and signature is not None and signature.signed_key == public_key and viewer:
                shown.master_keys[user_id] = sign_for(orjson.loads(key), viewer, signature)
            elif usage == "master":
                shown.master_keys[user_id] = orjson.Fragment(key)
            elif usage == "self_signing":
                shown.self_signing_keys[user_id] = orjson.Fragment(key)
            elif user_id == viewer:
                shown.user_signing_keys[user_id] = orjson.Fragment(key)


def _with_name(keys: bytes, name: str | None) -> orjson.Fragment:
    """Returns a device's keys with its name. They are an object that is not empty and has no `unsigned` yet."""
    if name is None:
        return orjson.Fragment(keys)
    return orjson.Fragment(keys[:-1] + b',"unsigned":{"device_display_name":' + to_json(name) + b"}}")
