"""The device of a model: one that is not there is refused, a faster one that is not used is noted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from index.errors import ConfigError
from pipeline.config import ModelConfig
from pipeline.model.device import check_device, cpu_flags, device_notes, devices, has_bfloat16
from pipeline.model.load import load_model

INSTEAD = 'set device = "cpu", or run on a machine with'
PLAIN, GPUS, APPLE = ["cpu"], ["cpu", "cuda:0", "cuda:1"], ["cpu", "mps"]


@pytest.mark.parametrize(
    ("name", "there", "what", "fix"),
    [
        ("gpu", GPUS, "there is no device 'gpu'", 'Did you mean "cuda"? This machine has cpu, cuda:0, cuda:1'),
        ("gpu", PLAIN, "there is no device 'gpu'", 'Did you mean "cuda"? This machine has cpu'),
        ("gpu:1", GPUS, "there is no device 'gpu:1'", 'Did you mean "cuda:1"? This machine has cpu, cuda:0, cuda:1'),
        ("CUDA", GPUS, "there is no device 'CUDA'", 'Did you mean "cuda"? This machine has cpu, cuda:0, cuda:1'),
        ("cuda0", GPUS, "there is no device 'cuda0'", 'Did you mean "cuda"? This machine has cpu, cuda:0, cuda:1'),
        ("cuda:7", GPUS, "there is no device 'cuda:7'", "This machine has cpu, cuda:0, cuda:1: use one of these"),
        ("cuda:x", GPUS, "there is no device 'cuda:x'", 'Did you mean "cuda"? This machine has cpu, cuda:0, cuda:1'),
        ("", PLAIN, "there is no device ''", "This machine has cpu"),
        ("meta", PLAIN, "there is no device 'meta'", "This machine has cpu"),
        ("cpu:3", PLAIN, "there is no device 'cpu:3'", "This machine has cpu: use one of these"),
        ("mps", PLAIN, "'mps' cannot be used", f"This machine has cpu: {INSTEAD} Apple silicon"),
        ("cuda", APPLE, "'cuda' cannot be used", f"This machine has cpu, mps: {INSTEAD} a GPU"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str, there: list[str], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_device(name, there)
    assert caught.value.what.startswith(what) and caught.value.fix == fix and caught.value.where == "model.device"


@pytest.mark.parametrize(
    ("name", "there"), [("cpu", PLAIN), ("cpu:0", PLAIN), ("cuda", GPUS), ("cuda:1", GPUS), ("mps", APPLE)]
)
def test_a_device_that_is_there_passes(name: str, there: list[str]) -> None:
    check_device(name, there)


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_loading_checks_the_device_of_this_machine(tiny_sd: Path, name: str) -> None:
    assert "cpu" in devices()
    with pytest.raises(ConfigError, match=f"'{name}'.*This machine has cpu"):
        load_model(ModelConfig(path=str(tiny_sd), size=16, device=name))


def test_a_faster_device_that_is_not_used_is_noted() -> None:
    (note,) = device_notes(ModelConfig(device="cpu", dtype="float32"), GPUS)
    assert (note.topic, note.text) == (
        "device", 'pictures are drawn on the CPU although this machine has cuda:0: set model.device = "cuda"'
    )  # fmt: skip
    assert device_notes(ModelConfig(device="cpu", dtype="float32"), PLAIN) == []
    assert [note.topic for note in device_notes(ModelConfig(device="cuda", dtype="float32"), GPUS)] == ["dtype"]


X86 = {"sse2", "avx2"}
SKYLAKE = X86 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.mark.parametrize(
    ("flags", "forbidden", "has"),
    [
        (SKYLAKE, "", True),
        (X86, "", False),
        (X86 | {"avx512f"}, "", None),
        (X86 | {"avx_ne_convert"}, "", None),
        (SKYLAKE, "AVX2", None),
        ({"asimd", "bf16"}, "", None),
        (set(), "", None),
    ],
)  # fmt: skip
def test_an_x86_processor_is_known_by_its_flags_and_torch_is_asked_of_others(
    flags: set[str], forbidden: str, has: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", forbidden)
    assert has_bfloat16(flags) is has


def test_this_processor_has_what_torch_says() -> None:
    assert has_bfloat16(cpu_flags()) in (None, torch.ops.mkldnn._is_mkldnn_bf16_supported())
