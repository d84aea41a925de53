"""The limits of data stored for a user, each with its reason. Units are in the names."""

from __future__ import annotations

# Account data, filters

# Types of account data per user. Secret storage and each room need a few; clients have no reason for more.
ACCOUNT_DATA_TYPES_MAX = 20_000
# All of it is in each first sync, several times in memory. Real accounts have about 100 KiB.
ACCOUNT_DATA_BYTES_MAX = 16 << 20
# It is part of a path and of an index, like other types.
ACCOUNT_DATA_TYPE_BYTES_MAX = 255

# Spec: client-server-api/#room-tagging
TAG_BYTES_MAX = 255

# All tags are in one event, which is sent as a whole at each change.
TAGS_PER_ROOM_MAX = 200
# The "order", and properties that clients add.
TAG_CONTENT_BYTES_MAX = 1_024

# A filter is read for every sync. The largest that clients send have a few KiB of room IDs.
FILTER_BYTES_MAX = 64 * 1024

# Clients store the same few again and again, which takes no row. The oldest are dropped first.
FILTERS_PER_USER_MAX = 200

# Key backup

# A user makes a new version when the key of the backup is lost. Clients show the newest only.
KEY_BACKUP_VERSIONS_MAX = 100
# All versions together, with what each key takes besides its session_data: the IDs of room and session have up to 255
# bytes each. The backup of a user with 100,000 sessions has about 120 MB.
KEY_BACKUP_BYTES_MAX = 256 << 20
KEY_BACKUP_ROW_BYTES = 600
# An encrypted session key has 700 bytes.
KEY_BACKUP_SESSION_BYTES_MAX = 16 * 1024
# It has a public key and signatures of the user's devices.
KEY_BACKUP_AUTH_DATA_BYTES_MAX = 64 * 1024
# A session ID has 43 characters.
KEY_BACKUP_SESSION_ID_BYTES_MAX = 255
# Keys in memory while a backup is answered, at most 8 MB, usually 400 KB.
KEY_BACKUP_PAGE_KEYS = 500
# About 20 ms, for which other writes wait.
KEY_BACKUP_DELETED_PER_WRITE = 2_000

# Push rules

# One for each muted room or person, and some keywords. All are sent at each change.
PUSH_RULES_MAX = 1_000
PUSH_RULE_BYTES_MAX = 4 * 1024

# As long as any other id.
PUSH_RULE_ID_BYTES_MAX = 255

# Pushers

# One for each device with an app that is not open all the time; people have five.
PUSHERS_MAX = 50
# Spec: POST /pushers/set. Tokens of push providers have 64 to 250 bytes.
PUSHKEY_BYTES_MAX = 512
APP_ID_CHARACTERS_MAX = 64
# Names, language, URL and data. Clients add a few fields of their own to the data, which each notification repeats.
PUSHER_BYTES_MAX = 8 * 1024
# What waits for a gateway that is away. A phone that was offline shows the newest anyway.
PUSH_QUEUE_MAX = 100
# A notification that comes later only confuses. Push providers keep them for a day to four weeks.
PUSH_AGE_MS = 24 * 3600 * 1000
# How long a gateway may take, and how large its answer may be: a list of keys that it rejects.
PUSH_TIMEOUT_S = 20
PUSH_ANSWER_BYTES_MAX = 64 * 1024
# Requests at the same time to one gateway, so that a slow one does not hold many connections.
PUSH_AT_ONCE_MAX = 16

# To-device messages

# The content of one: as large as an event's. Keys have 1 KiB, a secret or a verification a few.
TO_DEVICE_CONTENT_BYTES_MAX = 64 * 1024
# Messages of one request or EDU. Clients send keys to 20 or 250 devices at a time.
TO_DEVICE_MESSAGES_MAX = 1_000
# What one request or EDU puts into inboxes, once "*" stands for all devices: other writes wait for 0.1 s at most.
TO_DEVICE_POSTED_MAX = 5_000
TO_DEVICE_POSTED_BYTES_MAX = 8 << 20
# Messages of one answer. The spec recommends 100.
TO_DEVICE_PER_ANSWER_MAX = 100
TO_DEVICE_ANSWER_BYTES_MAX = 2 << 20
# What waits for a device. A phone that was off for a month in busy rooms gets some thousand keys, at 1 KiB each; a
# device that nobody uses any more must not fill the disk.
INBOX_MESSAGES_MAX = 20_000
INBOX_BYTES_MAX = 32 << 20
# Requests that are recognised when a device repeats them. It has no more than a few under way.
TO_DEVICE_REQUESTS_KEPT = 200

