"""Config: what an operator decides, as frozen values. `sample_config.toml` explains every key.

Paths in a file are relative to that file; the database, the blobs and the signing key are relative to `data_dir`.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_server_name

ServeGroup = Literal["client", "federation", "media", "admin", "metrics", "health"]
SERVE_GROUPS: tuple[ServeGroup, ...] = get_args(ServeGroup)


class ConfigError(ValueError):
    """What is wrong with the configuration, in one sentence for the operator."""


class Bind(msgspec.Struct, frozen=True):
    """Where a listener listens: a TCP address, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    unix_path: str = ""


def parse_bind(bind: str) -> Bind:
    """`host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose. Raises ConfigError."""
    if bind.startswith("unix:"):
        if not bind[5:]:
            raise ConfigError("a unix bind needs a path, as in unix:/run/homeserver.sock")
        return Bind(unix_path=bind[5:])
    host, colon, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or (":" in host and not bracketed):
        raise ConfigError(f"bind {bind!r} is not host:port, [::1]:port or unix:/path")
    _check_port(f"bind {bind!r}: the port", int(port), lowest=0)
    return Bind(host=host[1:-1] if bracketed else host, port=int(port))


def _check_server_name(key: str, value: str) -> None:
    try:
        parse_server_name(value)
    except InvalidIdentifier as error:
        raise ConfigError(f"{key}: {value!r} is not a server name ({error})") from error


