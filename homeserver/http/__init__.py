"""How operations are served: listeners, connections, HTTP/1.1 and HTTP/2, the ASGI application, and the dispatch.

A request comes from `listener` over `connection` (`http1` or `http2`) to `asgi.App`, or directly to that if another
program serves it. `dispatch` then finds the operation, identifies the requester and calls the handler.
"""
