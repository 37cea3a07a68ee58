"""Pictures of several sizes, numbers of steps and guidance scales in one engine: every sample as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from index.errors import ConfigError
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine, Filled
from pipeline.engine.packing import PATIENCE, WINDOW, WINDOWS, next_size, room
from pipeline.engine.trajectory import Trajectory
from pipeline.model.interface import DiffusionModel
from pipeline.model.libraries import quiet
from pipeline.model.load import load_model
from pipeline.model.sides import Sides
from pipeline.moderate import moderate
from pipeline.outcome import Outcome, Request, Stated
from pipeline.policy import EarlyPolicy
from pipeline.respond.copies import Failed, Tools, retry
from pipeline.respond.early import HEAD, EarlyDetector, calibrated_side
from pipeline.rungs import NegToMeRung
from pipeline.runtime import Runtime
from pipeline.steer.features import FeatureCache
from tests.pipeline.loop import Copies, by_key, requests, sha, undisturbed
from tests.pipeline.loop import runtime as opened

TOKENS = 24
# width, height, steps, guidance scale; None: the run's
WANTED: list[tuple[int, int, int | None, float | None]] = [
    (16, 16, None, None), (24, 16, None, None), (16, 24, 3, None), (24, 16, 6, 1.5), (16, 16, 2, 1.0), (24, 16, None, 7.0),
]  # fmt: skip


@pytest.fixture(scope="module", params=["sdxl", "flux"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(folder), size=16, text_tokens=TOKENS, dtype="float32"))


def make_engine(model: DiffusionModel, rows: int = 6) -> Engine:
    return Engine(model, rows=rows, steps=4, guidance_scale=3.0)


def wanted(e: Engine, tag: int) -> Trajectory:
    width, height, steps, scale = WANTED[tag % len(WANTED)]
    size = e.model.shape_of(width, height)[1:]
    sampler = e.sampler_for(size, steps)
    texts = e.model.encode_prompts([f"a red apple {tag}", ""])
    return Trajectory(
        tag=tag, latent=e.initial_noise(tag, sampler, size), step=0, context=texts[0], seed=tag,
        negative=texts[1] if e.guides(scale) else None, sampler=sampler, guidance_scale=scale,
    )  # fmt: skip


def drawn(e: Engine, tags: list[int], *, stagger: bool = False) -> dict[int, torch.Tensor]:
    coming, done = [wanted(e, tag) for tag in tags], dict[int, torch.Tensor]()
    while coming or e.busy:
        for _ in range(1 if stagger else len(coming)):
            if coming:
                e.submit(coming.pop(0))
        done |= {t.tag: t.latent for t in e.step()}
    return done


def test_bytes_do_not_depend_on_mates_of_other_sizes_steps_and_scales(model: DiffusionModel) -> None:
    tags = list(range(6))
    alone = {tag: drawn(make_engine(model), [tag])[tag] for tag in tags}
    for order, stagger in ((tags, False), (tags[::-1], True)):
        mixed = drawn(make_engine(model), order, stagger=stagger)
        assert all(torch.equal(mixed[tag], alone[tag]) for tag in tags), order


@pytest.mark.parametrize("tag", [1, 2, 3])
def test_equals_diffusers_own_pipeline(model: DiffusionModel, folder: Path, tag: int) -> None:
    """Each in the company of all the others."""
    import diffusers

    width, height, steps, scale = WANTED[tag]
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    with quiet():
        pipe = getattr(diffusers, name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    more: dict[str, Any] = {"max_sequence_length": TOKENS} if name in ("FluxPipeline", "StableDiffusion3Pipeline") else {}
    with quiet():
        out = pipe(f"a red apple {tag}", num_inference_steps=steps or 4, guidance_scale=3.0 if scale is None else scale,
                   height=height, width=width, output_type="latent", generator=torch.Generator().manual_seed(tag),
                   **more).images  # fmt: skip
    theirs = pipe._unpack_latents(out, height, width, 2)[0] if name == "FluxPipeline" else out[0]
    assert torch.allclose(drawn(make_engine(model), list(range(6)))[tag], theirs, atol=2e-4, rtol=1e-3)


def test_a_call_holds_samples_of_one_size_and_of_any_steps(model: DiffusionModel) -> None:
    e, together = make_engine(model), set[frozenset[int]]()
    for tag in range(6):
        e.submit(wanted(e, tag))
    while e.busy:
        e.make_call()
        together.add(frozenset(t.tag for t in e.running))
    assert all(len({WANTED[tag][:2] for tag in tags}) <= 1 for tags in together)
    assert any({1, 3} <= tags for tags in together), "four steps and six, scales of 3 and 1.5"


def test_rows_are_counted_by_size(model: DiffusionModel) -> None:
    e = make_engine(model)
    drawn(e, [0, 1])
    each = 4 * (2 if e.guided else 1)
    square, wide = e.model.shape_of(16, 16)[1:], e.model.shape_of(24, 16)[1:]
    assert e.filled == {square: Filled(4, each, 24), wide: Filled(4, each, 24)}


def test_a_sample_of_another_size_is_steered_as_if_alone(model: DiffusionModel) -> None:
    """Away from a reference of its own size, by features that were computed at that size."""

    def steered(company: list[int]) -> torch.Tensor:
        e = make_engine(model)
        e.features = FeatureCache(2**24)
        for tag in (0, 3) if company else (3,):
            t = wanted(e, tag)
            e.submit(t)
            while t.step < len(e.sampler_of(t)):
                e.step()
            z = torch.randn(t.latent.shape, generator=torch.Generator().manual_seed(9))
            failed = Failed(last=t, seed=tag, attempt=1, ref_ids=("00000009",), latents=(z,))
            rung = NegToMeRung(kind="negtome", alpha=1.0, min_tokens=0)
            tools = Tools(engine=e, reference_context=e.model.encode_prompts([""])[0], centre=torch.zeros_like(z))
            again = retry(failed, rung, tools).trajectory.resumed(t, tag)
            e.submit(again)
            if tag == 3:
                assert again.guidance_scale == 1.5 and len(e.sampler_of(again)) == 6
        return e.finish([wanted(e, tag) for tag in company])[3]

    assert torch.equal(steered([]), steered([1, 2, 5]))


def test_a_picture_of_any_size_is_decoded_and_encoded(model: DiffusionModel) -> None:
    z = torch.randn(1, *model.shape_of(24, 16), generator=torch.Generator().manual_seed(0))
    picture = model.decode(z)
    assert picture.shape == (1, 16, 24, 3)
    assert model.encode(picture).shape == z.shape
    assert model.decode_size((z.shape[2], z.shape[3])) == (24, 16)


def test_the_model_may_have_two_sides(folder: Path) -> None:
    found = load_model(ModelConfig(path=str(folder), size=16, width=24, text_tokens=TOKENS, dtype="float32"))
    assert found.decode_size() == (24, 16)


# --- which sides, and whose call is next -----------------------------------------------------------------------------------


def test_a_side_that_is_no_multiple_is_refused_with_the_two_nearest() -> None:
    with pytest.raises(ConfigError, match=r"column width: 1000 is not a multiple of 64.*Write 960 or 1024"):
        Sides(64).fit(1000, "column width")


def test_the_smallest_side_has_one_neighbour() -> None:
    with pytest.raises(ConfigError, match="Write 64, or set"):
        Sides(64).fit(20)


@pytest.mark.parametrize(("side", "drawn"), [(1000, 1024), (990, 960), (992, 1024), (20, 64), (960, 960)])
def test_a_side_is_snapped_to_the_nearest(side: int, drawn: int) -> None:
    assert Sides(64, snap=True).fit(side) == drawn


def test_the_next_call_is_the_oldest_samples_unless_another_size_fills_more() -> None:
    assert next_size([8, 16, 3], 8, 0) == 0
    assert next_size([4, 7, 7], 8, 0) == 1
    assert next_size([4, 4], 8, 0) == 0


def test_the_oldest_sample_is_not_passed_over_for_ever() -> None:
    assert next_size([4, 8], 8, PATIENCE - 1) == 1
    assert next_size([4, 8], 8, PATIENCE) == 0


def test_one_size_may_fill_its_calls_beside_another_that_ends() -> None:
    assert room([7, 15], 8) and not room([7, WINDOW * 8], 8)
    assert not room([8] * WINDOWS, 8)
    assert room([], 8)


# --- in the loop --------------------------------------------------------------------------------------------------------------

WIDE = Request(row_no=9, key="wide", prompt="a cat", seed=9, stated=Stated(width=24, height=16, steps=7, guidance_scale=2.0))


def attempts(runtime: Runtime, those: list[Request]) -> dict[str, list[str]]:
    """Key → digest of every picture that was made for it."""
    ended = by_key(list(moderate(runtime, those)))
    return {key: [attempt.pixel_sha256 for attempt in sample.attempts] for key, sample in ended.items()}


def test_a_flagged_sample_of_another_size_is_steered_as_if_alone(exact: DiffusionModel) -> None:
    """By references of its own size, among samples of the run's size that keep their bytes."""
    (first,) = moderate(opened(exact, Copies(lambda _: False)), [WIDE])
    assert first.attempts[0].picture.shape == (16, 24, 3) and first.denoiser_evals == 7
    flagged = sha(first.attempts[0].picture)
    alone = attempts(opened(exact, Copies(lambda picture: sha(picture) == flagged)), [WIDE])
    mixed = attempts(opened(exact, Copies(lambda picture: sha(picture) == flagged)), [*requests(), WIDE])
    assert len(alone["wide"]) == 2 and mixed["wide"] == alone["wide"]
    assert {key: made[0] for key, made in mixed.items() if key != "wide"} == undisturbed(exact)


