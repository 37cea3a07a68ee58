"""The tables of each sampler, read from diffusers' own scheduler, which chooses the steps.

That is: spacing, Karras sigmas, zero terminal SNR, shift. Each function takes a model, a number of steps and η.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import ConfigError
from pipeline.model.sampling.sampler import Sampler

if TYPE_CHECKING:
    from pipeline.model.interface import DiffusionModel

FOLDER = "scheduler_config.json"
OTHER = "Change the model folder's scheduler/scheduler_config.json, or use another model"


def _ddim(model: DiffusionModel, steps: int, eta: float) -> Sampler:
    """Song et al. 2021, eq. 12 and 16."""
    from diffusers import DDIMScheduler

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
        clip=_clip(model),
    )


def _clip(model: DiffusionModel) -> float:
    """Where x̂0 is clamped. Only where the folder sets it: the classes' own default is to clip, which suits pixels alone."""
    config = model.scheduler_config
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else 0.0


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


def _euler_a(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """Euler's method with ancestral noise: down to σ↓, and up again to σ' by fresh noise of size σ↑.

    σ↑² = σ'²(σ² − σ'²)/σ² and σ↓² = σ'² − σ↑², the variance of one step of DDPM (Ho et al. 2020, eq. 7) in these terms.
    """
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = model.scheduled(EulerAncestralDiscreteScheduler, steps)
    sigmas = [float(s) for s in scheduler.sigmas]
    signal, noise = _variance_preserving(sigmas)
    up = [math.sqrt(after**2 * (s**2 - after**2) / s**2) for s, after in pairwise(sigmas)]
    down = [math.sqrt(max(after**2 - u**2, 0.0)) for u, after in zip(up, sigmas[1:], strict=True)]
    return Sampler(
        name="euler_a",
        prediction_type=model.prediction_type,
        timesteps=tuple(float(t) for t in scheduler.timesteps),
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=signal[1:],
        noise_next=tuple(a * d for a, d in zip(signal[1:], down, strict=True)),
        fresh=tuple(a * u for a, u in zip(signal[1:], up, strict=True)),
        initial_scale=float(scheduler.init_noise_sigma) / math.sqrt(sigmas[0] ** 2 + 1),
    )


@dataclass(frozen=True, kw_only=True)
class _Solver:
    """The levels of a DPM solver: a and s before each step and after the last, and where its second order begins and ends."""

    timesteps: tuple[int, ...] | tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    midpoint: bool
    first_order_end: bool

    @classmethod
    def of(cls, model: DiffusionModel, steps: int, kind: str) -> _Solver:
        """Of the folder's own schedule; a flow whose folder names another scheduler keeps that one's noise levels."""
        from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

        flow = model.prediction_type == "flow_prediction"
        if flow and not model.scheduler_config.get("use_flow_sigmas"):
            scheduler = model.scheduled(FlowMatchEulerDiscreteScheduler, steps)
            signal, noise = _rectified(scheduler.sigmas)
            timesteps = tuple(map(float, scheduler.timesteps))
            return cls(timesteps=timesteps, signal=signal, noise=noise, midpoint=True, first_order_end=True)
        changes: dict[str, Any] = {"algorithm_type": kind, "solver_order": 2, "use_flow_sigmas": flow}
        scheduler = model.scheduled(DPMSolverMultistepScheduler, steps, **changes)
        c = scheduler.config
        end = c.euler_at_final or (c.lower_order_final and steps < 15) or c.final_sigmas_type == "zero"
        signal, noise = _rectified(scheduler.sigmas) if flow else _variance_preserving(scheduler.sigmas)
        return cls(
            timesteps=tuple(map(int, scheduler.timesteps)),
            signal=signal,
            noise=noise,
            midpoint=c.solver_type == "midpoint",
            first_order_end=end,
        )

    @property
    def strides(self) -> list[float]:
        """h = λ' − λ of each step, with λ = log(a/s); infinite to and from pure noise or pure signal."""
        level = [_log(a) - _log(s) for a, s in zip(self.signal, self.noise, strict=True)]
        return [after - before for before, after in pairwise(level)]

    def correction(self, times: int) -> tuple[float, ...]:
        """c of each step; ``times`` is 1 for the ODE and 2 for the SDE, in which the exponent is doubled."""
        found, strides = [0.0], self.strides
        with _apart(len(strides)):
            for i in range(1, len(strides)):
                h, last = strides[i], strides[i - 1]
                if (i == len(strides) - 1 and self.first_order_end) or math.isinf(last):
                    found.append(0.0)
                    continue
                weight = -math.expm1(-times * h) / 2 if self.midpoint else math.expm1(-times * h) / (times * h) + 1
                found.append(self.signal[i + 1] * weight * h / last)
        return tuple(found)


@contextmanager
def _apart(steps: int) -> Iterator[None]:
    """Inside, divisions by the stride of a step.

    Raises:
        ConfigError: one is 0.
    """
    try:
        yield
    except ZeroDivisionError as error:
        what = f"of {steps} steps at least two fall on one noise level, which a sampler of second order cannot take"
        fix = "Take fewer, or another generation.timestep_spacing or generation.scheduler"
        raise ConfigError(what, where="generation.steps", fix=fix) from error


def _dpmpp_2m(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): DDIM's step and a correction by the last change of x̂0.

    In their eq. 14 with h = λ' − λ, r = h_last/h and D1 = (x̂0 − x̂0_before)/r, the first-order part equals a'·x̂0 + s'·ε̂. On a
    flow a = 1 − σ and s = σ.
    """
    solver = _Solver.of(model, steps, "dpmsolver++")
    return Sampler(
        name="dpmpp_2m",
        prediction_type=model.prediction_type,
        timesteps=solver.timesteps,
        signal=solver.signal[:-1],
        noise=solver.noise[:-1],
        signal_next=solver.signal[1:],
        noise_next=solver.noise[1:],
        correction=solver.correction(1),
    )


def _dpmpp_2m_sde(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, app. E): z' = (s'/s)e⁻ʰ·z + a'(1 − e⁻²ʰ)·x̂0 + s'√(1 − e⁻²ʰ)·n, and 2M's c."""
    solver = _Solver.of(model, steps, "sde-dpmsolver++")
    signal, noise = solver.signal, solver.noise
    decay = [math.exp(-h) for h in solver.strides]
    # z is a·x̂0 + s·ε̂, so its weight (s'/s)e⁻ʰ goes to both.
    kept = [after / s * e for s, after, e in zip(noise, noise[1:], decay, strict=False)]
    return Sampler(
        name="dpmpp_2m_sde",
        prediction_type=model.prediction_type,
        timesteps=solver.timesteps,
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=tuple(k * a + after * (1 - e * e) for k, a, after, e in zip(kept, signal, signal[1:], decay, strict=False)),
        noise_next=tuple(k * s for k, s in zip(kept, noise, strict=False)),
        correction=solver.correction(2),
        fresh=tuple(after * math.sqrt(1 - e * e) for after, e in zip(noise[1:], decay, strict=True)),
    )


def _unipc(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """UniPC of order 2, B₂(h) = eʰ − 1, predicting x̂0 (Zhao et al. 2023, alg. 1 and 2), as one table with two memories.

    The corrector (their eq. 11) replaces the latent z that the network has seen by one that knows its answer. Both came from
    the same latent before, by the same first-order step, so that one cancels, and no other latent has to be kept: it is
    z + a(1 − e⁻ʰ)·[ρ₁·(x̂0 − x̂0₋₁) + (ρ₀ − ½)·(h/h₋₁)·(x̂0₋₁ − x̂0₋₂)], with h of the step that led here. The predictor is
    DPM-Solver++'s step from there (:func:`_dpmpp_2m`).
    """
    scheduler, flow = _unipc_schedule(model, steps)
    config: Any = scheduler.config if hasattr(scheduler.config, "disable_corrector") else None
    signal, noise = _rectified(scheduler.sigmas) if flow else _variance_preserving(scheduler.sigmas)
    level = [_log(a) - _log(s) for a, s in zip(signal, noise, strict=True)]
    strides = [after - before for before, after in pairwise(level)]
    ends_low = config is None or bool(config.lower_order_final)
    order = [min(2, i + 1, steps - i if ends_low else 2) for i in range(steps)]
    uncorrected = set(config.disable_corrector) if config is not None else set()
    kept = [after / s for s, after in pairwise(noise)]
    weights = [-math.expm1(-h) for h in strides]  # 1 − e⁻ʰ
    correction, older = [0.0] * steps, [0.0] * steps
    with _apart(steps):
        for i in range(1, steps):
            h, last = strides[i], strides[i - 1]
            if order[i] == 2:
                correction[i] = signal[i + 1] * weights[i] / 2 * h / last
            if i - 1 in uncorrected:
                continue
            back, ahead = _corrector(last, strides[i - 2] / last) if order[i - 1] == 2 else (0.5, 0.5)
            scale = kept[i] * signal[i] * weights[i - 1]
            correction[i] += scale * ahead
            older[i] = scale * (back - 0.5) * last / strides[i - 2] if order[i - 1] == 2 else 0.0
    return Sampler(
        name="unipc",
        prediction_type=model.prediction_type,
        timesteps=tuple(map(float if flow else int, scheduler.timesteps)),
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=tuple(k * a + after * w for k, a, after, w in zip(kept, signal, signal[1:], weights, strict=False)),
        noise_next=tuple(k * s for k, s in zip(kept, noise, strict=False)),
        correction=tuple(correction),
        older=tuple(older),
    )


def _unipc_schedule(model: DiffusionModel, steps: int) -> tuple[Any, bool]:
    """The scheduler whose noise levels UniPC takes, and whether they are a flow's; as :meth:`_Solver.of`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    flow = model.prediction_type == "flow_prediction"
    if flow and not model.scheduler_config.get("use_flow_sigmas"):
        return model.scheduled(FlowMatchEulerDiscreteScheduler, steps), True
    changes: dict[str, Any] = {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "solver_p": None}
    return model.scheduled(UniPCMultistepScheduler, steps, use_flow_sigmas=flow, **changes), flow


def _corrector(h: float, before: float) -> tuple[float, float]:
    """ρ₀ and ρ₁ of UniC-2 (Zhao et al. 2023, thm. 3.1): ρ₀ + ρ₁ = b₁ and r·ρ₀ + ρ₁ = b₂, with r = −``before`` = −h₋₁/h."""
    small = math.expm1(-h)
    first = -small / h - 1
    second = -first / h - 0.5
    b1, b2 = first / small, 2 * second / small
    back = (b1 - b2) / (1 + before)
    return back, b1 - back


def _lcm(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, alg. 2): to the clean latent, and back by fresh noise.

    The model's answer is c_out·x̂0 + c_skip·z with c_skip = σ_d²/(t̃² + σ_d²), c_out = t̃/√(t̃² + σ_d²), t̃ = 10·t and σ_d = ½.
    """
    from diffusers import LCMScheduler

    scheduler = model.scheduled(LCMScheduler, steps)
    timesteps, alpha = _consistency_steps(scheduler)
    scalings = [tuple(map(float, scheduler.get_scalings_for_boundary_condition_discrete(t))) for t in timesteps]
    after = [*alpha[1:], 1.0]  # the last answer is the picture
    answer = [(out + skip * math.sqrt(a), skip * math.sqrt(1 - a)) for (skip, out), a in zip(scalings, alpha, strict=True)]
    return Sampler(
        name="lcm",
        prediction_type=model.prediction_type,
        timesteps=timesteps,
        signal=tuple(map(math.sqrt, alpha)),
        noise=tuple(math.sqrt(1 - a) for a in alpha),
        signal_next=tuple(math.sqrt(n) * clean for n, (clean, _) in zip(after, answer, strict=True)),
        noise_next=tuple(math.sqrt(n) * noise for n, (_, noise) in zip(after, answer, strict=True)),
        fresh=tuple(math.sqrt(1 - n) for n in after),
        clip=_clip(model),
    )


def _tcd(model: DiffusionModel, steps: int, eta: float) -> Sampler:
    """Strategic stochastic sampling of a trajectory consistency model (Zheng et al. 2024, alg. 4), with γ = η.

    To the level of timestep m = ⌊(1 − γ)t'⌋, and back to that of t' by fresh noise; none after the last step.
    """
    from diffusers import TCDScheduler

    scheduler = model.scheduled(TCDScheduler, steps)
    timesteps, alpha = _consistency_steps(scheduler)
    levels = [float(a) for a in scheduler.alphas_cumprod]
    following = [*timesteps[1:], 0]
    middle = [levels[math.floor((1 - eta) * t)] for t in following]
    # After the last step nothing is added, so that the latent stays at the middle level, as in diffusers.
    share = [*(levels[t] / m for t, m in zip(following[:-1], middle, strict=False)), 1.0]
    return Sampler(
        name=f"tcd (η = {eta:g})" if eta else "tcd",
        prediction_type=model.prediction_type,
        timesteps=timesteps,
        signal=tuple(map(math.sqrt, alpha)),
        noise=tuple(math.sqrt(1 - a) for a in alpha),
        signal_next=tuple(math.sqrt(k * m) for k, m in zip(share, middle, strict=True)),
        noise_next=tuple(math.sqrt(k * (1 - m)) for k, m in zip(share, middle, strict=True)),
        fresh=tuple(math.sqrt(1 - k) for k in share) if eta else (),
        clip=_clip(model),
    )


def _consistency_steps(scheduler: Any) -> tuple[tuple[int, ...], list[float]]:
    """Timesteps on the grid that the model was distilled for, and ᾱ at each."""
    timesteps = tuple(int(t) for t in scheduler.timesteps)
    return timesteps, [float(scheduler.alphas_cumprod[t]) for t in timesteps]


def _flow_match_euler(model: DiffusionModel, steps: int, _eta: float) -> Sampler:
    """Euler's method on a rectified flow (Esser et al. 2024): z' = z + (σ' − σ)·v.

    With ``stochastic_sampling`` in the folder's configuration a step goes to x̂0 and back by fresh noise: (1 − σ')·x̂0 + σ'·n.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if model.scheduler_config.get("invert_sigmas"):
        raise ConfigError("invert_sigmas is not supported", where=FOLDER, fix=OTHER)
    scheduler = model.scheduled(FlowMatchEulerDiscreteScheduler, steps)
    signal, noise = _rectified(scheduler.sigmas)
    stochastic = bool(model.scheduler_config.get("stochastic_sampling"))
    return Sampler(
        name="flow_match_euler (stochastic)" if stochastic else "flow_match_euler",
        prediction_type=model.prediction_type,
        timesteps=tuple(float(t) for t in scheduler.timesteps),
        signal=signal[:-1],
        noise=noise[:-1],
        signal_next=signal[1:],
        noise_next=(0.0,) * steps if stochastic else noise[1:],
        fresh=noise[1:] if stochastic else (),
    )


def _rectified(sigmas: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """σ of each step (and after the last) → a = 1 − σ and s = σ."""
    values = tuple(float(s) for s in sigmas)
    return tuple(1 - s for s in values), values


def _variance_preserving(sigmas: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """σ = s/a of each step (and after the last) → a and s with a² + s² = 1."""
    values = [float(s) for s in sigmas]
    return tuple(1 / math.sqrt(s * s + 1) for s in values), tuple(s / math.sqrt(s * s + 1) for s in values)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


DIFFUSION: dict[str, Callable[[Any, int, float], Sampler]] = {
    "ddim": _ddim,
    "euler": _euler,
    "euler_a": _euler_a,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_sde": _dpmpp_2m_sde,
    "unipc": _unipc,
    "lcm": _lcm,
    "tcd": _tcd,
}
FLOW: dict[str, Callable[[Any, int, float], Sampler]] = {
    "flow_match_euler": _flow_match_euler,
    "dpmpp_2m": _dpmpp_2m,
    "unipc": _unipc,
}
