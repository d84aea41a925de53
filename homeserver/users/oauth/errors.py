"""Errors of the OAuth endpoints, which are not those of Matrix. Spec: RFC 6749, section 5.2"""

from __future__ import annotations

from typing import Any

from homeserver.errors import MatrixError


class OAuthError(MatrixError):
    """Answered as `{"error": code, "error_description": …}`.

    It has no errcode: clients that see one take the answer for an error of Matrix, after which they go on with a
    session that has ended. code: of RFC 6749, 7591 or 8628.
    """

    def __init__(self, code: str, description: str, *, status: int = 400) -> None:
        super().__init__(status, "", description)
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        described = {"error_description": self.error} if self.error else {}
        return {"error": self.code, **described, **self.extra}
