"""How operations are declared: routes, their typed arguments, and how the body of a request is read.

A feature fills a table of `routes.Routes`. `arguments` compiles the signature of each handler once; `router` finds the
operation of a path; `bodies` reads a body only once the requester is known. `homeserver.http` serves the tables.
"""
