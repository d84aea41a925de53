"""Compiled templates, kept for all servers of the process: compiling those of one page takes a tenth of a second."""

from __future__ import annotations

from functools import cache

from jinja2 import BytecodeCache
from jinja2.bccache import Bucket


class CompiledTemplates(BytecodeCache):
    """Code in memory. Jinja compares it with the source of the template before it is used."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Called by Jinja: fills in the code, if there is any."""
        code = self._code.get(bucket.key)
        if code is not None:
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Called by Jinja: keeps the code of a template that was compiled."""
        self._code[bucket.key] = bucket.bytecode_to_string()


@cache
def compiled_templates() -> CompiledTemplates:
    """Returns the templates that this process has compiled. Their code never changes."""
    return CompiledTemplates()
