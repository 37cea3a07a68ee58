"""How many workers a cluster holds, by what each asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from index.errors import RunStopped
from jobs.run.ray.cluster import _start, own_cpus
from jobs.run.ray.placement import Need, workers_here
from pipeline.config import GenerationConfig, GuardsConfig, ModelConfig, RunConfig
from pipeline.model.device import cores


def config(device: str = "cpu", **settings: Any) -> RunConfig:
    return RunConfig(prompts="p", model=ModelConfig(device=device), **settings)


@pytest.mark.parametrize(
    ("need", "machine", "fits"),
    [
        (Need(1, 0), {"CPU": 8.0, "GPU": 2.0}, 8),
        (Need(3, 0), {"CPU": 8.0}, 2),
        (Need(1, 1.0), {"CPU": 8.0, "GPU": 2.0}, 2),
        (Need(1, 1.0), {"CPU": 8.0}, 0),
        (Need(1, 0.5), {"CPU": 8.0, "GPU": 2.0}, 4),
        (Need(1, 0.1), {"CPU": 64.0, "GPU": 1.0}, 10),
        (Need(1, 0.6), {"CPU": 8.0, "GPU": 3.0}, 3),  # what is left of three GPUs is no fourth share
        (Need(4, 0.5), {"CPU": 8.0, "GPU": 8.0}, 2),
        (Need(1, 0), {}, 0),
    ],
    ids=str,
)
def test_workers_of_one_machine(need: Need, machine: dict[str, float], fits: int) -> None:
    assert need.fits(machine) == fits


@pytest.mark.parametrize(("workers", "there", "cpus"), [(None, 8, 8), (None, 2, 4), (3, 2, 12)])
def test_a_ray_of_our_own_has_room_for_a_worker(workers: int | None, there: int, cpus: int) -> None:
    assert own_cpus(Need(4, 0), workers, there) == cpus


def test_halves_on_two_machines_hold_nothing() -> None:
    assert Need(4, 0).fits_in_all([{"CPU": 6.0}, {"CPU": 6.0}, {"CPU": 2.0}]) == 2


def test_a_worker_asks_for_its_threads_and_its_share_of_a_gpu() -> None:
    on_gpu = replace(config("cuda:1", device_share=0.5), generation=GenerationConfig(threads=3))
    assert Need.of(on_gpu) == Need(3, 0.5)
    assert Need.of(config("cpu", device_share=0.5)) == Need(1, 0.0)
    assert Need.of(config("cpu", guards=GuardsConfig(workers=2))) == Need(3, 0.0)  # and for its guard processes


def test_a_need_in_words() -> None:
    assert [str(Need(1, 0)), str(Need(2, 1)), str(Need(2, 0.5))] == ["1 CPU", "2 CPUs and a GPU", "2 CPUs and 0.5 of a GPU"]


@pytest.mark.parametrize(
    ("settings", "shards", "gpus", "workers"),
    [
        ({"workers": 3}, 1, 0, 3),
        ({"workers": "auto"}, 10_000, 0, cores()),
        ({"workers": "auto"}, 1, 0, 1),
        ({"workers": "auto", "device": "cuda"}, 10_000, 0, 1),
    ],
)
def test_workers_of_this_machine(settings: dict[str, Any], shards: int, gpus: int, workers: int) -> None:
    assert workers_here(config(**settings), shards, gpus=gpus) == workers


@pytest.mark.parametrize(
    ("address", "advice"), [("", "Repeat the command when this machine is less busy"), ("auto", "Check R")]
)
def test_a_ray_that_does_not_start_has_advice_that_fits(address: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: Any) -> None:
        raise TimeoutError("the GCS did not answer")

    monkeypatch.setattr("ray.init", late)
    with pytest.raises(RunStopped) as stopped:
        _start(address, 1)
    assert stopped.value.fix.startswith(advice) and stopped.value.fix.endswith(", or use --runner local")
