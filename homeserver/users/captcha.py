"""What registration asks of new people besides a name: a captcha, and consent to the terms.

Spec: client-server-api/#google-recaptcha, #terms-of-service-at-registration
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlencode

import orjson
import trio

from homeserver import limits
from homeserver.config import Registration
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.wire import WireError
from homeserver.resources import Resources
from homeserver.users.user_interactive import Stage, read_text

_log = logging.getLogger(__name__)

RECAPTCHA = "m.login.recaptcha"
TERMS = "m.login.terms"


def captcha_stage(settings: Registration) -> Stage:
    """Returns the stage of a captcha. It raises 502 M_UNKNOWN if the service that checks answers does not respond."""
    return Stage(RECAPTCHA, _check_captcha, params={"public_key": settings.recaptcha_public_key})


async def _check_captcha(hs: Resources, auth: JsonObject, loaded: Any) -> bool:
    given = read_text(auth, "response")
    if not given or len(given) > limits.users.CAPTCHA_CHARACTERS_MAX:
        raise _wrong_captcha()
    settings = hs.config.registration
    # Without the person's address, which the service does not need.
    form = urlencode({"secret": settings.recaptcha_private_key, "response": given}).encode()
    answer: Any = None
    reason = "too slow"
    with trio.move_on_after(limits.users.CAPTCHA_TIMEOUT_S):
        try:
            response = await hs.wire.request_service(
                "POST",
                settings.recaptcha_verify_url,
                headers={"content-type": "application/x-www-form-urlencoded"},
                body=form,
                timeout_s=limits.users.CAPTCHA_TIMEOUT_S,
                max_bytes=limits.users.CAPTCHA_ANSWER_BYTES_MAX,
            )
            answer = orjson.loads(response.body)
        except (WireError, orjson.JSONDecodeError) as error:
            reason = str(error)
    if not isinstance(answer, dict) or not isinstance(answer.get("success"), bool):
        _log.warning("captcha not checked", extra={"reason": reason[:200]})
        raise MatrixError(502, "M_UNKNOWN", "The captcha cannot be checked at the moment. Try again later.")
    if not answer["success"]:
        raise _wrong_captcha()
    return True


def _wrong_captcha() -> MatrixError:
    return MatrixError(401, "M_UNAUTHORIZED", "The captcha was not solved. Try again.")


def terms_stage(settings: Registration) -> Stage:
    """Returns the stage of consent to the terms. Its result is the version of the terms."""

    async def check(hs: Resources, auth: JsonObject, loaded: Any) -> str:
        return settings.terms_version

    document = {"version": settings.terms_version, "en": {"name": settings.terms_name, "url": settings.terms_url}}
    return Stage(TERMS, check, params={"policies": {"terms_of_service": document}})
