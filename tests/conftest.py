"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.support.database import database_url, postgres_cluster, postgres_url, sqlite_url

__all__ = ["database_url", "postgres_cluster", "postgres_url", "sqlite_url"]

# Other processes on the machine must not decide whether a property holds.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
