"""A private PostgreSQL server for tests: made in a temporary folder, reached by a socket in it, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

# Nothing of a test is worth a wait for the disk.
_FAST = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`: of PATH, or the newest version where Debian puts them."""
    found = shutil.which("initdb")
    if found and Path(found).resolve().with_name("postgres").exists():
        return Path(found).resolve().parent
    folders = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


def missing_reason() -> str | None:
    """Returns why PostgreSQL cannot run here, None if it can."""
    return None if find_binaries() else "PostgreSQL (initdb) is not installed"


class Cluster:
    """A running server. Each test takes a database of its own."""

    def __init__(self, binaries: Path, folder: Path, user: pwd.struct_passwd | None, *, durable: bool) -> None:
        self._binaries = binaries
        self._folder = folder
        self._user = user
        self._durable = durable
        self._databases = 0
        self._names: list[str] = []
        self._server: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Makes the files of the server."""
        command = ("initdb", "-D", str(self._folder / "data"), "-U", "tester", "-A", "trust", "-E", "UTF8")
        self._run(*command, "--locale=C.UTF-8", "--no-sync")

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = ("-c", "listen_addresses=", "-k", str(self._folder), "-c", "max_connections=200")
        self._server = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._folder / "data", *options, *(() if self._durable else _FAST)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as_user(),
        )
        for _ in range(300):
            if subprocess.run([self._binaries / "pg_isready", "-q", "-h", self._folder], check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("PostgreSQL does not start")

    def stop(self) -> None:
        """Ends the server: connections break, what was committed stays."""
        assert self._server is not None
        self._server.send_signal(signal.SIGINT)  # "fast shutdown"
        self._server.wait()

    def throw_away(self) -> None:
        """Ends the server at once, whatever becomes of the data."""
        assert self._server is not None
        self._server.send_signal(signal.SIGQUIT)  # "immediate shutdown"
        self._server.wait()

    @property
    def socket_file(self) -> Path:
        """The socket at which it listens."""
        return self._folder / ".s.PGSQL.5432"

    def make_standby(self) -> Cluster:
        """Starts a server that copies all that is written here. From now on a commit waits until it has that, too."""
        folder = self._folder / "standby"
        folder.mkdir(mode=0o700)
        standby = Cluster(self._binaries, folder, self._user, durable=self._durable)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        source = f"host={self._folder} user=tester application_name=standby"
        self._run("pg_basebackup", "-d", source, "-D", str(folder / "data"), "-R", "-c", "fast", "--no-sync")
        standby.start()
        self._say("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        self._say("SELECT pg_reload_conf()")
        while self._say("SELECT sync_state FROM pg_stat_replication") != "sync":
            time.sleep(0.05)
        return standby

    def promote(self) -> None:
        """Makes a standby a server of its own, which waits for no other."""
        self._say("SELECT pg_promote()")
        self._say("ALTER SYSTEM RESET synchronous_standby_names")
        self._say("SELECT pg_reload_conf()")

    def make_database(self) -> str:
        """The URL of a new, empty database. Its collation is not the C locale: the program must not depend on it."""
        self._databases += 1
        name = f"test_{self._databases}"
        self._names.append(name)
        command = ("createdb", "-h", str(self._folder), "-U", "tester", "-T", "template0", name)
        self._run(*command, "--locale-provider=icu", "--icu-locale=en")
        return f"postgresql://tester@/{name}?host={quote(str(self._folder), safe='')}"

    def drop_idle_databases(self) -> None:
        """Removes the databases that were created and have no connections."""
        for name in self._names[:]:
            try:
                self._run("dropdb", "-h", str(self._folder), "-U", "tester", name)
            except RuntimeError:
                continue
            self._names.remove(name)

    def _say(self, statement: str) -> str:
        """Returns the first value of the answer."""
        options = ("-qAt", "-h", str(self._folder), "-U", "tester", "-d", "postgres", "-c", statement)
        return self._run("psql", *options).strip()

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._binaries / program, *arguments], capture_output=True, text=True, check=False, **self._as_user()
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr}")
        return done.stdout

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {"cwd": self._folder}
        return {"cwd": self._folder, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


@contextmanager
def running_cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A server for as long as the context lasts. durable: it waits for the disk, as in production."""
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError(missing_reason())
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a short name, since a socket's path has 107 bytes at most
    user = _find_user() if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Cluster(binaries, folder, user, durable=durable)
    try:
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.throw_away()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is neither a user postgres nor nobody to run PostgreSQL as")
