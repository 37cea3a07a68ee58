"""Where a model's folder is, and what rows and pictures call it. Nothing is downloaded unless the configuration allows it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from index.errors import ModelError
from index.places.cache import local_copy
from index.shipped import STICKERS
from index.storage import is_uri
from index.storage import place as storage_place
from pipeline.config import ModelConfig
from pipeline.model.folder.components import components

PRECISIONS = ("fp16", "bf16", "fp8", "fp32")  # variants as hubs name them
SINGLE_FILES = {  # part of a tensor's name in a whole checkpoint → class
    "conditioner.embedders.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_stream_modulation": "Flux2Pipeline",
    "double_blocks.": "FluxPipeline",
    "cap_embedder.": "ZImagePipeline",
}
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
        fix = f'Make a folder of it: diffusers\' {_pipeline_of(folder)}.from_single_file("{folder.name}").save_pretrained(NEW)'
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
    from huggingface_hub import list_repo_files, snapshot_download

    def fetch(patterns: list[str] | None) -> Path:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision or None,
                local_files_only=not config.allow_download,
                allow_patterns=patterns,
                ignore_patterns=unwanted,
            )
        )

    # Hubs keep the same model in several precisions and formats: one set of weights, in safetensors, of the parts in use. A
    # variant stands behind the first dot: model.fp16.safetensors, model.fp16-00001-of-00002.safetensors.
    unwanted = ["*non_ema*", *(f"*.{kind}{end}" for kind in PRECISIONS if kind != config.variant for end in (".*", "-*"))]
    try:
        folder = fetch(["model_index.json"])
        if not config.allow_download:
            return folder
        weights = f"*.{config.variant}*.safetensors" if config.variant else "*.safetensors"
        parts = components(folder)
        wanted = [f"{part}/{kind}" for part in parts for kind in ("*.json", "*.txt", "*.model", "*.jinja", weights)]
        folder = fetch(["model_index.json", *wanted])
        weighty = [part for part in parts if not part.startswith(("tokenizer", "scheduler"))]
        bare = [part for part in weighty if not _has_weights(folder / part)]
        if bare and config.variant:  # a part may have plain weights alone: an autoencoder beside a transformer in bf16
            folder = fetch([f"{part}/*.safetensors" for part in bare])
            bare = [part for part in bare if not _has_weights(folder / part)]
        if bare:
            raise _without_weights(bare[0], list_repo_files(config.path, revision=config.revision or None), config)
        return folder
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


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _without_weights(part: str, files: Iterable[str], config: ModelConfig) -> ModelError:
    """What the hub has of a part, none of whose weights were fetched."""
    names = [name.rpartition("/")[2] for name in files if name.startswith(f"{part}/")]
    kinds = sorted({found[1] for name in names if (found := re.search(r"\.(\w+?)(-\d+-of-\d+)?\.safetensors$", name))})
    if kinds:
        there = ", ".join(f'"{kind}"' for kind in kinds)
        what = f"the hub has no weights of its {part} without a variant; there is {there}"
        return ModelError(what, where=config.path, fix=f'Set model.variant = "{kinds[0]}"')
    what = f"the hub has no weights of its {part} as safetensors"
    if pickled := next((name for name in names if name.endswith((".bin", ".ckpt", ".pt"))), ""):
        what += f"; {pickled} is pickled: opening it can run code, so it is never opened"
    return ModelError(
        what, where=config.path, fix="Use another revision (model.revision), or a model whose weights are safetensors"
    )


def _pipeline_of(file: Path) -> str:
    """The class of a whole checkpoint, by the names of its tensors; "StableDiffusionPipeline" where they are not known."""
    from pipeline.model.folder.parts import read_header

    names: Iterable[str] = ()
    if file.suffix == ".safetensors":
        with suppress(ModelError):
            names = read_header(file)
    for part, pipeline in SINGLE_FILES.items():
        if any(part in name for name in names):
            return pipeline
    return "StableDiffusionPipeline"
