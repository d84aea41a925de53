"""The limits of WebSockets and event streams, each with its reason. Units are in the names."""

from __future__ import annotations

# The largest event has 65,536 bytes; the rest is for what a frame says besides: the operation, its path and its query.
MESSAGE_BYTES_MAX = 65_536 + 4_096

# Requests of one connection that are processed at the same time. A client that opens asks for a page of everything at
# once; more than this only makes the others wait longer. Those beyond it stay in the network until there is room.
REQUESTS_AT_ONCE_MAX = 16

# Frames of one connection, of any kind. Each costs some 30 microseconds before anything is limited by operation.
FRAMES_BURST = 2_000
FRAMES_PER_SECOND = 200

# The time for the first frame of a client without an Authorization header: one round trip on a slow network.
AUTHENTICATE_SECONDS_MAX = 20

# What may wait for a slow client before the server reads no further requests from it. One answer may be larger.
UNSENT_BYTES_MAX = 256 * 1024

# A client that receives nothing of what waits for it for this long does not read: one minute covers a lost network.
STALLED_SECONDS_MAX = 45
# How long such a client may take to receive why it is closed.
STALLED_CLOSE_SECONDS = 15

# A silent client is asked whether it is still there after the first, and closed after the second. Mobile networks and
# proxies forget a silent connection after a minute or more.
PING_AFTER_SECONDS = 45
GONE_AFTER_SECONDS = 80

# How often all connections are checked for these times.
SWEEP_SECONDS = 5

# How often the token of each connection is checked, and its client counted as present.
CHECK_SECONDS = 60

# How long the server waits for the client's half of the closing handshake: one round trip on a slow network.
CLOSE_SECONDS_MAX = 3

# Connections of one user: one for each device, and those that the network has lost but that have not ended yet.
CONNECTIONS_PER_USER_MAX = 200

# Sync answers that are read from the database at the same time, for clients whose news is not shared with others.
PUSHES_AT_ONCE_MAX = 16
# Connections that get their news from one read: a read must not keep the database's thread for long.
PUSHES_PER_READ_MAX = 256

# The window of a client that lets us choose, in bits: 4 KiB. It is held between the fragments of a compressed message.
DEFLATE_CLIENT_WINDOW_BITS = 12
# A compressed message that a client sends. Compression that cannot shorten its text adds a few bytes for each 16 KiB.
DEFLATED_BYTES_MAX = MESSAGE_BYTES_MAX + 1_024
# Compressing a shorter message saves less than a packet and costs more than sending it.
DEFLATE_BYTES_MIN = 512
# A longer one would hold up everybody else for more than some milliseconds.
DEFLATE_BYTES_MAX = 512 * 1024

# Event streams (server-sent events) send a comment if there is no news, so that proxies keep the connection.
EVENT_STREAM_PING_SECONDS = 25
# Then a stream ends and the client asks again, so that no proxy or server has to be patient for ever.
EVENT_STREAM_SECONDS_MAX = 10 * 60
# Event streams of one user: as for connections.
EVENT_STREAMS_PER_USER_MAX = 50
