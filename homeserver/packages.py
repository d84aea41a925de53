"""`federation` and `search` are common words: at import the server checks that the packages found are its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_OWN = ("federation", "search")


def check_packages() -> None:
    """Raises ImportError, naming the file, where something else shadows one of our top-level packages."""
    here = Path(__file__).resolve().parent.parent
    for name in _OWN:
        spec = importlib.util.find_spec(name)
        places = [Path(each).resolve() for each in (spec.submodule_search_locations or ())] if spec is not None else []
        if here / name in places:
            continue
        found = spec.origin if spec is not None and spec.origin else ", ".join(map(str, places)) or "nothing"
        raise ImportError(
            f"homeserver needs its own package {name!r} from {here / name}, but Python finds {found}."
            " Rename that one, or move it behind ours in sys.path."
        )
