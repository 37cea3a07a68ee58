"""Check the device and number format of a model: what this machine has, and what is slower than necessary."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence, Set
from difflib import get_close_matches
from pathlib import Path

from index.errors import ConfigError
from index.loading import loading
from pipeline.config import ModelConfig
from pipeline.notes import Note

LESS = 'Draw smaller pictures (model.size), choose model.dtype = "bfloat16", or use a device with more memory'
SLIPS = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "metal": "mps", "apple": "mps"}


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[str]:
    """What models can be drawn on here: "cpu", and "cuda:0" and on, "mps" or "xpu" where they are."""
    with loading():
        import torch

    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu"):
        found += [f"xpu:{number}" for number in range(torch.xpu.device_count())]
    return found


def check_device(name: str, there: Sequence[str] | None = None, *, where: str = "model.device") -> None:
    """Whether a model can be drawn on that device, or another network run there.

    Args:
        name: the device.
        there: what this machine has; looked up when not given.
        where: the key that names it.

    Raises:
        ConfigError: with what this machine has instead.
    """
    if name == "cpu":
        return
    there = devices() if there is None else there
    kinds = {device.split(":")[0] for device in there}
    if name in there or name in kinds or name == "cpu:0":
        return
    has = f"This machine has {', '.join(there)}"
    kind, _, number = name.lower().strip().partition(":")
    if kind in SLIPS or name != name.lower().strip() or kind not in ("cpu", "cuda", "mps", "xpu") or not _counted(number):
        near = SLIPS.get(kind) or next(iter(get_close_matches(kind, ["cpu", "cuda", "mps", "xpu"], 1)), "")
        hint = f'Did you mean "{near}{f":{number}" if number and _counted(number) else ""}"? ' if near else ""
        raise ConfigError(f"there is no device {name!r}", where=where, fix=f"{hint}{has}")
    if kind in kinds:
        raise ConfigError(f"there is no device {name!r}", where=where, fix=f"{has}: use one of these")
    raise ConfigError(
        f"{name!r} cannot be used: {_why_not(kind)}",
        where=where,
        fix=f'{has}: set device = "cpu", or run on a machine with {"a GPU" if kind != "mps" else "Apple silicon"}',
    )


def _counted(number: str) -> bool:
    return not number or (number.isascii() and number.isdigit())


def _why_not(kind: str) -> str:
    import torch

    if kind == "cuda" and torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return f"torch {torch.__version__} is built without it"
    if kind == "mps" and not torch.backends.mps.is_built():
        return f"torch {torch.__version__} is built without it"
    return "torch sees no such device"


def device_notes(config: ModelConfig, there: Sequence[str] | None = None) -> list[Note]:
    """Where a faster device or number format is there and is not used; arguments as :func:`check_device`."""
    notes, kind = [], config.device.split(":")[0]
    better = [device for device in (devices() if there is None else there) if not device.startswith("cpu")]
    if kind == "cpu" and better:
        advice = f'set model.device = "{better[0].split(":")[0]}"'
        notes.append(Note("device", f"pictures are drawn on the CPU although this machine has {better[0]}: {advice}"))
    if kind == "cpu" and config.dtype == "bfloat16" and native_dtype() != "bfloat16":
        notes.append(Note("dtype", 'this CPU has no bfloat16 instructions: model.dtype = "float32" is faster'))
    if kind == "cpu" and config.dtype == "float16":
        notes.append(Note("dtype", 'CPUs are slow with float16: use "bfloat16" or "float32" for model.dtype'))
    if kind == "cuda" and config.dtype == "float32":
        notes.append(Note("dtype", 'GPUs are several times faster with model.dtype = "bfloat16" than with "float32"'))
    return notes


def native_dtype() -> str:
    """``bfloat16`` where the CPU has instructions for it, else ``float32``: emulated bfloat16 is many times slower."""
    known = has_bfloat16(cpu_flags())
    if known is None:
        import torch

        known = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if known else "float32"


def has_bfloat16(flags: Set[str]) -> bool | None:
    """What torch says of an x86 processor with these flags, without torch, which takes seconds to import; None: ask torch.

    oneDNN, which torch asks, wants what AVX-512 began with, or AVX-NE-CONVERT; a variable of the environment may forbid both.
    """
    if "sse2" not in flags or any(os.environ.get(f"{name}_MAX_CPU_ISA") for name in ("ONEDNN", "DNNL")):
        return None
    if flags >= {"avx512f", "avx512bw", "avx512vl", "avx512dq"}:
        return True
    return None if flags & {"avx512f", "avx_ne_convert"} else False


def cpu_flags() -> set[str]:
    """What the processor can do, in Linux's names; empty where they are not to be had."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()
