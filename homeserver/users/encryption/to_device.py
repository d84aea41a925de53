"""To-device messages for users of this server: which of their devices get them.

Spec: client-server-api/#send-to-device-messaging
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.interning import check_string
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.users.blocking import ignored_users
from homeserver.users.devices import list_devices
from homeserver.users.encryption.inbox import insert_message

EVERY_DEVICE = "*"


class Posting(msgspec.Struct):
    """What one request or EDU has put into inboxes so far: its size is limited, whatever "*" stands for.

    dropped: older messages that had to make room, in inboxes that were full.
    """

    messages: int = 0
    bytes: int = 0
    dropped: int = 0

    def add(self, size_bytes: int) -> None:
        """Counts one more message. Raises MatrixError 413 if these are too many for one write."""
        self.messages += 1
        self.bytes += size_bytes
        if self.messages > limits.users.TO_DEVICE_POSTED_MAX or self.bytes > limits.users.TO_DEVICE_POSTED_BYTES_MAX:
            raise MatrixError(
                413, "M_TOO_LARGE", "That is too much for one request. Send it to fewer devices at a time."
            )


def store_messages(
    tx: Transaction,
    sender: UserID,
    message_type: str,
    recipient: UserID,
    contents: Mapping[str, bytes],
    posting: Posting,
) -> None:
    """Stores messages for devices of a user of this server. contents: JSON by device ID.

    The content of "*" is for every device that is not listed. Devices that do not exist are ignored, and nothing is
    stored for a user who ignores the sender. Raises MatrixError 400 if the type cannot be stored, 413 if `posting`
    becomes too large.
    """
    check_string(message_type)
    if sender in ignored_users(tx, recipient):
        return
    for device in list_devices(tx, recipient):
        content = contents.get(device.device_id, contents.get(EVERY_DEVICE))
        if content is not None:
            posting.add(len(content))
            posting.dropped += insert_message(tx, recipient, device.device_id, sender, message_type, content)
