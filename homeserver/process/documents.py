"""Documents: what other parties publish about themselves, kept for a while, such as the keys of an OpenID provider."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

# Each provider in the configuration has two, of at most some hundred KiB.
_DOCUMENTS_MAX = 200


class Documents(msgspec.Struct):
    """Used on the trio thread only. Limited in number: the oldest ones are dropped first. Times are trio's."""

    _by_url: OrderedDict[str, tuple[float, Any]] = msgspec.field(default_factory=OrderedDict)

    def get(self, url: str, now_s: float, age_s_max: float) -> Any:
        """Returns the document of this URL, None if there is none or it is older than `age_s_max`."""
        stored = self._by_url.get(url)
        return None if stored is None or now_s - stored[0] >= age_s_max else stored[1]

    def forget(self, url: str) -> None:
        """Forgets a document that turned out to be unusable."""
        self._by_url.pop(url, None)

    def put(self, url: str, document: Any, now_s: float) -> None:
        """Stores a document that was fetched just now."""
        self._by_url.pop(url, None)
        self._by_url[url] = (now_s, document)
        while len(self._by_url) > _DOCUMENTS_MAX:
            self._by_url.popitem(last=False)
