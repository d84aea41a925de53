"""The archive: old messages in compressed blocks in the blob storage, which every reader of rooms reads like rows.

`codec.py` is the format of a block, `blocks.py` has the tables that say what is in which block, and `reading.py` gives
rows of archived events to `homeserver/rooms/storage.py`. `homeserver/rooms/archiving.py` moves events into blocks.

Theory of operation. A transaction cannot wait for the blob storage. So a function that needs a block that is not in the
cache raises `BlocksNeeded`; `Database.read` and `Database.write` undo what it did, get the blocks (`fetching.py`), and
call it again with them. Nobody who reads events has to know.

A row of `events` counts for more than the same event in a block. So whatever changes an archived event, such as a
redaction, stores its row again, and the block is rewritten without it later.
"""
