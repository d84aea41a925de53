"""The room: its event graph, its state, its timeline. No routes, no network.

`append` adds this server's events to a room, `receive` those of other servers; both end by moving the head (`heads`).
`storage` keeps events and `state_tree` states. `timeline` reads history; `visibility` and `access` say who may read it.
"""

from homeserver.rooms.archive.schema import SCHEMA as _ARCHIVE
from homeserver.rooms.schema import SCHEMA as _ROOMS

SCHEMAS = (_ROOMS, _ARCHIVE)
