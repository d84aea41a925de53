"""Every test of storage runs on both engines."""

from tests.support.database import own_cluster

__all__ = ["own_cluster"]
