"""The tables of access tokens, refresh tokens and account flags. Owned by `homeserver/authenticate/`."""

from __future__ import annotations

from homeserver.database import Schema, Step

SCHEMA = Schema(
    "authenticate",
    (
        Step(
            "tokens",
            """
            CREATE TABLE access_tokens (
                token_hash BLOB PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                created_ms INTEGER NOT NULL,
                expires_ms INTEGER,
                refreshed_by BLOB
            );
            CREATE INDEX access_tokens_device ON access_tokens (user_nid, device_id);
            CREATE TABLE refresh_tokens (
                token_hash BLOB PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                created_ms INTEGER NOT NULL,
                refreshed_by BLOB
            );
            CREATE INDEX refresh_tokens_device ON refresh_tokens (user_nid, device_id);
            CREATE TABLE account_flags (
                user_nid INTEGER PRIMARY KEY,
                is_admin INTEGER NOT NULL,
                is_guest INTEGER NOT NULL,
                is_locked INTEGER NOT NULL,
                is_suspended INTEGER NOT NULL
            );
            """,
        ),
        Step(
            "refresh_families",
            """
            ALTER TABLE refresh_tokens ADD COLUMN family BLOB;
            ALTER TABLE refresh_tokens ADD COLUMN generation INTEGER;
            CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
            """,
        ),
        Step(
            "002_administration",
            """
            -- issued_by_nid: the administrator who got this token to act for the user. It belongs to no device.
            ALTER TABLE access_tokens ADD COLUMN issued_by_nid INTEGER;
            CREATE INDEX access_tokens_issued ON access_tokens (issued_by_nid) WHERE issued_by_nid IS NOT NULL;
            ALTER TABLE account_flags ADD COLUMN is_shadow_banned INTEGER NOT NULL DEFAULT 0;
            -- The account's own rate limit, NULL if the usual ones hold. rate_per_second 0: it has none.
            ALTER TABLE account_flags ADD COLUMN rate_burst INTEGER;
            ALTER TABLE account_flags ADD COLUMN rate_per_second INTEGER;
            """,
        ),
    ),
)
