"""Every test of storage runs on both engines."""

from tests.support.database import database_url, own_cluster, postgres_cluster, postgres_url, sqlite_url

__all__ = ["database_url", "own_cluster", "postgres_cluster", "postgres_url", "sqlite_url"]
