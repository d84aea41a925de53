"""Key backup: the keys of a user's encrypted rooms, encrypted by a key that only the user has.

Spec: client-server-api/#server-side-key-backups
"""

from __future__ import annotations

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.feature import Feature, Worklist
from homeserver.features.key_backup import keys, versions
from homeserver.features.key_backup.storage import SCHEMA, WAKE_KEY, delete_some, forget_key_backup, list_deletions
from homeserver.resources import Resources

routes = Routes()
routes.include(versions.routes)
routes.include(keys.routes)


async def finish_deletion(hs: Resources, store: int) -> None:
    """Deletes the keys of a version that is gone or was emptied, some in each write."""
    while await hs.database.write(delete_some, store, limits.users.KEY_BACKUP_DELETED_PER_WRITE):
        pass


FEATURE = Feature(
    name="key_backup",
    spec="client-server-api/#server-side-key-backups",
    schema=SCHEMA,
    routes=routes,
    worklists=(Worklist("key_backup_deletions", list_deletions, finish_deletion, WAKE_KEY),),
    forget_user=forget_key_backup,
)
