"""Voice over IP: credentials of TURN servers for calls. Spec: client-server-api/#voice-over-ip

A TURN server knows no accounts. It shares a secret with this server, which signs the user's name and the time until
which it may be used ("TURN REST API", draft-uberti-behave-turn-rest; `use-auth-secret` in coturn).
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.config import read_secret
from homeserver.errors import MatrixError
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/voip/turnServer", allow_guest=True)
async def get_turn_server(hs: Resources, requester: Requester) -> JsonObject:
    """Returns `{}` without a TURN server, as other homeservers do: clients try to reach each other directly."""
    turn = hs.config.turn
    if not turn.uris:
        return {}
    if requester.is_guest and not turn.guests:
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not use the TURN server of this homeserver.")
    secret = read_secret("turn.shared_secret_file", turn.shared_secret_file)
    username = f"{hs.now_ms() // 1000 + turn.lifetime_s}:{requester.user_id}"
    signature = hmac.digest(secret.encode(), username.encode(), hashlib.sha1)
    return {
        "username": username,
        "password": b64encode(signature).decode(),
        "uris": list(turn.uris),
        "ttl": turn.lifetime_s,
    }


FEATURE = Feature(name="voice_over_ip", spec="client-server-api/#voice-over-ip", routes=routes)
