"""Compression of stored JSON: zstd with a dictionary that knows the keys and shapes of Matrix events.

The first byte is the number of the dictionary, or 0 for data stored uncompressed. The rest is a zstd frame without its
magic number and dictionary ID. Dictionaries are files in this folder, made by `train_dictionary`. Old dictionaries stay
so that old data can be read.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import zstandard

from homeserver.database.schema import DatabaseDamaged

CURRENT_DICTIONARY = 1
_LEVEL = 5  # on contents of all common types: smaller than level 6 with this dictionary, and within 2 µs of level 3
_LEVEL_LARGE = 19  # archived blocks are compressed once, in the background; reading does not depend on the level
_AS_IT_IS = b"\0"


class _AnyObject(msgspec.Struct):
    """Any JSON object. Its members are skipped, which checks their syntax in a tenth of the time of parsing them."""


_check_object = msgspec.json.Decoder(_AnyObject).decode

# zstandard's contexts must not be shared between threads. They keep no state between calls.
_of_thread = threading.local()


class CorruptData(DatabaseDamaged):
    """Stored data is not what was written, or is longer than allowed."""


def compress(data: bytes) -> bytes:
    """Returns `data` compressed to as few bytes as possible; `decompress` restores it."""
    try:
        compressor = _of_thread.compressor
    except AttributeError:
        compressor = _of_thread.compressor = _make_compressor()
    packed: bytes = compressor.compress(data)
    return bytes((CURRENT_DICTIONARY,)) + packed if len(packed) < len(data) else _AS_IT_IS + data


def compress_large(data: bytes) -> bytes:
    """Does the same as `compress` with much more effort: some 50 ms for 100 KB."""
    packed: bytes = _make_compressor(_LEVEL_LARGE).compress(data)
    return bytes((CURRENT_DICTIONARY,)) + packed if len(packed) < len(data) else _AS_IT_IS + data


def as_it_is(data: bytes) -> bytes:
    """Returns the data in the format of `compress`, but not compressed."""
    return _AS_IT_IS + data


def decompress(data: bytes, max_bytes: int) -> bytes:
    """Returns the data that was passed to `compress`. Raises CorruptData if it is damaged or exceeds `max_bytes`."""
    if not data:
        raise CorruptData("compressed data is empty")
    number = data[0]
    if number == 0:
        if len(data) - 1 > max_bytes:
            raise CorruptData(f"stored data has {len(data) - 1} bytes, more than {max_bytes}")
        return bytes(data[1:])
    try:
        decompressor = _of_thread.decompressors[number]
    except (AttributeError, KeyError):
        decompressor = _make_decompressor(number)
    frame = data[1:]
    try:
        size_bytes = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size
        if size_bytes > max_bytes:  # also if the frame does not state its size, which ours always do
            raise CorruptData(f"stored data has {size_bytes} bytes, more than {max_bytes}")
        unpacked: bytes = decompressor.decompress(frame, max_output_size=max_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptData(f"compressed data is damaged: {error}") from None
    return unpacked


def decompress_json(data: bytes, max_bytes: int) -> bytes:
    """Does the same as `decompress` for a JSON object. Raises CorruptData if the result is not one.

    The check is needed because the frames have no checksum.
    """
    unpacked = decompress(data, max_bytes)
    try:
        _check_object(unpacked)
        if not unpacked.isascii():
            unpacked.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CorruptData("compressed data is damaged: it does not hold a JSON object") from None
    return unpacked


def _load_dictionary(number: int) -> zstandard.ZstdCompressionDict:
    path = Path(__file__).parent / f"dictionary_{number}.dict"
    try:
        return zstandard.ZstdCompressionDict(path.read_bytes())
    except FileNotFoundError:
        raise CorruptData(f"compressed with dictionary {number}, which this program does not have") from None


def _make_compressor(level: int = _LEVEL) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
    )
    dictionary = _load_dictionary(CURRENT_DICTIONARY)
    dictionary.precompute_compress(compression_params=parameters)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)


def _make_decompressor(number: int) -> zstandard.ZstdDecompressor:
    decompressor = zstandard.ZstdDecompressor(
        dict_data=_load_dictionary(number), format=zstandard.FORMAT_ZSTD1_MAGICLESS
    )
    if not hasattr(_of_thread, "decompressors"):
        _of_thread.decompressors = {}
    _of_thread.decompressors[number] = decompressor
    return decompressor
