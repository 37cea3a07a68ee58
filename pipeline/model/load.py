"""Load a model behind one interface (:mod:`pipeline.model.interface`), or look at what can be known of it without loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ClearanceError, ModelError, OutOfMemory
from index.loading import loading
from index.padding import first_line, out_of_memory
from pipeline.config import ModelConfig
from pipeline.model.compiled import check_compiles
from pipeline.model.device import LESS, check_device
from pipeline.model.families.registry import class_of
from pipeline.model.folder.digest import check_digests
from pipeline.model.folder.fit import check_class, check_fit
from pipeline.model.folder.parts import Parts, read_json, read_parts
from pipeline.model.folder.resolve import resolve
from pipeline.model.folder.tokenizer import check_tokenizer
from pipeline.model.graphs import check_graphs
from pipeline.model.interface import DiffusionModel
from pipeline.model.libraries import reason
from pipeline.model.sides import Sides
from pipeline.notes import Note

if TYPE_CHECKING:
    from pipeline.model.families.latent import LatentDiffusion


def look_at(config: ModelConfig) -> tuple[Path, type[LatentDiffusion], Parts]:
    """The configured model's folder, class and parts, from names and headers alone. Imports no torch.

    Raises:
        ModelError: the folder is not there, of a class that is not known, or a part of it cannot be used.
    """
    folder = resolve(config)
    cls = class_of(folder)
    return folder, cls, read_parts(folder, config, cls)


def sides_of(config: ModelConfig) -> Sides | None:
    """The rule for the sides of the configured model's pictures, without loading it; None: it is known when loaded.

    Raises:
        ModelError: as :func:`look_at`.
    """
    folder, cls, _ = look_at(config)
    multiple = cls.multiple_of(read_json(folder / "vae" / "config.json"))
    return Sides(multiple, config.snap) if multiple else None


@dataclass(frozen=True)
class CheckedModel:
    """A model that was looked at and not loaded.

    Attributes:
        folder: where it is.
        cls: its class.
        parts: the content of its files.
        notes: what it is drawn with differently from the folder.
    """

    folder: Path
    cls: type[LatentDiffusion]
    parts: Parts
    notes: tuple[Note, ...]


@loading()
def check_model(config: ModelConfig) -> CheckedModel:
    """Look at everything that can be known about a model without loading it.

    Raises:
        ModelError: see :func:`look_at` and :func:`pipeline.model.folder.fit.check_fit`.
    """
    folder, cls, parts = look_at(config)
    check_digests(folder.parent)
    for name, (library, class_name) in parts.classes.items():
        check_class(name, library, class_name, folder)
        if name.startswith("tokenizer"):
            check_tokenizer(folder / name)
    if config.compile == "blocks":
        check_compiles(check_class(cls.denoiser, *parts.classes[cls.denoiser], folder), config.device)
    if config.graphs == "plain":
        check_graphs(config.device, cls.denoiser_class, waits_for_host=cls.waits_for_host)
    misfits = [note for part in parts.parts for note in check_fit(part)]
    return CheckedModel(folder, cls, parts, (*parts.notes, *misfits))


@loading()
def load_model(config: ModelConfig) -> DiffusionModel:
    """Load the configured model for inference. No download unless ``allow_download`` is true.

    Raises:
        ConfigError: the device is not there, or a setting does not suit the model.
        ModelError: the folder is not there, broken or of a class that is not known.
        OutOfMemory: it does not fit.
    """
    check_device(config.device)
    checked = check_model(config)
    where = str(checked.folder)
    try:
        return checked.cls.load(checked.folder, config)
    except ClearanceError:
        raise
    except Exception as error:
        if out_of_memory(error):
            what = f"the model does not fit into the memory of {config.device} ({first_line(error)})"
            raise OutOfMemory(what, where=where, fix=LESS) from error
        fix = "Restore the folder, or use one that diffusers itself loads; see the traceback with CLEARANCE_DEBUG=1"
        raise ModelError(f"cannot be loaded: {reason(error)}", where=where, fix=fix) from error
