"""How operations are declared: routes, their typed arguments, and how request bodies are read.

A feature fills a table of `routes.Routes`. `arguments` compiles the signature of each handler once. `router` finds the
operation for a path. `bodies` reads a body only once the requester is known. `homeserver.http` serves the operations.
"""
