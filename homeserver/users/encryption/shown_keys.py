"""The keys of this server's users as a viewer is shown them.

Theory of operation. Nearly everything that is shown of a user is the same for all viewers: the keys of the devices with
their names, the master key and the self-signing key. These are encoded once (`PublicKeys`) and cached with the
position of the snapshot that they were read in. They are valid in every later snapshot in which the user's device list
has not changed since. Whoever changes what is shown moves the list's position in the same write
(`note_device_list_changed`), so the cache is right on every node without being told of changes. Keys that are damaged
are left out when they are encoded.

Not cached, since it is not everybody's or does not move the position: the viewer's user-signing key, the signatures
that only the viewer may see, and whether a user without devices exists.

Spec: client-server-api/#key-and-signature-security
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import msgspec
import orjson

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import UserID
from homeserver.federation.signing import ALGORITHM
from homeserver.users.accounts import list_active
from homeserver.users.devices import list_device_names
from homeserver.users.encryption.cross_signing import UserSignature, list_cross_signing_keys, list_user_signatures
from homeserver.users.encryption.device_keys import list_device_keys
from homeserver.users.encryption.device_lists import list_last_changes, list_recent_changes

PUBLIC_KEYS_BYTES_MAX = 32 << 20  # some 8,000 users with three devices
KEYS_ROW_BYTES = 300  # about what the objects around the JSON of one device or user take

Wanted = Mapping[UserID, Collection[str]]
"""The users whose keys are wanted, each with the device IDs, or none for all devices."""


class ShownKeys(msgspec.Struct):
    """Keys by user, and those of devices by device ID: JSON, as fragments or decoded."""

    device_keys: dict[UserID, dict[str, Any]] = msgspec.field(default_factory=dict)
    master_keys: dict[UserID, Any] = msgspec.field(default_factory=dict)
    self_signing_keys: dict[UserID, Any] = msgspec.field(default_factory=dict)
    user_signing_keys: dict[UserID, Any] = msgspec.field(default_factory=dict)

    def add(self, other: ShownKeys) -> None:
        """Adds the keys of other users."""
        self.device_keys |= other.device_keys
        self.master_keys |= other.master_keys
        self.self_signing_keys |= other.self_signing_keys
        self.user_signing_keys |= other.user_signing_keys


class PublicKeys(msgspec.Struct, frozen=True, gc=False):
    """What everybody is shown of a user's keys, encoded. It is shared by all answers: change nothing in it.

    devices: by device ID, with their names. size_bytes: about how much memory it takes.
    """

    devices: dict[str, orjson.Fragment]
    master_json: bytes
    master_public_key: str
    master_key: orjson.Fragment | None
    self_signing_key: orjson.Fragment | None
    size_bytes: int

    def choose_devices(self, device_ids: Collection[str]) -> dict[str, orjson.Fragment]:
        """Returns the keys of those of these devices that the user has."""
        chosen = frozenset(device_ids)
        return {device_id: keys for device_id, keys in self.devices.items() if device_id in chosen}


def list_shown_keys(tx: Transaction, wanted: Wanted, viewer: UserID | None) -> ShownKeys:
    """Returns the keys of local users that the viewer may see; None is another server. Unknown users are left out."""
    shown = ShownKeys()
    public = _list_public_keys(tx, tx.find_all(wanted))
    without_devices: list[UserID] = []
    for user_id, keys in public.items():
        if keys.devices:
            device_ids = wanted[user_id]
            shown.device_keys[user_id] = keys.choose_devices(device_ids) if device_ids else keys.devices
        else:
            without_devices.append(user_id)
        if keys.master_key is not None:
            shown.master_keys[user_id] = keys.master_key
        if keys.self_signing_key is not None:
            shown.self_signing_keys[user_id] = keys.self_signing_key
    for user_id in list_active(tx, without_devices):
        shown.device_keys[user_id] = {}
    if viewer is not None:
        _add_private(tx, shown, public, viewer)
    return shown


def sign_for(key: Mapping[str, Any], viewer: UserID, signature: UserSignature) -> dict[str, Any]:
    """Returns another user's master key with the signature that the viewer has made on it."""
    by_viewer = {f"{ALGORITHM}:{signature.signing_key}": signature.signature}
    return {**key, "signatures": {**key.get("signatures", {}), viewer: by_viewer}}


