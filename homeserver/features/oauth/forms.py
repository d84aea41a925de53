"""Bodies of type application/x-www-form-urlencoded, of which OAuth makes its requests. Spec: RFC 6749, appendix B"""

from __future__ import annotations

from urllib.parse import parse_qsl

from homeserver import limits
from homeserver.users.oauth.errors import OAuthError


def decode_parameters(data: bytes) -> dict[str, list[str]]:
    """Returns all values of each parameter. Parameters without a value are left out. Raises OAuthError."""
    values: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(data.decode("utf-8"), errors="strict", max_num_fields=limits.http.QUERY_PARAMETERS_MAX)
    except ValueError:
        raise OAuthError("invalid_request", "The body must be a form (application/x-www-form-urlencoded).") from None
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def read_parameter(form: dict[str, list[str]], name: str) -> str:
    """Returns the only value of a parameter. Raises OAuthError if there is none, or more than one."""
    given = form.get(name, [])
    if len(given) != 1:
        raise OAuthError("invalid_request", f"The request must have one parameter {name}.")
    return given[0]
