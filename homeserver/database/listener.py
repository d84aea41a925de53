"""Listener: hears from PostgreSQL what other nodes have committed, and notifies this node's stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
import psycopg
import trio

from homeserver.database.generations import begin_generation, newest_generation
from homeserver.database.schema import DatabaseError
from homeserver.database.session import Row
from homeserver.database.stream import Stream
from homeserver.database.translation import translate_statement

_log = logging.getLogger(__name__)

CHANNEL = "homeserver_stream"
# The lock that all nodes share. The number is arbitrary.
_NODES_LOCK = 7053164
# PostgreSQL refuses payloads of 8000 bytes, of which the node and a position need some.
_PAYLOAD_BYTES_MAX = 7900
_CONNECT_AGAIN_S = 1.0


class _News(msgspec.Struct, array_like=True):
    """A node has committed changes in since < position ≤ upto. keys is None if there were too many to send."""

    node: str
    since: int
    upto: int
    keys: list[str] | None


def encode_news(node: str, upto: int, keys: Collection[str]) -> tuple[str, str]:
    """Returns the payload of a notification, within PostgreSQL's limit, in two parts: before and after `since`."""
    tail = msgspec.json.encode([upto, list(keys)])
    if len(tail) > _PAYLOAD_BYTES_MAX:
        tail = msgspec.json.encode([upto, None])
    return f'["{node}",', "," + tail[1:].decode()


class Listener:
    """A connection of its own that a trio task waits on."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Row]], node: str) -> None:
        self._connect = connect
        self._node = node
        # Notifications that arrived with the result of a statement: psycopg hands them over instead of keeping them.
        self._heard: list[psycopg.Notify] = []
        self.connection = connect()
        self.generation = ""

    def listen(self) -> int:
        """Starts listening for commits. Returns the position up to which commits may have been missed."""
        self.generation = self._join_generation()
        self.connection.add_notify_handler(self._heard.append)
        self.connection.execute("LISTEN homeserver_stream")
        row = self.connection.execute("SELECT position FROM stream_position WHERE id = 1").fetchone()
        assert row is not None
        return int(row[0])

    def _join_generation(self) -> str:
        """Returns the generation of the nodes that have the database open, or begins a new one if there are none.

        Each node holds a shared lock for as long as its connection lives. A node that can take it alone is the first.
        """
        execute = self.connection.execute
        (is_first,) = execute("SELECT pg_try_advisory_lock(%s)", (_NODES_LOCK,)).fetchone() or (False,)
        if not is_first:
            execute("SELECT pg_advisory_lock_shared(%s)", (_NODES_LOCK,))
            return newest_generation(self._execute)
        generation = begin_generation(self._execute)
        execute("SELECT pg_advisory_lock_shared(%s)", (_NODES_LOCK,))
        execute("SELECT pg_advisory_unlock(%s)", (_NODES_LOCK,))
        return generation

    def _execute(self, sql: str, params: Sequence[Any]) -> psycopg.Cursor[Row]:
        return self.connection.execute(translate_statement(sql).encode(), params)

    def close(self) -> None:
        self.connection.close()

    async def run(self, stream: Stream) -> None:
        """Notifies `stream` forever. Nothing is heard while the connection is lost; afterwards everyone is woken."""
        while True:
            try:
                while True:
                    self._tell(stream)
                    await trio.lowlevel.wait_readable(self.connection.fileno())
            except (psycopg.Error, OSError) as error:
                _log.warning("the connection that listens to other nodes was lost: %s", error)
            self.connection.close()
            await self._connect_again(stream)

    def _tell(self, stream: Stream) -> None:
        self.connection.pgconn.consume_input()
        payloads: list[str | bytes] = [notification.payload for notification in self._heard]
        self._heard.clear()
        while (notification := self.connection.pgconn.notifies()) is not None:
            payloads.append(notification.extra)
        for payload in payloads:
            news = msgspec.json.decode(payload, type=_News)
            if news.node == self._node:
                continue
            if news.keys is None:
                stream.notify_all(news.upto)
            else:
                stream.notify(news.upto, news.keys, news.since)

    async def _connect_again(self, stream: Stream) -> None:
        while True:
            try:
                self.connection = await trio.to_thread.run_sync(self._connect)
                stream.notify_all(self.listen())
            except (psycopg.Error, DatabaseError, OSError):
                await trio.sleep(_CONNECT_AGAIN_S)
            else:
                _log.warning("listening to other nodes again")
                return
