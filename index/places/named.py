"""Places from text: a local path, or a folder on an object store."""

from __future__ import annotations

import os
import re
from pathlib import Path

from index.errors import ConfigError
from index.places.object_folder import ObjectFolder
from index.places.schemes import opener


def place(text: str, base: Path | None = None) -> Path:
    """The place that a text names: a local path (relative ones start from ``base``), or a folder on an object store.

    Raises:
        ConfigError: a scheme that nothing opens, or a URI that is none, or holds credentials.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        whole = Path(os.path.expanduser(text))
        return whole if base is None else base / whole
    scheme = scheme.lower()  # RFC 3986, 3.1: S3:// is s3://
    if scheme == "file":
        return Path(rest)
    bucket, _, key = rest.partition("/")
    shown = f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}".rstrip("/")
    opener(scheme, shown)
    if "@" in bucket or "?" in rest:
        fix = "Leave them out of it, and set them in the environment (AWS_ACCESS_KEY_ID …)"
        raise ConfigError("a place is named without credentials or options", where=shown, fix=fix)
    steps = key.strip("/").split("/") if key.strip("/") else []
    if not bucket or any(step in ("", ".", "..") for step in steps):
        raise ConfigError("is not a place", where=shown, fix=f"Name it as {scheme}://BUCKET/FOLDER")
    return ObjectFolder(f"{scheme}://{bucket}", "/".join(steps))


def is_uri(text: str) -> bool:
    """Whether a text names a place by its scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None
