"""The limits of what is kept of a user, each with its reason. Units are in the names."""

from __future__ import annotations

# Account data, filters

# Account data of one user: secret storage and each room have some types; clients have no reason for more.
ACCOUNT_DATA_TYPES_MAX = 20_000
# All of it is in each first sync, in memory some times over. Real accounts have some 100 KiB.
ACCOUNT_DATA_BYTES_MAX = 16 << 20
# It is part of a path and of an index, as other types are.
ACCOUNT_DATA_TYPE_BYTES_MAX = 255

# Spec: client-server-api/#room-tagging
TAG_BYTES_MAX = 255

# They are all in one event that is sent whole at each change.
TAGS_PER_ROOM_MAX = 200
# "order", and what a client adds of its own.
TAG_CONTENT_BYTES_MAX = 1_024

# A filter is read for every sync; the largest that clients send are a few KiB of room ids.
FILTER_BYTES_MAX = 64 * 1024

# A client stores the same one or two again and again, which costs no row. The oldest go first.
FILTERS_PER_USER_MAX = 200

# Push rules

# One for each room or person that somebody does not want to hear of, and some keywords. All are told at each change.
PUSH_RULES_MAX = 1_000
PUSH_RULE_BYTES_MAX = 4 * 1024

# As long as any other id.
PUSH_RULE_ID_BYTES_MAX = 255

# Receipts

# Threads of a room in which one user's receipts are kept: everyone in the room is told of them in each first sync.
RECEIPT_THREADS_MAX = 100

# Lazy loading

# Rooms of devices of which it is remembered who was told: 60 MB where each has as many members as are remembered, and
# mostly a tenth of that. What is forgotten is told again.
LAZY_ROOMS_REMEMBERED_MAX = 10_000
# Those who have spoken last: a client shows some screens of a timeline.
LAZY_MEMBERS_PER_ROOM_MAX = 50

# Profiles, presence

# Spec: PUT /profile/{userId}/{keyName}
PROFILE_BYTES_MAX = 64 * 1024
PROFILE_KEY_BYTES_MAX = 255

# It is in the member event of each room, and on the screen of everyone there.
DISPLAYNAME_CHARACTERS_MAX = 256
AVATAR_URL_CHARACTERS_MAX = 1_000

# Each is a member event with its signature, about a millisecond: others wait for the writer no longer than that.
PROFILE_ROOMS_PER_WRITE = 20

# It is sent to everyone who shares a room at each change of presence.
STATUS_MESSAGE_BYTES_MAX = 2_048

# Presence that has not changed is written again this often, so that a crash of the server loses no more.
PRESENCE_WRITE_INTERVAL_MS = 60 * 1000

# How often we sweep for silent users: a fraction of presence.online_timeout_s.
PRESENCE_SWEEP_INTERVAL_S = 15

# Someone whose last activity is not longer ago is "currently active" (spec: client-server-api/#last-active-ago).
CURRENTLY_ACTIVE_MS = 60 * 1000

# Presence that does not change is told to other servers again, because Synapse takes a silent server's users for
# offline after 30 minutes; we wait for twice as long.
PRESENCE_REPEAT_MS = 25 * 60 * 1000
PRESENCE_REMOTE_TIMEOUT_MS = 60 * 60 * 1000