def _check_url(key: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{key}: {value!r} is not an http or https URL")


def _check_port(key: str, port: int, *, lowest: int) -> None:
    if not lowest <= port <= 65535:
        raise ConfigError(f"{key} must be from {lowest} to 65535, not {port}")


def _check_positive(key: str, value: int) -> None:
    if value <= 0:
        raise ConfigError(f"{key} must be more than 0, not {value}")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Listener(Section, frozen=True):
    """One address that the server answers on. TLS is on where both files are given."""

    bind: str = "127.0.0.1:8008"
    serve: tuple[ServeGroup, ...] = SERVE_GROUPS
    tls_cert: str = ""
    tls_key: str = ""

    def __post_init__(self) -> None:
        parse_bind(self.bind)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError(f"listener {self.bind}: tls_cert and tls_key must be given together")
        if not self.serve:
            raise ConfigError(f"listener {self.bind}: serve is empty, so it would answer nothing")


class Public(Section, frozen=True):
    """How the rest of the world reaches this server."""

    base_url: str = "http://127.0.0.1:8008"
    serve_well_known: bool = True

    def __post_init__(self) -> None:
        _check_url("public.base_url", self.base_url)
        msgspec.structs.force_setattr(self, "base_url", self.base_url.rstrip("/"))

    def client_discovery(self) -> dict[str, dict[str, str]]:
        """What clients are told of this server: `/.well-known/matrix/client`, and part of the answer to `/login`."""
        return {"m.homeserver": {"base_url": self.base_url}}


class DatabaseSection(Section, frozen=True):
    url: str = "sqlite:homeserver.db"

    def __post_init__(self) -> None:
        if self.url.partition(":")[0] not in ("sqlite", "postgresql", "postgres"):
            raise ConfigError('database.url must begin with "sqlite:" or "postgresql:"')


class BlobsSection(Section, frozen=True):
    url: str = "file:blobs"
    upload_bytes_max: int = 52428800

    def __post_init__(self) -> None:
        if self.url.partition(":")[0] not in ("file", "memory", "s3", "gs", "az"):
            raise ConfigError('blobs.url must begin with "file:", "s3:", "gs:" or "az:"')
        _check_positive("blobs.upload_bytes_max", self.upload_bytes_max)


class Registration(Section, frozen=True):
    enabled: bool = False
    require_token: bool = False
    shared_secret_file: str = ""
    guests: bool = False
    recaptcha_public_key: str = ""
    recaptcha_private_key: str = ""
    recaptcha_verify_url: str = "https://www.recaptcha.net/recaptcha/api/siteverify"

    def __post_init__(self) -> None:
        _check_url("registration.recaptcha_verify_url", self.recaptcha_verify_url)
        if bool(self.recaptcha_public_key) != bool(self.recaptcha_private_key):
            raise ConfigError("registration.recaptcha_public_key and recaptcha_private_key must be given together")


class Passwords(Section, frozen=True):
    hash_cost: Literal["default", "minimal"] = "default"


class Email(Section, frozen=True):
    smtp_host: str = ""
    smtp_port: int = 587
    from_address: str = msgspec.field(name="from", default="")
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password_file: str = ""

    def __post_init__(self) -> None:
        _check_port("email.smtp_port", self.smtp_port, lowest=1)
        if self.smtp_host and "@" not in self.from_address:
            raise ConfigError("email.from must be an e-mail address where email.smtp_host is given")


class RateLimitsSection(Section, frozen=True):
    enabled: bool = True


class FederationSection(Section, frozen=True):
    enabled: bool = True
    ca_file: str = ""
    verify_tls: bool = True
    allow_private_addresses: bool = False
    trusted_key_servers: tuple[str, ...] = ()
    signing_key_file: str = "signing.key"

    def __post_init__(self) -> None:
        for name in self.trusted_key_servers:
            _check_server_name("federation.trusted_key_servers", name)


class OutboundHttp(Section, frozen=True):
    ca_file: str = ""
    verify_tls: bool = True
    allow_private_addresses: bool = False


class UrlPreviews(Section, frozen=True):
    enabled: bool = False


class Directory(Section, frozen=True):
    require_login: bool = True
    over_federation: bool = True


class Presence(Section, frozen=True):
    enabled: bool = True
    online_timeout_s: int = 300

    def __post_init__(self) -> None:
        _check_positive("presence.online_timeout_s", self.online_timeout_s)


class SearchSection(Section, frozen=True):
    enabled: bool = True


class ApplicationServices(Section, frozen=True):
    files: tuple[str, ...] = ()


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Config(Section, frozen=True):
    """Everything an operator decides. Only `server_name` has no default."""

    server_name: str
    data_dir: str = "data"
    listeners: tuple[Listener, ...] = (Listener(),)
    public: Public = Public()
    database: DatabaseSection = DatabaseSection()
    blobs: BlobsSection = BlobsSection()
    registration: Registration = Registration()
    passwords: Passwords = Passwords()
    email: Email = Email()
    rate_limits: RateLimitsSection = RateLimitsSection()
    federation: FederationSection = FederationSection()
    outbound_http: OutboundHttp = OutboundHttp()
    url_previews: UrlPreviews = UrlPreviews()
    directory: Directory = Directory()
    presence: Presence = Presence()
    search: SearchSection = SearchSection()
    application_services: ApplicationServices = ApplicationServices()
    log: Log = Log()

    def __post_init__(self) -> None:
        _check_server_name("server_name", self.server_name)
        msgspec.structs.force_setattr(self, "data_dir", str(self.data_dir))  # embedders may give a Path
        if not self.data_dir:
            raise ConfigError("data_dir must name a folder")
        binds = [listener.bind for listener in self.listeners if parse_bind(listener.bind).port != 0]
        for bind in binds:
            if binds.count(bind) > 1:
                raise ConfigError(f"two listeners have the same bind, {bind}")

    def list_without_effect(self) -> list[str]:
        """The sections and keys that are set, and belong to what is still to be built."""
        default = Config(server_name=self.server_name)
        return [".".join(path) for path in WITHOUT_EFFECT if _value_at(self, path) != _value_at(default, path)]

    def data_path(self, name: str) -> Path:
        """The path of something kept in `data_dir`; an absolute `name` stays as it is."""
        return Path(self.data_dir).absolute() / name


# What is still to be built. `sample_config.toml` says so at each.
WITHOUT_EFFECT: tuple[tuple[str, ...], ...] = (
    ("registration", "recaptcha_public_key"),
    ("registration", "recaptcha_private_key"),
    ("registration", "recaptcha_verify_url"),
    ("email",),
    ("outbound_http",),
    ("url_previews",),
    ("search",),
    ("application_services",),
)


def _value_at(config: Config, path: tuple[str, ...]) -> object:
    value: object = config
    for name in path:
        value = getattr(value, name)
    return value


def load_config(path: str | Path) -> Config:
    """The configuration in a TOML file. Raises ConfigError with a sentence that names the key."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        return config_from_table(table, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_from_table(table: dict[str, Any], folder: Path) -> Config:
    """What a parsed TOML table describes; its relative paths are relative to `folder`. Raises ConfigError."""
    _check_keys(Config, table, "")
    try:
        return msgspec.convert(_absolute_paths(table, folder.absolute()), Config)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise ConfigError(str(error.__cause__)) from error
        what, _, where = str(error).partition(" - at ")
        raise ConfigError(f"{where.strip('`').removeprefix('$.') or 'the file'}: {what}") from error


def server_name_of(config: Config) -> ServerName:
    """The checked server name."""
    return parse_server_name(config.server_name)


def read_secret(name: str, path: str) -> str:
    """The secret in a file, without the newline at its end. `name` is the key that named it. Raises ConfigError."""
    try:
        secret = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not secret:
        raise ConfigError(f"{name}: {path} is empty")
    return secret


# Keys whose paths are relative to the configuration file; "data_dir" keys are resolved by Config.data_path instead.
FILE_KEYS: tuple[tuple[str, ...], ...] = (
    ("data_dir",),
    ("registration", "shared_secret_file"),
    ("email", "smtp_password_file"),
    ("federation", "ca_file"),
    ("outbound_http", "ca_file"),
)


def _absolute_paths(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}

    def absolute(value: object) -> object:
        return str(folder / value) if isinstance(value, str) and value else value

    table.setdefault("data_dir", "data")
    for *section, key in FILE_KEYS:
        holder = table.get(section[0], {}) if section else table
        if isinstance(holder, dict) and key in holder:
            holder[key] = absolute(holder[key])
    if isinstance(table.get("listeners"), list):
        table["listeners"] = [
            {**each, **{key: absolute(each[key]) for key in ("tls_cert", "tls_key") if key in each}}
            if isinstance(each, dict) else each
            for each in table["listeners"]
        ]
    services = table.get("application_services")
    if isinstance(services, dict) and isinstance(services.get("files"), list):
        services["files"] = [absolute(name) for name in services["files"]]
    return table


def _check_keys(section: type[msgspec.Struct], table: dict[str, Any], where: str) -> None:
    """Refuses a key that the section does not have, naming the nearest that it has."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(section)}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {key!r} {f'in [{where}]' if where else 'at the top'}{hint}")
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
            _check_keys(kind, value, key)
        elif get_origin(kind) is tuple and get_args(kind)[0] is Listener and isinstance(value, list):
            for each in value:
                if isinstance(each, dict):
                    _check_keys(Listener, each, f"[{key}]")
