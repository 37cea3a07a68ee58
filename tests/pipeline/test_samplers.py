"""Every sampler against diffusers' own scheduler, step by step, on random network outputs; and rows that do not mix."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from index.errors import ConfigError
from pipeline.model.interface import DiffusionModel
from pipeline.model.libraries import quiet
from pipeline.model.sampling.choose import OTHER_SCALING, make_sampler
from pipeline.model.sampling.sampler import Sampler, counter_noise

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
LEVELS = {name: value for name, value in SD.items() if name != "clip_sample"}
SHAPE = (4, 8, 8)


def model_of(name: str, prediction: str, config: dict[str, Any]) -> Any:
    """The part of a model that a sampler needs."""
    with quiet():
        named = dict(getattr(diffusers, name)(**config).config) | {"_class_name": name}

    def scheduled(kind: Any, steps: int, **changes: Any) -> Any:
        with quiet():
            built = kind.from_config(named, **changes)
            built.set_timesteps(steps, **({"mu": 0.8} if config.get("use_dynamic_shifting") else {}))
        return built

    return SimpleNamespace(prediction_type=prediction, scheduler_config=named, scheduled=scheduled)


def randn(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


DIFFUSION = [
    ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}, ("epsilon", "sample")),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}, ("epsilon",)),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, ("v_prediction",)),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": True}, ("epsilon", "v_prediction")),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, ("epsilon", "v_prediction")),
    ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, ("epsilon",)),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, ("v_prediction",)),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, ("epsilon",)),
    ("DPMSolverMultistepScheduler", {}, ("epsilon", "v_prediction", "sample")),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ("epsilon",)),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "final_sigmas_type": "sigma_min"}, ("epsilon",)),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, ("v_prediction",)),
]
UNIPC = [
    ("UniPCMultistepScheduler", {}, ("epsilon", "v_prediction", "sample")),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}, ("epsilon",)),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 2], "final_sigmas_type": "sigma_min"}, ("epsilon",)),
    ("UniPCMultistepScheduler", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, ("epsilon",)),
    ("UniPCMultistepScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, ("v_prediction",)),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
     ("flow_prediction",)),
]  # fmt: skip
SDE = {"algorithm_type": "sde-dpmsolver++"}
# diffusers draws their noise from a generator; here it is handed in.
NOISY = [
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, ("epsilon", "v_prediction")),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, ("epsilon",)),
    ("LCMScheduler", {}, ("epsilon", "v_prediction", "sample")),
    ("LCMScheduler", {"rescale_betas_zero_snr": True, "clip_sample": True}, ("v_prediction",)),
    ("TCDScheduler", {}, ("epsilon", "v_prediction", "sample")),
    ("DPMSolverMultistepScheduler", SDE, ("epsilon", "v_prediction")),
    ("DPMSolverMultistepScheduler", SDE | {"use_karras_sigmas": True}, ("epsilon",)),
    ("DPMSolverMultistepScheduler", SDE | {"solver_type": "heun", "final_sigmas_type": "sigma_min"}, ("epsilon",)),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}, ("flow_prediction",)),
]  # fmt: skip
FLOW: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, ("flow_prediction",)),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, ("flow_prediction",)),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True, "shift_terminal": 0.02}, ("flow_prediction",)),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
     ("flow_prediction",)),
]  # fmt: skip
CASES = [
    (name, more, p, steps)
    for cases, counts in ((DIFFUSION, (7, 20)), (UNIPC, (4, 7, 20)), (FLOW, (7, 20)))
    for name, more, predictions in cases
    for p in predictions
    for steps in counts
]


@pytest.mark.parametrize(
    ("name", "more", "prediction", "steps"), CASES, ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else x
)
def test_equals_diffusers_step_by_step(name: str, more: dict[str, Any], prediction: str, steps: int) -> None:
    config = dict(more) if prediction == "flow_prediction" else SD | more | {"prediction_type": prediction}
    if name != "DDIMScheduler":
        config.pop("clip_sample", None)
    model = model_of(name, prediction, config)
    sampler = make_sampler(model, steps)
    theirs = model.scheduled(getattr(diffusers, name), steps)
    assert len(sampler) == steps and [float(t) for t in sampler.timesteps] == [float(t) for t in theirs.timesteps]
    z, before, older = sampler.initial_scale * randn(0), None, None
    other = randn(0) * theirs.init_noise_sigma if hasattr(theirs, "init_noise_sigma") else randn(0)
    worst = 0.0
    for i, t in enumerate(theirs.timesteps):
        with quiet():
            seen = theirs.scale_model_input(other, t) if hasattr(theirs, "scale_model_input") else other
            assert torch.allclose(z, seen, atol=2e-5, rtol=1e-4), f"what the network sees at step {i}"
            # An output that depends on the latent, as a network's does: errors would grow, not average out.
            output = 0.5 * seen + randn(i + 1)
            other = theirs.step(output, t, other).prev_sample
        output = 0.5 * z + randn(i + 1)
        clean, noise = sampler.clean(z, output, i)
        z, before, older = sampler.advance(clean, noise, i, before=before, older=older), clean, before
        scale = 1 / (1 + float(theirs.sigmas[i + 1]) ** 2) ** 0.5 if name == "EulerDiscreteScheduler" else 1.0
        worst = max(worst, float((z - scale * other).abs().max() / z.abs().max()))
    # At zero terminal SNR diffusers carries Euler's latent at σ = 4096 in float32; ours stays at unit variance.
    assert worst < (5e-5 if "rescale_betas_zero_snr" in more else 2e-5), worst


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(
    ("name", "more", "prediction"),
    [(name, more, p) for name, more, predictions in NOISY for p in predictions],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else x,
)
def test_noisy_samplers_equal_diffusers_step_by_step(
    name: str, more: dict[str, Any], prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, tcd = prediction == "flow_prediction", name == "TCDScheduler"
    config = more if flow else SD | more | {"prediction_type": prediction}
    if name not in ("LCMScheduler", "TCDScheduler"):
        config = {key: value for key, value in config.items() if key != "clip_sample"}
    model = model_of(name, prediction, config)
    sampler = make_sampler(model, steps, eta=0.3 if tcd else 0.0)
    theirs = model.scheduled(getattr(diffusers, name), steps)
    assert [float(t) for t in sampler.timesteps] == [float(t) for t in theirs.timesteps]
    assert len(sampler.fresh) == steps and any(sampler.fresh)
    handed: list[torch.Tensor] = []
    module = sys.modules[type(theirs).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: handed[-1], raising=False)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: handed[-1])
    z, other, before = sampler.initial_scale * randn(0), randn(0) * getattr(theirs, "init_noise_sigma", 1.0), None
    worst = 0.0
    for i, t in enumerate(theirs.timesteps):
        handed.append(counter_noise(3, i, SHAPE))
        with quiet():
            seen = theirs.scale_model_input(other, t) if hasattr(theirs, "scale_model_input") else other
            eta = {"eta": 0.3} if tcd else {}
            other = theirs.step(0.5 * seen.tanh() + randn(i + 1), t, other, **eta).prev_sample
        clean, noise = sampler.clean(z, 0.5 * z.tanh() + randn(i + 1), i)
        z, before = sampler.advance(clean, noise, i, before=before, fresh=handed[-1]), clean
        scale = 1 / (1 + float(theirs.sigmas[i + 1]) ** 2) ** 0.5 if name.startswith("EulerA") else 1.0
        worst = max(worst, float((z - scale * other).abs().max() / z.abs().max()))
    assert worst < 2e-5, worst


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_a_flow_of_another_folder_takes_second_order_steps_on_its_own_noise_levels(name: str) -> None:
    """On a straight path, where x̂0 never changes, every sampler arrives at the same place."""
    model = model_of("FlowMatchEulerDiscreteScheduler", "flow_prediction", {"shift": 3.0})
    first, second = make_sampler(model, 8), make_sampler(model, 8, name)
    assert second.timesteps == first.timesteps and second.noise == first.noise
    assert (second.correction[1] == 0) == (name == "dpmpp_2m")  # 2M cannot use the step from pure noise, UniPC's corrector can
    x0, z, before = randn(1), randn(0), None
    for i in range(8):
        clean, noise = second.clean(z, (z - x0) / second.noise[i], i)
        z, before = second.advance(clean, noise, i, before=before), clean
    assert torch.allclose(z, x0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_with_noise_equals_diffusers(prediction: str, eta: float) -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if prediction == "v_prediction" else {}
    model = model_of("DDIMScheduler", prediction, SD | zero | {"prediction_type": prediction})
    sampler, theirs = make_sampler(model, 10, eta=eta), model.scheduled(diffusers.DDIMScheduler, 10)
    assert sampler.name == f"ddim (η = {eta:g})"
    z = other = randn(0)
    for i, t in enumerate(theirs.timesteps):
        fresh = counter_noise(3, i, (1, *SHAPE))[0]
        other = theirs.step(randn(i + 1), t, other[None] if i == 0 else other, eta=eta, variance_noise=fresh[None]).prev_sample
        z = sampler.advance(*sampler.clean(z, randn(i + 1), i), i, fresh=fresh)
    if prediction == "epsilon" or eta < 1:
        assert torch.allclose(z, other[0], atol=2e-5, rtol=1e-4)
    else:  # diffusers takes the root of 1 − ᾱ' − σ², zero but for rounding: NaN on one machine, about 1e-4 on another
        assert z.isfinite().all() and (other.isnan().all() or torch.allclose(z, other[0], atol=2e-3))


def test_counter_noise_depends_on_seed_and_step_alone() -> None:
    assert torch.equal(counter_noise(7, 3, SHAPE), counter_noise(7, 3, SHAPE))
    assert not torch.equal(counter_noise(7, 3, SHAPE), counter_noise(7, 4, SHAPE))
    assert not torch.equal(counter_noise(7, 3, SHAPE), counter_noise(8, 3, SHAPE))
    many = counter_noise(2**63 - 1, 0, (64, 64, 64))
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01


ONE_OF_EACH = [
    ("DDIMScheduler", "v_prediction", SD, 0.5),
    ("EulerDiscreteScheduler", "epsilon", {}, 0.0),
    ("DPMSolverMultistepScheduler", "epsilon", {}, 0.0),
    ("FlowMatchEulerDiscreteScheduler", "flow_prediction", {"shift": 3.0}, 0.0),
    ("EulerAncestralDiscreteScheduler", "epsilon", {}, 0.0),
    ("LCMScheduler", "epsilon", {}, 0.0),
    ("TCDScheduler", "epsilon", {}, 0.3),
    ("DPMSolverMultistepScheduler", "epsilon", {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    ("UniPCMultistepScheduler", "epsilon", {}, 0.0),
]


@pytest.mark.parametrize(("name", "prediction", "config", "eta"), ONE_OF_EACH)
def test_rows_at_different_steps_in_one_batch_are_byte_equal_to_being_alone(
    name: str, prediction: str, config: dict[str, Any], eta: float
) -> None:
    sampler = make_sampler(model_of(name, prediction, config), 20, eta=eta)
    for steps in ([0, 5, 19, 5, 7], [3, 3, 18, 0, 1]):
        batch = {key: torch.stack([randn(10 * i + key) for i in range(5)]) for key in range(5)}
        at = torch.tensor(steps)
        clean, noise = sampler.clean(batch[0], batch[1], at)
        after = sampler.advance(clean, noise, at, before=batch[2], fresh=batch[3], older=batch[4])
        noised = sampler.noised(batch[0], batch[1], at)
        for row, step in enumerate(steps):
            alone = sampler.clean(batch[0][row], batch[1][row], step)
            assert torch.equal(clean[row], alone[0]) and torch.equal(noise[row], alone[1])
            memory = {"before": batch[2][row], "older": batch[4][row]}
            assert torch.equal(after[row], sampler.advance(*alone, step, fresh=batch[3][row], **memory))
            assert torch.equal(noised[row], sampler.noised(batch[0][row], batch[1][row], step))


@pytest.mark.parametrize(("name", "prediction", "config", "eta"), ONE_OF_EACH)
def test_clean_undoes_noised(name: str, prediction: str, config: dict[str, Any], eta: float) -> None:
    """At every step's noise level, the network's perfect answer gives back picture and noise."""
    sampler = make_sampler(model_of(name, prediction, config), 12, eta=eta)
    x0, noise = randn(1), randn(2)
    for i in range(len(sampler)):
        a, s = sampler.signal[i], sampler.noise[i]
        answer = {"epsilon": noise, "v_prediction": a * noise - s * x0, "flow_prediction": noise - x0}[prediction]
        clean, back = sampler.clean(sampler.noised(x0, noise, i), answer, i)
        assert torch.allclose(clean, x0, atol=1e-2 if a < 0.1 else 1e-4) and torch.allclose(back, noise, atol=1e-4)
    assert sampler.noise_next[-1] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("name", "needed"), [("UniPCMultistepScheduler", [0, 1, 2, 2, 2]), ("DDIMScheduler", [0] * 5)])
def test_of_how_many_steps_before_a_step_needs_the_clean_latent(name: str, needed: list[int]) -> None:
    sampler = make_sampler(model_of(name, "epsilon", {"final_sigmas_type": "sigma_min"} if needed[1] else {}), 5)
    assert [sampler.needs_memory(step) for step in range(5)] == needed


def make(name: str = "DDIMScheduler", prediction: str = "epsilon", sampler: str = "auto", **more: Any) -> Sampler:
    eta = more.pop("eta", 0.0)
    return make_sampler(model_of(name, prediction, more), 5, sampler, eta=eta)


def test_auto_takes_what_the_folder_names() -> None:
    assert make("PNDMScheduler").name == "ddim" and make("EulerDiscreteScheduler").name == "euler"
    assert make("EulerDiscreteScheduler", sampler="dpmpp_2m").name == "dpmpp_2m"
    assert make("FlowMatchEulerDiscreteScheduler", "flow_prediction").name == "flow_match_euler"
    assert make("EulerAncestralDiscreteScheduler").name == "euler_a" and make("LCMScheduler").name == "lcm"
    assert make("TCDScheduler", eta=0.3).name == "tcd (η = 0.3)" and make("TCDScheduler").fresh == ()
    assert make("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++").name == "dpmpp_2m_sde"
    assert make("UniPCMultistepScheduler").name == "unipc"
    on_flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert make("DPMSolverMultistepScheduler", "flow_prediction", **on_flow).name == "dpmpp_2m"
    assert make("FlowMatchEulerDiscreteScheduler", "flow_prediction", stochastic_sampling=True).name.endswith("(stochastic)")


@pytest.mark.parametrize("name", OTHER_SCALING)
def test_a_model_in_another_scaling_is_refused_whatever_sampler_is_chosen(name: str) -> None:
    """Playground 2.5's folder names EDM's scheduler: drawn with Euler's, its network would be shown what it never saw."""
    assert hasattr(diffusers, name)
    for chosen in ("auto", "euler", "ddim"):
        model: Any = SimpleNamespace(prediction_type="epsilon", scheduler_config={"_class_name": name}, scheduled=None)
        with pytest.raises(ConfigError, match=rf"names {name}: its network was trained in another scaling"):
            make_sampler(model, 4, chosen)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_more_steps_than_there_are_noise_levels_are_refused_with_the_number_of_steps(name: str) -> None:
    for more, steps in (({}, 1000), ({"timestep_spacing": "leading", "steps_offset": 1}, 999)):
        with pytest.raises(ConfigError, match=rf"^generation\.steps: of {steps} steps at least two fall on one noise level"):
            make_sampler(model_of(name, "epsilon", {**LEVELS, **more}), steps)
    assert len(make_sampler(model_of(name, "epsilon", {**LEVELS, "timestep_spacing": "trailing"}), 1000)) == 1000


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ddim' cannot use 'flow_prediction' predictions"):
        make("FlowMatchEulerDiscreteScheduler", "flow_prediction", "ddim")
    with pytest.raises(ConfigError, match="'flow_match_euler' cannot use 'epsilon' predictions"):
        make(sampler="flow_match_euler")
    with pytest.raises(ConfigError, match=r"generation\.eta: 'euler' has no η"):
        make("EulerDiscreteScheduler", eta=0.5)
    with pytest.raises(ConfigError, match="thresholding"):
        make(thresholding=True)
    for name in ("LCMScheduler", "TCDScheduler"):
        with pytest.raises(ConfigError, match=r"generation\.timestep_spacing: '(lcm|tcd)' has a grid of its own"):
            make_sampler(model_of(name, "epsilon", {}), 4, spacing="trailing")
    with pytest.raises(ConfigError, match="zero terminal SNR"):
        make(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ConfigError, match="invert_sigmas"):
        make("FlowMatchEulerDiscreteScheduler", "flow_prediction", invert_sigmas=True)


@pytest.mark.parametrize(
    "odd", [{"num_train_timesteps": "x"}, {"beta_start": 1e308}, {"beta_schedule": [1]}, {"steps_offset": None},
            {"num_train_timesteps": 0}, {"trained_betas": {"a": 1}}, {"clip_sample": True, "clip_sample_range": "x"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_odd_values_of_a_scheduler_make_a_sampler_or_a_sentence(exact: DiffusionModel, name: str, odd: dict[str, Any]) -> None:
    model = copy.copy(exact)
    model.scheduler_config = {"_class_name": name, **SD, **odd}
    try:
        sampler = make_sampler(model, 5)
    except ConfigError as error:
        assert error.where in ("generation.scheduler", "scheduler_config.json") and error.fix
    else:
        assert np.isfinite([*sampler.signal, *sampler.noise]).all()
