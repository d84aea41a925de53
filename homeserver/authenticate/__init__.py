"""Who asks, and may they? An access token becomes a `Requester`.

Before an operation, `find_requester` identifies the requester and checks that their account may call it. Inside it,
`check_admin`, `check_not_suspended` and `limit_requester` check more. A long request calls `check_token` in a later
read to see that it is still allowed. `create_tokens` and `replace_tokens` issue tokens, `delete_tokens_of_…` revoke
them, and `store_account_flags` locks or suspends an account. These take effect with the commit; on other nodes within
two seconds.
"""

from __future__ import annotations

from homeserver.authenticate.flags import (
    AccountFlags,
    delete_account_flags,
    find_rate_limit,
    get_account_flags,
    list_flagged,
    store_account_flags,
    store_rate_limit,
)
from homeserver.authenticate.identify import (
    FindAppservice,
    IdentifyOrigin,
    OriginClaim,
    check_device,
    check_token,
    find_requester,
    note_heartbeat,
    note_seen,
    read_token,
    refuse_origin,
)
from homeserver.authenticate.refresh import RefreshLookup, find_refresh_token, replace_tokens
from homeserver.authenticate.requester import (
    Requester,
    charge_requester,
    check_admin,
    check_may_call,
    check_not_guest,
    check_not_suspended,
    limit_requester,
    user_locked,
    user_suspended,
)
from homeserver.authenticate.schema import SCHEMA
from homeserver.authenticate.tokens import (
    IssuedTokens,
    TokenLookup,
    create_token_for,
    create_tokens,
    delete_token,
    delete_tokens_issued_by,
    delete_tokens_of_device,
    delete_tokens_of_user,
    find_token,
    hash_token,
    new_token,
    unknown_token,
)

__all__ = [
    "SCHEMA",
    "AccountFlags",
    "FindAppservice",
    "IdentifyOrigin",
    "IssuedTokens",
    "OriginClaim",
    "RefreshLookup",
    "Requester",
    "TokenLookup",
    "charge_requester",
    "check_admin",
    "check_device",
    "check_may_call",
    "check_not_guest",
    "check_not_suspended",
    "check_token",
    "create_token_for",
    "create_tokens",
    "delete_account_flags",
    "delete_token",
    "delete_tokens_issued_by",
    "delete_tokens_of_device",
    "delete_tokens_of_user",
    "find_rate_limit",
    "find_refresh_token",
    "find_requester",
    "find_token",
    "get_account_flags",
    "hash_token",
    "limit_requester",
    "list_flagged",
    "new_token",
    "note_heartbeat",
    "note_seen",
    "read_token",
    "refuse_origin",
    "replace_tokens",
    "store_account_flags",
    "store_rate_limit",
    "unknown_token",
    "user_locked",
    "user_suspended",
]
