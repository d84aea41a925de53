"""`python -m homeserver`: the command line, where its entry point is not on the path."""

from __future__ import annotations

import sys

from homeserver.cli import main

sys.exit(main())
