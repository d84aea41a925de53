"""What keys of encryption cost: CPU per query, claim and upload. Prints one JSON object.

python -m tests.bench.bench_keys
"""

from __future__ import annotations

import json
from typing import Any

import trio

from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.features.encryption_keys.claims import ClaimBody, claim_keys
from homeserver.features.encryption_keys.queries import QueryBody, query_keys
from homeserver.features.encryption_keys.uploads import UploadBody, upload_keys
from homeserver.federation.signed_keys import Usage, parse_cross_signing_key, parse_device_keys
from homeserver.users.devices import create_device
from homeserver.users.encryption.cross_signing import store_cross_signing_keys, store_uploaded_keys
from tests.bench.bench_rooms import measure, requester, running, user
from tests.support.keys import SIGNED, CrossSigning, Device

PEOPLE = 500
DEVICES = ("PHONE", "LAPTOP", "TABLET")
USAGES: tuple[Usage, ...] = ("master", "self_signing", "user_signing")


def store_people(tx: Transaction, first: int, count: int) -> None:
    """Users with three devices and cross-signing keys, none of whom is logged in."""
    for user_id in map(user, range(first, first + count)):
        for device_id in DEVICES:
            create_device(tx, user_id, device_id, "Element Desktop on Linux")
            keys = Device(user_id, device_id).keys()
            store_uploaded_keys(tx, user_id, device_id, parse_device_keys(keys, user_id, device_id))
        own = CrossSigning(user_id)
        given = {usage: parse_cross_signing_key(own.body()[f"{usage}_key"], user_id, usage) for usage in USAGES}
        store_cross_signing_keys(tx, user_id, given)


async def main() -> None:
    async with running() as place:
        hs, people = place.hs, [user(number) for number in range(1, PEOPLE + 1)]
        for first in range(1, PEOPLE + 1, 50):
            await hs.database.write(store_people, first, 50)
        devices = {user_id: Device(user_id, "PHONE") for user_id in people}

        async def upload(number: int) -> Any:
            user_id = people[number % PEOPLE]
            body = UploadBody(one_time_keys=devices[user_id].one_time_keys(50))
            return await upload_keys(hs, Requester(user_id, "PHONE"), body)

        async def query(_: int) -> int:
            body = QueryBody(device_keys={user_id: [] for user_id in people})
            return len(to_json(await query_keys(hs, requester(1), body)))

        async def claim(_: int) -> int:
            body = ClaimBody(one_time_keys={user_id: {"PHONE": SIGNED} for user_id in people})
            return len(to_json(await claim_keys(hs, requester(1), body)))

        results = {
            "upload_of_50_keys_ms": await measure(PEOPLE, upload) / 1000,
            "query_of_500_people_ms": await measure(20, query) / 1000,
            "claim_of_500_keys_ms": await measure(20, claim) / 1000,
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    trio.run(main)
