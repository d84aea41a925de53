"""Which operations a guest's access token is good for. Spec: client-server-api/#guest-access"""

from __future__ import annotations

import re

_FROM_SPEC = """
GET account/whoami
GET devices
GET devices/{}
PUT devices/{}
GET events
POST keys/claim
POST keys/query
POST keys/upload
PUT profile/{}/displayname
PUT profile/{}/{}
DELETE profile/{}/displayname
DELETE profile/{}/{}
POST register
GET rooms/{}/context/{}
GET rooms/{}/event/{}
GET rooms/{}/initialSync
POST rooms/{}/join
POST rooms/{}/leave
GET rooms/{}/members
GET rooms/{}/messages
PUT rooms/{}/send/{}/{}
GET rooms/{}/state
GET rooms/{}/state/{}
GET rooms/{}/state/{}/{}
PUT rooms/{}/state/{}
PUT rooms/{}/state/{}/{}
PUT sendToDevice/{}/{}
GET sync
GET media/download/{}/{}
GET media/download/{}/{}/{}
GET media/thumbnail/{}/{}
"""

# Without these no client works for a guest, and none of them shows or changes more than the guest's own.
_NEEDED_BY_CLIENTS = """
POST join/{}
POST logout
POST logout/all
GET capabilities
GET joined_rooms
GET rooms/{}/joined_members
GET pushrules
POST user/{}/filter
GET user/{}/filter/{}
GET user/{}/account_data/{}
PUT user/{}/account_data/{}
GET user/{}/rooms/{}/account_data/{}
PUT user/{}/rooms/{}/account_data/{}
PUT rooms/{}/typing/{}
POST rooms/{}/receipt/{}/{}
POST rooms/{}/read_markers
PUT presence/{}/status
GET presence/{}/status
GET profile/{}
GET profile/{}/{}
GET voip/turnServer
"""

GUEST_OPERATIONS = frozenset((_FROM_SPEC + _NEEDED_BY_CLIENTS).strip().splitlines())


def guest_may(method: str, path: str) -> bool:
    """Whether a guest may ask for this path of the client-server API, in any of its versions."""
    bare = re.sub(r"\{[^}]*\}", "{}", re.sub(r"^/_matrix/client/[^/]+/(?:org\.matrix\.[^/]+/)?", "", path))
    return not path.startswith("/_matrix/client/") or f"{method} {bare.rstrip('/')}" in GUEST_OPERATIONS
