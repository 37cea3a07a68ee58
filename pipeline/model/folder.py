"""A model's folder: where it is, what is in it, its digest. Nothing is downloaded unless the configuration allows it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index.errors import ModelError
from index.places.cache import local_copy
from index.shipped import STICKERS
from index.storage import is_uri
from index.storage import place as storage_place
from pipeline.config import ModelConfig

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline folder that are not loaded
_TEXTS = frozenset({".json", ".txt", ".model", ".jinja"})  # the last: templates in which language models read prompts
# Only safetensors are loaded; the others are counted, so that a folder in which they change is another folder.
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".npz"})

_SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$")


def resolve(config: ModelConfig) -> Path:
    """The folder of the configured model: the embedded world, a local folder, or a hub snapshot."""
    if config.path == "stickers":
        return STICKERS / "model"
    if is_uri(config.path):
        return local_copy(storage_place(config.path))
    folder = Path(config.path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        fix = f'Make a folder of it: diffusers\' StableDiffusionPipeline.from_single_file("{folder.name}").save_pretrained(NEW)'
        raise ModelError("is a file, not a folder", where=config.path, fix=fix)
    if folder.is_absolute() or config.path.startswith("."):
        raise ModelError("folder does not exist", where=config.path, fix="Name a diffusers folder, a hub id, or 'stickers'")
    return _from_hub(config)


def model_name(config: ModelConfig) -> str:
    """The model's name as rows and pictures give it: never a path, which would reveal the folders of this machine."""
    place = Path(config.path).expanduser()
    if config.name or config.path == "stickers":
        return config.name or config.path
    if is_uri(config.path):
        return storage_place(config.path).name
    cached = _SNAPSHOT.search(Path(os.path.abspath(place)).as_posix())
    if cached and place.is_dir():  # the hub's cache names the folder by the revision
        return f"{cached[1]}/{cached[2]}"
    return Path(os.path.abspath(place)).name if place.is_absolute() or place.is_dir() else config.path


def _from_hub(config: ModelConfig) -> Path:
    """The snapshot of a hub id, from this machine's cache or, where the configuration allows it, downloaded."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str] | None) -> Path:
        unwanted = ["*.fp16.*", "*non_ema*"] if not config.variant else ["*non_ema*"]
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision or None,
                local_files_only=not config.allow_download,
                allow_patterns=patterns,
                ignore_patterns=unwanted,
            )
        )

    try:
        folder = fetch(["model_index.json"])
        if not config.allow_download:
            return folder
        # Hubs keep the same model in several precisions and formats: one set of weights, in safetensors, of the parts in use.
        weights = f"*.{config.variant}*.safetensors" if config.variant else "*.safetensors"
        wanted = [
            f"{part}/{kind}" for part in components(folder) for kind in ("*.json", "*.txt", "*.model", "*.jinja", weights)
        ]
        return fetch(["model_index.json", *wanted])
    except ModelError:
        raise
    except Exception as error:
        if config.allow_download:
            what = f"no folder has this name, and the hub gives no such model ({type(error).__name__})"
            fix = "Compare the id with the model's page (OWNER/NAME), and look whether this machine has a network"
        else:
            what = f"no folder has this name, and no model of this id was downloaded to this machine ({type(error).__name__})"
            fix = "Name an existing folder (relative paths start from the run file), or set model.allow_download = true"
        raise ModelError(what, where=config.path, fix=fix) from error


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's ``model_index.json``: settings, and components as [library, class] or [None, None].

    Raises:
        ModelError: it is missing, or not of this form.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError("has no model_index.json", where=str(folder), fix="Name a folder saved by a diffusers pipeline")
    restore = "Restore the file: copy or download the folder again"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON ({str(error) or 'nested too deeply'})", where=str(path), fix=restore) from None
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), fix=restore) from None
    if not isinstance(index, dict):
        raise ModelError("is not a table of components", where=str(path), fix=restore)
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if len(value) != 2 or not (value[0] is value[1] is None or all(isinstance(x, str) and x for x in value)):
            what = f"{name!r} is {json.dumps(value)[:80]}, not a library and a class"
            raise ModelError(what, where=str(path), fix=f'Write it as ["diffusers", "CLASS"], or restore the file: {restore}')
        if not name.isidentifier():
            raise ModelError(f"{name!r} is not the name of a component", where=str(path), fix=restore)
    return index


def components(folder: Path) -> list[str]:
    """Names of the folders a pipeline is made of, without those that are never run here."""
    index = read_index(folder)
    parts = [n for n, value in index.items() if not n.startswith("_") and isinstance(value, list) and value[0] is not None]
    return [name for name in parts if name not in UNUSED]


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
