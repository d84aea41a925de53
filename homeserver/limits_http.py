"""The limits of connections and requests, each with its reason. Units are in the names."""

from __future__ import annotations

from collections.abc import Mapping

BODY_BYTES_MAX: Mapping[str, int] = {
    "client": 1 << 20,  # an event is 64 KiB at most; uploads of keys for many devices are the largest of the rest
    "federation": 64 << 20,  # /send_join answers are larger, but requests hold 50 PDUs of 64 KiB and 100 EDUs
    "media": 1 << 20,  # uploads stream and have their own limit, blobs.upload_bytes_max
    "admin": 1 << 20,
    "metrics": 0,
    "health": 0,
}

# Arrays and objects of a body. They cost a hundred bytes and a microsecond each, which nested empty arrays turn into a
# second for a megabyte. Real bodies have one for every 50 to 100 bytes; below the first number nobody is asked.
JSON_CONTAINERS_MAX = 20_000
JSON_BYTES_PER_CONTAINER = 16

# Five identifiers of 255 bytes, each byte percent-encoded, with room to spare.
PATH_CHARACTERS_MAX = 8_192

# Browsers send 20, and each proxy adds some. Reading one costs as much as a hundred bytes of a body.
HEADERS_MAX = 200

# Chunks of a chunked body smaller than usual: reading 1000 takes 10 ms, however small they are.
SMALL_CHUNKS_MAX = 1_000
CHUNK_BYTES_USUAL = 512

# `via` and `server_name` are the only ones that repeat, a few dozen times.
QUERY_PARAMETERS_MAX = 500

# A client whose body stands still for so long has gone; a slow upload may take as long as it moves.
REQUEST_CHUNK_SECONDS_MAX = 60

# What a client still sends after its answer is read and dropped, so that it sees the answer, not a broken connection:
# so much and so long, then the connection is closed.
REFUSED_BODY_BYTES_MAX = 16 << 20
REFUSED_BODY_SECONDS_MAX = 10

# How long a connection that is over waits for its client to close it too: one round trip of a slow network.
LINGER_SECONDS = 3

# A small body that nobody asked for is read before the answer, so that the connection can be used again.
UNREAD_BODY_BYTES = 65_536

# A proxy keeps its connections to the server for about a minute; a shorter time here would race with its next request.
KEEP_ALIVE_SECONDS = 75

# A client that does not take so much of its answer in so long has gone, and would hold up a restart.
SEND_BYTES = 65_536
SEND_SECONDS_MAX = 60

# How often all connections are looked at for the two limits above.
SWEEP_SECONDS = 5

# Certificates are renewed weeks before they end.
CERTIFICATE_CHECK_SECONDS = 60

# A phone on a bad network needs a few seconds for the round trips of a handshake.
TLS_HANDSHAKE_SECONDS_MAX = 20

# The head of a request is one packet or two.
HEAD_SECONDS_MAX = 20

# An idle connection costs about 10 KB, with TLS 60 KB: no more than would take a gigabyte.
CONNECTIONS_MAX = 16_000

# Of one IPv4 address or IPv6 network: mobile providers put hundreds of people behind one.
CONNECTIONS_PER_ADDRESS_MAX = 500

# Open files that no client's connection takes: 512 connections to other servers, databases, blobs.
FILES_RESERVED = 768

# A flood of connections must not fill the log too.
REFUSALS_LOG_SECONDS = 60

# How long requests under way have to end once the server is told to stop; service managers kill after 10 to 90 seconds.
DRAIN_SECONDS = 8

# The kernel's queue of connections that wait to be accepted, for the moment when every client comes back at once.
LISTEN_BACKLOG = 1024

# Waiting syncs are requests: this many tasks are about 100 MB. Beyond it the answer is 503, never a slow death.
REQUESTS_AT_ONCE_MAX = 10_000
