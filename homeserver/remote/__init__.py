"""Other servers: what they ask of us, and what we ask of them. `feature_of` makes the feature that serves it.

Spec: server-server-api
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.authenticate import refuse_origin as verify_origin
from homeserver.feature import Feature

__all__ = ["feature_of", "verify_origin"]


def feature_of(features: Sequence[Feature]) -> Feature:
    """The feature that takes part in federation for all of `features`."""
    return Feature(name="federation", spec="server-server-api")
