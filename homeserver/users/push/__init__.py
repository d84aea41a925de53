"""Push: which events notify a user, and how the user's devices learn about them.

From the pure to the stored: `globs` and `conditions` match one event, `rules` is a user's compiled ruleset,
`evaluation` applies the rules of all members of a room to its events, `notifications` stores what came of that and
counts it, and `pushers` holds the gateways of a user's devices with what they have not been sent yet. The stored rules
themselves are in `homeserver.users.push_rules`. Spec: client-server-api/#push-notifications
"""
