"""Reference features worked out once: the same pictures, byte for byte, without reference rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.conditioning import Conditioning
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.respond.copies import Failed, Tools, retry
from pipeline.rungs import NegToMeRung
from pipeline.steer import features
from pipeline.steer.features import FeatureCache, FeatureKey, asset_digest
from pipeline.steer.matching import Precision

STEPS, ROWS = 3, 8
IDS = ["00000001", "00000002"]


def key(site: str) -> FeatureKey:
    return FeatureKey(asset="asset", model="model", rows=8, step=(0, 5), site=site)


def test_the_budget_drops_the_least_recently_used() -> None:
    cache = FeatureCache(budget=3 * 40)
    for site in "abc":
        cache.put(key(site), torch.zeros(10))
    assert cache.bytes == 120 and cache.get(key("a")) is not None
    cache.put(key("d"), torch.zeros(10))
    assert cache.get(key("b")) is None and cache.get(key("a")) is not None
    assert (cache.bytes, len(cache), cache.hits, cache.misses, cache.evictions) == (120, 3, 2, 1, 1)
    cache.put(key("a"), torch.zeros(20))  # in place of the smaller one
    assert cache.bytes == 120 and cache.get(key("c")) is None
    cache.put(key("huge"), torch.zeros(1000))
    assert cache.get(key("huge")) is None and cache.bytes == 120


def test_an_asset_is_its_latent_noise_and_context() -> None:
    z, n, c = torch.ones(4, 2, 2), torch.zeros(4, 2, 2), Conditioning(torch.ones(3, 8))
    other = c.map(lambda part: 2 * part)
    digests = {asset_digest(*parts) for parts in ((z, n, c), (z, None, c), (n, z, c), (z, n, other))}
    assert len(digests) == 4 and asset_digest(z, n, c) == asset_digest(z.clone(), n.clone(), c.map(torch.clone))


def finished(e: Engine, t: Trajectory) -> torch.Tensor:
    e.submit(t)
    while e.busy:
        e.step()
    return t.latent


def steered(e: Engine, rung: NegToMeRung, tag: int = 1) -> tuple[Trajectory, torch.Tensor]:
    texts = e.model.encode_prompts([f"a red apple {tag}", ""])
    first = Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1])
    finished(e, first)
    latents = [torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(50 + i)) for i in range(2)]
    failed = Failed(last=first, seed=tag, attempt=1, ref_ids=IDS, latents=latents)
    found = retry(failed, rung, Tools(engine=e, reference_context=texts[1], centre=torch.zeros(e.model.latent_shape)))
    again, intervention = found.trajectory, found.intervention
    assert intervention.kind == "negtome" and intervention.ref_ids == tuple(IDS[: rung.references])
    assert e.features is None or again.rows() == again.peak_rows() == 2
    return again, finished(e, again)


RUNGS = [
    NegToMeRung(token_threshold=0.1, references=2, window=0.7),
    NegToMeRung(token_threshold=0.1, resume_fraction=0.4, attention="both", masked=True, noise="none"),
    NegToMeRung(token_threshold=0.1, placement="released", min_tokens=64),
    NegToMeRung(token_threshold=0.1, references=2, precision="bfloat16", masked=True),
    NegToMeRung(token_threshold=-0.5, alpha=4.0, form="kernel", rows="conditional", attention="both"),
]


@pytest.mark.parametrize("rung", RUNGS, ids=range(len(RUNGS)))
def test_cached_features_draw_the_same_bytes_and_cost_no_rows(model: DiffusionModel, rung: NegToMeRung) -> None:
    plain = Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0)
    cached = Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0)
    cached.features = FeatureCache(1 << 24)
    carried, expected = steered(plain, rung)
    for turn in range(2):
        again, found = steered(cached, rung)
        assert torch.equal(found, expected)
        window = cached.features.rows_run / 2
        # Filling costs as much as one sample that carries its references; every sample is charged as if it were alone.
        assert again.evals == carried.evals and window > 0
        assert cached.features.hits > 0 if turn else cached.features.hits == 0
    other, expected_other = steered(plain, rung, tag=2)
    _, found_other = steered(cached, rung, tag=2)
    assert torch.equal(found_other, expected_other) and cached.features.rows_run / 2 == window
    assert other.evals == carried.evals


def test_a_budget_of_nothing_changes_no_picture(tiny_sd: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    plain, cached = (Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0) for _ in range(2))
    cached.features = FeatureCache(0)
    assert torch.equal(steered(cached, RUNGS[0])[1], steered(plain, RUNGS[0])[1])
    assert cached.features.bytes == 0


def test_placements_do_not_share_tokens(tiny_sd: Path) -> None:
    """At one site a block has two sets of tokens: the stream after attention, and what attention adds to it."""
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    plain, cached = (Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0) for _ in range(2))
    cached.features = FeatureCache(1 << 24)
    for placement in ("paper", "released"):
        rung = replace(RUNGS[0], placement=placement)  # type: ignore[arg-type]
        assert torch.equal(steered(cached, rung)[1], steered(plain, rung)[1]), placement


def test_directions_are_kept_where_they_are_used(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="bfloat16"))
    real, worked_out = features.known_of, []

    def counting(tokens: torch.Tensor, precision: Precision) -> torch.Tensor | None:
        worked_out.append(len(tokens))
        return real(tokens, precision)

    monkeypatch.setattr(features, "known_of", counting)
    e = Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0)
    e.features = FeatureCache(1 << 24)
    steered(e, RUNGS[0])
    assert not worked_out  # float32 directions would weigh more than the tokens
    rung = replace(RUNGS[0], precision="bfloat16")
    again, _ = steered(e, rung)
    (at_first,) = {len(of) for of in again.push.features.values()}  # type: ignore[union-attr]
    assert len(worked_out) == len(again.push.features) * at_first * rung.references  # type: ignore[union-attr, arg-type]
    before = list(worked_out)
    steered(e, rung, tag=2)
    assert worked_out == before
