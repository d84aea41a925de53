"""Files that are written once from the beginning to the end, and then read in any order. Sealed, if there is a key.

Theory of operation. A file consists of pages of PAGE_BYTES; the last one may be shorter. With a key, each page is
sealed by XChaCha20-Poly1305 and is TAG_BYTES longer. Each file has a subkey of its own (`subkey_of`), and the nonce of
a page is its number. No nonce is used twice, because the names of slices are random and files are never changed.

Pages are read and opened when they are needed. `Pages` keeps the last ones of all files of an index, so that reading
takes little memory, however large the files are.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from homeserver.search.documents import IndexDamaged

PAGE_BYTES = 4096
TAG_BYTES = 16
_NONCE_BYTES = 24
# Pages that are kept: 24 MB. A search reads some ten of each slice.
PAGES_KEPT_MAX = 6_000


def subkey_of(key: bytes | None, path: Path) -> bytes | None:
    """Returns the key of a file of a slice; None if there is no key. It depends on the names of slice and file."""
    if key is None:
        return None
    name = f"{path.parent.name}/{path.name}".encode()
    return blake2b(name, digest_size=32, key=key, person=b"search/file").digest()


class PageWriter:
    """Writes a file. Has what Whoosh needs of a file object."""

    def __init__(self, path: Path, key: bytes | None) -> None:
        self._file = path.open("xb")
        self._key = subkey_of(key, path)
        self._waiting = bytearray()
        self._pages = 0

    def write(self, data: bytes) -> int:
        """Appends bytes."""
        self._waiting += data
        if len(self._waiting) >= PAGE_BYTES:
            end = len(self._waiting) // PAGE_BYTES * PAGE_BYTES
            whole = bytes(self._waiting[:end])
            del self._waiting[:end]
            for start in range(0, end, PAGE_BYTES):
                self._write_page(whole[start : start + PAGE_BYTES])
        return len(data)

    def tell(self) -> int:
        """Returns how many bytes were written."""
        return self._pages * PAGE_BYTES + len(self._waiting)

    def close(self) -> None:
        """Writes the last page, and makes sure that the file is on the disk."""
        if self._waiting:
            self._write_page(bytes(self._waiting))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_page(self, page: bytes) -> None:
        if self._key is not None:
            page = crypto_aead_xchacha20poly1305_ietf_encrypt(page, None, _nonce(self._pages), self._key)
        self._file.write(page)
        self._pages += 1


class Pages:
    """Keeps the pages that were read last, of all files that share it."""

    def __init__(self) -> None:
        self._new: dict[int, bytes] = {}
        self._old: dict[int, bytes] = {}
        self._files = 0

    def next_number(self) -> int:
        """Returns a number for a file."""
        self._files += 1
        return self._files << 40

    def get(self, place: int) -> bytes | None:
        """Returns a page, None if it is not kept. place: the number of its file plus that of the page."""
        page = self._new.get(place)
        if page is None and (page := self._old.get(place)) is not None:
            self.put(place, page)
        return page

    def put(self, place: int, page: bytes) -> None:
        """Keeps a page. Those that were not read for long are forgotten."""
        if len(self._new) >= PAGES_KEPT_MAX // 2:
            self._new, self._old = {}, self._new
        self._new[place] = page


class PageReader:
    """Reads a file. Has what Whoosh needs of a file object, and `get`."""

    def __init__(self, path: Path, key: bytes | None, pages: Pages) -> None:
        self._path = path
        self._key = subkey_of(key, path)
        self._stored_bytes = PAGE_BYTES if key is None else PAGE_BYTES + TAG_BYTES
        self._pages = pages
        self._number = pages.next_number()
        self._at = 0
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stored = os.fstat(self._descriptor).st_size
        self.size = stored if key is None else stored - -(-stored // self._stored_bytes) * TAG_BYTES

    def get(self, position: int, length: int) -> bytes:
        """Returns bytes, fewer at the end of the file. Raises IndexDamaged if their seal is broken."""
        number, start = divmod(position, PAGE_BYTES)
        end = start + length
        if end <= PAGE_BYTES:
            return self._page(number)[start:end]
        last = (position + length - 1) // PAGE_BYTES
        return b"".join(map(self._page, range(number, last + 1)))[start:end]

    def read(self, length: int = -1) -> bytes:
        """Returns the next bytes."""
        data = self.get(self._at, self.size - self._at if length < 0 else length)
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """Returns the bytes up to the next line feed. Whoosh reads a short description with it."""
        line = bytearray()
        while byte := self.read(1):
            line += byte
            if byte == b"\n":
                break
        return bytes(line)

    def seek(self, position: int) -> int:
        """Goes to a position."""
        self._at = position
        return position

    def tell(self) -> int:
        """Returns the position."""
        return self._at

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _page(self, number: int) -> bytes:
        place = self._number + number
        page = self._pages.get(place)
        if page is None:
            page = os.pread(self._descriptor, self._stored_bytes, number * self._stored_bytes)
            if self._key is not None and page:
                page = self._open_page(page, number, self._key)
            self._pages.put(place, page)
        return page

    def _open_page(self, page: bytes, number: int, key: bytes) -> bytes:
        try:
            opened: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(page, None, _nonce(number), key)
        except CryptoError:
            raise IndexDamaged(
                f"{self._path}: the seal of a page is broken, or it was sealed with another key"
            ) from None
        return opened


def _nonce(page: int) -> bytes:
    return page.to_bytes(_NONCE_BYTES, "big")
