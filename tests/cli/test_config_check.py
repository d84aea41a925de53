"""`config check` looks at the world that a configuration names, and `serve` refuses what cannot be served."""

from __future__ import annotations

import json
import shutil
import socket
import stat
from pathlib import Path

import pytest
import trio

from homeserver.cli.findings import find_all
from homeserver.config import load_config
from homeserver.server import Homeserver
from tests.cli.programs import run, run_apart, said
from tests.support.application_services import registration
from tests.support.mail_server import MailServer

GOOD = """
server_name = "localhost"
[[listeners]]
bind = "127.0.0.1:0"
[passwords]
hash_cost = "minimal"
"""
REAL = GOOD.replace("localhost", "example.org").replace('"minimal"', '"default"')
LONG = "/tmp/" + "a" * 120  # longer than what the system has room for


def write(folder: Path, text: str) -> str:
    path = folder / "homeserver.toml"
    path.write_text(text)
    return str(path)


async def findings(folder: Path, text: str) -> dict[str, str]:
    """Each finding of the configuration, with its level."""
    return {each.text: each.level for each in await find_all(load_config(write(folder, text)))}


def test_a_valid_configuration_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    config = write(tmp_path, GOOD)
    assert run("config", "check", "--config", config).stdout == f"{config} is valid; it serves localhost.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["homeserver.toml"]


@pytest.mark.parametrize(
    ("level", "words", "text"),
    [
        ("error", "there is no [[listeners]] section", "listeners = []\n" + GOOD[: GOOD.index("[[")]),
        ("error", "public.base_url is http://127.0.0.1:8008", REAL + '[public]\nbase_url = "http://127.0.0.1:8008"'),
        ("error", "public.base_url is https://localhost", REAL + '[public]\nbase_url = "https://localhost"'),
        ("error", "public.base_url is https://127.1", REAL + '[public]\nbase_url = "https://127.1"'),
        ("error", "public.base_url is https://LOCALHOST.", REAL + '[public]\nbase_url = "https://LOCALHOST."'),
        ("error", "public.base_url is https://[::ffff:", REAL + '[public]\nbase_url = "https://[::ffff:127.0.0.1]"'),
        (
            "error",
            "public.base_url is http://localhost.local",
            REAL + '[public]\nbase_url = "http://localhost.localdomain"',
        ),
        ("error", f"{LONG}: AF_UNIX path too long", GOOD.replace("127.0.0.1:0", f"unix:{LONG}")),
        ("error", "federation_address is localhost", REAL + '[public]\nfederation_address = "localhost:8448"'),
        ("error", 'no listener serves "federation"', GOOD.replace(':0"', ':0"\nserve = ["client"]')),
        ("error", "cannot listen on 192.0.2.1:0", GOOD.replace("127.0.0.1:0", "192.0.2.1:0")),
        ("error", "cannot read tls_cert", GOOD.replace(':0"', ':0"\ntls_cert = "no.pem"\ntls_key = "no.pem"')),
        ("error", "shared_secret_file: cannot read", GOOD + '[registration]\nshared_secret_file = "none"'),
        ("error", "homeserver.toml contains no PEM certificate", GOOD + '[federation]\nca_file = "homeserver.toml"'),
        ("error", "/a/b does not exist: create it", GOOD + '[database]\nurl = "sqlite:a/b/c.db"'),
        ("error", "/a/b does not exist: create it", GOOD + '[at_rest]\nmaster_key_file = "a/b/master.key"'),
        ("error", "federation.ca_file: cannot read", GOOD + '[federation]\nca_file = "none"'),
        (
            "error",
            "database.url: The database cannot be reached",
            GOOD + '[database]\nurl = "postgresql://u@127.0.0.1:1/x"',
        ),
        ("error", "data_dir: cannot write", 'data_dir = "homeserver.toml/data"\n' + GOOD),
        ("error", "data_dir: cannot write", f'data_dir = "{"é" * 200}"\n' + GOOD),
        (
            "error",
            "federation.signing_key_file: cannot read",
            'data_dir = "."\n' + GOOD + f'[federation]\nsigning_key_file = "{"é" * 200}"',
        ),
        (
            "error",
            "é/x.db cannot be opened: File name too long",
            'data_dir = "."\n' + GOOD + f'[database]\nurl = "sqlite:{"é" * 200}/x.db"',
        ),
        ("warning", "public.base_url is not set", REAL),
        ("warning", "without https", REAL + '[public]\nbase_url = "http://m.example.org"'),
        ("warning", "registration.enabled lets anyone", GOOD + "[registration]\nenabled = true"),
        ("warning", 'no listener serves "client"', GOOD.replace(':0"', ':0"\nserve = ["federation"]')),
        ("warning", "serves admin and metrics to everyone", GOOD.replace("127.0.0.1:0", "0.0.0.0:0")),
        ("warning", "rate_limits.enabled is false", REAL + "[rate_limits]\nenabled = false"),
    ],
)
async def test_mistakes_and_risks_are_found(tmp_path: Path, level: str, words: str, text: str) -> None:
    found = await findings(tmp_path, text)
    assert [kind for sentence, kind in found.items() if words in sentence] == [level], found


