"""Errors of the OAuth endpoints: their body has both the fields of OAuth and an errcode. Spec: RFC 6749, 5.2"""

from __future__ import annotations

from typing import Any

from homeserver.errors import MatrixError


class OAuthError(MatrixError):
    """Answered as `{"error": code, "error_description": …, "errcode": …}`, never cached.

    code: of RFC 6749, 7591 or 8628. It is where Matrix's own errors have their sentence.
    """

    def __init__(self, code: str, description: str, *, status: int = 400, errcode: str = "M_UNKNOWN") -> None:
        super().__init__(status, errcode, description)
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {"errcode": self.errcode, "error": self.code, "error_description": self.error, **self.extra}
