"""The tables of rooms: events, the room's head, its state tree and its memberships. Owned by `homeserver/rooms/`."""

from __future__ import annotations

from homeserver.database import Schema, Step

SCHEMA = Schema(
    name="rooms",
    steps=(
        Step(
            "001_create",
            """
            -- One row per room that this server has ever stored an event of. The head is the state after all forward
            -- extremities (packed positions, empty while this server is not in the room). last_position: of its newest
            -- event in the timeline. members_position: when a membership last changed.
            CREATE TABLE rooms (
                room_nid INTEGER PRIMARY KEY,
                version TEXT NOT NULL,
                create_position INTEGER NOT NULL,
                state_root BLOB NOT NULL,
                extremities BLOB NOT NULL,
                depth INTEGER NOT NULL,
                last_position INTEGER NOT NULL,
                members_position INTEGER NOT NULL
            );
            -- position: the place in the stream, and the number that stands for the event. ordering: the place in the
            -- timeline of its room, NULL for an event that is in none. status: 0 in the timeline, 1 outlier,
            -- 2 soft-failed, 3 rejected. envelope: what the PDU holds beside its content and the columns.
            CREATE TABLE events (
                position INTEGER PRIMARY KEY,
                event_id BLOB NOT NULL,
                room_nid INTEGER NOT NULL,
                ordering INTEGER,
                type_nid INTEGER NOT NULL,
                state_key_nid INTEGER,
                sender_nid INTEGER NOT NULL,
                origin_server_ts INTEGER NOT NULL,
                status INTEGER NOT NULL,
                redacted_by INTEGER,
                state_before BLOB,
                device_id TEXT,
                txn_id TEXT,
                envelope BLOB NOT NULL,
                content BLOB NOT NULL
            );
            CREATE UNIQUE INDEX events_by_id ON events (event_id);
            CREATE UNIQUE INDEX events_in_room ON events (room_nid, ordering) WHERE ordering IS NOT NULL;
            CREATE UNIQUE INDEX events_by_txn ON events (sender_nid, txn_id, device_id, room_nid, type_nid)
                WHERE txn_id IS NOT NULL;
            -- Events that some event of the timeline names in prev_events and that are not in it: where history
            -- is to be fetched from others. child: the event that names it.
            CREATE TABLE missing_events (
                room_nid INTEGER NOT NULL,
                event_id BLOB NOT NULL,
                child INTEGER NOT NULL,
                PRIMARY KEY (room_nid, event_id, child)
            ) WITHOUT ROWID;
            CREATE TABLE state_nodes (
                node_id BLOB PRIMARY KEY,
                content BLOB NOT NULL
            ) WITHOUT ROWID;
            -- The current membership of each user in each room. changed_position: when the row last changed.
            -- stripped: what an invited or knocking user was told of the room (canonical JSON list), else NULL.
            CREATE TABLE memberships (
                user_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                membership TEXT NOT NULL,
                event_position INTEGER NOT NULL,
                changed_position INTEGER NOT NULL,
                server_nid INTEGER NOT NULL,
                forgotten INTEGER NOT NULL,
                stripped BLOB,
                PRIMARY KEY (user_nid, room_nid)
            ) WITHOUT ROWID;
            CREATE INDEX memberships_of_room ON memberships (room_nid, membership, server_nid);
            -- The state of the head from a point of the timeline on, where it is not simply the state after the last
            -- event before that point, because state resolution had a say or because we have entered the room.
            CREATE TABLE resolved_heads (
                room_nid INTEGER NOT NULL,
                ordering INTEGER NOT NULL,
                state_root BLOB NOT NULL,
                PRIMARY KEY (room_nid, ordering)
            ) WITHOUT ROWID;
            -- A redaction that arrived before the event that it redacts.
            CREATE TABLE pending_redactions (
                event_id BLOB NOT NULL,
                redaction INTEGER NOT NULL,
                PRIMARY KEY (event_id, redaction)
            ) WITHOUT ROWID;
            """,
        ),
        Step(
            "002_memberships_by_change",
            "CREATE INDEX memberships_by_change ON memberships (room_nid, changed_position);",
        ),
        Step(
            "003_events_by_time",
            "CREATE INDEX events_by_time ON events (room_nid, origin_server_ts) WHERE ordering IS NOT NULL;",
        ),
        Step(
            "004_erased_senders",
            "CREATE TABLE erased_senders (sender_nid INTEGER PRIMARY KEY, position INTEGER NOT NULL);",
        ),
        Step(
            "005_withheld_redactions",
            """
            -- Redactions in the timeline that clients are not told of: they take no effect, or not yet. Of a redaction
            -- from before this step we know only whether it was the one that was applied.
            CREATE TABLE withheld_redactions (position INTEGER PRIMARY KEY);
            INSERT INTO withheld_redactions (position)
                SELECT position FROM events
                WHERE status = 0 AND type_nid = (SELECT nid FROM strings WHERE value = 'm.room.redaction')
                AND position NOT IN (SELECT redacted_by FROM events WHERE redacted_by IS NOT NULL);
            """,
        ),
        Step(
            "006_entered_position",
            """
            -- When the membership last became what it is. A new profile changes changed_position, but not this.
            ALTER TABLE memberships ADD COLUMN entered_position INTEGER NOT NULL DEFAULT 0;
            """,
        ),
        Step(
            "007_relations",
            """
            -- Events of timelines that relate to another stored event of their room, see relations.py. ordering: of the
            -- child. annotation: a digest of its key. edit_ts, edit_id: timestamp and ID, if it is a valid edit.
            CREATE TABLE relations (
                child INTEGER PRIMARY KEY,
                parent INTEGER NOT NULL,
                rel_nid INTEGER NOT NULL,
                type_nid INTEGER NOT NULL,
                sender_nid INTEGER NOT NULL,
                ordering INTEGER NOT NULL,
                annotation BLOB,
                edit_ts INTEGER,
                edit_id BLOB
            );
            CREATE INDEX relations_by_parent ON relations (parent, ordering, type_nid);
            CREATE INDEX relations_by_type ON relations (parent, rel_nid, ordering, type_nid);
            CREATE INDEX relations_by_annotation ON relations (parent, sender_nid, type_nid, annotation)
                WHERE annotation IS NOT NULL;
            CREATE INDEX relations_by_edit ON relations (parent, edit_ts, edit_id) WHERE edit_ts IS NOT NULL;
            -- Children whose parent is not stored.
            CREATE TABLE pending_relations (
                event_id BLOB NOT NULL,
                child INTEGER NOT NULL,
                PRIMARY KEY (event_id, child)
            ) WITHOUT ROWID;
            -- What is bundled with an event. kind: 1 edits, 2 references, 3 thread. latest: its newest child.
            -- latest_by: the timestamp of the newest edit, otherwise the ordering of the child.
            CREATE TABLE aggregations (
                parent INTEGER NOT NULL,
                kind INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                children INTEGER NOT NULL,
                latest INTEGER NOT NULL,
                latest_by INTEGER NOT NULL,
                PRIMARY KEY (parent, kind)
            ) WITHOUT ROWID;
            CREATE INDEX aggregations_by_reply ON aggregations (room_nid, latest_by) WHERE kind = 3;
            -- Participants of threads: how many replies each has sent. The sender of the root may have none.
            CREATE TABLE thread_senders (
                root INTEGER NOT NULL,
                sender_nid INTEGER NOT NULL,
                replies INTEGER NOT NULL,
                PRIMARY KEY (root, sender_nid)
            ) WITHOUT ROWID;
            -- The events from before this step whose relations have not been stored yet: position < stream <= upto.
            CREATE TABLE relations_backlog (
                id INTEGER PRIMARY KEY CHECK (id = 1),
                position INTEGER NOT NULL,
                upto INTEGER NOT NULL
            );
            INSERT INTO relations_backlog (id, position, upto) SELECT 1, 0, position FROM stream_position WHERE id = 1;
            """,
        ),
        Step(
            "008_member_changes",
            """
            CREATE INDEX rooms_by_members ON rooms (members_position);
            CREATE INDEX resolved_heads_by_ordering ON resolved_heads (ordering);
            """,
        ),
        Step(
            "009_space_children",
            """
            -- The state keys of a room's m.space.child events, whatever became of these: see `spaces.py`.
            CREATE TABLE space_children (
                room_nid INTEGER NOT NULL,
                child_nid INTEGER NOT NULL,
                PRIMARY KEY (room_nid, child_nid)
            ) WITHOUT ROWID;
            INSERT INTO space_children (room_nid, child_nid)
                SELECT DISTINCT room_nid, state_key_nid FROM events
                WHERE type_nid = (SELECT nid FROM strings WHERE value = 'm.space.child') AND state_key_nid IS NOT NULL;
            """,
        ),
        Step(
            "010_first_of_server",
            """
            DROP INDEX memberships_of_room;
            CREATE INDEX memberships_of_room ON memberships (room_nid, membership, server_nid, entered_position);
            """,
        ),
        Step(
            "011_rewrites",
            """
            -- How often the room's stored history has changed, other than by a new event at its end: see `rewrites.py`.
            ALTER TABLE rooms ADD COLUMN rewrites INTEGER NOT NULL DEFAULT 0;
            """,
        ),
        Step(
            "012_sealing_keys",
            """
            -- Keys that seal what is stored, see keys.py. room_nid: the conversation, NULL for the key of a file.
            -- master: the fingerprint of the master key that wraps it. wrapped: NULL once the key is forgotten.
            CREATE TABLE sealing_keys (
                number INTEGER PRIMARY KEY,
                room_nid INTEGER,
                master TEXT NOT NULL,
                wrapped BLOB
            );
            CREATE UNIQUE INDEX sealing_keys_of_room ON sealing_keys (room_nid)
                WHERE room_nid IS NOT NULL AND wrapped IS NOT NULL;
            CREATE INDEX sealing_keys_by_master ON sealing_keys (master, number) WHERE wrapped IS NOT NULL;
            -- is_current: 1 if it wraps new keys. Others are being replaced, see `homeserver keys rotate`.
            CREATE TABLE master_keys (fingerprint TEXT PRIMARY KEY, is_current INTEGER NOT NULL);
            """,
        ),
        Step(
            "013_forgotten_rooms",
            """
            -- While a room is being forgotten it has two keys. is_current: 1 if the room seals with it.
            ALTER TABLE sealing_keys ADD COLUMN is_current INTEGER NOT NULL DEFAULT 1;
            DROP INDEX sealing_keys_of_room;
            CREATE UNIQUE INDEX sealing_keys_in_use ON sealing_keys (room_nid)
                WHERE room_nid IS NOT NULL AND is_current = 1;
            -- Rooms whose key was forgotten, see forgetting.py. Events at positions <= upto are concerned, those at
            -- positions <= reached are done. forgotten_position: of the last time this was finished, 0 if it never was.
            CREATE TABLE forgotten_rooms (
                room_nid INTEGER PRIMARY KEY,
                upto INTEGER NOT NULL,
                reached INTEGER NOT NULL,
                is_done INTEGER NOT NULL,
                forgotten_position INTEGER NOT NULL
            );
            CREATE INDEX forgotten_rooms_by_position ON forgotten_rooms (forgotten_position);
            """,
        ),
        Step(
            "014_media_references",
            """
            -- The files that the events of rooms refer to, see media_references.py.
            CREATE TABLE media_references (
                server_nid INTEGER NOT NULL,
                media_id TEXT NOT NULL,
                room_nid INTEGER NOT NULL,
                PRIMARY KEY (server_nid, media_id, room_nid)
            ) WITHOUT ROWID;
            CREATE INDEX media_references_of_room ON media_references (room_nid);
            -- The events from before this step that are to be sealed: position < stream <= upto, see resealing.py.
            CREATE TABLE sealing_backlog (
                id INTEGER PRIMARY KEY CHECK (id = 1),
                position INTEGER NOT NULL,
                upto INTEGER NOT NULL
            );
            INSERT INTO sealing_backlog (id, position, upto) SELECT 1, 0, position FROM stream_position WHERE id = 1;
            """,
        ),
        Step(
            "015_keys_out_of_use",
            """
            -- For `forget_old_keys`. It has an entry only while a room is being forgotten.
            CREATE INDEX sealing_keys_out_of_use ON sealing_keys (room_nid)
                WHERE room_nid IS NOT NULL AND is_current = 0 AND wrapped IS NOT NULL;
            """,
        ),
        Step(
            "016_memberships_stripped",
            "CREATE INDEX memberships_stripped ON memberships (changed_position) WHERE stripped IS NOT NULL;",
        ),
        Step(
            "017_expired_events",
            """
            -- Which messages have expired at a position of the stream, see retention.py. events: their positions.
            CREATE TABLE expired_events (position INTEGER PRIMARY KEY, events BLOB NOT NULL);
            -- The latest timestamp of the messages that show the file; very late if not only messages refer to it.
            ALTER TABLE media_references ADD COLUMN last_ts INTEGER NOT NULL DEFAULT 4611686018427387904;
            DROP INDEX media_references_of_room;
            CREATE INDEX media_references_of_room ON media_references (room_nid, last_ts);
            """,
        ),
        Step(
            "018_plain_since",
            """
            -- Since which position of the stream events have been stored unsealed, NULL while they are sealed.
            ALTER TABLE sealing_backlog ADD COLUMN plain_since INTEGER;
            UPDATE sealing_backlog SET plain_since = 0;
            """,
        ),
        Step(
            "019_administration",
            """
            -- Rooms that nobody of this server may join, see blocking.py. is_lasting: 0 while a room is being deleted.
            CREATE TABLE blocked_rooms (
                room_nid INTEGER PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                is_lasting INTEGER NOT NULL
            );
            -- What administrators have asked for and takes long, see tasks.py. resource: the room or user. parameters,
            -- result: JSON. position: of the last change, by which the oldest ones are forgotten.
            CREATE TABLE tasks (
                task_id TEXT PRIMARY KEY,
                action TEXT NOT NULL,
                resource_nid INTEGER NOT NULL,
                status TEXT NOT NULL,
                parameters BLOB NOT NULL,
                result BLOB NOT NULL,
                error TEXT,
                changed_ms INTEGER NOT NULL,
                position INTEGER NOT NULL
            );
            CREATE INDEX tasks_by_status ON tasks (status, position);
            CREATE INDEX tasks_of_resource ON tasks (resource_nid, position);
            """,
        ),
    ),
)
