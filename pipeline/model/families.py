"""Diffusion models behind one interface (:mod:`pipeline.model.interface`): which classes there are, and how one is loaded.

The class is read from the folder's ``model_index.json``: Stable Diffusion 1.x and 2.x (:mod:`pipeline.model.sd`), SDXL
(:mod:`pipeline.model.sdxl`), SD3 (:mod:`pipeline.model.sd3`) and Flux (:mod:`pipeline.model.flux`).
"""

from __future__ import annotations

from index.errors import ModelError
from pipeline.config import ModelConfig
from pipeline.model.folder import check_digests, components, read_index, resolve
from pipeline.model.interface import DiffusionModel


def native_dtype() -> str:
    """``bfloat16`` where the CPU has instructions for it, else ``float32``: emulated bfloat16 is many times slower."""
    import torch

    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def load_model(config: ModelConfig) -> DiffusionModel:
    """Load the configured model for inference. No download unless ``allow_download`` says so.

    Raises:
        ModelError: the folder is not there, broken or of a class that is not known.
    """
    from pipeline.model.flux import Flux
    from pipeline.model.sd import StableDiffusion
    from pipeline.model.sd3 import StableDiffusion3
    from pipeline.model.sdxl import StableDiffusionXL

    classes = {cls.pipeline: cls for cls in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)}
    folder = resolve(config)
    kind = read_index(folder).get("_class_name")
    if kind not in classes:
        raise ModelError(f"pipelines of class {kind} cannot be run", where=str(folder), fix=f"Use one of {', '.join(classes)}")
    for part in components(folder):
        if not (folder / part).is_dir():
            raise ModelError(
                f"model_index.json names {part}, which is not there", where=str(folder / part), fix="Restore the folder"
            )
    check_digests(folder.parent)
    return classes[kind](folder, config)
