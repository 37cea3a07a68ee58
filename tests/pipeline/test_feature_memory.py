"""How much memory token features take is known before any is computed; what would take too much carries reference rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig, RunConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.conditioning import stack
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.respond.copies import Failed, Tools, retry
from pipeline.respond.negtome import feature_note
from pipeline.rungs import NegToMeRung
from pipeline.steer.feature_memory import bytes_a_step, site_shapes
from pipeline.steer.features import FeatureCache, capturing
from pipeline.steer.negtome import NegToMe
from tests.pipeline.lora_files import pairs_for
from tests.pipeline.true_sizes import EVERY, RELEASED, built

CPU = torch.device("cpu")
RUNG = NegToMeRung(token_threshold=0.1, references=2, window=0.7)


def settings(context: object, **more: object) -> NegToMe:
    return NegToMe(latents=(), noises=None, context=context, alpha=0.9, threshold=0.5, until_step=1, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["sd", "sdxl", "sd3", "flux"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    return load_model(ModelConfig(path=str(folder), size=16, text_tokens=24, dtype="bfloat16"))


@pytest.mark.parametrize("more", [{}, {"attention": "both"}, {"placement": "released"}, {"min_tokens": 64}])
def test_the_bytes_worked_out_are_those_of_the_features(model: DiffusionModel, more: dict[str, object]) -> None:
    context, size = model.encode_prompts([""])[0], model.latent_shape[1:]
    s = settings(context, **more)
    with capturing(model.sites(), s) as found:
        model.denoise(torch.zeros(1, *model.latent_shape), torch.tensor([10]), stack([context]))
    shapes = site_shapes(model, context, size)
    assert bytes_a_step(shapes, s, CPU) == sum(tokens.nbytes for tokens in found.values())


def test_directions_in_bfloat16_are_counted_too(model: DiffusionModel) -> None:
    context = model.encode_prompts([""])[0]
    shapes = site_shapes(model, context, model.latent_shape[1:])
    plain = bytes_a_step(shapes, settings(context), CPU)
    assert bytes_a_step(shapes, settings(context, precision="bfloat16"), CPU) == 2 * plain


SIZES = {"SDXL": 210, "SD 3.5 large": 757, "Flux.1 dev": 1434, "Qwen-Image": 1510, "FLUX.2 dev": 2819}  # MB a step


@pytest.mark.parametrize("name", RELEASED if EVERY else ["SDXL"])
def test_features_of_released_sizes_stay_within_what_a_worker_may_keep(name: str) -> None:
    """By default one attempt may keep half a GiB, and a reference of SDXL would take 6: it is drawn as a row instead."""
    of, context = built(name)
    shapes = site_shapes(of, context, of.latent_shape[1:])
    assert round(bytes_a_step(shapes, settings(context), CPU) / 1e6) == SIZES[name]
    run = RunConfig(prompts="-")
    e = Engine(of, rows=run.generation.rows, steps=30, guidance_scale=3.0)
    e.features = FeatureCache(1 << 20, most=run.feature_mib * 2**20)
    last = Trajectory(tag=1, latent=e.initial_noise(1), step=0, context=context, negative=None, ring={0: e.initial_noise(1)})
    failed = Failed(last=last, seed=1, attempt=1, ref_ids=["00000001"], latents=[e.initial_noise(2)])
    pushed = retry(failed, NegToMeRung(), Tools(engine=e, reference_context=context, centre=e.initial_noise(3))).trajectory.push
    assert pushed is not None and pushed.features is None and len(pushed.latents) == 1
    assert "so its references are drawn as further rows" in feature_note(NegToMeRung(), e, context, 1)


def steered(e: Engine, lowrank: tuple[tuple[LowRank, float], ...] = ()) -> tuple[Trajectory, bytes]:
    context, negative = e.model.encode_prompts(["a red apple", ""])
    first = Trajectory(tag=1, latent=e.initial_noise(1), step=0, context=context, negative=negative)
    e.finish([first])
    latents = [torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(50 + i)) for i in range(2)]
    failed = Failed(last=first, seed=1, attempt=1, ref_ids=["00000001", "00000002"], latents=latents)
    centre = torch.zeros(e.model.latent_shape)
    again = retry(failed, RUNG, Tools(engine=e, reference_context=negative, centre=centre)).trajectory
    again.lowrank = lowrank
    return again, e.finish([again])[1].numpy().tobytes()


def engine(model: DiffusionModel, most: int | None, rows: int = 8) -> Engine:
    e = Engine(model, rows=rows, steps=3, guidance_scale=3.0)
    e.features = FeatureCache(1 << 24, most=most)
    return e


@pytest.fixture(scope="module")
def exact(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def test_what_would_take_too_much_is_carried_as_rows_and_draws_the_same_bytes(exact: DiffusionModel) -> None:
    (kept, expected), (carried, found) = (steered(engine(exact, most)) for most in (None, 1))
    assert kept.push is not None and kept.push.features is not None
    assert carried.push is not None and carried.push.features is None
    assert found == expected and carried.evals == kept.evals


def test_low_rank_weights_of_a_row_reach_its_references_neither_way(exact: DiffusionModel) -> None:
    """feature_mib is no part of the plan: a row's LoRA must not draw other pictures with more of it."""
    weights = LowRank("row's", pairs_for(exact.network, ("to_q", "to_v")))
    (_, expected), (carried, found) = (steered(engine(exact, most), ((weights, 1.0),)) for most in (None, 1))
    assert carried.push is not None and carried.push.latents
    assert found == expected != steered(engine(exact, 1))[1]


def test_a_call_without_room_for_the_references_keeps_features(exact: DiffusionModel) -> None:
    kept, _ = steered(engine(exact, 1, rows=3))
    assert kept.push is not None and kept.push.features is not None


@pytest.mark.parametrize(
    ("most", "rows", "says"),
    [
        (1, 8, "feature_mib allows 0: so its references are drawn as further rows of the calls"),
        (1, 3, "3 rows a call have no room for its references"),
        (1 << 30, 8, ""),
        (None, 8, ""),
    ],
)
def test_the_dry_run_says_what_becomes_of_a_rung(exact: DiffusionModel, most: int | None, rows: int, says: str) -> None:
    note = feature_note(RUNG, engine(exact, most, rows), exact.encode_prompts([""])[0], 2)
    assert says in note and (note == "") == (says == "")
    assert not says or note.startswith("rung 2 (negtome) would keep ")