# Reports

# A person writes it, and an administrator reads it.
REPORT_REASON_BYTES_MAX = 4 * 1024
# A user who has more loses the oldest. Nobody reads more of one person.
REPORTS_PER_USER_MAX = 1_000

# Receipts

# Threads per room with receipts of one user. All members of the room get them in each first sync.
RECEIPT_THREADS_MAX = 100

# Threads that a user is subscribed to, or has unsubscribed from.
THREAD_SUBSCRIPTIONS_MAX = 5_000

# Delayed events

# The longest delay. Media servers that watch over a call let its clients ask for hours.
DELAY_MS_MAX = 24 * 60 * 60 * 1000
# Events that a user has scheduled at a time, of at most 64 KiB each. A call needs one for each of the user's devices.
DELAYED_EVENTS_MAX = 100
# What became of the last of them is kept for this long. Spec: MSC4140 recommends 7 days.
DELAYED_EVENTS_FINALISED_MS = 7 * 24 * 60 * 60 * 1000
DELAYED_EVENTS_FINALISED_MAX = 100
# Events that are read at a time when their time has come, and rooms that are sent to in parallel.
DELAYED_EVENTS_PER_READ = 100
DELAYED_EVENTS_AT_ONCE_MAX = 16

# Syncs

# Long polls that get their news from one read: a read must not keep the database's thread for long.
SYNCS_PER_READ_MAX = 256

# Lazy loading

# Rooms per device for which we remember which members the device knows: 60 MB if each has the maximum number, and
# usually a tenth of that. Forgotten members are sent again.
LAZY_ROOMS_REMEMBERED_MAX = 10_000
# The most recent senders. A client shows a few screens of a timeline.
LAZY_MEMBERS_PER_ROOM_MAX = 50

# Sliding sync

# Connections of one device. Element X has two; a client that invents names must not fill the disk.
SYNC_CONNECTIONS_MAX = 10
# Different required states that one connection has been told. Clients have one for each list, and a few for open rooms.
SYNC_CONFIGS_MAX = 100
# Spec: MSC4186. Every list is a pass over the user's rooms.
SYNC_LISTS_MAX = 100
SYNC_SUBSCRIPTIONS_MAX = 100
# Each adds a pass over the window of a list. Clients send one.
SYNC_RANGES_MAX = 20
# Entries of one required state: each is tried on each state event. Element X sends about 25.
SYNC_REQUIRED_STATE_MAX = 200
# The required states that apply to one room, as JSON: stored for the connection.
SYNC_CONFIG_BYTES_MAX = 64 * 1024
# Entries of one list of a filter. Each space is a pass over its state.
SYNC_FILTER_LIST_MAX = 100
# Names of connections and lists: opaque identifiers.
SYNC_NAME_BYTES_MAX = 255
# Events of one timeline. A client gets more of it from /messages.
SYNC_TIMELINE_MAX = 100

# Profiles, presence

# Spec: PUT /profile/{userId}/{keyName}
PROFILE_BYTES_MAX = 64 * 1024
PROFILE_KEY_BYTES_MAX = 255

# It is in the member event of each room, and everyone there sees it.
DISPLAYNAME_CHARACTERS_MAX = 256
AVATAR_URL_CHARACTERS_MAX = 1_000

# Each is a member event with its signature, about a millisecond, for which other writes wait.
PROFILE_ROOMS_PER_WRITE = 20

# It is sent to everyone who shares a room at each change of presence.
STATUS_MESSAGE_BYTES_MAX = 2_048

# How often unchanged presence is written again. A crash of the server loses no more than this.
PRESENCE_WRITE_INTERVAL_MS = 60 * 1000

