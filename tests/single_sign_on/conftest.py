"""Fixtures of the tests of single sign-on: a server with one provider of OpenID Connect."""

from __future__ import annotations

import pytest

from tests.support.federation import Federation, federation
from tests.support.homeservers import Server, homeserver, homeservers
from tests.support.openid_provider import OpenIDProvider

__all__ = ["federation", "homeserver", "homeservers"]


@pytest.fixture
def provider(federation: Federation) -> OpenIDProvider:
    return OpenIDProvider.on(federation.network)


@pytest.fixture
async def server(federation: Federation, provider: OpenIDProvider) -> Server:
    return await federation.start("a.example", sso=[provider.settings()])
