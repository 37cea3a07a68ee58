"""One suite for all classes of models, on tiny random ones: the pictures are those of diffusers' own pipeline; a sample's bytes
depend on no mate; what steers or adapts a row moves that row and no other."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError, ModelError
from pipeline.config import AdapterConfig, ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.packed_call import packed_call
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.file import look_at_adapter
from pipeline.model.adapters.lora import load_lora
from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.families.registry import model_classes
from pipeline.model.interface import DiffusionModel
from pipeline.model.libraries import quiet
from pipeline.model.load import sides_of
from pipeline.respond.copies import Failed, Tools, retry
from pipeline.rungs import NegToMeRung
from pipeline.steer.blocks import hooked
from pipeline.steer.features import FeatureCache, capturing
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge
from tests.pipeline.families import (
    FAMILIES,
    PROMPT,
    STEPS,
    Family,
    diffusers_pipeline,
    drawn_by,
    engine_of,
    finish,
    load,
    pixels,
    sample,
    text,
)
from tests.pipeline.lora_files import halves, pairs_for, write
from tests.pipeline.tiny_models import BUILDERS

LONG = "a lemon and a red apple " * 20


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture(scope="module")
def folder(family: Family, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(family.pipeline)


@pytest.fixture(scope="module")
def model(family: Family, folder: Path) -> DiffusionModel:
    return load(family, folder)


@pytest.fixture(scope="module")
def theirs(family: Family, folder: Path) -> Any:
    return diffusers_pipeline(folder, family.pipeline)


def a_latent(model: DiffusionModel, seed: int) -> torch.Tensor:
    return torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))


def negtome(model: DiffusionModel, references: int = 1, **more: Any) -> NegToMe:
    latents = tuple(a_latent(model, 50 + i) for i in range(references))
    context = text(model, "")
    settings = {"alpha": 0.9, "threshold": -0.5, "until_step": 2} | more
    return NegToMe(latents=latents, noises=latents, context=context, **settings)


def nudge(model: DiffusionModel) -> Nudge:
    z = torch.ones(model.latent_shape)
    return Nudge(references=(z,), centre=torch.zeros_like(z), step_size=0.1, iterations=2, until_step=2)


# --- what is drawn ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 0.5, 0.99, 1.0, 1.01, 3.0, 100.0])
def test_no_guidance_scale_draws_towards_the_negative_prompt(model: DiffusionModel, scale: float) -> None:
    """The guard of prompts relies on it, because it looks at no negative prompt."""
    negative, nothing = torch.ones(model.latent_shape), torch.zeros(model.latent_shape)
    assert not model.guided(scale) or bool((model.combine(negative, nothing, scale) <= 0).all())


def test_what_is_advised_gives_samples_a_negative_row(family: Family, model: DiffusionModel) -> None:
    advice = engine_of(family, model, guided=False).how_to_guide()
    key, _, least = advice.removeprefix("Set generation.").partition(" above ")
    assert bool(advice) == family.takes_negative
    if advice:
        scales = {"guidance_scale": 0.0} | {key: float(least)}
        assert not Engine(model, rows=8, steps=STEPS, **scales).guided
        assert Engine(model, rows=8, steps=STEPS, **(scales | {key: float(least) + 0.1})).guided


def test_every_class_that_can_be_drawn_with_is_in_the_suite() -> None:
    classes = model_classes()
    assert {key: cls.family for key, cls in classes.items()} == {family.pipeline: key for key, family in FAMILIES.items()}
    assert set(classes) <= set(BUILDERS)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_pictures_are_those_of_diffusers_own_pipeline(
    name: str, family: Family, model: DiffusionModel, theirs: Any, guided: bool
) -> None:
    e = engine_of(family, model, guided=guided)
    ours = pixels(model, finish(e, [sample(e, 5, PROMPT)])[5])
    expected = drawn_by(theirs, family, 5, guided=guided)
    two = guided and family.takes_negative
    assert e.guided == two and e.rows_used == STEPS * (2 if two else 1)
    assert_same_picture(ours, expected)


def test_without_a_negative_prompt_it_is_guided_away_from_the_empty_one(
    family: Family, model: DiffusionModel, theirs: Any
) -> None:
    """Two of diffusers' pipelines guide only where a negative prompt is given; with the empty one given, all are ours."""
    if not family.takes_negative:
        pytest.skip("there is no classifier-free guidance")
    none = {key: value for key, value in family.guided.items() if key != "negative_prompt"}
    empty = none | ({} if family.unasked else {"negative_prompt": ""})
    e = engine_of(family, model)
    ours = pixels(model, finish(e, [sample(e, 5, PROMPT, negative=text(model, "", negative=True))])[5])
    assert_same_picture(ours, drawn_by(theirs, replace(family, guided=empty), 5))
    if not family.unasked:
        unguided = engine_of(family, model, guided=False)
        plain = pixels(model, finish(unguided, [sample(unguided, 5, PROMPT)])[5])
        assert_same_picture(plain, drawn_by(theirs, replace(family, guided=none), 5))
        assert (plain - ours).abs().max() > 1e-3  # twice what is still the same picture


