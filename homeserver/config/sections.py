"""The sections of the configuration, and Config, which holds them all."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from homeserver import limits
from homeserver.config.calls import Rtc
from homeserver.config.listeners import Bind, Listener, parse_bind
from homeserver.config.sso import SsoProvider
from homeserver.config.values import (
    ConfigError,
    Section,
    check_database_port,
    check_date,
    check_one_of,
    check_port,
    check_positive,
    check_range,
    check_server_name,
    check_url,
    check_user_id,
    is_email_address,
    is_verify_key,
)
from homeserver.federation.identifiers import ServerName, parse_server_name
from homeserver.federation.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS

# Someone silent for a week is not online; and moments this long ago are still moments.
_ONLINE_TIMEOUT_S_MAX = 7 * 24 * 3600
# Each member of a room tells all others, so this grows with the square.
_DELIVERY_MEMBERS_MAX = 1_000
# A hundred years: 0 stands for no limit.
_REMOTE_DAYS_MAX = 36_500


class Public(Section, frozen=True):
    """How this server is reached from outside. Config computes the values to use for empty ones."""

    base_url: str = ""
    federation_address: str = ""
    serve_well_known: bool = True
    support_page: str = ""
    support_user: str = ""
    support_email: str = ""
    security_user: str = ""
    security_email: str = ""
    policy_server_key: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_url:
            check_url("public.base_url", self.base_url)
        if self.support_page:
            check_url("public.support_page", self.support_page)
        for key in ("support_user", "security_user"):
            if getattr(self, key):
                check_user_id(f"public.{key}", getattr(self, key))
        for key in ("support_email", "security_email"):
            if getattr(self, key) and not is_email_address(getattr(self, key)):
                raise ConfigError(f"public.{key}: {getattr(self, key)!r} is not an email address")
        if self.policy_server_key and not is_verify_key(self.policy_server_key):
            raise ConfigError(
                "public.policy_server_key must be an ed25519 public key: 43 characters of unpadded base64"
            )
        if self.federation_address:
            check_server_name("public.federation_address", self.federation_address)
            if self.federation_address.endswith(":0"):
                raise ConfigError(f"public.federation_address: nobody listens at port 0 of {self.federation_address!r}")
        msgspec.structs.force_setattr(self, "base_url", self.base_url.rstrip("/"))


class DatabaseSection(Section, frozen=True):
    url: str = "sqlite:homeserver.db"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url.partition(":")[0] not in ("sqlite", "postgresql", "postgres"):
            raise ConfigError('database.url must begin with "sqlite:" or "postgresql:"')
        if self.url == "sqlite:":
            raise ConfigError('database.url: "sqlite:" needs the path of a file, as in "sqlite:homeserver.db"')
        check_database_port(self.url)


class BlobsSection(Section, frozen=True):
    url: str = "file:blobs"
    redirect: bool = False
    upload_bytes_max: int = 52428800
    user_bytes_max: int = 100 << 30
    user_files_max: int = 100_000
    quota_info_url: str = ""
    remote_bytes_max: int = 20 << 30
    remote_days_max: int = 0
    unauthenticated_before: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url.partition(":")[0] not in ("file", "memory", "s3", "gs", "az"):
            raise ConfigError('blobs.url must begin with "file:", "s3:", "gs:" or "az:"')
        if self.url == "file:":
            raise ConfigError('blobs.url: "file:" needs the path of a folder, as in "file:blobs"')
        for key in ("upload_bytes_max", "user_bytes_max", "user_files_max", "remote_bytes_max"):
            check_positive(f"blobs.{key}", getattr(self, key))
        check_range("blobs.remote_days_max", self.remote_days_max, 0, _REMOTE_DAYS_MAX)
        if self.quota_info_url:
            check_url("blobs.quota_info_url", self.quota_info_url)
        if self.unauthenticated_before:
            check_date("blobs.unauthenticated_before", self.unauthenticated_before)

    @property
    def unauthenticated_before_ms(self) -> int:
        """The moment of the freeze: files stored before it are served without a token. 0 if there are none."""
        if not self.unauthenticated_before:
            return 0
        return int(datetime.fromisoformat(self.unauthenticated_before).replace(tzinfo=UTC).timestamp() * 1000)


class AtRest(Section, frozen=True):
    """What is sealed in the database and the blobs. Nothing that is sealed already depends on it.

    master_key_file: see `Config.master_key_path`.
    """

    master_key_file: str = ""
    events: bool = True
    media: bool = True
    archive: bool = True


class ArchiveSection(Section, frozen=True):
    """after_days: the age of messages that are moved into the archive; 0: none are."""

    after_days: int = 90

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("archive.after_days", self.after_days, 0, _REMOTE_DAYS_MAX)


class Retention(Section, frozen=True):
    """How long messages are kept, in days; 0: as long as nobody deletes them, or no limit."""

    default_days: int = 0
    min_days: int = 0
    max_days: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("default_days", "min_days", "max_days"):
            check_range(f"retention.{key}", getattr(self, key), 0, _REMOTE_DAYS_MAX)
        if self.max_days and self.min_days > self.max_days:
            raise ConfigError("retention.min_days must not be more than retention.max_days")
        if self.max_days and self.default_days > self.max_days:
            raise ConfigError("retention.default_days must not be more than retention.max_days")


class Registration(Section, frozen=True):
    enabled: bool = False
    require_token: bool = False
    shared_secret_file: str = ""
    guests: bool = False
    recaptcha_public_key: str = ""
    recaptcha_private_key: str = ""
    recaptcha_verify_url: str = "https://www.recaptcha.net/recaptcha/api/siteverify"
    terms_url: str = ""
    terms_name: str = "Terms of service"
    terms_version: str = "1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_url("registration.recaptcha_verify_url", self.recaptcha_verify_url)
        if bool(self.recaptcha_public_key) != bool(self.recaptcha_private_key):
            raise ConfigError("registration.recaptcha_public_key and recaptcha_private_key must be given together")
        if self.terms_url:
            check_url("registration.terms_url", self.terms_url.partition("?")[0])


class Rooms(Section, frozen=True):
    default_version: str = DEFAULT_ROOM_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("rooms.default_version", self.default_version, ROOM_VERSIONS)


class Messages(Section, frozen=True):
    """delivery_members_max: the size of the largest rooms in which it is kept who has received a message."""

    delivery_members_max: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("messages.delivery_members_max", self.delivery_members_max, 0, _DELIVERY_MEMBERS_MAX)


class Passwords(Section, frozen=True):
    """length_min: the minimum number of characters of new passwords."""

    length_min: int = 8
    hash_cost: Literal["default", "minimal"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        # A character has up to four bytes.
        check_range("passwords.length_min", self.length_min, 1, limits.PASSWORD_BYTES_MAX // 4)


class OAuthSection(Section, frozen=True):
    enabled: bool = True


class Email(Section, frozen=True):
    smtp_host: str = ""
    smtp_port: int = 587
    from_address: str = msgspec.field(name="from", default="")
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_port("email.smtp_port", self.smtp_port, lowest=1)
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
        super().__post_init__()
        for name in self.trusted_key_servers:
            check_server_name("federation.trusted_key_servers", name)


class OutboundHttp(Section, frozen=True):
    ca_file: str = ""
    verify_tls: bool = True
    allow_private_addresses: bool = False


class UrlPreviews(Section, frozen=True):
    """bytes_max: the space for the pictures of previews."""

    enabled: bool = False
    bytes_max: int = 1 << 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("url_previews.bytes_max", self.bytes_max)


class Turn(Section, frozen=True):
    """TURN servers for calls. lifetime_s: how long a client may use them before it asks again."""

    uris: tuple[str, ...] = ()
    shared_secret_file: str = ""
    lifetime_s: int = 86_400
    guests: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for uri in self.uris:
            if not uri.startswith(("turn:", "turns:")):
                raise ConfigError(f"turn.uris: {uri!r} must begin with turn: or turns:")
        if bool(self.uris) != bool(self.shared_secret_file):
            raise ConfigError("turn.uris and turn.shared_secret_file need each other: set both, or neither")
        check_range("turn.lifetime_s", self.lifetime_s, 60, 30 * 86_400)


class Directory(Section, frozen=True):
    require_login: bool = True
    over_federation: bool = True


class Presence(Section, frozen=True):
    enabled: bool = True
    online_timeout_s: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("presence.online_timeout_s", self.online_timeout_s, highest=_ONLINE_TIMEOUT_S_MAX)


class SearchSection(Section, frozen=True):
    enabled: bool = True
    engine: str = "whoosh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("search.engine", self.engine, ("whoosh", "fts5"))


class WebsocketSection(Section, frozen=True):
    """connections_max: of all users together."""

    enabled: bool = True
    connections_max: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("websocket.connections_max", self.connections_max)


class ChatSection(Section, frozen=True):
    enabled: bool = True


class Friends(Section, frozen=True):
    enabled: bool = True
    encrypted: bool = True


class Analytics(Section, frozen=True):
    enabled: bool = True


class ApplicationServices(Section, frozen=True):
    files: tuple[str, ...] = ()


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


DEFAULT_LISTENERS = (
    Listener(serve=("client", "federation", "media", "health")),
    # Administration and monitoring have an address of their own, which no proxy publishes by mistake.
    Listener(bind="127.0.0.1:9008", serve=("admin", "metrics", "health")),
)


class Config(Section, frozen=True):
    """All decisions of the operator. Only `server_name` has no default."""

    server_name: str
    data_dir: str = "data"
    listeners: tuple[Listener, ...] = DEFAULT_LISTENERS
    public: Public = Public()
    database: DatabaseSection = DatabaseSection()
    blobs: BlobsSection = BlobsSection()
    at_rest: AtRest = AtRest()
    archive: ArchiveSection = ArchiveSection()
    retention: Retention = Retention()
    registration: Registration = Registration()
    sso: tuple[SsoProvider, ...] = ()
    rooms: Rooms = Rooms()
    passwords: Passwords = Passwords()
    oauth: OAuthSection = OAuthSection()
    email: Email = Email()
    rate_limits: RateLimitsSection = RateLimitsSection()
    federation: FederationSection = FederationSection()
    outbound_http: OutboundHttp = OutboundHttp()
    url_previews: UrlPreviews = UrlPreviews()
    turn: Turn = Turn()
    rtc: Rtc = Rtc()
    directory: Directory = Directory()
    presence: Presence = Presence()
    messages: Messages = Messages()
    search: SearchSection = SearchSection()
    websocket: WebsocketSection = WebsocketSection()
    chat: ChatSection = ChatSection()
    friends: Friends = Friends()
    analytics: Analytics = Analytics()
    application_services: ApplicationServices = ApplicationServices()
    log: Log = Log()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_server_name("server_name", self.server_name)
        if not self.data_dir:
            raise ConfigError("data_dir must name a folder")
        provider_ids = [provider.id for provider in self.sso]
        for provider_id in provider_ids:
            if provider_ids.count(provider_id) > 1:
                raise ConfigError(f"two of the [[sso]] providers have the same id, {provider_id!r}")
        binds = [listener.bind for listener in self.listeners if not _is_chosen_by_system(parse_bind(listener.bind))]
        for bind in binds:
            if binds.count(bind) > 1:
                raise ConfigError(f"two listeners have the same bind, {bind}")

    @property
    def base_url(self) -> str:
        """The URL under which clients reach this server, without a trailing slash.

        If `public.base_url` is empty, it is https:// and the domain. If the name stands for this machine, it is the
        first address that serves clients instead.
        """
        if self.public.base_url:
            return self.public.base_url
        local = self._local_url() if is_loopback(urlsplit(f"//{self.server_name}").hostname or "") else None
        return local or f"https://{self.server_name}"

    @property
    def federation_address(self) -> str:
        """The host and port under which other servers reach this one, as in `m.server`.

        If `public.federation_address` is empty, it is the host of `base_url`, with its port if it is an https port.
        """
        if self.public.federation_address:
            return self.public.federation_address
        parts = urlsplit(self.base_url)
        host = parts.hostname or ""
        port = (parts.port if parts.scheme == "https" else None) or 443
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def client_discovery(self) -> dict[str, dict[str, str]]:
        """Returns what clients discover about this server: `/.well-known/matrix/client`, and part of `/login`."""
        return {"m.homeserver": {"base_url": self.base_url}}

    def _local_url(self) -> str | None:
        for listener in self.listeners:
            bind = parse_bind(listener.bind)
            if "client" in listener.serve and bind.port:
                host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind.host, bind.host)
                scheme = "https" if listener.tls_cert else "http"
                return f"{scheme}://{f'[{host}]' if ':' in host else host}:{bind.port}"
        return None

    def data_path(self, name: str) -> Path:
        """Returns the path of something in `data_dir`; an absolute `name` is returned unchanged."""
        return Path(self.data_dir).absolute() / name

    @property
    def master_key_path(self) -> Path:
        """The file of the master key: unless configured, `master.key` beside the signing key.

        Nodes that share a database share both keys, and may have nothing else in common on their disks.
        """
        configured = self.at_rest.master_key_file
        return self.data_path(configured or str(Path(self.federation.signing_key_file).with_name("master.key")))


def is_loopback(host: str) -> bool:
    """Returns whether a host name or address means the local machine on every machine."""
    name = host.lower().rstrip(".")
    if name in ("localhost", "localhost.localdomain") or name.endswith(".localhost"):
        return True
    if name[:1].isdigit():
        with suppress(OSError):  # 127.1 and 0x7f.1 are addresses too
            name = socket.inet_ntoa(socket.inet_aton(name))
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def _is_chosen_by_system(bind: Bind) -> bool:
    return not bind.unix_path and bind.port == 0


def server_name_of(config: Config) -> ServerName:
    """Returns the validated server name."""
    return parse_server_name(config.server_name)
