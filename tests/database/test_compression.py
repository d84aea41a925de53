"""Stored JSON is small, comes back as it was, and cannot blow up."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from homeserver.database import compression
from homeserver.database.compression import CorruptData, compress, decompress
from tests.dictionary.samples import Samples


@given(st.binary(max_size=2000))
def test_decompression_restores_the_input(data: bytes) -> None:
    packed = compress(data)
    assert decompress(packed, len(data)) == data
    assert len(packed) <= len(data) + 1


@given(st.integers(), st.integers(1, 10))
def test_compressed_events_are_smaller_and_restored(seed: int, count: int) -> None:
    samples = Samples(seed)
    for _ in range(count):
        data = samples.one()
        packed = compress(data)
        assert decompress(packed, 65536) == data
        assert len(packed) <= len(data) + 1


def test_a_memoryview_can_be_decompressed() -> None:
    assert decompress(memoryview(compress(b"abc" * 100)), 300) == b"abc" * 100  # type: ignore[arg-type]


def test_a_compressed_message_takes_few_bytes() -> None:
    """Bytes per message is a tested number, on samples that the dictionary was not trained with."""
    samples = Samples(999)
    messages = [samples.message() for _ in range(500)]
    plain = sum(len(samples.encode(message)) for message in messages) / 500
    packed = sum(len(compress(samples.encode(message))) for message in messages) / 500
    assert packed < 62
    assert packed < plain * 0.45


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 255))
def test_damaged_data_is_refused_or_yields_bounded_output(data: bytes, place: int, byte: int) -> None:
    """Never anything but CorruptData, and never more than was allowed."""
    packed = bytearray(compress(data))
    packed[place % len(packed)] = byte
    for damaged in (bytes(packed), bytes(packed[:place]), bytes(packed) + b"x"):
        try:
            assert len(decompress(damaged, 400)) <= 400
        except CorruptData:
            pass


def test_output_longer_than_allowed_is_refused() -> None:
    for data in (b"a" * 100_000, bytes(range(256))):
        packed = compress(data)
        assert decompress(packed, len(data)) == data
        with pytest.raises(CorruptData, match="more than"):
            decompress(packed, len(data) - 1)


def test_a_frame_that_hides_its_size_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_dict_id=False
    )
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(b"\0" * 10_000_000)
    with pytest.raises(CorruptData):
        decompress(b"\1" + bomb, 65536)


def test_an_unknown_dictionary_is_refused() -> None:
    with pytest.raises(CorruptData, match="dictionary 250"):
        decompress(b"\xfaabc", 100)


def test_a_released_dictionary_never_changes() -> None:
    """Data that was written with it must stay readable: a new one gets a new number."""
    folder = Path(compression.__file__).parent
    assert {path.name for path in folder.glob("*.dict")} == {
        f"dictionary_{number}.dict" for number in range(1, compression.CURRENT_DICTIONARY + 1)
    }
    stored = bytes.fromhex(STORED_WITH_1)
    assert decompress(stored, 65536) == b'{"body":"hello world","msgtype":"m.text"}'


def test_threads_do_not_disturb_one_another() -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            samples = Samples(seed)
            for _ in range(300):
                data = samples.one()
                assert decompress(compress(data), 65536) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


STORED_WITH_1 = "01202995000018776f7204fc89010353a1f258d106d3d753"
