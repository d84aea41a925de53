"""The settings of calls of several people: the media server, and who gives out tokens for it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from homeserver.config.values import ConfigError, Section, check_server_name, check_url

TOKEN_SERVICE_PATH = "/_homeserver/client/v1/rtc"
"""Where this server gives out tokens itself."""


class Rtc(Section, frozen=True):
    """LiveKit, which carries the media of MatrixRTC calls.

    livekit_url: where clients reach it; its tokens are given out by this server. service_url: another token service,
    which is announced instead. full_access: servers whose users may begin a call, besides this one.
    """

    livekit_url: str = ""
    livekit_api_url: str = ""
    livekit_key: str = ""
    livekit_secret_file: str = ""
    service_url: str = ""
    full_access: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.livekit_url:
            scheme, _, rest = self.livekit_url.partition("://")
            if scheme not in ("ws", "wss"):
                raise ConfigError(f"rtc.livekit_url: {self.livekit_url!r} must begin with wss:// or ws://")
            check_url("rtc.livekit_url", f"https://{rest}")
        given = bool(self.livekit_url), bool(self.livekit_key), bool(self.livekit_secret_file)
        if any(given) and not all(given):
            raise ConfigError("rtc.livekit_url, livekit_key and livekit_secret_file need each other: set all, or none")
        if self.livekit_api_url:
            check_url("rtc.livekit_api_url", self.livekit_api_url)
        if self.service_url:
            check_url("rtc.service_url", self.service_url)
        for name in self.full_access:
            if name != "*":
                check_server_name("rtc.full_access", name)

    @property
    def api_url(self) -> str:
        """Where this server reaches LiveKit's own API."""
        if self.livekit_api_url:
            return self.livekit_api_url.rstrip("/")
        parts = urlsplit(self.livekit_url)
        return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}{parts.path}".rstrip("/")

    def list_transports(self, base_url: str) -> list[dict[str, Any]]:
        """Returns what clients learn about the media server, in the format of MSC4143; nothing if there is none.

        base_url: of this server.
        """
        url = self.service_url.rstrip("/") or (base_url + TOKEN_SERVICE_PATH if self.livekit_url else "")
        return [{"type": "livekit", "livekit_service_url": url}] if url else []
