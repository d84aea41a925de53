"""How operations are served: listeners, connections, HTTP/1.1 and HTTP/2, the ASGI application, and the dispatch.

`dispatch` finds the operation of a request, identifies the requester and calls the handler. There are two ways to it.
On our own `listener`s, `http1_connection` reads requests and sends answers. `asgi.App` serves programs that embed the
server, HTTP/2 (`http2_connection`), and the pages for people.
"""