def assert_same_picture(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.std() > 0.05  # a picture at all
    assert (ours - theirs).abs().max() < 5e-4
    assert ((ours * 255).round() - (theirs * 255).round()).abs().max() <= 1


def test_sizes_share_an_engine_and_are_those_of_diffusers_own_pipeline(
    family: Family, model: DiffusionModel, theirs: Any
) -> None:
    """A wide and a square picture beside one another: each is what diffusers draws of that size."""
    e = engine_of(family, model)
    done = finish(e, [sample(e, 5, PROMPT, size=family.wide), sample(e, 6, PROMPT)])
    assert len(e.filled) == 2
    width, height = family.wide
    assert pixels(model, done[5]).shape == (3, height, width)
    assert_same_picture(pixels(model, done[5]), drawn_by(theirs, family, 5, size=family.wide))
    assert_same_picture(pixels(model, done[6]), drawn_by(theirs, family, 6))


def test_the_sides_that_fit_are_known_before_the_model_is_loaded(model: DiffusionModel, folder: Path) -> None:
    """Prompts are read with this rule: a side that passes is drawn, and another is refused by the model too."""
    rule = sides_of(ModelConfig(path=str(folder)))
    if rule is not None:  # else it is the loaded model that refuses
        model.shape_of(3 * rule.multiple, 2 * rule.multiple)
        with pytest.raises(ConfigError, match=f"is not a multiple of {rule.multiple}, "):
            model.shape_of(3 * rule.multiple, 2 * rule.multiple + 1)


# --- alone, in company ------------------------------------------------------------------------------------------------------


def some(e: Engine) -> dict[int, Trajectory]:
    """Of every kind: with a long caption, nudged, pushed from two references, without guidance, of another size."""
    return {
        0: sample(e, 0, LONG),
        1: sample(e, 1, nudge=nudge(e.model)),
        2: sample(e, 2, push=negtome(e.model, 2)),
        3: sample(e, 3, negative=None),
        4: sample(e, 4, size=FAMILIES[e.model.family].wide),
    }


ORDERS = ((0, 4, 1, 2, 3), True), ((3, 2, 0, 1, 4), False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_do_not_depend_on_schedule_mates_or_slot(family: Family, folder: Path, dtype: str) -> None:
    model = load(family, folder, dtype)
    alone = {tag: finish(e := engine_of(family, model, steps=2), [some(e)[tag]])[tag] for tag in range(5)}
    for order, stagger in ORDERS if dtype == "float32" else ORDERS[:1]:
        e = engine_of(family, model, steps=2)
        made = some(e)
        mixed = finish(e, [made[tag] for tag in order], stagger=stagger)
        assert [tag for tag in alone if not torch.equal(mixed[tag], alone[tag])] == [], f"order {order}"


def test_conditionings_have_one_shape_and_do_not_depend_on_their_mates(model: DiffusionModel) -> None:
    prompts = ["a cat", LONG, "", "a cat"]
    for negative in (False, True):
        together = model.encode_prompts(prompts, negative=negative)
        assert len(together) == 4 and together.nbytes == 4 * model.conditioning_bytes
        assert together.tokens.dtype == torch.float32
        assert together[0].equal(together[3]) and not together[0].equal(together[1])
        assert together[1].equal(model.encode_prompts(prompts[1:2], negative=negative)[0])
    assert model.encode_prompts(prompts[:1])[0].equal(together[0]) != model.negatives_differ
    assert [model.truncated(prompt) for prompt in prompts[:2]] == [False, True]


# --- what moves a row -------------------------------------------------------------------------------------------------------


def outputs(e: Engine, samples: list[Trajectory]) -> list[torch.Tensor]:
    return packed_call(e.model, e.sampler, samples, e.rows, e.inner_guidance)


@pytest.mark.parametrize("placement", ["paper", "released"])
@pytest.mark.parametrize("attention", ["last", "both"])
def test_negtome_moves_its_row_and_no_other(family: Family, model: DiffusionModel, placement: str, attention: str) -> None:
    e = engine_of(family, model)
    samples = [sample(e, tag) for tag in range(3)]
    before = outputs(e, samples)
    samples[1].push = negtome(model, placement=placement, attention=attention, rows="conditional")
    after = outputs(e, samples)
    own = len(after[1]) - 1  # the conditional row is the last
    assert torch.isfinite(after[1]).all() and not torch.equal(after[1][own], before[1][own])
    assert torch.equal(after[1][:own], before[1][:own])
    assert all(torch.equal(after[i], before[i]) for i in (0, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    samples[1].push = None
    assert all(torch.equal(a, b) for a, b in zip(outputs(e, samples), before, strict=True))


def test_sites_hold_the_image_tokens_and_no_others(family: Family, model: DiffusionModel) -> None:
    """Of transformers, whose tokens are the picture's from the first block to the last: where one sample's tokens are written
    over another's behind the last block, its output is the other's. With text among them, or a part of the image missing, it
    would not be."""
    e = engine_of(family, model, guided=False)
    same = text(model, PROMPT)
    samples = [sample(e, tag, context=same) for tag in range(2)]
    before = outputs(e, samples)
    sites = [site for site in model.sites() if site.placement == "paper"]
    seen: dict[str, int] = {}

    def count(name: str, tokens: torch.Tensor) -> None:
        seen[name] = tokens.shape[1]

    def copy(_name: str, tokens: torch.Tensor) -> None:
        tokens[0] = tokens[1]

    with hooked([(site, count) for site in sites]):
        outputs(e, samples)
    with hooked([(sites[-1], copy)]):
        after = outputs(e, samples)
    positions = family.tokens_of(model)
    assert set(seen) == {site.name for site in sites}
    if model.denoiser == "unet":  # on several levels, and its levels are joined behind the last block
        assert set(seen.values()) <= {positions // 4**level for level in range(4)}
    else:
        assert set(seen.values()) == {positions}
        assert not torch.equal(before[0], before[1]) and torch.equal(after[0], after[1]) and torch.equal(after[1], before[1])


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"threshold": 1.0}, {"until_step": 0}], ids=str)
def test_negtome_of_no_strength_is_no_change(family: Family, model: DiffusionModel, change: dict[str, Any]) -> None:
    e = engine_of(family, model, steps=2)
    pushed = sample(e, 1, push=negtome(model, **change))
    assert torch.equal(finish(e, [pushed])[1], finish(e, [sample(e, 1)])[1])


def test_nudging_moves_its_row_and_no_other(family: Family, model: DiffusionModel) -> None:
    e = engine_of(family, model)
    before = finish(e, [sample(e, tag) for tag in range(3)])
    after = finish(e, [sample(e, 0), sample(e, 1, nudge=nudge(model)), sample(e, 2)])
    assert [torch.equal(after[tag], before[tag]) for tag in range(3)] == [True, False, True]


def test_a_block_has_sites_of_both_placements(model: DiffusionModel) -> None:
    paper, released = ({s.block for s in model.sites() if s.placement == placement} for placement in ("paper", "released"))
    assert paper and paper == released


def test_every_site_is_shown_one_token_a_place_of_the_picture(family: Family, model: DiffusionModel) -> None:
    """Those of the text are left out, wherever they stand in the stream."""
    e = engine_of(family, model)
    most = model.latent_shape[1] * model.latent_shape[2]
    for placement in ("paper", "released"):
        settings = negtome(model, placement=placement, attention="both")
        with capturing(model.sites(), settings) as seen:
            outputs(e, [sample(e, 0)])
        assert set(seen) == {site.name for site in model.sites()}
        assert {most / tokens.shape[1] for tokens in seen.values()} <= {1, 4, 16}, "latent positions a token"


def test_a_rung_steers_to_the_same_bytes_alone_in_company_and_from_the_cache(family: Family, model: DiffusionModel) -> None:
    masked = NegToMeRung(alpha=0.9, token_threshold=0.0, masked=True)

    def steered(e: Engine, rung: NegToMeRung = masked) -> Trajectory:
        first = sample(e, 1)
        finish(e, [first])
        failed = Failed(last=first, seed=1, attempt=1, ref_ids=["00000001"], latents=[a_latent(model, 9)])
        context, centre = text(model, ""), torch.zeros(model.latent_shape)
        found = retry(failed, rung, Tools(engine=e, reference_context=context, centre=centre))
        return found.trajectory.resumed(first, found.seed)

    def engine() -> Engine:
        return engine_of(family, model)

    e = engine()
    alone = finish(e, [steered(e)])[1]
    assert torch.isfinite(alone).all() and not torch.equal(alone, finish(engine(), [sample(e, 1)])[1])
    mixed = finish(e, [sample(e, 2), steered(e)])
    assert torch.equal(mixed[1], alone) and torch.equal(mixed[2], finish(engine(), [sample(e, 2)])[2])
    cached = engine()
    cached.features = FeatureCache(1 << 24)
    for _ in range(2):
        t = steered(cached)
        assert t.rows() == t.own_rows
        assert torch.equal(finish(cached, [t])[1], alone)
    assert cached.features.hits > 0 and cached.features.rows_run == STEPS
    e = engine()
    assert torch.equal(finish(e, [steered(e, replace(masked, alpha=0.0))])[1], finish(engine(), [sample(e, 1)])[1])


# --- adapters ---------------------------------------------------------------------------------------------------------------


def test_an_adapter_on_one_row_equals_peft_to_the_bit(family: Family, model: DiffusionModel) -> None:
    """peft's own layers in a copy of the network against :mod:`pipeline.model.adapters.lowrank` on one row of a call."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear

    e = engine_of(family, model)
    samples = [sample(e, tag) for tag in range(3)]
    before = outputs(e, samples)
    plain = model.network
    names = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and ("attn" in n or "attention." in n)]
    torch.manual_seed(0)
    wrapped = inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=8, target_modules=names, init_lora_weights=False), deepcopy(plain)
    )
    layers = {n: m for n, m in wrapped.named_modules() if isinstance(m, Linear)}
    scaling = {layer.scaling["default"] for layer in layers.values()}
    assert sorted(layers) == sorted(names) and scaling == {4.0}
    model.network = wrapped.eval().requires_grad_(False)  # torch multiplies in another order for weights with gradients
    try:
        peft = outputs(e, samples)
    finally:
        model.network = plain
    pairs = {n: (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in layers.items()}
    samples[1].lowrank = ((LowRank("peft's", pairs), 4.0),)
    after = outputs(e, samples)
    assert not torch.equal(after[1], before[1]) and torch.equal(after[1], peft[1])
    assert all(torch.equal(after[i], before[i]) for i in (0, 2))


def test_a_lora_file_on_one_row_equals_peft_to_the_bit(family: Family, model: LatentDiffusion, tmp_path: Path) -> None:
    """Read through diffusers, which converts names, against the same file in peft's layers; the other rows keep their bytes."""
    names = tuple(n for n, m in model.network.named_modules() if isinstance(m, torch.nn.Linear) and "to_q" in n)
    path = write(tmp_path / "style.safetensors", halves(model.denoiser, pairs_for(model.network, names)))
    file = look_at_adapter(AdapterConfig(path=str(path)), base=tmp_path)
    if not hasattr(model.parts, "load_lora_weights"):
        with pytest.raises(ModelError, match=f"diffusers reads no LoRA for a {family.pipeline}"):
            load_lora(file, model.parts, model.denoiser)
        return
    e = engine_of(family, model)
    samples = [sample(e, tag) for tag in range(3)]
    before = outputs(e, samples)
    lora = load_lora(file, model.parts, model.denoiser)
    assert lora.denoiser is not None and sorted(lora.denoiser.pairs) == sorted(names)
    samples[1].lowrank = ((lora.denoiser, 1.0),)
    after = outputs(e, samples)
    samples[1].lowrank = ()
    with torch.inference_mode(False), quiet():
        model.parts.load_lora_weights(str(tmp_path), weight_name=path.name)
    model.network.requires_grad_(False)
    try:
        peft = outputs(e, samples)
    finally:
        model.parts.unload_lora_weights()
    assert torch.equal(after[1], peft[1]) and not torch.equal(peft[1], before[1])
    assert all(torch.equal(after[i], before[i]) for i in (0, 2))


# --- pictures and latents ---------------------------------------------------------------------------------------------------


def test_pictures_and_latents_go_both_ways(family: Family, model: DiffusionModel) -> None:
    latents = torch.stack([a_latent(model, seed) for seed in range(3)])
    pictures = model.decode(latents)
    assert pictures.shape == (3, family.side, family.side, 3) and pictures.dtype.name == "uint8"
    assert model.decode_size() == (family.side, family.side)
    assert (model.decode(latents[1:2])[0] == pictures[1]).all()
    assert model.encode(pictures).shape == latents.shape


def test_a_latent_that_is_encoded_again_decodes_as_in_diffusers(family: Family, model: DiffusionModel, theirs: Any) -> None:
    """Scaling and shift on the way in, which the pictures above do not show: undone by hand."""
    picture = model.decode(a_latent(model, 1)[None])
    x = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        raw = theirs.vae.encode(x[:, :, None] if "z_dim" in theirs.vae.config else x)  # one frame of a film
        raw = raw.latent_dist.mode() if hasattr(raw, "latent_dist") else raw.latent
        expected = theirs.vae.decode(raw).sample[0]
        expected = expected[:, 0] if expected.ndim == 4 else expected
        ours = model.decode_tensor(model.encode(picture))[0]  # type: ignore[attr-defined]
    assert torch.allclose(ours, expected, atol=1e-4)


def test_denoiser_and_decoder_have_gradients(family: Family, model: DiffusionModel) -> None:
    """For steering by gradients: in the conditioning, and in the latent."""
    context = model.encode_prompts(["a cat"]).map(lambda part: part.clone().requires_grad_(True), floats=True)
    z = a_latent(model, 0)[None].requires_grad_(True)
    time = torch.tensor(engine_of(family, model).sampler.timesteps[:1])
    model.denoise_tensor(z, time, context, 3.0).square().sum().backward()  # type: ignore[attr-defined]
    assert all(part.grad is not None and part.grad.any() for part in context.parts if part.requires_grad)
    assert z.grad is not None and z.grad.any()
    rows: list[Any] = [x.detach().repeat(8, *(1,) * (x.ndim - 1)) for x in (z, time)]
    rows.append(context.map(lambda part: part.detach().repeat(8, *(1,) * (part.ndim - 1))))
    assert torch.equal(model.denoise_tensor(*rows, 3.0), model.denoise(*rows, 3.0))  # type: ignore[attr-defined]
    x = a_latent(model, 1)[None].requires_grad_(True)
    model.decode_tensor(x).sum().backward()  # type: ignore[attr-defined]
    assert x.grad is not None and x.grad.any()
