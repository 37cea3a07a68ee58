"""Where a model's folder is, and what rows and pictures call it. Nothing is downloaded unless the configuration allows it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from index.errors import ModelError
from index.places.cache import local_copy
from index.shipped import STICKERS
from index.storage import is_uri
from index.storage import place as storage_place
from pipeline.config import ModelConfig
from pipeline.model.folder.components import components

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
        if folder.suffix != ".safetensors":
            fix += "; only if you trust where it comes from: a file of this kind may run code when it is read"
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
