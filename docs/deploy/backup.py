#!/usr/bin/env python3
"""backup.py DATA_DIR COPIES: copies what a server keeps, running or not, into a new folder COPIES/<date>.

The copy is of everything in DATA_DIR: database, signing key, media. The database comes first. A file without its row in
the database is only cleaned up later; a row without its file would be a lost picture. A file that has not changed since
the copy before is a hard link to that, and takes no space. A copy that was interrupted keeps the ending ".unfinished".

With PostgreSQL there is no database in DATA_DIR: run pg_dump first. Takes nothing but Python 3.
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
# SQLite's own files beside the database: part of it while it runs, of no use to a copy.
LEFT_OUT = {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}.lock"}


def back_up(data: Path, copies: Path) -> Path:
    """Makes the copy and returns its folder. Raises OSError or sqlite3.Error if it cannot be made or is damaged."""
    (data / "signing.key").stat()  # every server has one; without it this is the wrong folder
    before = max((each for each in copies.iterdir() if each.suffix != UNFINISHED), default=None)
    copy = copies / f"{datetime.now():%Y-%m-%dT%H%M%S}"
    unfinished = copy.with_name(copy.name + UNFINISHED)
    unfinished.mkdir(mode=0o700)
    if (data / DATABASE).exists():
        copy_database(data / DATABASE, unfinished / DATABASE)
    for folder, _, names in os.walk(data):
        inside = Path(folder).relative_to(data)
        (unfinished / inside).mkdir(mode=0o700, exist_ok=True)
        for name in names:
            if inside != Path() or name not in LEFT_OUT:
                copy_file(data / inside / name, unfinished / inside / name, before and before / inside / name)
    os.sync()
    unfinished.rename(copy)
    return copy


def copy_database(source: Path, target: Path) -> None:
    """Copies the database as it is at one moment. Writers neither wait nor make the copy begin again."""
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
    """Copies a file, or links the copy before if it is the same. Nothing happens if the file has just been deleted."""
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
    """The program. Prints the folder of the copy."""
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
