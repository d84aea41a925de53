"""The Matrix protocol as pure values and functions. Spec: server-server-api, rooms/, appendices.

Nothing in this package imports the rest of `homeserver`. Only `federation.wire` uses a network, a clock or randomness.

To accept an event from another server, in this order (`pdu_checks` lists what follows from each failure):
    event.parse_event                          the PDU's shape and size
    pdu_checks.check_signatures, .check_hash   who signed it, and whether its content is complete
    auth_rules.check_auth_events, .check       whether the room's rules allow it, in one state of the room
    state_resolution.resolve                   the state of a room after several branches of its history
To create one: `auth_events.select_auth_keys`, then `build.build_event`.
To call another server: `request_auth` signs the request, `wire.internet.InternetWire` finds the server and sends it.
"""
