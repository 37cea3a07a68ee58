"""What a row names of the machine that drew it, and how torch is set before the first model is loaded."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from jobs.doctor import card_software
from pipeline.config import ModelConfig
from pipeline.model.machine import driver_version, machine

NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\n"
AFTER = """
import torch
from pipeline.config import ModelConfig
from pipeline.model.machine import settle
settle()
print(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
      torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled())
"""


def test_a_cpu_is_named_with_its_instructions(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 9354\nflags\t: avx2\n")
    found = machine(ModelConfig(), cpu=tmp_path / "cpuinfo")
    assert (found.card, found.driver) == ("AMD EPYC 9354", "")
    assert found.capability == torch.backends.cpu.get_cpu_capability()


def test_the_libraries_whose_kernels_draw_are_named() -> None:
    found = machine(ModelConfig()).libraries
    assert found == {name: metadata.version(name) for name in ("diffusers", "torch", "transformers")}


@pytest.mark.parametrize(("text", "version"), [(NVRM, "550.54.15"), (OPEN, "580.95.05"), ("something else", "")])
def test_the_driver_is_read_from_the_kernel(text: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == version


def test_without_a_driver_there_is_no_version(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "none") == ""


def test_float32_stays_float32_and_memory_is_not_filled() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", AFTER], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False", "False", "True"]


def test_the_doctor_names_driver_and_libraries() -> None:
    line = card_software({"cuda": "12.9", "cudnn": "91002", "torch": "2.13.0", "triton": "3.9.0"}, "580.95.05")
    assert line.what == "driver 580.95.05; cuda 12.9, cudnn 91002, torch 2.13.0, triton 3.9.0"


def test_the_doctor_says_what_no_triton_means() -> None:
    assert "without triton the matching" in card_software({"torch": "2.13.0"}, "").what
