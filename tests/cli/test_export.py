"""`export` and `import`: history and people's data as folders of files."""

from __future__ import annotations
