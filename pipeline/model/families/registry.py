"""The classes of models that can be drawn with, one file a family, and the one that a folder names."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ModelError
from pipeline.model.families.refused import why_refused
from pipeline.model.folder.components import read_index

if TYPE_CHECKING:
    from pipeline.model.families.latent import LatentDiffusion


def model_classes() -> dict[str, type[LatentDiffusion]]:
    """The classes of models that can be drawn with, by the name of their diffusers pipeline."""
    from pipeline.model.families.chroma import Chroma
    from pipeline.model.families.flux import Flux
    from pipeline.model.families.flux2 import Flux2, Flux2Klein
    from pipeline.model.families.pixart import PixArtAlpha, PixArtSigma
    from pipeline.model.families.qwen_image import QwenImage
    from pipeline.model.families.sana import Sana
    from pipeline.model.families.sd import LatentConsistency, StableDiffusion
    from pipeline.model.families.sd3 import StableDiffusion3
    from pipeline.model.families.sdxl import StableDiffusionXL
    from pipeline.model.families.z_image import ZImage

    classes: tuple[type[LatentDiffusion], ...] = (
        StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Flux2, Flux2Klein, QwenImage, ZImage,
        PixArtSigma, PixArtAlpha, Sana, Chroma, LatentConsistency,
    )  # fmt: skip
    return {cls.pipeline: cls for cls in classes}


def class_of(folder: Path) -> type[LatentDiffusion]:
    """The class of the pipeline that the folder names.

    Raises:
        ModelError: none, a custom one, or one that is not known.
    """
    classes = model_classes()
    known = list(classes)
    path, kind = folder / "model_index.json", read_index(folder).get("_class_name")
    use = f"Use a model of class {', '.join(known)}"
    if isinstance(kind, list):
        what = f"names its pipeline class as {json.dumps(kind)}: a pipeline with code of its own, which is never run"
        raise ModelError(what, where=str(path), fix=f'{use}; if it is one of these, write "_class_name": "{known[0]}"')
    if not isinstance(kind, str) or not kind:
        what = "does not name its pipeline class" if kind is None else f"names its pipeline class as {json.dumps(kind)}"
        raise ModelError(
            what, where=str(path), fix=f'Write "_class_name": "{known[0]}", or whichever it is; {use[:1].lower()}{use[1:]}'
        )
    if kind not in known:
        why = why_refused(kind)
        near = [] if why else get_close_matches(kind, known, 1, 0.9)
        fix = f"Did you mean {near[0]}? {use}" if near else use
        raise ModelError(f"pipelines of class {kind} cannot be run{why and f': {why}'}", where=str(folder), fix=fix)
    return classes[kind]
