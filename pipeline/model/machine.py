"""What pictures are drawn on, as far as their bytes depend on it: how torch is set, and the card and libraries that are here.

The promise of the same bytes holds for one card, number of rows and set of versions. So every row names them.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.outcome import Machine

if TYPE_CHECKING:
    from pipeline.config import ModelConfig

DRIVER = Path("/proc/driver/nvidia/version")
CPU = Path("/proc/cpuinfo")


def settle() -> None:
    """Settings of torch that hold for the whole process, before the first model is loaded.

    Float32 is float32: no TF32 in products or convolutions, which would be the default for convolutions, those of the
    autoencoder among them. Memory that a kernel is about to write is not filled first: on CUDA that would be a pass over it
    for every result.
    """
    # cuBLAS is deterministic only with a fixed workspace, and reads this once, when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # it would choose a convolution's algorithm by a race, anew in every process


def machine(config: ModelConfig, *, driver: Path = DRIVER, cpu: Path = CPU) -> Machine:
    """What such a model is drawn by.

    Args:
        config: of the model: its device, attention backend and autoencoder.
        driver, cpu: files that name NVIDIA's driver and the processor.
    """
    import torch

    device = torch.device(config.device)
    on_cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_cuda else None
    return Machine(
        card=_card(device, properties, cpu),
        capability=f"{properties.major}.{properties.minor}" if properties else torch.backends.cpu.get_cpu_capability(),
        driver=driver_version(driver) if on_cuda else "",
        libraries=libraries(on_cuda=on_cuda),
        attention=config.attention,
        autoencoder=config.vae_dtype + (", in tiles" if config.vae_tiling else ""),
        tf32=bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        fills_memory=bool(torch.utils.deterministic.fill_uninitialized_memory),  # type: ignore[attr-defined]
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def libraries(*, on_cuda: bool) -> Mapping[str, str]:
    """Library → version: those whose kernels draw; CUDA's own only for a model on CUDA."""
    import torch

    found = {name: version for name in ("torch", "diffusers", "transformers") if (version := _version(name))}
    if on_cuda:
        cudnn = torch.backends.cudnn.version()
        found |= {"cuda": str(torch.version.cuda or ""), "cudnn": str(cudnn or ""), "hip": str(torch.version.hip or "")}
        found |= {"triton": _version("triton")}
    return {name: version for name, version in sorted(found.items()) if version}


def driver_version(path: Path = DRIVER) -> str:
    """The version of NVIDIA's kernel driver; empty where there is none."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", path.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[1] if found else ""


def _card(device: Any, properties: Any, cpu: Path) -> str:
    if properties is not None:
        return str(properties.name)
    if device.type != "cpu":
        return str(device.type)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpu.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
