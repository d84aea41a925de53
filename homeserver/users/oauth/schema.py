"""The tables of the OAuth 2.0 API. Codes are stored as hashes only, like tokens."""

from __future__ import annotations

from homeserver.database import Schema, Step

# oauth_clients.digest: of the metadata, so that equal registrations share a client.
# oauth_sessions.origin: the hash of the code from which the session came, so that a replay of it is noticed.
# oauth_device_grants.user_nid: the user who has approved it, or NULL. interval_ms grows with each poll too soon.
SCHEMA = Schema(
    "oauth",
    (
        Step(
            "001_create",
            """
            CREATE TABLE oauth_clients (
                client_id TEXT PRIMARY KEY,
                digest BLOB NOT NULL,
                metadata TEXT NOT NULL,
                used_ms INTEGER NOT NULL
            );
            CREATE UNIQUE INDEX oauth_clients_digest ON oauth_clients (digest);
            CREATE INDEX oauth_clients_used ON oauth_clients (used_ms);
            CREATE TABLE oauth_sessions (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                client_id TEXT NOT NULL,
                scope TEXT NOT NULL,
                origin BLOB NOT NULL,
                created_ms INTEGER NOT NULL,
                PRIMARY KEY (user_nid, device_id)
            ) WITHOUT ROWID;
            CREATE INDEX oauth_sessions_of_client ON oauth_sessions (client_id);
            CREATE INDEX oauth_sessions_by_origin ON oauth_sessions (origin);
            CREATE TABLE oauth_codes (
                code_hash BLOB PRIMARY KEY,
                client_id TEXT NOT NULL,
                user_nid INTEGER NOT NULL,
                redirect_uri TEXT NOT NULL,
                scope TEXT NOT NULL,
                challenge TEXT NOT NULL,
                expires_ms INTEGER NOT NULL
            );
            CREATE INDEX oauth_codes_of_user ON oauth_codes (user_nid);
            CREATE INDEX oauth_codes_of_client ON oauth_codes (client_id);
            CREATE INDEX oauth_codes_expiry ON oauth_codes (expires_ms);
            CREATE TABLE oauth_device_grants (
                code_hash BLOB PRIMARY KEY,
                user_code TEXT NOT NULL,
                client_id TEXT NOT NULL,
                scope TEXT NOT NULL,
                address TEXT NOT NULL,
                user_agent TEXT NOT NULL,
                user_nid INTEGER,
                is_refused INTEGER NOT NULL,
                polled_ms INTEGER NOT NULL,
                interval_ms INTEGER NOT NULL,
                expires_ms INTEGER NOT NULL
            );
            CREATE UNIQUE INDEX oauth_device_grants_user_code ON oauth_device_grants (user_code);
            CREATE INDEX oauth_device_grants_of_user ON oauth_device_grants (user_nid);
            CREATE INDEX oauth_device_grants_of_client ON oauth_device_grants (client_id);
            CREATE INDEX oauth_device_grants_expiry ON oauth_device_grants (expires_ms);
            """,
        ),
        Step(
            "002_cross_signing_resets",
            """
            CREATE TABLE cross_signing_resets (
                user_nid INTEGER PRIMARY KEY,
                until_ms INTEGER NOT NULL
            );
            """,
        ),
    ),
)
