"""The headers of the tus protocol. Spec: https://tus.io/protocols/resumable-upload"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, ClassVar

from homeserver.errors import MatrixError, invalid_param
from homeserver.features.media.storage import Description
from homeserver.features.media.uploads import describe
from homeserver.limits import RESUMABLE_METADATA_BYTES_MAX

_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+", re.ASCII)  # no spaces, no commas


class Checksum:
    """The checksum that a client has sent with a part, and that of what has come so far."""

    ALGORITHMS: ClassVar[tuple[str, ...]] = ("sha1", "sha256", "sha512", "md5")

    __slots__ = ("_hash", "_wanted")

    def __init__(self, algorithm: str, wanted: bytes) -> None:
        self._hash: Any = hashlib.new(algorithm, usedforsecurity=False)
        self._wanted = wanted

    def update(self, parts: list[bytes]) -> None:
        """Adds content."""
        for part in parts:
            self._hash.update(part)

    @property
    def fits(self) -> bool:
        """Whether the content so far is what the client meant to send."""
        return bool(self._hash.digest() == self._wanted)


def parse_length(headers: Mapping[str, str], name: str) -> int:
    """Returns the number of bytes in a header. Raises M_INVALID_PARAM."""
    value = headers.get(name, "").strip()
    if _NUMBER.fullmatch(value) is None:
        raise invalid_param(f"The header {name.title()} is not a number of bytes.")
    return int(value)


def read_checksum(headers: Mapping[str, str]) -> Checksum | None:
    """Returns the checksum of a part, None if it has none. Raises M_INVALID_PARAM for an unsupported algorithm."""
    value = headers.get("upload-checksum")
    if value is None:
        return None
    algorithm, _, encoded = value.strip().partition(" ")
    if algorithm not in Checksum.ALGORITHMS:
        raise invalid_param(f"Checksums may be of {', '.join(Checksum.ALGORITHMS)}.")
    return Checksum(algorithm, _decode("Upload-Checksum", encoded))


def read_metadata(header: str) -> tuple[str, Description]:
    """Returns the metadata as sent, and what it says of the file: its name and type. Raises M_INVALID_PARAM.

    The names of the keys are those of the common clients: `filename` and `filetype`, or `name` and `type`.
    """
    header = header.strip()
    if len(header) > RESUMABLE_METADATA_BYTES_MAX:
        raise MatrixError(
            413, "M_TOO_LARGE", f"Upload-Metadata may have at most {RESUMABLE_METADATA_BYTES_MAX} bytes."
        )  # fmt: skip
    values: dict[str, str] = {}
    for pair in header.split(",") if header else ():
        key, _, encoded = pair.strip().partition(" ")
        if _KEY.fullmatch(key) is None or key in values:
            raise invalid_param("Upload-Metadata has a key that is malformed or not the only one of its name.")
        values[key] = _decode("Upload-Metadata", encoded).decode("utf-8", "replace")
    filename = values.get("filename") or values.get("name")
    return header, describe(values.get("filetype") or values.get("type"), filename)


def _decode(header: str, encoded: str) -> bytes:
    try:
        return b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_param(f"{header} has a value that is not Base64.") from error
