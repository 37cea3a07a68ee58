"""The content of a run folder, for tests that compare it before and after."""

from __future__ import annotations

import os
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link, with what is in it; the lock's is left out."""
    found = (path for path in sorted(folder.rglob("*")) if path.name != ".lease" and (path.is_symlink() or not path.is_dir()))
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in found
    }