# How often we sweep for silent users: a fraction of presence.online_timeout_s.
PRESENCE_SWEEP_INTERVAL_S = 15

# For how long acks come together before they become delivered receipts. Each receipt wakes the room.
DELIVERED_INTERVAL_S = 1

# How often heartbeats are stored, all of them together. A crash of the server loses no more than this.
HEARTBEATS_STORED_INTERVAL_S = 60

# A user whose last activity is at most this long ago is "currently active" (client-server-api/#last-active-ago).
CURRENTLY_ACTIVE_MS = 60 * 1000

# Unchanged presence is sent to other servers again, because Synapse considers a silent server's users offline after
# 30 minutes. We wait for twice as long.
PRESENCE_REPEAT_MS = 25 * 60 * 1000
PRESENCE_REMOTE_TIMEOUT_MS = 60 * 60 * 1000

# A server that enters a room of more members learns their presence only as it changes.
PRESENCE_TOLD_MEMBERS_MAX = 1_000

# Invitations

# Pending invites and knocks of one user. All of them are in each first sync, and nobody answers hundreds.
PENDING_MAX = 500
PENDING_BYTES_MAX = 8 << 20

# User directory

# A display name has no more.
USER_SEARCH_TERM_CHARACTERS_MAX = 256
# Clients ask for 10 or 50, and for more words instead of more results.
USER_SEARCH_LIMIT_MAX = 100
# People read for a search with several words, or for a user ID: about 20 ms.
USER_SEARCH_READ_MAX = 500
# Rooms of a person in which their names are compared with the search. Most people have one name everywhere.
USER_SEARCH_ROOMS_MAX = 20

# Email

# Emails that wait for a mail server that is away, at some 2 KiB each.
MAILS_WAITING_MAX = 10_000
# A mail server may end a connection after some hundred emails.
MAILS_PER_CONNECTION = 50
# For each step of SMTP. Mail servers that look up their client's name take their time.
MAIL_TIMEOUT_S = 20.0
# The first pause after a failure, and the longest.
MAIL_RETRY_MS = 60 * 1000
MAIL_RETRY_MS_MAX = 60 * 60 * 1000
# An email that comes later has nothing to say any more: its link has expired.
MAIL_AGE_MS = 24 * 60 * 60 * 1000

# RFC 5321: 64 bytes, @, 255 bytes; but a whole path has at most 256.
EMAIL_ADDRESS_BYTES_MAX = 254
# For each account: private, at work, and some that are not used any more.
EMAIL_ADDRESSES_MAX = 20
# How long the link in an email can be used. Spec: "a token which expires"; people read mail once a day.
EMAIL_VALIDATION_LIFETIME_MS = 24 * 60 * 60 * 1000
# Validations at a time, at 300 bytes each. The oldest ones end.
EMAIL_VALIDATIONS_MAX = 100_000

# How long notifications wait before they are told by email, and the pause after an email. It doubles up to the
# longest, which is shorter than PUSH_AGE_MS.
EMAIL_DELAY_MS = 10 * 60 * 1000
EMAIL_PAUSE_MS = 60 * 60 * 1000
EMAIL_PAUSE_MS_MAX = 12 * 60 * 60 * 1000
# Rooms and messages shown in one email; the rest is a number.
EMAIL_ROOMS_MAX = 10
EMAIL_MESSAGES_PER_ROOM_MAX = 5
EMAIL_MESSAGE_CHARACTERS_MAX = 200

# Friends

# Friends and pending requests of one user. The whole list is one answer, 300 bytes for each.
FRIENDS_MAX = 5_000
# The message of a request. It is part of a member event, in the clear, and nobody reads more from a stranger.
FRIEND_MESSAGE_BYTES_MAX = 1_000
# What a list shows of the last message: a few lines. The rest is in the conversation.
FRIEND_TEXT_CHARACTERS_MAX = 200
# Events at the end of a conversation that are searched for the last message. Reactions and calls may follow it.
FRIEND_EVENTS_SEARCHED_MAX = 100

# OAuth