async def test_an_invalid_database_port_is_reported_without_the_password(tmp_path: Path) -> None:
    config = write(tmp_path, GOOD + '[database]\nurl = "postgresql://user:secret@host:port/name"')
    for command in (("config", "check"), ("serve",)):
        sentence = said(run(*command, "--config", config))
        assert "database.url: the port 'port' is not a number" in sentence
        assert "secret" not in sentence


async def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        found = await findings(tmp_path, GOOD.replace("127.0.0.1:0", bind))
        assert found == {f"cannot listen on {bind}: another program is listening there": "error"}


async def test_the_port_of_the_running_server_is_not_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    text = GOOD.replace("127.0.0.1:0", bind)
    async with Homeserver(load_config(write(tmp_path, text))) as server, trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        found = await findings(tmp_path, text)
        server.stop()
    assert found == {f"{bind} is in use, probably by a running server": "warning"}


async def test_obstacles_to_a_unix_socket_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    text = GOOD.replace("127.0.0.1:0", f"unix:{path}")
    assert await findings(tmp_path, text) == {}
    path.write_text("precious")
    (sentence,) = await findings(tmp_path, text)
    assert sentence == f"cannot listen on unix:{path}: another program is listening there"
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert await findings(tmp_path, text) == {}
    assert stat.S_ISSOCK(path.stat().st_mode)


async def test_key_and_server_name_are_checked_against_the_database(tmp_path: Path) -> None:
    config = write(tmp_path, GOOD)
    data = tmp_path / "data"
    async with Homeserver(load_config(config)):
        pass
    assert await findings(tmp_path, GOOD) == {}
    (sentence,) = await findings(tmp_path, GOOD.replace("localhost", "localhost:8448"))
    assert "server_name is localhost:8448, but this database belongs to localhost" in sentence
    key = data / "signing.key"
    key.unlink()
    (sentence,) = await findings(tmp_path, GOOD)
    assert f"there is no {key}" in sentence
    key.write_text("hello")
    key.chmod(0o600)
    (sentence,) = await findings(tmp_path, GOOD)
    assert f"{key} does not hold a signing key" in sentence
    shutil.rmtree(data)
    data.mkdir()
    (data / "homeserver.db").write_text("this is no database, whatever its name may be" * 100)
    (sentence,) = await findings(tmp_path, GOOD)
    assert "file is not a database" in sentence


async def test_a_signing_key_readable_by_others_is_reported(tmp_path: Path) -> None:
    async with Homeserver(load_config(write(tmp_path, GOOD))):
        pass
    key = tmp_path / "data" / "signing.key"
    key.chmod(0o644)
    warning = f"every user of this machine can read the signing key: `chmod 600 {key}`"
    assert await findings(tmp_path, GOOD) == {warning: "warning"}


