"""Samplers as tables: DDIM, Euler, DPM-Solver++(2M) and flow-match Euler, each row of a batch at its own step.

All four keep the latent at step i in the form z_i = a_i·x0 + s_i·ε, split the network's output into x̂0 and ε̂, and take

    z_{i+1} = a_{i+1}·x̂0 + s_{i+1}·ε̂ + c_i·(x̂0_i − x̂0_{i−1}) + τ_i·n_i

with numbers looked up by i: c is the second-order correction of 2M (0 elsewhere), τ·n the counter-based noise of DDIM with
η > 0. Diffusion samplers keep z variance preserving (a² + s² = 1), flow matching has a = 1 − σ, s = σ; so the latent is at
the same time the network's input, and diffusers' scaling of Euler's input by 1/√(σ² + 1) is built in. diffusers' own scheduler
chooses the steps (spacing, Karras sigmas, zero terminal SNR, shift): the tables are read from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import ClearanceError, ConfigError
from pipeline.model.fit import reason

if TYPE_CHECKING:
    import torch

    from pipeline.model.interface import DiffusionModel

# The sampler that "auto" uses for the scheduler of a model's folder; for any other (PNDM, ancestral …) it uses DDIM.
OF_SCHEDULER = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
}
# Advice about other schedulers, added to the message that Clearance does not have them.
NEAREST = {
    "DDPMScheduler": 'the nearest is scheduler = "ddim" with eta = 1',
    "EulerAncestralDiscreteScheduler": 'it adds noise at every step, as scheduler = "ddim" with eta = 1 does',
    "KDPM2AncestralDiscreteScheduler": 'it adds noise at every step, as scheduler = "ddim" with eta = 1 does',
    "DPMSolverSDEScheduler": 'it adds noise at every step, as scheduler = "ddim" with eta = 1 does',
    "LCMScheduler": "a model distilled for few steps of it draws poorly otherwise: use its base model",
    "TCDScheduler": "a model distilled for few steps of it draws poorly otherwise: use its base model",
    "UniPCMultistepScheduler": 'the nearest is scheduler = "dpmpp_2m"',
    "DEISMultistepScheduler": 'the nearest is scheduler = "dpmpp_2m"',
    "DPMSolverSinglestepScheduler": 'the nearest is scheduler = "dpmpp_2m"',
    "HeunDiscreteScheduler": 'the nearest is scheduler = "euler" with twice the steps',
    "KDPM2DiscreteScheduler": 'the nearest is scheduler = "euler" with twice the steps',
    "LMSDiscreteScheduler": 'the nearest is scheduler = "euler"',
    "FlowMatchHeunDiscreteScheduler": "it takes two evaluations a step: double generation.steps for the same effort",
}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One sampler over a fixed number of steps, as lookup tables.

    Every method takes one latent (C, h, w) and a step, or a batch (B, C, h, w) and a tensor of B steps.

    Attributes:
        name: what the audit calls it.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``: what the network predicts.
        timesteps: the network's input at each step, first to last.
        signal, noise: a_i and s_i before each step. The noise level a rollback to step i resumes at.
        signal_next, noise_next: weights of x̂0 and ε̂ after each step.
        correction: c_i; empty for samplers without memory.
        fresh: τ_i; empty for deterministic samplers.
        initial_scale: what unit noise is multiplied by to start from.
        clip: x̂0 is clamped to ±clip; 0 does not.
    """

    name: str
    prediction_type: str
    timesteps: tuple[int, ...] | tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    signal_next: tuple[float, ...]
    noise_next: tuple[float, ...]
    correction: tuple[float, ...] = ()
    fresh: tuple[float, ...] = ()
    initial_scale: float = 1.0
    clip: float = 0.0

    def __len__(self) -> int:
        return len(self.timesteps)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, step: Any) -> torch.Tensor:
        """A clean latent at the noise level before ``step``: a·x0 + s·ε."""
        z: torch.Tensor = _at(self.signal, step, x0) * x0 + _at(self.noise, step, x0) * noise
        return z

    def clean(self, z: torch.Tensor, output: torch.Tensor, step: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Split a latent by the network's raw output into the predicted clean latent x̂0 and noise ε̂."""
        a, s = _at(self.signal, step, z), _at(self.noise, step, z)
        if self.prediction_type == "epsilon":
            x0, noise = (z - s * output) / a, output
        elif self.prediction_type == "sample":
            x0, noise = output, (z - a * output) / s
        elif self.prediction_type == "flow_prediction":  # v = ε − x0 (rectified flow)
            x0, noise = z - s * output, z + a * output
        else:  # v = a·ε − s·x0 (Salimans & Ho 2022, eq. D.2)
            x0, noise = a * z - s * output, a * output + s * z
        return (x0.clamp(-self.clip, self.clip) if self.clip else x0), noise

    def needs_memory(self, step: int) -> bool:
        """Whether ``step`` uses the x̂0 of the step before."""
        return bool(self.correction) and self.correction[step] != 0

    def advance(
        self,
        x0: torch.Tensor,
        noise: torch.Tensor,
        step: Any,
        *,
        before: torch.Tensor | None = None,
        fresh: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The latent after ``step``.

        Args:
            x0, noise: x̂0 (steered or not) and ε̂ at this step.
            step: the step taken.
            before: x̂0 of the step before, for samplers with memory; any tensor in the first step.
            fresh: unit noise for samplers that add some; see :func:`counter_noise`.
        """
        z: torch.Tensor = _at(self.signal_next, step, x0) * x0 + _at(self.noise_next, step, x0) * noise
        if self.correction and before is not None:
            z = z + _at(self.correction, step, x0) * (x0 - before)
        if self.fresh and fresh is not None:
            z = z + _at(self.fresh, step, x0) * fresh
        return z


def _at(table: Sequence[float], step: Any, like: torch.Tensor) -> Any:
    """The table's number at a step, or a column (B, 1, 1, 1) of them for a tensor of steps."""
    if isinstance(step, int):
        return table[step]
    import torch

    return torch.tensor(table, dtype=like.dtype)[step].view(-1, *(1,) * (like.ndim - 1))


def counter_noise(seed: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise float32 that depends on (seed, step) alone: Philox with both as its key, so a rollback repeats it."""
    import torch

    generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, step], dtype=np.uint64)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def make_sampler(model: DiffusionModel, steps: int, name: str = "auto", *, eta: float = 0.0) -> Sampler:
    """The sampler of that name for a model and a number of steps.

    Args:
        model: gives the scheduler configuration of its folder and what its network predicts.
        steps: denoising steps.
        name: ``ddim``, ``euler``, ``dpmpp_2m``, ``flow_match_euler``, or ``auto``: what the folder names.
        eta: η of DDIM (Song et al. 2021, eq. 16): 0 is deterministic, 1 adds as much noise as DDPM.

    Raises:
        ConfigError: sampler, model and η do not go together, or the folder's scheduler needs what is not supported.
    """
    flow = model.prediction_type == "flow_prediction"
    config = model.scheduler_config
    if name == "auto":
        name = sampler_of(config, flow=flow)[0]
    if flow != (name == "flow_match_euler"):
        fix = 'Use "flow_match_euler" or "auto"' if flow else 'Use "ddim", "euler", "dpmpp_2m" or "auto"'
        raise ConfigError(f"{name!r} cannot use {model.prediction_type!r} predictions", where="generation.scheduler", fix=fix)
    if model.prediction_type not in {"epsilon", "v_prediction", "sample", "flow_prediction"}:
        raise ConfigError(f"{model.prediction_type!r} predictions are not known", where="generation.scheduler", fix=_OTHER)
    if eta and name != "ddim":
        raise ConfigError(f"{name!r} has no η", where="generation.eta", fix='Set it to 0, or use scheduler = "ddim"')
    if config.get("thresholding"):
        raise ConfigError("dynamic thresholding is for models of pixels", where="scheduler_config.json", fix=_OTHER)
    make = {"ddim": _ddim, "euler": _euler, "dpmpp_2m": _dpmpp_2m, "flow_match_euler": _flow_match_euler}[name]
    try:
        sampler = make(model, steps, eta)
    except ClearanceError:
        raise
    except Exception as error:  # values of a type or size that diffusers does not check
        what = f"{name!r} cannot be made of it: {reason(error)}"
        raise ConfigError(what, where="scheduler_config.json", fix=_OTHER) from error
    tables = (sampler.signal, sampler.noise, sampler.signal_next, sampler.noise_next, sampler.correction, sampler.fresh)
    if not all(map(math.isfinite, (*sampler.timesteps, *(number for table in tables for number in table)))):
        raise ConfigError("its noise levels are not finite", where="scheduler_config.json", fix=_OTHER)
    if sampler.prediction_type == "epsilon" and sampler.signal[0] == 0:
        raise ConfigError(
            "an ε-prediction has no information at zero terminal SNR, where the latent is noise alone",
            where="scheduler_config.json: rescale_betas_zero_snr",
            fix="Use a v-prediction model, or set it to false",
        )
    return sampler


def sampler_of(config: Mapping[str, Any], *, flow: bool) -> tuple[str, str]:
    """What ``scheduler = "auto"`` draws with.

    Args:
        config: the folder's scheduler configuration.
        flow: whether the model is a rectified flow.

    Returns:
        The sampler's name, and in what it differs from the folder's scheduler; empty where it does not.
    """
    named = str(config.get("_class_name"))
    used = "flow_match_euler" if flow else OF_SCHEDULER.get(named, "ddim")
    if OF_SCHEDULER.get(named) != used:
        more = NEAREST.get(named, "")
        what = f"the model's folder names {named}, which Clearance does not have; {used!r} is used"
        return used, f"{what}; {more}" if more else f"{what} (generation.scheduler chooses another)"
    wanted = str(config.get("algorithm_type", "dpmsolver++"))
    order = config.get("solver_order", 2)
    if used == "dpmpp_2m" and (wanted != "dpmsolver++" or order != 2):
        return used, f"the model's folder asks for {wanted} of order {order}; dpmsolver++ of order 2 is used"
    return used, ""


_OTHER = "Change the model folder's scheduler/scheduler_config.json, or use another model"


def _ddim(model: DiffusionModel, steps: int, eta: float) -> Sampler:
    """Song et al. 2021, eq. 12 and 16."""
    from diffusers import DDIMScheduler

    config = model.scheduler_config
    scheduler = model.scheduled(DDIMScheduler, steps)
    alphas = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)
    timesteps = tuple(int(t) for t in scheduler.timesteps)
    stride = int(scheduler.config.num_train_timesteps) // steps
    alpha = [float(alphas[t]) for t in timesteps]
    # As diffusers: the step after t is t − T//steps, whatever the spacing rounds the next t to.
    after = [float(alphas[t - stride]) if t >= stride else float(scheduler.final_alpha_cumprod) for t in timesteps]
    fresh = [eta * math.sqrt((1 - n) / (1 - a) * (1 - a / n)) for a, n in zip(alpha, after, strict=True)] if eta else []
    kept = [1 - n - t * t for n, t in zip(after, fresh or [0.0] * steps, strict=True)]
    return Sampler(
        name=f"ddim (η = {eta:g})" if eta else "ddim",
        prediction_type=model.prediction_type,
        timesteps=timesteps,
        signal=tuple(map(math.sqrt, alpha)),
        noise=tuple(math.sqrt(1 - a) for a in alpha),
        signal_next=tuple(map(math.sqrt, after)),
        noise_next=tuple(math.sqrt(max(k, 0.0)) for k in kept),
        fresh=tuple(fresh),
        # Only where the folder sets it: the class's own default is to clip, which suits pixels, not latents.
        clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else 0.0,
    )


def _euler(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, alg. 1 without churn): z' = x̂0 + σ'·ε̂, rescaled."""
    from diffusers import EulerDiscreteScheduler

    scheduler = model.scheduled(EulerDiscreteScheduler, steps)
    signal, noise = _variance_preserving(scheduler.sigmas)
    first = float(scheduler.sigmas[0])
    return Sampler(
        name="euler",
        prediction_type=model.prediction_type,
        timesteps=tuple(float(t) for t in scheduler.timesteps),
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=signal[1:],
        noise_next=noise[1:],
        initial_scale=float(scheduler.init_noise_sigma) / math.sqrt(first**2 + 1),
    )


def _dpmpp_2m(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): DDIM's step and a correction by the last change of x̂0.

    In their eq. 14 with h = λ' − λ, r = h_last/h and D1 = (x̂0 − x̂0_before)/r, the first-order part equals a'·x̂0 + s'·ε̂.
    """
    from diffusers import DPMSolverMultistepScheduler

    changes = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_flow_sigmas": False}
    scheduler = model.scheduled(DPMSolverMultistepScheduler, steps, **changes)
    c = scheduler.config
    signal, noise = _variance_preserving(scheduler.sigmas)
    first_order_end = c.euler_at_final or (c.lower_order_final and steps < 15) or c.final_sigmas_type == "zero"
    level = [math.log(a) - (math.log(s) if s else -math.inf) for a, s in zip(signal, noise, strict=True)]  # λ
    correction = [0.0]
    for i in range(1, steps):
        if i == steps - 1 and first_order_end:
            correction.append(0.0)
            continue
        h, last = level[i + 1] - level[i], level[i] - level[i - 1]
        weight = 0.5 * -math.expm1(-h) if c.solver_type == "midpoint" else math.expm1(-h) / h + 1
        correction.append(signal[i + 1] * weight * h / last)
    return Sampler(
        name="dpmpp_2m",
        prediction_type=model.prediction_type,
        timesteps=tuple(int(t) for t in scheduler.timesteps),
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=signal[1:],
        noise_next=noise[1:],
        correction=tuple(correction),
    )


def _flow_match_euler(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """Euler's method on a rectified flow (Esser et al. 2024): z' = z + (σ' − σ)·v."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    for key in ("stochastic_sampling", "invert_sigmas"):
        if model.scheduler_config.get(key):
            raise ConfigError(f"{key} is not supported", where="scheduler_config.json", fix=_OTHER)
    scheduler = model.scheduled(FlowMatchEulerDiscreteScheduler, steps)
    noise = tuple(float(s) for s in scheduler.sigmas)
    signal = tuple(1 - s for s in noise)
    timesteps = tuple(float(t) for t in scheduler.timesteps)
    return Sampler(
        name="flow_match_euler",
        prediction_type=model.prediction_type,
        timesteps=timesteps,
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=signal[1:],
        noise_next=noise[1:],
    )


def _variance_preserving(sigmas: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """σ = s/a of each step (and after the last) → a and s with a² + s² = 1."""
    values = [float(s) for s in sigmas]
    return tuple(1 / math.sqrt(s * s + 1) for s in values), tuple(s / math.sqrt(s * s + 1) for s in values)
