"""Rate limits: a token bucket for each requester or address, and each class of requests.

Spec: client-server-api/#rate-limiting
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from homeserver import limits
from homeserver.errors import MatrixError


class RateLimits(msgspec.Struct):
    """The buckets. Used on the trio thread only. Their number is limited.

    classes: the size of the buckets of each class; defaults to those of the core.
    """

    classes: Mapping[str, limits.Bucket] = msgspec.field(default_factory=lambda: limits.RATE_LIMITS)
    enabled: bool = True
    _buckets: OrderedDict[tuple[str, str], tuple[float, int]] = msgspec.field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(
        self, rate_class: str, key: str, now_ms: int, cost: float = 1, bucket: limits.Bucket | None = None
    ) -> None:
        """Takes a request from the bucket of `key` in a class. Raises M_LIMIT_EXCEEDED.

        bucket: the size of this one, if it is not that of the class.
        """
        if not self.enabled or not rate_class:
            return
        bucket = bucket or self.classes[rate_class]
        tokens = self._refill(rate_class, key, now_ms, bucket)
        if tokens < cost:
            self._buckets[rate_class, key] = (tokens, now_ms)
            raise limit_exceeded(int((cost - tokens) / bucket.per_second * 1000) + 1)
        self._keep(rate_class, key, tokens - cost, now_ms)

    def require(self, rate_class: str, key: str, now_ms: int) -> None:
        """Raises M_LIMIT_EXCEEDED if no request could be taken now. Takes nothing."""
        if self.enabled and (rate_class, key) in self._buckets:
            self.take(rate_class, key, now_ms)
            self.charge(rate_class, key, now_ms, -1)

    def charge(self, rate_class: str, key: str, now_ms: int, cost: float) -> None:
        """Takes a cost that became known only afterwards. The bucket may go into debt."""
        if self.enabled:
            tokens = self._refill(rate_class, key, now_ms, self.classes[rate_class])
            self._keep(rate_class, key, tokens - cost, now_ms)

    def _refill(self, rate_class: str, key: str, now_ms: int, bucket: limits.Bucket) -> float:
        """Removes the bucket and returns its current tokens."""
        tokens, at_ms = self._buckets.pop((rate_class, key), (bucket.burst, now_ms))
        at_ms = min(at_ms, now_ms)  # if the clock was set back, the bucket refills from now on
        return min(bucket.burst, tokens + (now_ms - at_ms) / 1000 * bucket.per_second)

    def _keep(self, rate_class: str, key: str, tokens: float, now_ms: int) -> None:
        self._buckets[rate_class, key] = (tokens, now_ms)
        while len(self._buckets) > limits.RATE_LIMIT_KEYS_MAX:
            self._buckets.popitem(last=False)

    def forget(self, key: str) -> None:
        """Drops every bucket of `key`."""
        for rate_class in self.classes:
            self._buckets.pop((rate_class, key), None)


def limit_exceeded(retry_after_ms: int) -> MatrixError:
    """Returns 429 M_LIMIT_EXCEEDED. The transport adds the Retry-After header."""
    return MatrixError(429, "M_LIMIT_EXCEEDED", "Too many requests.", retry_after_ms=retry_after_ms)


def address_key(address: str) -> str:
    """Returns the key of a requester without a token: the address, for IPv6 the /64 that one household has."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