# What a client registers: names and URLs, of which browsers accept no longer ones.
OAUTH_METADATA_BYTES_MAX = 16 * 1024
OAUTH_URI_CHARACTERS_MAX = 2_048
OAUTH_REDIRECT_URIS_MAX = 20
OAUTH_NAME_CHARACTERS_MAX = 100
# Equal registrations share a row, so a server has some dozen. With more, those that nobody is logged in with are
# dropped, the least recently used first: 20 MB at most if they are filled by spam.
OAUTH_CLIENTS_MAX = 5_000
# A client registers at the start of each log-in, so an unused registration is of no use a month later.
OAUTH_CLIENT_UNUSED_MS = 30 * 24 * 60 * 60 * 1000
# Spec: RFC 6749, section 4.1.2 recommends at most ten minutes. A redirect takes seconds, a phone's app may sleep.
OAUTH_CODE_LIFETIME_MS = 5 * 60 * 1000
# Codes of one user. The oldest are dropped: nobody logs in at more places at once.
OAUTH_CODES_PER_USER_MAX = 20
# Time to pick up another device, log in there and type the code.
OAUTH_DEVICE_CODE_LIFETIME_MS = 15 * 60 * 1000
# Spec: RFC 8628, section 3.2. Each poll too soon makes it longer by as much.
OAUTH_POLL_INTERVAL_MS = 5_000
# A client that polls too soon this often does not listen: its code ends.
OAUTH_POLL_INTERVAL_MS_MAX = 60_000
# Waiting at the same time, all clients together. A code of eight letters is one of 25,600,000,000, so guessing one of
# these takes a million attempts on average, and a user has ten.
OAUTH_DEVICE_GRANTS_MAX = 10_000
OAUTH_USER_AGENT_CHARACTERS_MAX = 255
# Longer than every code of ours. A longer one is not even hashed.
OAUTH_CODE_CHARACTERS_MAX = 200
# `state` is sent back unchanged, in a URL.
OAUTH_STATE_CHARACTERS_MAX = 2_048
# How long a reset of cross-signing stays approved. Spec: MSC4312 recommends ten minutes.
CROSS_SIGNING_RESET_MS = 10 * 60 * 1000
# How often expired codes and unused clients are deleted.
OAUTH_CLEANUP_INTERVAL_S = 60 * 60

# Captcha

# Answers of reCAPTCHA have about 2,000 characters.
CAPTCHA_CHARACTERS_MAX = 8_000
CAPTCHA_TIMEOUT_S = 10.0
# A few fields: whether it was solved, when and where.
CAPTCHA_ANSWER_BYTES_MAX = 16 * 1024

# Single sign-on

# OpenID Connect Core, section 2: a subject has at most 255 ASCII characters.
SSO_SUBJECT_CHARACTERS_MAX = 255
# External IDs that an administrator gives one account. People have one or two.
SSO_IDS_MAX = 20
# How long a browser may take between the start and the end: people look for their second factor.
SSO_ATTEMPT_LIFETIME_MS = 15 * 60 * 1000
# Attempts at a time, at 500 bytes each. Anyone may begin one; the oldest end.
SSO_ATTEMPTS_MAX = 50_000
# The URL of a client. Browsers and proxies take some thousand characters.
SSO_URL_CHARACTERS_MAX = 2_000
# For each request to a provider. A person waits, and three requests may follow one another.
SSO_TIMEOUT_S = 10.0
# The metadata of large providers have 10 KiB, their keys 5 KiB, a token with groups 20 KiB.
SSO_ANSWER_BYTES_MAX = 256 * 1024
# Keys in a set, and hexadecimal digits of the largest modulus: providers publish two or three of 2,048 bits.
SSO_KEYS_MAX = 50
SSO_KEY_CHARACTERS_MAX = 1_400
# How long metadata and keys of a provider are used. OpenID Connect Core, section 10.1.1: a new key is announced by a
# token that names it, so keys are fetched again for an unknown one, but not more often than this.
SSO_METADATA_AGE_S = 3600.0
SSO_KEYS_AGE_S = 60.0
# Clocks of providers may differ this much.
SSO_CLOCK_SKEW_S = 60
# The spec says about five seconds. A phone that switches between two apps over a bad network needs longer.
SSO_LOGIN_TOKEN_LIFETIME_MS = 30 * 1000
