"""The configuration: its defaults, its sample, and what it says about mistakes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from homeserver.config import (
    Config,
    ConfigError,
    Listener,
    SsoProvider,
    config_from_table,
    load_config,
    parse_bind,
    read_secret,
)

SAMPLE = Path(__file__).parents[2] / "sample_config.toml"


def sections(kind: type[msgspec.Struct], name: str = "") -> dict[str, set[str]]:
    """The keys of each section of the configuration, by the section's name."""
    found: dict[str, set[str]] = {name: set()}
    for field in msgspec.structs.fields(kind):
        inner = get_args(field.type)[0] if get_origin(field.type) is tuple else field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found |= sections(inner, field.encode_name)
        else:
            found[name].add(field.encode_name)
    return found


def test_the_sample_contains_the_defaults() -> None:
    sample = tomllib.loads(SAMPLE.read_text())
    defaults = msgspec.json.decode(msgspec.json.encode(Config(server_name="localhost")))
    assert defaults.pop("sso") == []  # what the sample says of it is a comment
    assert sample == defaults


def test_the_sample_has_a_provider_of_single_sign_on_in_a_comment() -> None:
    text = SAMPLE.read_text()
    section = text[text.index("# [[sso]]") : text.index("\n[rooms]")]
    table = tomllib.loads(re.sub(r"^# ?", "", section, flags=re.MULTILINE))
    (provider,) = config_from_table({"server_name": "a.example", **table}, Path("/etc")).sso
    assert provider.client_secret_file == "/etc/sso_client_secret"
    chosen = ("id", "name", "issuer", "client_id", "client_secret_file", "trusted_client_urls")
    defaults = SsoProvider(**{key: getattr(provider, key) for key in chosen})
    assert provider == defaults


def test_every_key_of_the_sample_is_explained() -> None:
    """Each stands under a comment: its own, that of the keys just above it, or that of its section."""
    explained = False
    for line in SAMPLE.read_text().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line:
            explained = False
        elif not line.startswith("["):
            assert explained, line


def test_the_sample_contains_every_key() -> None:
    text = SAMPLE.read_text()
    for keys in sections(Config).values():
        for key in keys:
            assert re.search(rf"^(?:# )?{key} = ", text, re.MULTILINE), key


