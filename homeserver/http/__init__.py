"""How operations are served: listeners, connections, HTTP/1.1 and HTTP/2, the ASGI application, and the dispatch.

A request passes from `listener` through `connection` (`http1` or `http2`) to `asgi.App`, or directly to `asgi.App` if
another program serves it. `dispatch` then finds the operation, identifies the requester and calls the handler.
"""
