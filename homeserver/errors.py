"""The errors that several layers know. MatrixError is the only one that crosses the API: a code and a sentence.

Spec: client-server-api/#standard-error-response
"""

from __future__ import annotations

from typing import Any


class MatrixError(Exception):
    """Answered to the caller as `{"errcode": …, "error": …, **extra}` with `status`."""

    def __init__(self, status: int, errcode: str, error: str, **extra: Any) -> None:
        super().__init__(f"{errcode}: {error}")
        self.status = status
        self.errcode = errcode
        self.error = error
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {"errcode": self.errcode, "error": self.error, **self.extra}


def bad_json(error: str) -> MatrixError:
    """Valid JSON of the wrong shape: 400 M_BAD_JSON."""
    return MatrixError(400, "M_BAD_JSON", error)


def invalid_param(error: str) -> MatrixError:
    """A parameter with a value that cannot be: 400 M_INVALID_PARAM."""
    return MatrixError(400, "M_INVALID_PARAM", error)


def missing_param(error: str) -> MatrixError:
    """A required parameter is absent: 400 M_MISSING_PARAM."""
    return MatrixError(400, "M_MISSING_PARAM", error)


def forbidden(error: str) -> MatrixError:
    """The requester may not do this: 403 M_FORBIDDEN."""
    return MatrixError(403, "M_FORBIDDEN", error)


def not_found(error: str) -> MatrixError:
    """No such thing, or none that the requester may see: 404 M_NOT_FOUND."""
    return MatrixError(404, "M_NOT_FOUND", error)


def unrecognized(status: int = 404) -> MatrixError:
    """No such endpoint (404) or method (405): M_UNRECOGNIZED."""
    return MatrixError(status, "M_UNRECOGNIZED", "This server does not know that request.")


class ClosedError(RuntimeError):
    """The homeserver is closed: raised by calls of the embedding program, never answered to anyone."""

    def __init__(self) -> None:
        super().__init__("The homeserver is closed.")


class StorageError(Exception):
    """The database or the blob storage failed. The same call may work later."""


class StorageDamaged(StorageError):
    """Something that was stored cannot be read back. That does not pass."""