def test_embedding_needs_only_a_server_name(tmp_path: Path) -> None:
    config = Config(server_name="a.example", data_dir=str(tmp_path))
    public, private = config.listeners
    assert (public.bind, private.bind) == ("127.0.0.1:8008", "127.0.0.1:9008")
    assert not {"admin", "metrics"} & set(public.serve)
    assert config.data_path("signing.key") == tmp_path / "signing.key"
    assert config.data_path("/etc/key") == Path("/etc/key")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text(
        'server_name = "a.example"\n[[listeners]]\ntls_cert = "c.pem"\ntls_key = "/k.pem"\n'
        '[[listeners]]\nbind = "unix:h.sock"\n[[listeners]]\nbind = "unix:/run/h.sock"\n'
        '[federation]\nca_file = "ca.pem"\n[application_services]\nfiles = ["irc.yaml"]\n'
    )
    config = load_config(tmp_path / "h.toml")
    assert config.data_dir == str(tmp_path / "data")
    assert config.listeners[0].tls_cert == str(tmp_path / "c.pem")
    assert config.listeners[0].tls_key == "/k.pem"
    assert [each.bind for each in config.listeners[1:]] == [f"unix:{tmp_path}/h.sock", "unix:/run/h.sock"]
    assert config.federation.ca_file == str(tmp_path / "ca.pem")
    assert config.application_services.files == (str(tmp_path / "irc.yaml"),)
    assert config.outbound_http.ca_file == ""


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"databse": {}}, "unknown key 'databse' at the top; did you mean 'database'?"),
        ({"database": {"ulr": "x"}}, "unknown key 'ulr' in [database]; did you mean 'url'?"),
        ({"listeners": [{"bimd": "x"}]}, "unknown key 'bimd' in [[listeners]]; did you mean 'bind'?"),
        ({"zzz": 1}, "unknown key 'zzz' at the top"),
        ({"server_name": "not a name"}, "server_name: 'not a name' is not a server name"),
        ({"listeners": [{"bind": "8008"}]}, "bind '8008' is not host:port"),
        ({"listeners": [{"bind": "127.0.0.1:99999"}]}, "must be from 0 to 65535, not 99999"),
        ({"listeners": [{"bind": "::1:8008"}]}, "bind '::1:8008' is not host:port"),
        ({"listeners": [{"bind": "unix:"}]}, "a unix bind needs a path"),
        ({"listeners": [{"tls_cert": "c.pem"}]}, "tls_cert and tls_key must be given together"),
        ({"listeners": [{"serve": []}]}, "serve is empty"),
        (
            {"listeners": [{"serve": ["clients"]}]},
            'listeners.serve must be "client", "federation", "media", "admin", "metrics" or "health", not "clients"',
        ),
        ({"listeners": [{"serve": "client"}]}, 'listeners.serve must be a list, as in ["…", "…"], not "client"'),
        ({"listeners": {"bind": "x"}}, "listeners: write [[listeners]], with two brackets on each side"),
        ({"listeners": ["127.0.0.1:8008"]}, "listeners: write [[listeners]]"),
        ({"listeners": [{"bind": "unix:/a"}, {"bind": "unix:/a"}]}, "two listeners have the same bind, unix:/a"),
        ({"listeners": [{"socket_mode": "rw"}]}, "socket_mode 'rw' is not three octal digits, as in \"0660\""),
        ({"listeners": [{"socket_mode": "1777"}]}, "socket_mode '1777' is not three octal digits"),
        ({"listeners": [{"socket_mode": 660}]}, 'listeners.socket_mode must be text in "quotes", not 660'),
        ({"listeners": [{"trusted_proxies": ["proxy"]}]}, "trusted_proxies: 'proxy' is not an address or a network"),
        ({"federation": [{"enabled": True}]}, "federation is a section: write [federation], once"),
        ({"log": {"trusted_key_servers": []}}, "'trusted_key_servers' in [log]; it belongs in [federation]"),
        ({"log": {"data_dir": "x"}}, "'data_dir' in [log]; it belongs at the top of the file"),
        ({"bind": "x"}, "unknown key 'bind' at the top; it belongs in [[listeners]]"),
        ({"url": "x"}, "unknown key 'url' at the top; it belongs in [database] or [blobs]"),
        ({"listeners": [{}, {}]}, "two listeners have the same bind, 127.0.0.1:8008"),
        ({"public": {"base_url": "example.org"}}, "public.base_url: 'example.org' is not an http or https URL"),
        ({"public": {"base_url": "https://a:b"}}, "public.base_url"),
        ({"public": {"serve_well_known": "yes"}}, "public.serve_well_known must be true or false, without"),
        ({"public": {"support_page": "help"}}, "public.support_page: 'help' is not an http or https URL"),
        ({"public": {"support_user": "admin"}}, "public.support_user: 'admin' is not a user ID, as in"),
        ({"public": {"security_email": "a b@c"}}, "public.security_email: 'a b@c' is not an email address"),
        ({"public": {"policy_server_key": "abc"}}, "public.policy_server_key must be an ed25519 public key"),
        ({"public": 1}, "public is a section: write [public], once, and its keys below"),
        ({"public": {"base_url": "https://ex ample.org"}}, "public.base_url: 'https://ex ample.org' is not an http"),
        ({"public": {"base_url": "https://u:p@a.example"}}, "public.base_url: 'https://u:p@a.example' is not an http"),
        ({"public": {"base_url": "https://a.example:0"}}, "public.base_url: 'https://a.example:0' is not an http"),
        ({"database": {"url": "sqlite:"}}, 'database.url: "sqlite:" needs the path of a file'),
        ({"blobs": {"url": "file:"}}, 'blobs.url: "file:" needs the path of a folder'),
        ({"public": {"federation_address": "a.example:0"}}, "nobody listens at port 0 of 'a.example:0'"),
        ({"public": {"federation_address": "https://a.example"}}, "public.federation_address: 'https://a.example'"),
        ({"rooms": {"default_version": "13"}}, 'rooms.default_version must be "1", "2", "3",'),
        ({"rooms": {"default_version": 11}}, 'rooms.default_version must be text in "quotes", not 11'),
        ({"passwords": {"length_min": 0}}, "passwords.length_min must be from 1 to 128, not 0"),
        ({"passwords": {"length_min": 129}}, "passwords.length_min must be from 1 to 128, not 129"),
        ({"passwords": {"length_min": True}}, "passwords.length_min must be a whole number, without quotes, not true"),
        ({"database": {"url": "mysql:x"}}, "database.url must begin with"),
        ({"blobs": {"url": "ftp:x"}}, "blobs.url must begin with"),
        ({"blobs": {"upload_bytes_max": 0}}, "blobs.upload_bytes_max must be more than 0, not 0"),
        ({"blobs": {"user_bytes_max": 0}}, "blobs.user_bytes_max must be more than 0, not 0"),
        ({"blobs": {"remote_days_max": -1}}, "blobs.remote_days_max"),
        ({"blobs": {"quota_info_url": "x"}}, "blobs.quota_info_url: 'x' is not an http or https URL"),
        (
            {"blobs": {"unauthenticated_before": "1.2.2024"}},
            "blobs.unauthenticated_before: '1.2.2024' is not a date such as \"2025-01-31\"",
        ),
        ({"blobs": {"user_files_max": -1}}, "blobs.user_files_max must be more than 0, not -1"),
        ({"blobs": {"upload_bytes_max": 2**53}}, "blobs.upload_bytes_max must be at most 9007199254740991"),
        ({"presence": {"online_timeout_s": 2**63 - 1}}, "presence.online_timeout_s must be at most 604800, not"),
        ({"data_dir": "a\0b"}, "data_dir holds the character U+0000"),
        (
            {"registration": {"shared_secret_file": "a\0b"}},
            "registration.shared_secret_file holds the character U+0000",
        ),
        ({"listeners": [{"bind": "unix:a\0b"}]}, "listeners.bind holds the character U+0000"),
        ({"application_services": {"files": ["a\0b"]}}, "application_services.files holds the character U+0000"),
        ({"blobs": {"remote_bytes_max": "1G"}}, "blobs.remote_bytes_max must be a whole number, without quotes"),
        ({"registration": {"recaptcha_public_key": "x"}}, "must be given together"),
        ({"email": {"smtp_host": "a", "from": ""}}, "email.from must be an e-mail address"),
        ({"email": {"smtp_port": 0}}, "email.smtp_port must be from 1 to 65535, not 0"),
        ({"federation": {"trusted_key_servers": ["a b"]}}, "federation.trusted_key_servers: 'a b'"),
        ({"passwords": {"hash_cost": "low"}}, 'passwords.hash_cost must be "default" or "minimal", not "low"'),
        ({"log": {"level": "loud"}}, 'log.level must be "debug", "info", "warning" or "error", not "loud"'),
        ({"server_name": 5}, 'server_name must be text in "quotes", not 5'),
        ({"server_name": ""}, "server_name is missing"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_key(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_table({"server_name": "a.example", **table}, Path())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_server_name_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "h.toml"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"h\.toml: .*server_name"):
        load_config(path)


@pytest.mark.parametrize(("content", "said"), [(b"a = ", "is not valid TOML"), (b"\xff", "is not valid TOML")])
def test_invalid_toml_is_reported(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "h.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path)
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        load_config(tmp_path / "other.toml")


def test_bind_addresses_are_parsed() -> None:
    assert (parse_bind("[::1]:80").host, parse_bind("[::1]:80").port) == ("::1", 80)
    assert parse_bind("localhost:0").port == 0
    assert parse_bind("unix:/run/h.sock").unix_path == "/run/h.sock"


def test_secrets_can_be_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("abc\n")
    assert read_secret("registration.shared_secret_file", str(path)) == "abc"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_secret("registration.shared_secret_file", str(path))
    with pytest.raises(ConfigError, match=r"registration\.shared_secret_file: cannot read"):
        read_secret("registration.shared_secret_file", str(tmp_path / "none"))


def test_a_trailing_slash_of_base_url_is_removed() -> None:
    config = config_from_table({"server_name": "a.example", "public": {"base_url": "https://a.example/"}}, Path())
    assert config.base_url == config.public.base_url == "https://a.example"


@pytest.mark.parametrize(
    ("server_name", "listeners", "base_url", "federation_address"),
    [
        ("example.org", [], "https://example.org", "example.org:443"),
        ("example.org:8448", [], "https://example.org:8448", "example.org:8448"),
        ("localhost", [{"bind": "127.0.0.1:8008"}], "http://127.0.0.1:8008", "127.0.0.1:443"),
        ("localhost:8448", [{"bind": "unix:/a"}, {"bind": "[::]:80"}], "http://[::1]:80", "[::1]:443"),
        ("127.0.0.1", [{"serve": ["health"]}], "https://127.0.0.1", "127.0.0.1:443"),
        ("[::1]", [{"bind": "0.0.0.0:1", "tls_cert": "c", "tls_key": "k"}], "https://127.0.0.1:1", "127.0.0.1:1"),
    ],
)
def test_public_addresses_have_defaults(
    server_name: str, listeners: list[dict[str, Any]], base_url: str, federation_address: str
) -> None:
    config = config_from_table({"server_name": server_name, "listeners": listeners}, Path())
    assert config.base_url == base_url
    assert config.federation_address == federation_address


@pytest.mark.parametrize(
    ("public", "base_url", "federation_address"),
    [
        ({"base_url": "https://m.example.org"}, "https://m.example.org", "m.example.org:443"),
        ({"base_url": "https://m.example.org:8443"}, "https://m.example.org:8443", "m.example.org:8443"),
        ({"base_url": "http://m.example.org:8008"}, "http://m.example.org:8008", "m.example.org:443"),
        ({"federation_address": "f.example.org"}, "https://example.org", "f.example.org"),
        (
            {"base_url": "https://m.example.org", "federation_address": "f.example.org:8448"},
            "https://m.example.org", "f.example.org:8448",
        ),
    ],
)  # fmt: skip
def test_public_addresses_are_derived_from_the_settings(
    public: dict[str, str], base_url: str, federation_address: str
) -> None:
    config = config_from_table({"server_name": "example.org", "public": public}, Path())
    assert config.base_url == base_url
    assert config.federation_address == federation_address


def test_the_permissions_of_a_socket_are_octal() -> None:
    assert Listener().socket_permissions == 0o660
    assert Listener(socket_mode="666").socket_permissions == 0o666
    assert Listener(socket_mode="0o600").socket_permissions == 0o600


def test_two_configurations_in_one_process_are_independent() -> None:
    assert Config(server_name="a.example") == Config(server_name="a.example")
    assert Config(server_name="a.example") != Config(server_name="b.example")
