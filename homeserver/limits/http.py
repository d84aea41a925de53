"""The limits of connections and requests, each with its reason. Units are in the names."""

from __future__ import annotations

from collections.abc import Mapping

BODY_BYTES_MAX: Mapping[str, int] = {
    "client": 1 << 20,  # an event is 64 KiB at most; uploads of keys for many devices are the largest of the rest
    "federation": 1 << 20,  # some thousands of ids; transactions and invites have limits of their own
    "media": 1 << 20,  # uploads stream and have their own limit, blobs.upload_bytes_max
    "admin": 1 << 20,
    "metrics": 0,
    "health": 0,
}

# The body of an unidentified client: a login has a hundred bytes, a registration with a captcha several kilobytes.
ANONYMOUS_BODY_BYTES_MAX = 64 * 1024

# The values in a JSON body, as counted by `bodies.count_nodes`. 1000 of them take 0.3 ms and 60 KB in the worst case.
# The cost of a body depends on their number, not on its length.
JSON_NODES_MAX: Mapping[str, int] = {
    "client": 100_000,  # the content of an event has 44,000 at most; keys of a thousand devices have 10,000
    "federation": 300_000,  # an invite carries an event and 256 KiB of state
    "media": 1_000,
    "admin": 100_000,
    "metrics": 0,
    "health": 0,
}
# A request to us as a notary has a thousand values, a registration a dozen.
ANONYMOUS_JSON_NODES_MAX = 4_000
# Before its signature is checked, a body is decoded only if it is not canonical, and only up to this many values: a
# full transaction of ordinary events has 6,000. Larger ones only have their parts put in order. A longer body that is
# not canonical is refused; 50 PDUs of 64 KiB are shorter.
UNVERIFIED_JSON_NODES_MAX = 20_000
UNVERIFIED_BODY_BYTES_MAX = 4 << 20
# Bodies with more values are processed one at a time.
HEAVY_JSON_NODES = 300_000
# Up to this many values are decoded on the loop, because a thread hop costs as much. More would block everyone else.
INLINE_JSON_NODES_MAX = 4_000
INLINE_BODY_BYTES_MAX = 256 * 1024
# Values in a body that are not charged to anybody, because requests have their own rate limits.
FREE_JSON_NODES = 1_000
# The rate-limit cost of checking a wrong signature: one unit for the request, and one for this many bytes.
SIGNATURE_UNIT_BYTES = 64 * 1024
# The memory of one value as an object, a little more than the average.
JSON_NODE_BYTES = 64

# A body announced to be at most this long needs no budget, because its connection takes as much.
SMALL_BODY_BYTES = 16 * 1024
# Bodies and answers of other servers in memory, in total and per server. The largest has 12 MiB. One heavy body may
# exceed this.
PEER_BODIES_BYTES_MAX = 48 << 20
PEER_BODIES_BYTES_EACH = 16 << 20
# Extra bytes for answers only, depending on whether a person waits: eight of the largest usual ones. A notary's answer
# may have 16 MiB, but few are larger than one.
PEER_ANSWERS_BYTES: Mapping[str, int] = {"person": 8 << 20, "background": 8 << 20}
# The same for clients, whose largest body has 1 MiB.
CLIENT_BODIES_BYTES_MAX = 64 << 20
CLIENT_BODIES_BYTES_EACH = 8 << 20
# Larger answers count while they are being sent, because a client may be slow: in total, and per user or server. One
# answer is always allowed, because a first sync may be larger.
LARGE_ANSWER_BYTES = 256 * 1024
LARGE_ANSWERS_BYTES_MAX = 192 << 20
LARGE_ANSWERS_BYTES_EACH = 64 << 20
# When a client that has not received its large answers may ask again.
LARGE_ANSWERS_RETRY_MS = 5_000
# Long enough for bodies in transit on a good network, short enough that the sender is still there.
BUDGET_WAIT_SECONDS = 10
# The time for a whole request body, except uploads: 1 MiB at 10 KB/s.
BODY_SECONDS_MAX = 120

# Five identifiers of 255 bytes, each byte percent-encoded, with room to spare.
PATH_CHARACTERS_MAX = 8_192

