"""Diffusion models behind one interface (:mod:`pipeline.model.interface`): which classes there are, and how one is loaded.

The class is read from the folder's ``model_index.json``: Stable Diffusion 1.x and 2.x (:mod:`pipeline.model.sd`), SDXL
(:mod:`pipeline.model.sdxl`), SD3 (:mod:`pipeline.model.sd3`), Flux (:mod:`pipeline.model.flux`), FLUX.2 dev and
klein (:mod:`pipeline.model.flux2`), Qwen-Image (:mod:`pipeline.model.qwen_image`), Z-Image (:mod:`pipeline.model.z_image`),
PixArt-Σ and PixArt-α (:mod:`pipeline.model.pixart`), Sana (:mod:`pipeline.model.sana`), Chroma (:mod:`pipeline.model.chroma`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ClearanceError, ModelError, OutOfMemory
from index.padding import first_line, out_of_memory
from pipeline.config import ModelConfig
from pipeline.model.device import check_device
from pipeline.model.fit import check_class, check_fit, reason
from pipeline.model.folder import check_digests, resolve
from pipeline.model.interface import LESS, DiffusionModel
from pipeline.model.parts import Parts, pipeline_class, read_json, read_parts
from pipeline.model.sides import Sides
from pipeline.notes import Note

if TYPE_CHECKING:
    from pipeline.model.latent import LatentDiffusion


def model_classes() -> dict[str, type[LatentDiffusion]]:
    """The classes of models that can be drawn with, by the name of their diffusers pipeline."""
    from pipeline.model.chroma import Chroma
    from pipeline.model.flux import Flux
    from pipeline.model.flux2 import Flux2, Flux2Klein
    from pipeline.model.pixart import PixArtAlpha, PixArtSigma
    from pipeline.model.qwen_image import QwenImage
    from pipeline.model.sana import Sana
    from pipeline.model.sd import StableDiffusion
    from pipeline.model.sd3 import StableDiffusion3
    from pipeline.model.sdxl import StableDiffusionXL
    from pipeline.model.z_image import ZImage

    classes: tuple[type[LatentDiffusion], ...] = (
        StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Flux2, Flux2Klein, QwenImage, ZImage,
        PixArtSigma, PixArtAlpha, Sana, Chroma,
    )  # fmt: skip
    return {cls.pipeline: cls for cls in classes}


def look_at(config: ModelConfig) -> tuple[Path, type[LatentDiffusion], Parts]:
    """The configured model's folder, class and parts, from names and headers alone. Imports no torch.

    Raises:
        ModelError: the folder is not there, of a class that is not known, or a part of it cannot be used.
    """
    classes = model_classes()
    folder = resolve(config)
    cls = classes[pipeline_class(folder, list(classes))]
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


def check_model(config: ModelConfig) -> CheckedModel:
    """Look at everything that can be known about a model without loading it.

    Raises:
        ModelError: see :func:`look_at` and :func:`pipeline.model.fit.check_fit`.
    """
    folder, cls, parts = look_at(config)
    check_digests(folder.parent)
    for name, (library, class_name) in parts.classes.items():
        check_class(name, library, class_name, folder)
    misfits = [note for part in parts.parts for note in check_fit(part)]
    return CheckedModel(folder, cls, parts, (*parts.notes, *misfits))


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
