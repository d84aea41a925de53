"""Config: the operator's decisions, as frozen values. `sample_config.toml` explains every key.

`load_config(path)` reads a TOML file; `Config(server_name=…)` does the same for a program that embeds the server. Both
raise ConfigError with one sentence that names the key and says which values are allowed. Nothing here checks the world
outside: `homeserver config check` and the start find out whether files exist, ports are free and databases answer.

Paths in a file are relative to that file. The database, the blobs and the signing key are relative to `data_dir`.
"""

from homeserver.config.application_services import (
    ApplicationService,
    RegisteredServices,
    load_application_services,
)
from homeserver.config.calls import Rtc
from homeserver.config.listeners import SERVE_GROUPS, Bind, Listener, ServeGroup, parse_bind
from homeserver.config.loading import check_files, config_from_table, load_config, read_secret
from homeserver.config.sections import (
    Analytics,
    ApplicationServices,
    ArchiveSection,
    AtRest,
    BlobsSection,
    ChatSection,
    Config,
    DatabaseSection,
    Directory,
    Email,
    FederationSection,
    Friends,
    Log,
    Messages,
    OAuthSection,
    OutboundHttp,
    Passwords,
    Presence,
    Public,
    RateLimitsSection,
    Registration,
    Retention,
    Rooms,
    SearchSection,
    Turn,
    UrlPreviews,
    WebsocketSection,
    is_loopback,
    server_name_of,
)
from homeserver.config.sso import SsoProvider
from homeserver.config.values import ConfigError, Section

__all__ = [
    "SERVE_GROUPS",
    "Analytics",
    "ApplicationService",
    "ApplicationServices",
    "ArchiveSection",
    "AtRest",
    "Bind",
    "BlobsSection",
    "ChatSection",
    "Config",
    "ConfigError",
    "DatabaseSection",
    "Directory",
    "Email",
    "FederationSection",
    "Friends",
    "Listener",
    "Log",
    "Messages",
    "OAuthSection",
    "OutboundHttp",
    "Passwords",
    "Presence",
    "Public",
    "RateLimitsSection",
    "RegisteredServices",
    "Registration",
    "Retention",
    "Rooms",
    "Rtc",
    "SearchSection",
    "Section",
    "ServeGroup",
    "SsoProvider",
    "Turn",
    "UrlPreviews",
    "WebsocketSection",
    "check_files",
    "config_from_table",
    "is_loopback",
    "load_application_services",
    "load_config",
    "parse_bind",
    "read_secret",
    "server_name_of",
]
