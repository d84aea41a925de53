"""Every limit of the server, each with its reason. Grouped by topic.

Units are in the names. A limit that an operator should decide is a key of `config.py` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Database

# Writes that are committed together: more would make the first wait for long without saving anything further.
DATABASE_BATCH_MAX = 256
# About 100 bytes each in two dictionaries: 20 MB at most, and all that a busy server touches in a day.
INTERNED_STRINGS_CACHED_MAX = 100_000
# Longer than every identifier of the specification (255 bytes), short enough for a PostgreSQL index entry (2704 bytes).
INTERNED_STRING_MAX_BYTES = 2048

# Stream

# Keys whose last position is remembered for who comes to wait late; who comes later still is woken once for nothing.
STREAM_KEYS_REMEMBERED_MAX = 10_000
# Positions that a tail is told of at once: bounds what it has to hold in memory, and what it repeats after a crash.
TAIL_SPAN_MAX = 1000

# Blobs

# Read and written at once: large enough that the thread hop is cheap, small enough for many downloads at a time.
BLOB_CHUNK_BYTES = 256 * 1024

# Access tokens

# A token that was looked up costs about 500 bytes: 10 MB, and no read for as many devices as are ever active at once.
TOKEN_CACHE_ENTRIES_MAX = 20_000

# How long another node of the same database may still accept a token that this one has deleted.
TOKEN_CACHE_AGE_MS_MAX = 5_000

# Of a token that can be refreshed: short enough that a leaked one is soon worthless, long enough to refresh seldom.
ACCESS_TOKEN_LIFETIME_MS = 60 * 60 * 1000

# Longer is no token of ours or of an application service: it is not hashed at all.
ACCESS_TOKEN_CHARACTERS_MAX = 2_048

# HTTP requests

BODY_BYTES_MAX: Mapping[str, int] = {
    "client": 1 << 20,  # an event is 64 KiB at most; uploads of keys for many devices are the largest of the rest
    "federation": 64 << 20,  # /send_join answers are larger, but requests hold 50 PDUs of 64 KiB and 100 EDUs
    "media": 1 << 20,  # uploads stream and have their own limit, blobs.upload_bytes_max
    "admin": 1 << 20,
    "metrics": 0,
    "health": 0,
}

# Five identifiers of 255 bytes, each byte percent-encoded, with room to spare.
PATH_CHARACTERS_MAX = 8_192

# `via` and `server_name` are the only ones that repeat, a few dozen times.
QUERY_PARAMETERS_MAX = 500

# A client that sends its body slower than this holds memory for nothing; uploads are bounded by it too.
REQUEST_BODY_SECONDS_MAX = 300

# Waiting syncs are requests: this many tasks are about 100 MB. Beyond it the answer is 503, never a slow death.
REQUESTS_AT_ONCE_MAX = 10_000

# Rate limits


class Bucket(NamedTuple):
    """A token bucket: `burst` requests at once, and `per_second` more as time passes."""

    burst: float
    per_second: float


RATE_LIMITS: Mapping[str, Bucket] = {
    "default": Bucket(200, 50),  # a client that opens asks for a page of everything at once
    "sync": Bucket(50, 10),  # each answer leads to the next request at once, a broken client spins here
    "message": Bucket(100, 10),  # people paste; bridges have application services, which are not limited
    "join": Bucket(20, 0.5),  # each may cost other servers a state resolution
    "invite": Bucket(20, 0.3),  # spam is sent this way
    "create_room": Bucket(20, 0.5),  # a dozen events each
    "media": Bucket(100, 20),  # a timeline full of thumbnails
    "upload": Bucket(30, 2),  # fills the disk
    "login": Bucket(10, 0.2),  # each costs an argon2 hash, and guessing passwords must be hopeless
    "login_account": Bucket(10, 0.05),  # per account named, whoever asks: guessing from many addresses
    "registration": Bucket(5, 0.1),  # accounts are for ever
    "third_party": Bucket(5, 0.05),  # sends e-mail to an address that the requester chose
    "search": Bucket(20, 1),  # each reads much of an index
    "directory": Bucket(50, 5),  # may ask another server
    "federation": Bucket(1000, 200),  # per origin: a busy server sends one transaction after another
    "admin": Bucket(500, 100),  # trusted
}

# A bucket is about 200 bytes: 10 MB. The fullest are forgotten first, which forgives nothing.
RATE_LIMIT_KEYS_MAX = 50_000
