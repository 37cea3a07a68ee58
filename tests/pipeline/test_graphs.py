"""Recorded calls: without a card, what is recorded is played by calling again, in the same memory. What a card would refuse in
a recording, copies from and to the host and numbers that it reads, is counted for every class on the ``meta`` device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError, ModelError
from jobs.run.planning.bound import bound
from pipeline.config import ModelConfig, RunConfig
from pipeline.engine.engine import Engine
from pipeline.model import graphs
from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.conditioning import Conditioning
from pipeline.model.families.registry import model_classes
from pipeline.model.graphs import Call, PlainCalls, Recorder
from pipeline.model.load import check_model, load_model
from pipeline.steer.negtome import NegToMe
from tests.pipeline.families import FAMILIES, engine_of, finish, load, sample, text
from tests.pipeline.true_sizes import META, Waits


class Again:
    """Records by keeping the call: to play it calls again, and writes where the answer was."""

    def __init__(self) -> None:
        self.played = 0

    def __call__(self, call: Call) -> tuple[torch.Tensor, Callable[[], None]]:
        answer = call().clone()

        def play() -> None:
            self.played += 1
            answer.copy_(call())

        return answer, play


def bytes_of(done: dict[int, torch.Tensor]) -> dict[int, bytes]:
    return {tag: latent.numpy().tobytes() for tag, latent in done.items()}


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "z_image"])
def test_recorded_calls_draw_the_same_bytes_and_one_recording_serves_all(name: str, tiny_model: Callable[[str], Path]) -> None:
    model = load(FAMILIES[name], tiny_model(FAMILIES[name].pipeline))
    found, again = [], Again()
    for plain in (None, PlainCalls(model, again)):
        e = engine_of(FAMILIES[name], model)
        e.plain = plain
        ts = [sample(e, seed) for seed in range(3)]
        if model.distilled:
            ts[1].guidance_scale = 1.5  # a scale of its own: a tensor of scales instead of a number
        found.append((bytes_of(finish(e, ts, stagger=True)), e.calls))
    assert found[0] == found[1]
    assert plain is not None and plain.recorded == 1 and again.played == found[1][1] + 2  # twice to compare it


@pytest.fixture
def model(tiny_sd: Path) -> Any:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def push(e: Engine) -> NegToMe:
    z = e.initial_noise(50)
    return NegToMe(latents=(z,), noises=(z,), context=text(e.model, ""), alpha=0.9, threshold=-0.5, until_step=2)


def test_calls_in_which_something_acts_on_rows_are_not_played(model: Any) -> None:
    again, weights = Again(), LowRank("an adapter", {})
    seen = []
    for more in ({}, {"push": True}, {"lowrank": ((weights, 1.0),)}):
        e = engine_of(FAMILIES["sd"], model)
        before = again.played
        e.plain = PlainCalls(model, again)
        own = more | ({"push": push(e)} if "push" in more else {})
        finish(e, [sample(e, 1, **own)])
        seen.append((again.played > before, again.played - before == e.calls + 2))
    # The push ends after two of the steps: from then on calls are plain.
    assert seen == [(True, True), (True, False), (False, False)]


def test_a_sample_beside_a_steered_one_keeps_its_bytes(model: Any) -> None:
    found = []
    for plain in (None, PlainCalls(model, Again())):
        for company in (False, True):
            e = engine_of(FAMILIES["sd"], model)
            e.plain = plain
            ts = [sample(e, 1)]
            if company:
                ts.append(sample(e, 2, push=push(e)))
            found.append(finish(e, ts)[1].numpy().tobytes())
    assert len(set(found)) == 1


def test_an_answer_stays_when_the_next_call_is_played(model: Any) -> None:
    calls, e = PlainCalls(model, Again()), engine_of(FAMILIES["sd"], model)
    first, second = (padding(e, float(fill)) for fill in (0, 1))
    answer = calls(*first)
    kept = answer.clone()
    assert not torch.equal(calls(*second), kept) and torch.equal(answer, kept)


def padding(e: Engine, fill: float, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, Conditioning, float]:
    latents = torch.full((rows, *e.model.latent_shape), fill)
    return latents, torch.full((rows,), 500.0), text(e.model, "").map(lambda part: part.expand(rows, *part.shape)), 3.0


def test_every_shape_has_its_recording_and_the_oldest_goes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    calls, e = PlainCalls(model, Again()), engine_of(FAMILIES["sd"], model)
    for rows, recorded in ((2, 1), (3, 2), (2, 2), (4, 3), (2, 3), (3, 4)):  # 4 drives out 3, which was used longest ago
        calls(*padding(e, 0.0, rows))
        assert calls.recorded == recorded


def test_a_recording_that_gives_other_bytes_is_refused(model: Any) -> None:
    def other(call: Call) -> tuple[torch.Tensor, Callable[[], None]]:
        answer = call().clone()
        answer.view(-1)[0] = torch.nextafter(answer.view(-1)[0], torch.tensor(9.0))  # the last bit of one number
        return answer, lambda: None

    with pytest.raises(ModelError, match=r'gives other bytes.*their company.*"off"'):
        PlainCalls(model, other)(*padding(engine_of(FAMILIES["sd"], model), 0.0))


def test_a_recording_that_keeps_what_it_was_recorded_with_is_refused(model: Any) -> None:
    def kept(call: Call) -> tuple[torch.Tensor, Callable[[], None]]:
        return call().clone(), lambda: None

    with pytest.raises(ModelError, match="gives other bytes"):
        PlainCalls(model, kept)(*padding(engine_of(FAMILIES["sd"], model), 0.0))


def test_what_cannot_be_recorded_is_named(model: Any) -> None:
    def refused(call: Call) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with pytest.raises(
        ModelError, match=r"UNet2DConditionModel cannot be recorded: operation not permitted when stream is capt"
    ):
        PlainCalls(model, refused)(*padding(engine_of(FAMILIES["sd"], model), 0.0))


def test_memory_that_runs_out_in_a_recording_halves_the_rows(model: Any) -> None:
    again = Again()

    def record(call: Call) -> Any:
        answer, play = again(call)
        if len(answer) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return answer, play

    e = engine_of(FAMILIES["sd"], model)
    e.plain = PlainCalls(model, record)
    done = finish(e, [sample(e, seed) for seed in range(3)])
    assert e.rows == 4 and e.plain.recorded == 1 and len(done) == 3


def test_a_device_without_graphs_is_refused_before_anything_is_loaded(tiny_sd: Path) -> None:
    with pytest.raises(ConfigError, match=r"CUDA graphs are of CUDA devices, and model\.device is 'cpu'"):
        check_model(ModelConfig(path=str(tiny_sd), graphs="plain"))


def test_a_plan_does_not_bind_recordings() -> None:
    with_graphs, without = (RunConfig(prompts=("-",), model=ModelConfig(device="cuda", graphs=how)) for how in ("plain", "off"))
    assert bound(with_graphs) == bound(without)


def test_cuda_records_beside_and_warm_and_lets_other_threads_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, on a stand-in for torch.cuda: no card is here."""
    did: list[str] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            did.append("wait")

    class CUDAGraph:
        def replay(self) -> None:
            did.append("replay")

    @contextmanager
    def inside(name: str, *args: object, **options: object) -> Iterator[None]:
        did.append(f"{name} {options}" if options else name)
        yield
        did.append(f"end of {name}")

    current, beside, pool = Stream(), Stream(), (0, 1)

    def recorded(graph: object, *, pool: object, stream: object, capture_error_mode: str) -> Any:
        return inside("graph", pool=pool, beside=stream is beside, mode=capture_error_mode)

    stands_in: dict[str, Any] = {
        "device": lambda device: inside("device"),
        "Stream": lambda: beside,
        "current_stream": lambda: current,
        "CUDAGraph": CUDAGraph,
        "stream": lambda stream: inside("beside" if stream is beside else "elsewhere"),
        "graph_pool_handle": lambda: pool,
        "graph": recorded,
    }
    for name, what in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, what)

    def call() -> torch.Tensor:
        did.append("call")
        return torch.zeros(1)

    _, play = Recorder(torch.device("cuda:0"))(call)
    play()
    graph = "graph {'pool': (0, 1), 'beside': True, 'mode': 'thread_local'}"
    warm = ["wait", "beside", *["call"] * graphs.WARM, "end of beside", "wait"]
    assert did == ["device", *warm, graph, "call", "end of graph", "end of device", "replay"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_has_nothing_that_a_recording_would_refuse(
    name: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything it reads lies on the device, and nothing of it is made on the host, but in the classes that say so."""
    family = FAMILIES[name]
    here = load(family, tiny_model(family.pipeline))
    context = text(here, "a red apple").map(lambda part: part.expand(4, *part.shape).to(META))
    parts = {part: getattr(here.parts, part) for part in (here.denoiser, "vae", "scheduler")}
    config = ModelConfig(path="-", device="meta", dtype="float32", size=family.side, text_tokens=family.tokens)
    of = model_classes()[family.pipeline].of(parts, config)
    inputs = (torch.empty(4, *of.latent_shape, device=META), torch.empty(4, device=META), context, torch.empty(4, device=META))
    of.denoise(*inputs)  # makes what is made once
    made: list[str] = []
    for maker in ("tensor", "from_numpy", "as_tensor"):  # on meta these copy nothing
        real = getattr(torch, maker)

        def seen(what: Any, *args: Any, real: Any = real, maker: str = maker, **options: Any) -> Any:
            if not isinstance(what, torch.Tensor):
                made.append(f"torch.{maker}({what!r})")
            return real(what, *args, **options)

        monkeypatch.setattr(torch, maker, seen)
    with Waits() as waits:
        of.denoise(*inputs)
        of.denoise(*inputs[:3], 3.5)  # a number for all rows, as in most calls
    assert not waits.waited
    assert (bool(waits.counts) or bool(made)) is of.waits_for_host, (waits.counts, made)


@pytest.mark.parametrize("pipeline", ["ChromaPipeline", "QwenImagePipeline"])
def test_a_class_that_waits_for_the_host_is_refused_by_name(pipeline: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(pipeline)
    with pytest.raises(ConfigError, match=r"diffusers' \w+Transformer2DModel copies something from the host in every call"):
        check_model(ModelConfig(path=str(folder), device="cuda", graphs="plain"))
