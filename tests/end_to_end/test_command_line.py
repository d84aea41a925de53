"""The program `homeserver`, as operators and service managers use it: exit codes, sentences, signals."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from homeserver.cli.demo_story import DIALOGUE
from homeserver.errors import MatrixError
from tests.end_to_end.programs import COMMAND, Homeserver, Place, free_port, run, run_program, wait_until, write_config
from tests.support.forks import PIPE, forks

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def server(place: Place, request: pytest.FixtureRequest) -> Iterator[Homeserver]:
    """A server that is not started; it ends with the test."""
    server = place.organisation(request.node.name.replace("/", "-")[:100])
    yield server
    server.kill()


def assert_one_sentence(said: str) -> None:
    """Checks that an operator gets one line without a traceback."""
    assert said.startswith("homeserver: ")
    assert said.count("\n") == 1


def serve_in_vain(server: Homeserver) -> str:
    """Runs `serve`, which must fail, and returns its standard error."""
    result = run("serve", "--config", server.config)
    assert result.returncode == 1
    assert_one_sentence(result.stderr)
    assert result.stdout == ""
    return result.stderr


def test_the_demo_plays_a_dialogue_between_two_servers_and_ends() -> None:
    result = run_program("demo", "--exit")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    at = 0
    for name, text in DIALOGUE:  # in this order
        at = next(number for number in range(at, len(lines)) if f"{name}: {text}" in lines[number]) + 1
    assert any("romeo has the picture" in line for line in lines[at:])
    assert lines[-1] == "Everything has arrived on both servers."
    assert result.stderr == ""


def test_the_demo_prints_machine_readable_output_on_request() -> None:
    result = run("demo", "--exit", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    steps = {line["step"]: line["took_ms"] for line in told if "step" in line}
    assert all(f"{name}: {text}" in steps for name, text in DIALOGUE)
    assert all(took_ms > 0 for took_ms in steps.values())


def test_the_demo_prints_links_that_log_in_to_the_chat_pages_once() -> None:
    demo = forks().start("demo", "--json", stdout=PIPE)
    assert demo.stdout is not None
    with demo.stdout:
        told: list[dict[str, str]] = []
        try:
            while "ends" not in (told[-1] if told else {}):
                told.append(json.loads(demo.stdout.readline()))
            links = {line["user_id"]: line["chat"] for line in told if "chat" in line}
            assert len({link.partition("/_homeserver")[0] for link in links.values()}) == 2
            for user_id, link in links.items():
                page, _, token = link.partition("#link=")
                assert httpx.get(page, timeout=60).headers["content-type"].startswith("text/html")
                client = page.replace("/_homeserver/chat", "/_matrix/client/v3")
                used = httpx.post(f"{client}/refresh", json={"refresh_token": unquote(token)})
                headers = {"authorization": f"Bearer {used.json()['access_token']}"}
                assert httpx.get(f"{client}/account/whoami", headers=headers).json()["user_id"] == user_id
                again = httpx.post(f"{client}/refresh", json={"refresh_token": unquote(token)})
                assert again.status_code == 401
        finally:
            demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0


def test_closing_the_output_ends_the_demo_quietly() -> None:
    demo = forks().start("demo", "--exit", stdout=PIPE, stderr=PIPE)
    assert demo.stdout is not None and demo.stderr is not None
    demo.stdout.readline()
    demo.stdout.close()
    with demo.stderr:
        assert demo.stderr.read() == ""
    assert demo.wait(60) == 1


def test_a_valid_configuration_is_confirmed(server: Homeserver) -> None:
    result = run("config", "check", "--config", server.config)
    assert (result.returncode, result.stderr) == (0, "")
    warning, last = result.stdout.splitlines()
    assert "registration.enabled lets anyone create accounts" in warning
    assert last == f"{server.config} can be served as {server.server_name}, with the warnings above."
    result = run("config", "check", "--json", "--config", server.config)
    findings = [{"level": "warning", "text": warning.removeprefix("warning: ")}]
    assert json.loads(result.stdout) == {"ok": True, "server_name": server.server_name, "findings": findings}
    assert not (server.folder / "data").exists()


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("[registration]\nenabeld = true", "did you mean 'enabled'?"),
        ('[federation]\nca_file = "gone.pem"', "gone.pem"),
        ('[[listeners]]\nbind = "nowhere"', "nowhere"),
        ('[database]\nurl = "mysql:x"', "database.url"),
        ("[rate_limits]\nenabled = 1", "rate_limits"),
        ("[rate_limits", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_configuration_is_reported_in_one_sentence(tmp_path: Path, line: str, hint: str) -> None:
    config = tmp_path / "homeserver.toml"
    # Whether another program listens on the default port is not this test's concern.
    listener = "" if "listeners" in line else '[[listeners]]\nbind = "unix:homeserver.sock"\n'
    config.write_text(f'server_name = "a.example"\n{line}\n{listener}')
    result = run("config", "check", "--config", config)
    assert (result.returncode, result.stdout) == (1, "")
    assert_one_sentence(result.stderr)
    assert hint in result.stderr
    assert str(config) in result.stderr


def test_a_missing_configuration_is_reported_in_one_sentence(tmp_path: Path) -> None:
    for command in (("serve",), ("config", "check"), ("user", "add", "alice", "--password-stdin")):
        result = run(*command, "--config", tmp_path / "none.toml", stdin="secret\n")
        assert result.returncode == 1
        assert_one_sentence(result.stderr)
        assert "none.toml" in result.stderr


def test_a_user_added_on_the_command_line_can_log_in(server: Homeserver) -> None:
    write_config(server, {"registration": {"enabled": False}})
    result = run("user", "add", "alice", "--password-stdin", "--config", server.config, stdin="good night\n")
    assert (result.returncode, result.stdout) == (0, f"{server.user_id('alice')} can log in now.\n"), result.stderr
    again = run("user", "add", "alice", "--password-stdin", "--config", server.config, stdin="good night\n")
    assert again.returncode == 1
    assert_one_sentence(again.stderr)
    command = ("user", "add", "root", "--admin", "--json", "--password-stdin", "--config", server.config)
    root = run(*command, stdin="good night\n")
    assert json.loads(root.stdout) == {"user_id": server.user_id("root"), "admin": True}
    server.start()
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": "good night"}
    assert server.call("POST", "login", body=body)["user_id"] == server.user_id("alice")
    with pytest.raises(MatrixError) as refused:
        server.register("mallory")
    assert refused.value.errcode == "M_FORBIDDEN"


def test_a_user_of_another_server_or_without_a_password_is_not_added(server: Homeserver) -> None:
    for name, password in (("@alice:elsewhere.example", "x\n"), ("alice", "\n"), ("al ice", "x\n")):
        result = run("user", "add", name, "--password-stdin", "--config", server.config, stdin=password)
        assert result.returncode == 1
        assert_one_sentence(result.stderr)


def test_a_taken_port_is_reported_in_one_sentence(server: Homeserver) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.client_port))
        taken.listen()
        assert f"127.0.0.1:{server.client_port}" in serve_in_vain(server)


def test_a_second_server_on_the_same_data_is_refused(server: Homeserver) -> None:
    server.start()
    first = server.config.read_text()
    other = server.folder / "other.toml"
    other.write_text(
        first.replace(f":{server.client_port}", f":{free_port()}").replace(
            f'bind = "127.0.0.1:{server.federation_port}', f'bind = "127.0.0.1:{free_port()}'
        )
    )
    result = run("serve", "--config", other)
    assert result.returncode == 1
    assert_one_sentence(result.stderr)
    assert server.call("GET", "/_matrix/client/versions")


def test_a_database_of_a_newer_program_is_refused_and_left_unchanged(server: Homeserver) -> None:
    server.start()
    server.register("alice")
    assert server.stop() == 0
    database = server.folder / "data" / "homeserver.db"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('rooms', '9999_later', '2099')"
        )
    connection.close()
    before = database.read_bytes()
    assert "newer" in serve_in_vain(server)
    assert database.read_bytes() == before


def test_a_file_that_is_not_a_database_is_refused_and_left_unchanged(server: Homeserver) -> None:
    folder = server.folder / "data"
    folder.mkdir()
    (folder / "homeserver.db").write_bytes(b"Two households, both alike in dignity\n" * 100)
    serve_in_vain(server)
    assert (folder / "homeserver.db").read_bytes().startswith(b"Two households")


@pytest.mark.parametrize("folder", ["data", "data/blobs"])
def test_a_file_in_place_of_a_folder_is_reported_in_one_sentence(server: Homeserver, folder: str) -> None:
    path = server.folder / folder
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert str(path) in serve_in_vain(server)


def test_a_full_disk_is_reported_in_one_sentence(server: Homeserver) -> None:
    """As far as a limit on the size of files is one."""
    limited = f'ulimit -f 100; exec "{COMMAND}" serve --config "{server.config}"'
    result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert_one_sentence(result.stderr)


def test_a_broken_signing_key_or_certificate_is_reported_in_one_sentence(server: Homeserver) -> None:
    (server.folder / "data").mkdir()
    (server.folder / "data" / "signing.key").write_text("not a key\n")
    assert "signing.key" in serve_in_vain(server)
    (server.folder / "data" / "signing.key").unlink()
    (server.folder / "tls.key").write_text("not a key\n")
    assert "tls.key" in serve_in_vain(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_exit_code_0(server: Homeserver, number: signal.Signals) -> None:
    server.start(program=True)
    assert server.stop(number) == 0
    assert "Traceback" not in server.said()
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url + "/_homeserver/health/ready")


def test_requests_under_way_are_answered_before_the_server_ends(server: Homeserver) -> None:
    server.start()
    token = server.register("alice")
    since = server.call("GET", "sync", token)["next_batch"]
    answers: dict[str, Any] = {}
    waiting = threading.Thread(
        target=lambda: answers.update(
            sync=httpx.get(
                f"{server.url}/_matrix/client/v3/sync?timeout=60000&since={since}",
                headers={"authorization": f"Bearer {token}"}, timeout=90,
            )
        )
    )  # fmt: skip
    waiting.start()
    request = (
        f"POST /_matrix/media/v3/upload HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        "content-type: text/plain\r\ncontent-length: 12\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", server.client_port), timeout=30) as upload:
        upload.sendall(request + b"half of")
        wait_until("both requests to be under way", lambda: _active(server) >= 3)  # the third asks for this number
        server.begin_stop()
        waiting.join(30)
        upload.sendall(b" it..")
        answer = upload.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"content_uri" in answer
    assert answers["sync"].status_code in (200, 503)
    assert answers["sync"].json()
    assert server.wait_ended() == 0


def _active(server: Homeserver) -> int:
    lines = httpx.get(f"{server.url}/_homeserver/metrics").text.splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("homeserver_requests_active "))


def test_stored_data_survives_a_restart(server: Homeserver) -> None:
    server.start()
    token = server.register("alice")
    room_id = server.call("POST", "createRoom", token, {"name": "Kitchen"})["room_id"]
    since = server.call("GET", "sync", token)["next_batch"]
    assert server.stop() == 0
    server.start()
    assert server.call("GET", f"rooms/{room_id}/state/m.room.name/", token) == {"name": "Kitchen"}
    assert "join" not in server.call("GET", "sync", token, since=since).get("rooms", {})


def test_the_front_page_says_what_this_server_is(server: Homeserver) -> None:
    server.start()
    page = httpx.get(server.url + "/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert server.server_name in page.text
    assert server.url in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    missing = httpx.get(server.url + "/no/such/page")
    assert missing.status_code == 404
    assert missing.headers["content-type"].startswith("text/html")
    ready = httpx.get(server.url + "/_homeserver/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})
