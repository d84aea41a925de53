"""Fixtures of the tests of media."""

from tests.support.database import database_url, postgres_cluster, postgres_url, sqlite_url

__all__ = ["database_url", "postgres_cluster", "postgres_url", "sqlite_url"]
