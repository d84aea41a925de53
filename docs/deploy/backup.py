#!/usr/bin/env python3
"""backup.py DATA_DIR COPIES: backs up a server's data into a new folder COPIES/<date>. The server may be running.

The copy contains everything in DATA_DIR but the master key, the search index and unfinished uploads: database,
signing key and media. The database is copied first: a file without a row in the database is merely cleaned up later,
but a row without a file would be a lost picture. Files that have not changed since the previous copy are hard links to
it and take no space. An interrupted copy keeps the ending ".unfinished".

With PostgreSQL, DATA_DIR contains no database: run pg_dump first. This script needs only Python 3.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from datetime import datetime
from pathlib import Path

DATABASE = "homeserver.db"
UNFINISHED = ".unfinished"
# SQLite's own files beside the database. They belong to the running server and are useless in a copy.
LEFT_OUT = {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}.lock"}
# What is sealed in the copy must not lie next to its key. Back it up once, in another place.
LEFT_OUT |= {"master.key"}
# The search index has the words of messages, and can be rebuilt.
LEFT_OUT |= {"search"}
# Uploads that are not finished are not sealed yet, and a restored server would not know how far they are.
LEFT_OUT |= {"uploads"}


def back_up(data: Path, copies: Path) -> Path:
    """Makes the copy and returns its folder. Raises OSError or sqlite3.Error if that fails or data is damaged."""
    (data / "signing.key").stat()  # every server has one: if it is missing, this is the wrong folder
    before = max((each for each in copies.iterdir() if each.suffix != UNFINISHED), default=None)
    copy = copies / f"{datetime.now():%Y-%m-%dT%H%M%S}"
    unfinished = copy.with_name(copy.name + UNFINISHED)
    unfinished.mkdir(mode=0o700)
    if (data / DATABASE).exists():
        copy_database(data / DATABASE, unfinished / DATABASE)
    for folder, folders, names in os.walk(data):
        inside = Path(folder).relative_to(data)
        if inside == Path():
            folders[:] = [name for name in folders if name not in LEFT_OUT]
        (unfinished / inside).mkdir(mode=0o700, exist_ok=True)
        for name in names:
            if inside != Path() or name not in LEFT_OUT:
                copy_file(data / inside / name, unfinished / inside / name, before and before / inside / name)
    os.sync()
    unfinished.rename(copy)
    return copy


def copy_database(source: Path, target: Path) -> None:
    """Copies a snapshot of the database. Writers do not wait, and the copy does not restart when they write."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    reader = sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)
    writer = sqlite3.connect(target)
    try:
        reader.backup(writer, pages=-1)
        (verdict,) = writer.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"{source} is damaged: {verdict}")
    finally:
        writer.close()
        reader.close()


def copy_file(source: Path, target: Path, before: Path | None) -> None:
    """Copies a file, or links to the previous copy if it is unchanged. Does nothing if the file was just deleted."""
    try:
        found = source.stat()
        if before is not None and before.exists():
            known = before.stat()
            if (known.st_size, known.st_mtime_ns) == (found.st_size, found.st_mtime_ns):
                os.link(before, target)
                return
        shutil.copy2(source, target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)


def main() -> int:
    """Runs the program, which prints the folder of the copy. Returns the exit code."""
    if len(sys.argv) != 3:
        print("usage: backup.py DATA_DIR COPIES", file=sys.stderr)
        return 2
    os.umask(0o077)
    try:
        print(back_up(Path(sys.argv[1]), Path(sys.argv[2])))
    except (OSError, sqlite3.Error) as error:
        print(f"backup.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
