"""The tables of federation. Owned by `homeserver/remote/`."""

from __future__ import annotations

from homeserver.database import Schema, Step

SCHEMA = Schema(
    name="federation",
    steps=(
        Step(
            "001_create",
            """
            -- What servers have said about their keys, as they signed it: one row for each set of keys.
            CREATE TABLE server_keys (
                server_nid INTEGER NOT NULL,
                keys_hash BLOB NOT NULL,
                fetched_ms INTEGER NOT NULL,
                valid_until_ts INTEGER NOT NULL,
                response BLOB NOT NULL,
                PRIMARY KEY (server_nid, keys_hash)
            );
            -- The keys that this server has ever signed with; expired_ts is NULL of the one it signs with now.
            CREATE TABLE own_keys (
                key_id TEXT PRIMARY KEY,
                key_base64 TEXT NOT NULL,
                expired_ts INTEGER
            );
            -- Destinations that have not got everything yet, and only those. Everything up to acked_position has been
            -- delivered, or was not for them.
            CREATE TABLE destinations (
                server_nid INTEGER PRIMARY KEY,
                acked_position INTEGER NOT NULL,
                failures INTEGER NOT NULL,
                since_ms INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL
            );
            -- Exceptions from the rule that we send what our own users have sent. is_ours 1: an event of a peer that we
            -- pass on, since it came to us alone; 0: one of ours that others have passed on, or that came back to us.
            CREATE TABLE relays (
                position INTEGER PRIMARY KEY,
                is_ours INTEGER NOT NULL
            );
            -- The latest transactions of each origin, and what we have answered.
            CREATE TABLE transactions (
                origin_nid INTEGER NOT NULL,
                txn_id TEXT NOT NULL,
                received_ms INTEGER NOT NULL,
                answer BLOB NOT NULL,
                PRIMARY KEY (origin_nid, txn_id)
            );
            -- Invites to and knocks upon rooms that this server is not in: the event as it was signed.
            CREATE TABLE outside_memberships (
                room_nid INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                sender_nid INTEGER NOT NULL,
                pdu BLOB NOT NULL,
                PRIMARY KEY (room_nid, user_nid)
            );
            """,
        ),
        Step("002_outside_by_user", "CREATE INDEX outside_memberships_of_user ON outside_memberships (user_nid);"),
        Step(
            "003_identity",
            """
            -- Whose database this is, stored at the first start: it serves no other name.
            CREATE TABLE identity (id INTEGER PRIMARY KEY CHECK (id = 1), server_name TEXT NOT NULL);
            """,
        ),
        Step(
            "004_parked",
            """
            -- Events of peers that cannot be received yet: what they follow on, or a key, is missing. As they came.
            CREATE TABLE parked_events (
                room_nid INTEGER NOT NULL,
                event_id TEXT NOT NULL,
                origin_nid INTEGER NOT NULL,
                depth INTEGER NOT NULL,
                received_ms INTEGER NOT NULL,
                attempts INTEGER NOT NULL,
                retry_ms INTEGER NOT NULL,
                pdu BLOB NOT NULL,
                PRIMARY KEY (room_nid, event_id)
            );
            """,
        ),
        Step(
            "004_pending_leaves",
            """
            -- Leaves of rooms that this server is not in, which no server of the room has been told of yet. `servers`:
            -- those to tell, as JSON.
            CREATE TABLE pending_leaves (
                room_nid INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                content BLOB NOT NULL,
                servers BLOB NOT NULL,
                since_ms INTEGER NOT NULL,
                failures INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL,
                PRIMARY KEY (room_nid, user_nid)
            );
            """,
        ),
        Step(
            "005_undone_joins",
            """
            -- If the leave undoes a join: the events that residents may have accepted, as a JSON list. Otherwise NULL.
            ALTER TABLE pending_leaves ADD COLUMN joins BLOB;
            """,
        ),
        Step(
            "006_lanes",
            """
            -- The lanes of destinations that lag, and only those. In this lane everything up to acked_position has been
            -- delivered, or was not for them.
            CREATE TABLE destinations_behind (
                server_nid INTEGER NOT NULL,
                is_durable INTEGER NOT NULL,
                acked_position INTEGER NOT NULL,
                failures INTEGER NOT NULL,
                since_ms INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL,
                PRIMARY KEY (server_nid, is_durable)
            );
            INSERT INTO destinations_behind
                (server_nid, is_durable, acked_position, failures, since_ms, retry_after_ms)
                SELECT server_nid, 0, acked_position, failures, since_ms, retry_after_ms FROM destinations;
            DROP TABLE destinations;
            """,
        ),
        Step(
            "007_device_lists",
            """
            -- Device lists of users of other servers, as of the update `stream_id` of their server. is_fresh: 0 once
            -- an update was missed. tracked_position: from which position on we have followed the list.
            CREATE TABLE remote_device_lists (
                user_nid INTEGER PRIMARY KEY,
                stream_id INTEGER NOT NULL,
                is_fresh INTEGER NOT NULL,
                tracked_position INTEGER NOT NULL,
                master_key BLOB,
                self_signing_key BLOB
            );
            CREATE TABLE remote_devices (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                keys BLOB NOT NULL,
                PRIMARY KEY (user_nid, device_id)
            ) WITHOUT ROWID;
            -- Lists to be fetched. wanted_position: when that was last found necessary.
            CREATE TABLE device_list_resyncs (
                user_nid INTEGER PRIMARY KEY,
                server_nid INTEGER NOT NULL,
                wanted_position INTEGER NOT NULL,
                failures INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL
            );
            CREATE INDEX device_list_resyncs_by_server ON device_list_resyncs (server_nid, retry_after_ms);
            """,
        ),
    ),
)
