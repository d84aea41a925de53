"""The samples of docs/deploy/ fit the server, one another and docs/running.md."""

from __future__ import annotations

import configparser
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from homeserver.cli import make_parser
from homeserver.config import Config, load_config, parse_bind

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
GUIDE = (ROOT / "docs" / "running.md").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
METRIC = re.compile(r'"(homeserver_[a-z_]+)"')
CADDY = (DEPLOY / "Caddyfile").read_text()


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(DEPLOY / "homeserver.toml")


@pytest.fixture(scope="module")
def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "homeserver.service")
    return unit["Service"]


@pytest.fixture(scope="module")
def socket_path(config: Config) -> str:
    (path,) = {path for each in config.listeners if (path := parse_bind(each.bind).unix_path)}
    return path


def test_every_sample_is_explained_and_says_where_to_install_it() -> None:
    for sample in DEPLOY.iterdir():
        assert f"](deploy/{sample.name})" in GUIDE
        if sample.suffix != ".py":
            target = re.match(r"# (/etc/\S+?)[:\s]", sample.read_text())
            assert target and f"cp docs/deploy/{sample.name} {target[1]}\n" in GUIDE


def test_administration_and_metrics_are_reachable_from_loopback_only(config: Config) -> None:
    for listener in config.listeners:
        if {"admin", "metrics"} & set(listener.serve):
            assert parse_bind(listener.bind).host == "127.0.0.1"
        else:
            assert set(listener.serve) == {"client", "federation", "media", "health"}
    assert any("metrics" in listener.serve for listener in config.listeners)


def test_the_service_runs_an_existing_command_on_the_files_of_the_guide(service: configparser.SectionProxy) -> None:
    program, *words = service["ExecStart"].split()
    assert program == "/opt/homeserver/.venv/bin/homeserver"
    assert vars(make_parser().parse_args(words))["config"] == "/etc/homeserver/homeserver.toml"
    assert (
        f"useradd --system --user-group --home-dir /var/lib/homeserver --shell /usr/sbin/nologin {service['User']}"
        in GUIDE
    )


def test_the_service_creates_the_folders_of_the_configuration(
    service: configparser.SectionProxy, config: Config, socket_path: str
) -> None:
    assert config.data_dir == f"/var/lib/{service['StateDirectory']}"
    assert str(Path(socket_path).parent) == f"/run/{service['RuntimeDirectory']}"


def test_the_proxy_reaches_the_socket_through_its_group(
    service: configparser.SectionProxy, config: Config, socket_path: str
) -> None:
    (listener,) = (each for each in config.listeners if each.bind == f"unix:{socket_path}")
    assert listener.socket_permissions == 0o660
    assert service["RuntimeDirectoryMode"] == "0750"
    for user in ("www-data", "caddy"):
        assert f"usermod -aG {service['Group']} {user}\n" in GUIDE


def test_proxies_connect_to_the_socket_for_the_served_name(config: Config, socket_path: str) -> None:
    assert f"server unix:{socket_path};" in NGINX
    assert f"reverse_proxy unix/{socket_path}\n" in CADDY
    assert f"server_name {config.server_name};" in NGINX
    assert re.search(rf"^{re.escape(config.server_name)} {{$", CADDY, re.MULTILINE)
    assert config.base_url == f"https://{config.server_name}"


def test_proxies_leave_refusing_large_uploads_to_the_server(config: Config) -> None:
    (nginx,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    (caddy,) = re.findall(r"max_size (\d+)MiB$", CADDY, re.MULTILINE)
    assert config.blobs.upload_bytes_max < int(nginx) << 20
    assert config.blobs.upload_bytes_max < int(caddy) << 20


def test_nginx_passes_paths_on_unchanged() -> None:
    assert re.findall(r"proxy_pass (\S+);", NGINX) == ["http://homeserver"]


def test_the_table_of_ports_and_the_probes_agree_on_the_administration_port(config: Config) -> None:
    (port,) = (parse_bind(each.bind).port for each in config.listeners if "admin" in each.serve)
    assert f"http://127.0.0.1:{port}/_homeserver/health/ready" in GUIDE
    assert f"http://127.0.0.1:{port}/_homeserver/metrics" in GUIDE
    assert f"Never open {port}:" in GUIDE


def test_the_metrics_in_the_guide_exist() -> None:
    named = set(re.findall(r"`(homeserver_\w+)`", GUIDE))
    known = {name for path in (ROOT / "homeserver").rglob("*.py") for name in re.findall(METRIC, path.read_text())}
    assert named and named <= known


def back_up(data: Path, copies: Path) -> Path:
    command = [sys.executable, DEPLOY / "backup.py", data, copies]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data of a server: one event, one picture, its key."""
    folder = tmp_path / "data"
    (folder / "blobs" / "ab").mkdir(parents=True)
    (folder / "signing.key").write_text("ed25519 a key")
    (folder / "master.key").write_text("a key that must not be in a backup")
    (folder / "search").mkdir()
    (folder / "search" / "words").write_text("plain words")
    (folder / "blobs" / "ab" / "file").write_text("a picture")
    with sqlite3.connect(folder / "homeserver.db") as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("CREATE TABLE events (n INTEGER)")
        database.execute("INSERT INTO events VALUES (1)")
    database.close()
    return folder


def test_a_backup_is_consistent_while_clients_write(data: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    writer = sqlite3.connect(data / "homeserver.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO events VALUES (2)")
    copy = back_up(data, tmp_path / "copies")
    writer.execute("COMMIT")
    assert sorted(path.name for path in copy.iterdir()) == ["blobs", "homeserver.db", "signing.key"]
    assert (copy / "signing.key").read_text() == "ed25519 a key"
    assert (copy / "blobs" / "ab" / "file").read_text() == "a picture"
    assert sqlite3.connect(copy / "homeserver.db").execute("SELECT n FROM events").fetchall() == [(1,)]
    assert copy.stat().st_mode & 0o077 == 0


def test_the_next_backup_shares_unchanged_media(data: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    first = back_up(data, copies).rename(copies / "2000-01-01T000000")
    (data / "blobs" / "ab" / "another").write_text("another picture")
    (data / "signing.key").write_text("ed25519 another key")
    second = back_up(data, copies)
    assert (second / "blobs" / "ab" / "file").samefile(first / "blobs" / "ab" / "file")
    assert (second / "blobs" / "ab" / "another").read_text() == "another picture"
    assert (first / "signing.key").read_text() == "ed25519 a key"


def test_a_failed_backup_says_so_in_one_line_and_leaves_no_copy(data: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    (data / "homeserver.db").write_bytes(b"no database at all" * 100)
    command = [sys.executable, DEPLOY / "backup.py", data, copies]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("backup.py: ") and done.stderr.count("\n") == 1
    assert [path.suffix for path in copies.iterdir()] == [".unfinished"]


def test_a_folder_without_a_server_is_not_backed_up(tmp_path: Path) -> None:
    done = subprocess.run([DEPLOY / "backup.py", tmp_path, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "signing.key" in done.stderr
    assert list(tmp_path.iterdir()) == []