# The header fields of a request, without its path: a token, cookies of other services on the same host, addresses of
# proxies.
HEADERS_BYTES_MAX = 16_384

# Browsers send 20, and each proxy adds some. Reading one costs as much as a hundred bytes of a body.
HEADERS_MAX = 200

# Chunks of a chunked body that are smaller than usual. Reading 1000 takes 10 ms, however small they are.
SMALL_CHUNKS_MAX = 1_000
CHUNK_BYTES_USUAL = 512

# Extensions of chunks and the trailer are ignored. Beyond these a body is refused.
CHUNK_EXTENSION_BYTES_USUAL = 32
TRAILER_BYTES_MAX = 16_384

# What a client may send ahead while it waits for an answer, before its connection is not read any more.
PIPELINED_BYTES_MAX = 65_536

# Frames of HTTP/2 on one connection, of any kind. Each costs 15 microseconds. Browsers send a dozen at the start, about
# five for each request, and two for each 16 KiB of an answer.
HTTP2_FRAMES_FREE = 1_000
HTTP2_FRAMES_PER_REQUEST = 20
HTTP2_BYTES_PER_FRAME = 1_024
# A larger frame that is not part of a request counts as several. This is the size of forty settings.
HTTP2_FRAME_BYTES_USUAL = 240
# Requests that a client cancels, beyond the number that it lets finish. Leaving a page may cancel a hundred.
HTTP2_RESETS_FREE = 100

# `via` and `server_name` are the only ones that repeat, a few dozen times.
QUERY_PARAMETERS_MAX = 500

# A client whose body stalls for this long is gone. A slow upload may take as long as it keeps moving.
REQUEST_CHUNK_SECONDS_MAX = 60

# After a refusal, this much of the body is read and dropped, for this long, so that the client sees the answer instead
# of a broken connection. Then the connection is closed.
REFUSED_BODY_BYTES_MAX = 16 << 20
REFUSED_BODY_SECONDS_MAX = 10

# How long a finished connection waits for its client to close it too: one round trip on a slow network.
LINGER_SECONDS = 3

# A small unused body is read before the answer, so that the connection can be used again.
UNREAD_BODY_BYTES = 65_536
# Such a body is under way already. A slow client gets its answer, and has to connect again.
UNREAD_BODY_SECONDS_MAX = 5

# A proxy keeps its connections to the server for about a minute; a shorter time here would race with its next request.
KEEP_ALIVE_SECONDS = 75

# A client that does not receive this much of its answer in this time is gone, and would delay a restart.
SEND_BYTES = 65_536
SEND_SECONDS_MAX = 60

# How often all connections are checked for the two limits above.
SWEEP_SECONDS = 5

# Certificates are renewed weeks before they end.
CERTIFICATE_CHECK_SECONDS = 60

# A phone on a bad network needs a few seconds for the round trips of a handshake.
TLS_HANDSHAKE_SECONDS_MAX = 20

# The head of a request is one packet or two.
HEAD_SECONDS_MAX = 20

# An idle connection takes about 10 KB, with TLS 60 KB. These take at most a gigabyte.
CONNECTIONS_MAX = 16_000

# Connections of one IPv4 address or IPv6 network. Mobile providers put hundreds of people behind one.
CONNECTIONS_PER_ADDRESS_MAX = 500

# Open files reserved for everything but client connections: 512 connections to other servers, databases, blobs.
FILES_RESERVED = 768

# A flood of connections must not fill the log too.
REFUSALS_LOG_SECONDS = 60

# How long running requests may take once the server is told to stop. Service managers kill it after 10 to 90 seconds,
# and everything else has to end too.
DRAIN_SECONDS = 6

# The kernel's queue of connections waiting to be accepted, for the moment when all clients reconnect at once.
LISTEN_BACKLOG = 1024

# Running requests, including waiting syncs. This many tasks take about 100 MB. Beyond it the answer is 503.
REQUESTS_AT_ONCE_MAX = 10_000

# Requests of one user that wait for news: one for each device, and a few for lost connections.
WAITING_PER_USER_MAX = 200
# When a client may try again after a refusal for that reason. The other requests end after about 30 seconds.
WAITING_RETRY_MS = 10_000
