"""Where an embedder comes from: its names, the form in which an index stores them, and where relative paths start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from index.errors import ModelError
from index.places.cache import cache_folder, local_copy
from index.shipped import STICKERS
from index.storage import is_uri, place

SHIPPED = "stickers"
LOCAL, HUB = "local-dir:", "hf-hub:"
HUB_WEIGHTS = "open_clip_pytorch_model.bin"
LOCAL_FILE = "local-file:"  # prefix of a checkpoint file that an index stores, so that it is not taken for a tag


@dataclass(frozen=True)
class EmbedderSource:
    """What an embedder is opened from.

    Attributes:
        model: ``stickers`` (shipped), ``local-dir:FOLDER`` or the plain path of a folder in open_clip's format, an architecture
            that open_clip knows, or ``hf-hub:OWNER/NAME``, or the URI of such a folder. Empty: nothing is known.
        pretrained: for an architecture: a tag of open_clip, or a checkpoint file.
    """

    model: str = ""
    pretrained: str = ""

    def starting_from(self, base: Path) -> EmbedderSource:
        """The same with absolute paths; relative ones start from ``base``."""
        model, pretrained = self.model, self.pretrained
        if model.startswith(LOCAL):
            model = LOCAL + _absolute(model.removeprefix(LOCAL), base)
        elif model and model != SHIPPED and not model.startswith(HUB) and (base / model).expanduser().is_dir():
            model = LOCAL + _absolute(model, base)
        if pretrained.startswith(LOCAL_FILE):
            pretrained = _absolute(pretrained.removeprefix(LOCAL_FILE), base)
        elif pretrained and (base / pretrained).expanduser().is_file():
            pretrained = _absolute(pretrained, base)
        return EmbedderSource(model, pretrained)

    def seen_from(self, folder: Path) -> EmbedderSource:
        """The same with paths relative to a folder: what an index keeps, so that both can move together.

        An index on an object store has no folder that an embedder could lie beside: a local one is not on its record.
        """
        if folder.is_relative_to(cache_folder()) and (self.model.startswith(LOCAL) or Path(self.pretrained).is_absolute()):
            return EmbedderSource()
        model, pretrained = self.model, self.pretrained
        if model.startswith(LOCAL):
            model = LOCAL + _relative(model.removeprefix(LOCAL), folder)
        if pretrained and Path(pretrained).is_absolute():
            pretrained = LOCAL_FILE + _relative(pretrained, folder)
        return EmbedderSource(model, pretrained)

    def record(self) -> dict[str, str]:
        """As an index stores it."""
        return asdict(self)

    @classmethod
    def of_record(cls, stored: Any) -> EmbedderSource:
        """The source from its :meth:`record`; where nothing is stored, nothing is known.

        Raises:
            ValueError: it is not a record.
        """
        if stored is None:
            return cls()
        if not isinstance(stored, Mapping) or not all(isinstance(value, str) for value in stored.values()):
            raise ValueError(f"{stored!r} does not name an embedder")
        return cls(stored.get("model", ""), stored.get("pretrained", ""))

    def __str__(self) -> str:
        return " ".join(part for part in (self.model, self.pretrained) if part) or "not on record"


def weights_folder() -> Path:
    """The folder of the shipped embedder: beside this package, in the checkout as in an installed wheel."""
    return STICKERS / "embedder"


def folder_of(model: str, *, allow_download: bool) -> Path | None:
    """The local folder a model name means; None when it means an architecture (or a repository to download).

    Raises:
        ModelError: the folder it names is missing.
    """
    if model == SHIPPED:
        folder = weights_folder()
        if not folder.is_dir():
            raise ModelError("the shipped embedder is missing", where=str(folder), fix="Reinstall, or train it: see its README")
        return folder
    if is_uri(model):
        return local_copy(place(model))
    if model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
        if not folder.is_dir():
            raise ModelError("is not a folder", where=f"embedder {folder}", fix="Name an existing folder in open_clip's format")
        return folder
    if model.startswith(HUB) and not allow_download:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:  # what was downloaded before may be used
            return Path(snapshot_download(model.removeprefix(HUB), local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            return None
    return None


def downloaded(model: str, tag: str) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a tag of open_clip names, if it was downloaded before, and how its pictures are normalised.

    Returns:
        The file, and open_clip's own ``image_…`` settings of the tag; None where the file is not on this machine.
    """
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    settings = open_clip.get_pretrained_cfg(model, tag) or {}
    repository, _, name = str(settings.get("hf_hub", "")).rpartition("/")
    if not repository:
        return None
    # In open_clip's order: safetensors first.
    names = [Path(name).with_suffix(".safetensors").name, name] if name else ["open_clip_model.safetensors", HUB_WEIGHTS]
    for candidate in names:
        found = try_to_load_from_cache(repository, candidate)
        if isinstance(found, str):
            given = {f"image_{key}": settings.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
            return Path(found), given
    return None


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
