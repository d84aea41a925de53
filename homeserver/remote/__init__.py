"""Other servers: the requests they send to us, and those we send to them. `feature_of` creates the feature for both.

Spec: server-server-api
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from homeserver.api.routes import Routes
from homeserver.database import Transaction
from homeserver.feature import Feature, combine
from homeserver.federation.identifiers import RoomID
from homeserver.limits import Bucket
from homeserver.remote import (
    administration,
    gaps,
    handshakes,
    inviting,
    leaves,
    outbound,
    outside,
    resyncs,
    serving,
    third_party_invites,
)
from homeserver.remote.authorization import identify_origin
from homeserver.remote.identity import open_identity
from homeserver.remote.inbound import transaction_routes
from homeserver.remote.policy_servers import give_signature
from homeserver.remote.schema import SCHEMA
from homeserver.resources import Resources

__all__ = ["feature_of", "give_signature", "identify_origin", "open_identity"]


def feature_of(features: Sequence[Feature]) -> Feature:
    """Returns the feature that takes part in federation for all of `features`, with their EDUs and queries."""
    edus = combine("EDUs", (feature.edus for feature in features))

    async def send(hs: Resources) -> None:
        await outbound.send(hs, edus)

    return Feature(
        name="federation",
        spec="server-server-api",
        schema=SCHEMA,
        routes=_join(
            [
                serving.routes,
                serving.query_routes(features),
                handshakes.routes,
                inviting.routes,
                third_party_invites.routes,
                transaction_routes(edus),
            ]
        ),
        limits={
            "federation_state": Bucket(50, 2),  # per origin: the state of a room, for a large one 100 MB in memory
            "federation_invite": Bucket(100, 1),  # per origin: spam is sent this way, and each may take 64 KiB forever
            "third_party_bindings": Bucket(20, 0.2),  # per address: anyone may notify us, and a user has few addresses
            "signatures": Bucket(200, 1),  # wrong ones from one address, by 64 KiB: a check costs 5 ms per MiB
            "keys": Bucket(200, 2),  # servers that one address makes us ask for keys: anyone may, about any server
        },
        background=(
            send,
            administration.retry_requested,
            administration.tell_contacts,
            leaves.deliver_later,
            gaps.retry_parked,
            resyncs.fetch_lists,
            resyncs.sweep,
        ),
        forget_room=_forget_room,
    )


def _forget_room(tx: Transaction, room_id: RoomID) -> None:
    gaps.forget_parked(tx, room_id)
    outside.forget_outside_contents(tx, room_id)


def _join(tables: Iterable[Routes]) -> Routes:
    joined = Routes()
    for table in tables:
        joined.include(table)
    return joined
