"""permessage-deflate, without context takeover and with a bound on what a message inflates to. Spec: RFC 7692

Each message is compressed on its own. So nothing is kept between messages: a connection that is idle needs no memory
for compression, where a context would take 300 KiB. A message that inflates to more than the largest message is refused
as soon as it exceeds that, however small it came. wsproto's own extension has no such bound, and loses the state of a
fragmented message when a ping comes in between.
"""

from __future__ import annotations

import zlib

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from homeserver import limits

_TAIL = b"\x00\x00\xff\xff"  # what the sender leaves out. Spec: RFC 7692, section 7.2.1
_NO_BITS = RsvBits(False, False, False)
_COMPRESSED = RsvBits(True, False, False)
_LEVEL = 3  # twice as fast as the usual 6, for some 5 % more bytes


class Deflate(Extension):
    """The compression of one connection. agreed: what the server's half of the handshake says."""

    name = "permessage-deflate"

    def __init__(self, agreed: str, server_bits: int, client_bits: int) -> None:
        """server_bits, client_bits: the windows of either side."""
        self.agreed = agreed
        self._server_bits = server_bits
        self._client_bits = client_bits
        self._inflater: zlib._Decompress | None = None  # while a compressed message is arriving
        self._is_control = False  # the frame that is arriving
        self._size = 0  # of the message so far
        self._compressed_size = 0  # of what it was inflated from

    def enabled(self) -> bool:
        """Returns True: it is created only once it has been agreed on."""
        return True

    def offer(self) -> bool | str:
        """Offers nothing: this is the server's side."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Returns the reserved bits that this frame may have: the first frame of a message says if it is compressed."""
        self._is_control = opcode.iscontrol()
        if self._is_control or opcode is Opcode.CONTINUATION:
            return _NO_BITS
        self._inflater = zlib.decompressobj(-self._client_bits) if rsv.rsv1 else None
        self._size = self._compressed_size = 0
        return _COMPRESSED

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Returns what a part of a frame means."""
        return data if self._is_control or self._inflater is None else self._inflate(self._inflater, data)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        """Returns what is left when a frame has ended."""
        if self._is_control or self._inflater is None or not fin:
            return None
        rest = self._inflate(self._inflater, _TAIL)
        self._inflater = None
        return rest

    def _inflate(self, inflater: zlib._Decompress, data: bytes) -> bytes | CloseReason:
        room = limits.websocket.MESSAGE_BYTES_MAX + 1 - self._size
        self._compressed_size += len(data)
        # Empty blocks, and whatever follows the last block, inflate to nothing, so there could be any number of them.
        if room <= 0 or self._compressed_size > limits.websocket.DEFLATED_BYTES_MAX:
            return CloseReason.MESSAGE_TOO_BIG
        try:
            found = inflater.decompress(data, room)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._size += len(found)
        if inflater.unconsumed_tail or self._size > limits.websocket.MESSAGE_BYTES_MAX:
            return CloseReason.MESSAGE_TOO_BIG
        # Behind a block that says it is the last one there may only be the tail. Spec: RFC 7692, section 7.2.3.4
        if inflater.unused_data and inflater.unused_data.strip(b"\x00\xff"):
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return found

    def deflate(self, payload: bytes) -> bytes:
        """Returns the payload of a compressed message."""
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -self._server_bits)
        return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


def negotiate(offers: str) -> Deflate | None:
    """Returns the compression for the first offer that we can accept, or None. offers: Sec-WebSocket-Extensions."""
    for offer in offers.split(","):
        name, *parameters = [part.strip() for part in offer.split(";")]
        if name == Deflate.name:
            found = _accept(parameters)
            if found is not None:
                return found
    return None


def _accept(parameters: list[str]) -> Deflate | None:
    given: dict[str, int | None] = {}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        value = value.strip().strip('"')
        if name in given or (equals and value not in _WINDOWS):
            return None
        given[name] = int(value) if equals else None
    if not given.keys() <= {"server_no_context_takeover", "client_no_context_takeover", *_BITS}:
        return None
    if any(given.get(name) is not None for name in given if name not in _BITS):
        return None
    server_bits = given.get("server_max_window_bits", 15)
    if server_bits is None or server_bits < 9:  # zlib cannot compress with a smaller window
        return None
    agreed = [Deflate.name, "server_no_context_takeover", "client_no_context_takeover"]
    if "server_max_window_bits" in given:
        agreed.append(f"server_max_window_bits={server_bits}")
    client_bits = 15
    if "client_max_window_bits" in given:  # a client that does not mention it need not obey. Spec: section 7.1.2.2
        client_bits = min(given["client_max_window_bits"] or 15, limits.websocket.DEFLATE_CLIENT_WINDOW_BITS)
        client_bits = max(9, client_bits)
        agreed.append(f"client_max_window_bits={client_bits}")
    return Deflate("; ".join(agreed), server_bits, client_bits)


_BITS = frozenset({"server_max_window_bits", "client_max_window_bits"})
_WINDOWS = frozenset(map(str, range(8, 16)))  # without leading zeros. Spec: RFC 7692, section 7.1.2
