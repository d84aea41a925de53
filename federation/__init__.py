"""The Matrix protocol itself, as pure values and functions. Spec: server-server-api, rooms/, appendices.

Nothing here knows of `homeserver`; only `federation.wire` touches a network, a clock or a random number.
"""