def _add_private(tx: Transaction, shown: ShownKeys, public: Mapping[UserID, PublicKeys], viewer: UserID) -> None:
    """Adds what only the viewer may see: the viewer's user-signing key, and the signatures made with it."""
    if viewer in public:
        own = list_cross_signing_keys(tx, [viewer]).get(viewer, {})
        if "user_signing" in own:
            shown.user_signing_keys[viewer] = orjson.Fragment(own["user_signing"][1])
    for user_id, signature in list_user_signatures(tx, viewer, shown.master_keys).items():
        keys = public[user_id]
        if keys.master_key is not None and signature.signed_key == keys.master_public_key:
            shown.master_keys[user_id] = sign_for(orjson.loads(keys.master_json), viewer, signature)


def _list_public_keys(tx: Transaction, nids: Mapping[str, int]) -> dict[UserID, PublicKeys]:
    """Returns the public keys of local users, also of those who have none."""
    if tx.is_write:  # what it has stored may still be rolled back
        return _read_public_keys(tx, [UserID(name) for name in nids])
    cache, recent = tx.sized_cache("public_keys", PUBLIC_KEYS_BYTES_MAX), list_recent_changes(tx)
    found: dict[str, PublicKeys] = {}
    doubtful: dict[str, tuple[int, PublicKeys]] = {}
    for name, nid in nids.items():
        known: tuple[int, PublicKeys] | None = cache.get(nid)
        if known is None:
            continue
        if known[0] < recent.since:
            doubtful[name] = known
        elif recent.positions.get(nid, 0) <= known[0] <= recent.upto:
            found[name] = known[1]
    if doubtful:
        changed = list_last_changes(tx, [nids[name] for name in doubtful])
        for name, (position, keys) in doubtful.items():
            if changed.get(nids[name], 0) <= position:
                found[name] = keys
                cache.put(nids[name], (recent.upto, keys), keys.size_bytes)
    if len(found) < len(nids):
        for name, keys in _read_public_keys(tx, [UserID(name) for name in nids if name not in found]).items():
            found[name] = keys
            cache.put(nids[name], (recent.upto, keys), keys.size_bytes)
    return cast(dict[UserID, PublicKeys], found)


def _read_public_keys(tx: Transaction, user_ids: Collection[UserID]) -> dict[UserID, PublicKeys]:
    devices = list_device_keys(tx, user_ids)
    names = list_device_names(tx, devices)
    signing = list_cross_signing_keys(tx, user_ids)
    found: dict[UserID, PublicKeys] = {}
    for user_id in user_ids:
        named = names.get(user_id, {})
        shown = {
            device_id: _with_name(keys, named.get(device_id)) for device_id, keys in devices.get(user_id, {}).items()
        }
        by_usage = signing.get(user_id, {})
        public_key, master_json = by_usage.get("master", ("", b""))
        self_signing_json = by_usage["self_signing"][1] if "self_signing" in by_usage else b""
        size = KEYS_ROW_BYTES + len(master_json) + len(self_signing_json)
        size += sum(KEYS_ROW_BYTES + len(keys) for keys in shown.values())
        found[user_id] = PublicKeys(
            {device_id: orjson.Fragment(keys) for device_id, keys in shown.items()},
            master_json,
            public_key,
            orjson.Fragment(master_json) if master_json else None,
            orjson.Fragment(self_signing_json) if self_signing_json else None,
            size,
        )
    return found


def _with_name(keys: bytes, name: str | None) -> bytes:
    """Returns a device's keys with its name. They are an object that is not empty and has no `unsigned` yet."""
    if name is None:
        return keys
    return keys[:-1] + b',"unsigned":{"device_display_name":' + to_json(name) + b"}}"
