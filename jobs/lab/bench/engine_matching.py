"""Tiled best matches against the plain similarity matrix: time, alternating, and memory, each in its own process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.lab.bench.measures import Measure, share, spread

if TYPE_CHECKING:
    import torch

TOKENS, CHANNELS = 4096, 640
Match = Callable[["torch.Tensor", "torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]


def matching(*, rounds: int) -> list[Measure]:
    """At 4096 tokens of 640 channels, as in SDXL's 64×64 blocks."""
    import torch

    tokens, reference = _drawn()
    ratios = []
    for _ in range(rounds):
        took = []
        for match in (naive, tiled):
            began = time.process_time()
            match(tokens, reference)
            took.append(time.process_time() - began)
        ratios.append(took[0] / took[1])
    exact, proposed = naive(tokens, reference), tiled(tokens, reference)
    # bfloat16 proposes candidates: where the runner-up is further away than both roundings, the token must be the same.
    top = torch.nn.functional.normalize(tokens, dim=1) @ torch.nn.functional.normalize(reference, dim=1).T
    two = top.topk(2, dim=1).values
    clear = two[:, 0] - two[:, 1] > 2**-7 * two[:, 0]
    same = int((exact[1] == proposed[1])[clear].sum())
    memory = [_peak("tiled") / _peak("naive") for _ in range(min(3, rounds))]
    at = f"at {TOKENS}×{CHANNELS}"
    return [
        spread(f"best match in tiles, speed against the float32 matrix, {at}", ratios, 4.0),
        spread(f"best match in tiles, memory against the float32 matrix, {at}", memory, 1 / 8, "lower"),
        share(f"best match in tiles, the same token where rounding leaves no doubt, {at}", same, int(clear.sum()), 1.0),
    ]


def naive(tokens: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All cosines at once."""
    import torch.nn.functional as F

    best, which = (F.normalize(tokens, dim=1) @ F.normalize(reference, dim=1).T).max(1)
    return best, which


def tiled(tokens: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As NegToMe matches with ``precision = "bfloat16"``."""
    from pipeline.steer.matching import best_match

    return best_match(tokens, reference, precision="bfloat16")


def _drawn() -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(TOKENS, CHANNELS, generator=generator), torch.randn(TOKENS, CHANNELS, generator=generator)


def _peak(which: str) -> int:
    """Peak resident memory, in bytes, that a match adds to a fresh process."""
    code = f"from jobs.lab.bench.engine_matching import measure_peak; measure_peak({which!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    return int(done.stdout)


def measure_peak(which: str) -> None:
    """Print the peak of one way of matching (Linux: the kernel's high-water mark, reset just before)."""
    import torch

    torch.set_num_threads(1)
    match: Match = {"naive": naive, "tiled": tiled}[which]
    match(torch.randn(64, CHANNELS), torch.randn(64, CHANNELS))  # libraries load, kernels compile
    tokens, reference = _drawn()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _high_water()
    match(tokens, reference)
    print(_high_water() - before)


def _high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
