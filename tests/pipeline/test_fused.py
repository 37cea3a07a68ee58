"""The fused kernel without a card: interpreted on the CPU, and compiled for three generations of cards.

Triton is an optional part of torch's CUDA wheels, 286 MB, and not in the lock: where it is missing these tests are skipped, and
their reason says how to run them. `make nightly` installs it and runs them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.steer.fused import available

ROOT = Path(__file__).parents[2]
HOW = "pip install --target TRITON triton==3.9.0; PYTHONPATH=TRITON python -m pytest tests/pipeline/test_fused.py"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=f"Triton is not installed: {HOW}")
pytestmark = [pytest.mark.slow]


def run(what: str, cache: Path, **more: str) -> dict[str, Any]:
    """What tests/pipeline/fused_runs.py prints in a process of its own."""
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/pipeline/fused_runs.py"), what],
        env={**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1", **more},
        capture_output=True, text=True, check=False, timeout=280, cwd=cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("compare", tmp_path_factory.mktemp("interpreted"), TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("compiled", tmp_path_factory.mktemp("compiled"), TRITON_INTERPRET="0")


@needs_triton
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_the_kernel_finds_the_best_in_every_number_format(kind: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["lost"][kind] < 1e-6  # of cosine, against the best in float64


@needs_triton
def test_rounded_to_bfloat16_it_loses_no_more_than_the_loop(interpreted: dict[str, Any]) -> None:
    assert interpreted["lost"]["float32 rounded"] <= max(interpreted["loop lost"]["float32 rounded"], 1e-6)


@needs_triton
@pytest.mark.parametrize(
    ("case", "right"),
    [
        ("first of equals", [37]),
        ("all below zero", [0, 0, 0]),
        ("of zeros", [0, 0, 0]),
        ("not a number", [150, 150, 150, 150, 0]),
        ("loop, not a number", [150, 150, 150, 150, 0]),
        ("strided", True),
        ("no tokens", [0]),
        ("no references", "there is no reference token to match"),
    ],
)
def test_the_kernel_at_the_edges(case: str, right: object, interpreted: dict[str, Any]) -> None:
    assert interpreted[case] == right


@needs_triton
@pytest.mark.parametrize("card", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_the_kernel_compiles_to_machine_code(card: str, kind: str, compiled: dict[str, Any]) -> None:
    made = compiled[f"{card} {kind}"]
    assert made["bytes"] > 10_000
    assert made["shared"] <= 99 * 1024  # what the smallest card of capability 8 has for a block
    assert made["tensor cores"] == (kind != "fp32")  # float32 is multiplied in float32, not in TF32


def test_without_a_cuda_device_the_loop_runs() -> None:
    assert not available(torch.device("cpu"))
    assert not available(torch.device("meta"))
