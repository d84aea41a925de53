"""The tables of the content repository. Their functions are in the modules called `…storage`."""

from __future__ import annotations

from homeserver.database import Schema, Step

SCHEMA = Schema(
    "media",
    (
        Step(
            "create",
            """
            CREATE TABLE media (
                media_nid INTEGER PRIMARY KEY,
                server_nid INTEGER NOT NULL,
                media_id TEXT NOT NULL,
                blob_key TEXT NOT NULL,
                sha256 BLOB NOT NULL,
                size_bytes INTEGER NOT NULL,
                content_type TEXT NOT NULL,
                filename TEXT,
                uploader_nid INTEGER,
                created_ms INTEGER NOT NULL,
                used_ms INTEGER NOT NULL,
                is_public INTEGER NOT NULL,
                UNIQUE (server_nid, media_id)
            );
            CREATE INDEX media_sha256 ON media (sha256);
            CREATE INDEX media_used ON media (used_ms) WHERE uploader_nid IS NULL;
            CREATE TABLE media_pending (
                media_id TEXT PRIMARY KEY,
                uploader_nid INTEGER NOT NULL,
                expires_ms INTEGER NOT NULL
            );
            CREATE INDEX media_pending_uploader ON media_pending (uploader_nid, expires_ms);
            CREATE INDEX media_pending_expiry ON media_pending (expires_ms);
            CREATE TABLE media_usage (
                uploader_nid INTEGER PRIMARY KEY,
                files INTEGER NOT NULL,
                size_bytes INTEGER NOT NULL
            );
            CREATE TABLE media_images (
                media_nid INTEGER PRIMARY KEY,
                content_type TEXT NOT NULL,
                width INTEGER NOT NULL,
                height INTEGER NOT NULL,
                is_animated INTEGER NOT NULL,
                failure TEXT NOT NULL,
                checked_ms INTEGER NOT NULL
            );
            CREATE TABLE media_thumbnails (
                media_nid INTEGER NOT NULL,
                method TEXT NOT NULL,
                width INTEGER NOT NULL,
                height INTEGER NOT NULL,
                animated INTEGER NOT NULL,
                content_type TEXT NOT NULL,
                blob_key TEXT NOT NULL,
                size_bytes INTEGER NOT NULL,
                content BLOB,
                PRIMARY KEY (media_nid, method, width, height, animated)
            );
            CREATE INDEX media_thumbnails_blob ON media_thumbnails (blob_key);
            CREATE TABLE media_deletions (blob_key TEXT PRIMARY KEY);
            CREATE TABLE media_sweep (id INTEGER PRIMARY KEY CHECK (id = 1), next_shard INTEGER NOT NULL);
            INSERT INTO media_sweep (id, next_shard) VALUES (1, 0);
            """,
        ),
        Step("uploader", "CREATE INDEX media_uploader ON media (uploader_nid) WHERE uploader_nid IS NOT NULL;"),
        Step(
            "url_previews",
            """
            CREATE TABLE url_previews (
                url_sha256 BLOB PRIMARY KEY,
                body BLOB NOT NULL,
                media_id TEXT NOT NULL,
                fetched_ms INTEGER NOT NULL
            );
            CREATE INDEX url_previews_fetched ON url_previews (fetched_ms);
            CREATE INDEX url_previews_picture ON url_previews (media_id) WHERE media_id <> '';
            CREATE TABLE url_preview_pictures (
                media_id TEXT PRIMARY KEY,
                size_bytes INTEGER NOT NULL,
                used_ms INTEGER NOT NULL
            );
            CREATE INDEX url_preview_pictures_used ON url_preview_pictures (used_ms, size_bytes);
            """,
        ),
        Step(
            "quarantine",
            """
            CREATE TABLE media_quarantine (
                server_nid INTEGER NOT NULL,
                media_id TEXT NOT NULL,
                sha256 BLOB NOT NULL,
                by_nid INTEGER NOT NULL,
                PRIMARY KEY (server_nid, media_id)
            );
            CREATE INDEX media_quarantine_sha256 ON media_quarantine (sha256);
            """,
        ),
        Step(
            "uploads",
            """
            CREATE TABLE media_uploads (
                upload_id TEXT PRIMARY KEY,
                owner_nid INTEGER NOT NULL,
                length_bytes INTEGER NOT NULL,
                offset_bytes INTEGER NOT NULL,
                content_type TEXT NOT NULL,
                filename TEXT,
                metadata TEXT NOT NULL,
                expires_ms INTEGER NOT NULL,
                media_id TEXT NOT NULL,
                info TEXT NOT NULL
            );
            CREATE INDEX media_uploads_owner ON media_uploads (owner_nid, media_id);
            CREATE INDEX media_uploads_expiry ON media_uploads (expires_ms);
            """,
        ),
        Step(
            "protected",
            """
            -- Files of this server that quarantining many at once leaves out, such as stickers.
            CREATE TABLE media_protected (media_id TEXT PRIMARY KEY);
            """,
        ),
    ),
)
