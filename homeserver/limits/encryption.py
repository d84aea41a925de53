"""The limits of end-to-end encryption keys, each with its reason. Units are in the names.

Their bytes come from users and from other servers, and are shown to everyone who shares a room with the owner.
"""

from __future__ import annotations

# A device's keys have 700 bytes, with the longest identifiers 3 KiB. Keys that resist quantum computers have several.
DEVICE_KEYS_BYTES_MAX = 16 * 1024
# A cross-signing key has 400 bytes, and a signature of each device of its owner, at 150 bytes each.
CROSS_SIGNING_KEY_BYTES_MAX = 64 * 1024
# A signed Curve25519 key has 250 bytes, with the longest identifiers 900.
ONE_TIME_KEY_BYTES_MAX = 2 * 1024
# Clients keep 50 on the server, libolm at most 100. With all algorithms together, so a device takes at most a megabyte.
ONE_TIME_KEYS_PER_DEVICE_MAX = 500
# One for each algorithm. There is one algorithm today.
FALLBACK_KEYS_PER_DEVICE_MAX = 10
# Issued keys that are remembered for each device, at 80 bytes, so that they are not stored again if a client repeats an
# upload whose answer was lost. That happens within seconds; twice the keys that a device can have is plenty.
ISSUED_KEYS_REMEMBERED_MAX = 1_000

# Users in one query of keys. A bot may ask for everybody in a large room at once; that takes about a second.
KEY_QUERY_USERS_MAX = 10_000
# Devices whose keys are claimed by one request, at 30 µs each.
KEY_CLAIM_DEVICES_MAX = 10_000
# … and in one write, for which others wait.
KEY_CLAIMS_PER_WRITE = 200

# Users whom one user has verified, at 300 bytes each. People verify those whom they meet.
USER_SIGNATURES_MAX = 10_000
# Signed keys in one upload of signatures. A new user-signing key signs everybody again whom its owner has verified.
SIGNED_KEYS_MAX = 1_000
# … and in one write, at 100 µs each, for which others wait.
SIGNED_KEYS_PER_WRITE = 50

# How long a query or a claim waits for other servers, unless the client wants the answer sooner. Spec: "10 seconds is
# the recommended default".
REMOTE_KEYS_TIMEOUT_MS = 10_000
# A server that is silent for this long is in back-off afterwards. A client that is in a hurry cannot put it there.
REMOTE_KEYS_SILENCE_S = 9.5
# Servers that one request asks at the same time, and how long each of them counts. In ten seconds they are 500, as many
# as there are connections.
REMOTE_KEYS_SERVERS_AT_ONCE = 50
REMOTE_KEYS_PATIENCE_S = 1.0
# Users of one server in one question to it, so that an honest answer stays within the next limit. More are asked for in
# parallel.
REMOTE_KEYS_USERS_MAX = 200
# Their devices may have 8,000 ordinary keys together.
REMOTE_KEYS_ANSWER_BYTES_MAX = 8 << 20
# Signatures in an answer or an upload that are checked on the event loop: 80 µs each. More are checked on a thread.
SIGNATURES_INLINE_MAX = 10

# Devices, and bytes of their keys, of a list of another server's user that is cached. Larger ones are asked for each
# time, so that a server cannot fill our disk with invented devices.
CACHED_DEVICES_MAX = 200
CACHED_LIST_BYTES_MAX = 512 * 1024
# Lists that one query of keys makes us follow. More follow with the next query.
LISTS_WANTED_PER_QUERY = 500
# Servers that are asked for lists at the same time, one list of each after another.
RESYNC_SERVERS_AT_ONCE = 20
# … and how long each of them counts. Four a second that are silent until FEDERATION_TIMEOUT_S take a sixth of all
# connections.
RESYNC_PATIENCE_S = 5.0
# A list that cannot be fetched is asked for again after a growing pause. Until then each query asks directly.
RESYNC_RETRY_MS_MAX = 6 * 60 * 60 * 1000
# How often we look for lists of users with whom no room is shared any more, and how many in one write.
LIST_SWEEP_INTERVAL_S = 60 * 60
LISTS_PER_SWEEP = 200

# The private keys of a dehydrated device: an identity and a hundred one-time keys, encrypted, in base64.
DEHYDRATED_DATA_BYTES_MAX = 64 * 1024