def test_a_size_that_cannot_be_drawn_ends_as_an_error_row(exact: DiffusionModel) -> None:
    odd = Request(row_no=9, key="odd", prompt="a cat", seed=9, stated=Stated(width=17))
    ended = by_key(list(moderate(opened(exact, Copies(lambda _: False)), [odd, WIDE])))
    assert (ended["odd"].reason, ended["wide"].outcome) == ("error.prompt", Outcome.ACCEPTED)
    assert "17 is not a multiple of 2" in ended["odd"].error_message and "Write 16 or 18" in ended["odd"].error_message


def test_activity_names_the_rows_used_of_each_size(exact: DiffusionModel) -> None:
    runtime = opened(exact, Copies(lambda _: False))
    attempts(runtime, [*requests(), WIDE])
    assert runtime.activity()["sizes"]["24 × 16"] == {"calls": 7, "used": 14, "rows": 56}
    assert set(runtime.activity()["sizes"]) == {"16 × 16", "24 × 16"}


@pytest.mark.parametrize(("signal", "own"), [("latent", "latent"), ("head", "head"), ("decode", "decode")])
def test_probes_of_another_size_than_the_heads_decode(signal: str, own: str) -> None:
    """Head and thresholds of latents were made with latents of 16 × 16, and mean nothing elsewhere."""
    card = json.loads((HEAD / "head.json").read_text())
    assert calibrated_side() == card["side"] == 16
    model: Any = SimpleNamespace(digest=card["model_digest"], latent_shape=(4, 16, 16))
    copies: Any = SimpleNamespace(embedder=SimpleNamespace(embedder_id=card["embedder_id"]))
    sampler: Any = range(20)
    kinds = [
        EarlyDetector.open(EarlyPolicy(enabled=True, signal=signal), model, sampler, copies, latents=object(), size=size).kind  # type: ignore[arg-type]
        for size in (None, (16, 16), (16, 24))
    ]
    assert kinds == [own, own, "decode"]