async def test_the_master_key_is_checked_against_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Homeserver(load_config(write(tmp_path, GOOD))):
        pass
    path = tmp_path / "data" / "master.key"
    text = path.read_text()
    fingerprint = text.rpartition("# ")[2].strip()
    for content, words in (
        (None, f"there is no {path}, but this database needs {fingerprint}: restore that key from your backup"),
        ("c2hvcnQ=", f"{path} does not hold a master key, restore it from your backup: a master key has 32 bytes"),
        ("not base64!", f"{path} does not hold a master key"),
        ("A" * 43, f"{path} holds the master key"),
    ):
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
            path.chmod(0o600)
        ((sentence, level),) = (await findings(tmp_path, GOOD)).items()
        assert level == "error"
        assert words in sentence
        assert content is None or content not in sentence
        assert path.exists() == (content is not None)
    path.write_text(text)
    path.chmod(0o644)
    ((sentence, level),) = (await findings(tmp_path, GOOD)).items()
    assert level == "warning"
    assert f"can read the master key, and with it whatever is sealed: `chmod 600 {path}`" in sentence
    path.unlink()
    monkeypatch.setenv("HOMESERVER_MASTER_KEY", "c2hvcnQ=")
    ((sentence, level),) = (await findings(tmp_path, GOOD)).items()
    assert level == "error"
    assert "the environment variable HOMESERVER_MASTER_KEY does not hold a master key" in sentence


async def test_an_object_store_without_credentials_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # as on a machine that has no role
    (sentence,) = await findings(tmp_path, GOOD + '[blobs]\nurl = "s3://bucket/prefix"')
    assert "are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY set in the environment of the server?" in sentence


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("there is no [[listeners]] section", "listeners = []\n" + GOOD[: GOOD.index("[[")]),
        ("registration.shared_secret_file: cannot read", GOOD + '[registration]\nshared_secret_file = "none"'),
        ("data_dir", 'data_dir = "homeserver.toml/data"\n' + GOOD),
        ("homeserver.toml contains no PEM certificate", GOOD + '[federation]\nca_file = "homeserver.toml"'),
        ("/a/b for the database does not exist", GOOD + '[database]\nurl = "sqlite:a/b/c.db"'),
    ],
)
def test_serve_refuses_an_unusable_configuration(tmp_path: Path, words: str, text: str) -> None:
    assert words in said(run_apart("serve", "--config", write(tmp_path, text)))


async def test_a_mail_server_that_takes_no_email_is_reported(tmp_path: Path) -> None:
    with MailServer() as mail:
        port = mail.settings().smtp_port
        section = f'[email]\nsmtp_host = "localhost"\nsmtp_port = {port}\nfrom = "us@example.org"\nsmtp_tls = "none"\n'
        assert await findings(tmp_path, GOOD + section) == {}
        mail.silent = True
        ((sentence, level),) = (await findings(tmp_path, GOOD + section)).items()
    assert level == "warning"
    assert f"localhost:{port} takes no email" in sentence


async def test_risky_registrations_of_application_services_are_reported(tmp_path: Path) -> None:
    everybody = {"users": [{"regex": "@.*", "exclusive": True}]}
    for name, changed in (
        ("one", {"id": "one", "namespaces": everybody, "url": "http://bridge.example.org"}),
        ("two", {"id": "two", "as_token": "2", "url": "http://127.0.0.1:9000"}),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(registration(**changed)))
        path.chmod(0o600 if name == "one" else 0o644)
    found = await findings(tmp_path, GOOD + '[application_services]\nfiles = ["one.yaml", "two.yaml"]')
    assert set(found.values()) == {"warning"}
    assert [sentence.partition(":")[0].partition(", so each")[0] for sentence in sorted(found)] == [
        f"every user of this machine can read the secrets in {tmp_path}/two.yaml",
        "the application service 'one' gets its messages and its secret over the network without encryption",
        "the application service 'one' has all usernames for itself, so nobody can register",
        "the application services 'one' and 'two' have the same sender_localpart",
    ]
