"""The digest of a model's folder, and the digests that a shipped folder is held to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from index.errors import ModelError

_TEXTS = frozenset({".json", ".txt", ".model", ".jinja"})  # the last: templates in which language models read prompts
# Only safetensors are loaded; the others are counted, so that a folder in which they change is another folder.
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".npz"})


def folder_digest(folder: Path) -> str:
    """Digest of a diffusers folder: every description and every file of weights in it, by name and content.

    Links are followed, files and folders alike: what is behind them is what would be loaded.

    Raises:
        ModelError: it holds no such file, or one cannot be read.
    """
    lines = []
    try:
        for path in sorted(_files(folder, ())):
            if path.suffix in _TEXTS | _WEIGHTS:
                with path.open("rb") as file:
                    lines.append(f"{path.relative_to(folder).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    except OSError as error:
        where = str(error.filename or folder)
        raise ModelError(
            f"cannot be read ({error.strerror})", where=where, fix="Check its permissions, or copy it again"
        ) from None
    if not lines:
        raise ModelError("holds no model files", where=str(folder), fix="Name a diffusers folder with safetensors weights")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files below a folder, through links; a link to one of the folders above (``above``: device and inode) is left out."""
    info = folder.stat()
    here = (*above, (info.st_dev, info.st_ino))
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and (path.stat().st_dev, path.stat().st_ino) not in here:
            yield from _files(path, here)


def check_digests(folder: Path) -> None:
    """Compare a shipped folder with its ``digests.json`` (path → sha256); folders without one are not checked.

    Raises:
        ModelError: a file is missing or changed, or the list is none.
    """
    listing = folder / "digests.json"
    if not listing.exists():
        return
    try:
        digests = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        digests, reason = None, str(error) or "nested too deeply"
    else:
        reason = "not a table of files and their sha256"
    if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        fix = "Restore it from the repository; or, if it is not Clearance's, move it elsewhere: models beside it are held to it"
        raise ModelError(f"cannot be read ({reason})", where=str(listing), fix=fix)
    for name, expected in digests.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != expected:
            raise ModelError(
                f"digest is {found[:12]}, the card says {expected[:12]}",
                where=str(path),
                fix="Restore the file from the repository",
            )
