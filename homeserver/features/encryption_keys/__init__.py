"""Keys of end-to-end encryption: devices upload theirs, and find and claim those of others.

`uploads` stores a device's keys, `queries` finds the keys of users of any server, and `claims` takes one-time keys.
`cross_signing` stores the keys with which users sign their devices and one another, `federation` answers other servers.
`dehydration` keeps a device that receives keys while no other is logged in.
What is stored, and the rules for it, are in `homeserver/users/encryption/`.

Spec: client-server-api/#key-management-api, server-server-api/#end-to-end-encryption
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.database import Transaction
from homeserver.feature import UNTIL_NEWS_MS, BeforeSync, Feature, SyncContext, SyncStart
from homeserver.features.encryption_keys import claims, cross_signing, dehydration, federation, queries, uploads
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.users.encryption.cross_signing import forget_cross_signing
from homeserver.users.encryption.one_time_keys import count_keys, delete_restored_keys, has_restored_keys

routes = Routes()
for part in (uploads, queries, claims, cross_signing, dehydration, federation):
    routes.include(part.routes)


def tell_key_counts(tx: Transaction, context: SyncContext) -> None:
    """Tells the device how many of its one-time keys are left, and which of its fallback keys are unused."""
    if context.device_id:
        counts = count_keys(tx, context.user_id, context.device_id)
        context.always["device_one_time_keys_count"] = counts.one_time
        context.always["device_unused_fallback_key_types"] = counts.unused_fallback


def _has_restored_keys(tx: Transaction, start: SyncStart) -> bool:
    return start.is_anew and has_restored_keys(tx, start.user_id, start.device_id)


def _delete_restored_keys(tx: Transaction, start: SyncStart) -> None:
    delete_restored_keys(tx, start.user_id, start.device_id)


def _idle_ms(tx: Transaction, start: SyncStart) -> int:
    """Only the first sync after a restore is due, and that one is never answered without asking."""
    return UNTIL_NEWS_MS


def forget_user(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the user's cross-signing keys and signatures. The keys of devices go with the devices."""
    forget_cross_signing(tx, user_id)
    return False


FEATURE = Feature(
    name="encryption_keys",
    spec="client-server-api/#key-management-api",
    routes=routes,
    limits={
        # Per user: everybody in a large room, twice. Ten take a millisecond, or use up ten keys of others.
        # What a request takes of these depends on how many users, devices or keys it is about.
        "encryption_keys": Bucket(20_000, 100),
        "federation_encryption_keys": Bucket(50_000, 1_000),  # per origin: a large server has many users
    },
    before_sync=BeforeSync(_has_restored_keys, _delete_restored_keys, _idle_ms),
    sync_always=tell_key_counts,
    forget_user=forget_user,
    # Element sets up and offers cross-signing only where it is announced, although it is in the spec since v1.1.
    unstable_features={"org.matrix.e2e_cross_signing": True},
)
