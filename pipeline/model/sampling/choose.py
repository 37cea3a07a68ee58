"""Choose the sampler for a model: the one that its folder names, or the one that the run file names.

:mod:`pipeline.model.sampling.sampler` states what all samplers have in common. :mod:`pipeline.model.sampling.tables` makes
each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from index.errors import ClearanceError, ConfigError
from pipeline.model.libraries import reason
from pipeline.model.sampling.sampler import Sampler
from pipeline.model.sampling.tables import DIFFUSION, FLOW, FOLDER, OTHER

if TYPE_CHECKING:
    from pipeline.model.interface import DiffusionModel

WITH_ETA = ("ddim", "tcd")
OWN_GRID = ("lcm", "tcd")  # their timesteps are those that the model was distilled at
# The sampler that "auto" uses for the scheduler of a model's folder.
OF_SCHEDULER = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
}
# Folders that name these, or none, are drawn with DDIM, and the run says so: they are what training scripts leave behind.
DRAWN_WITH_DDIM = {
    "PNDMScheduler": "",
    "DDPMScheduler": "with eta = 1 it adds as much noise",
    "None": "the folder names no scheduler",
}
# What to use instead of schedulers that Clearance does not have; such a folder is refused until the run file chooses.
INSTEAD = {
    "DEISMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_2m_sde",
    "HeunDiscreteScheduler": "euler",
    "KDPM2DiscreteScheduler": "euler",
    "LMSDiscreteScheduler": "euler",
    "KDPM2AncestralDiscreteScheduler": "euler_a",
}
# Networks of these see latents, times and outputs in a scaling of their own: another sampler would draw noise.
OTHER_SCALING = {
    "EDMEulerScheduler": "EDM's (sigma_data)",
    "EDMDPMSolverMultistepScheduler": "EDM's (sigma_data)",
    "CosineDPMSolverMultistepScheduler": "EDM's (sigma_data)",
    "SCMScheduler": "angles (TrigFlow)",
}
TWO_CALLS = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
             "FlowMatchHeunDiscreteScheduler")  # fmt: skip


@dataclass(frozen=True)
class _AtSize:
    """What samplers need of a model, for pictures of another size than its own, or timesteps spread in another way."""

    model: DiffusionModel
    positions: tuple[int, int] | None
    spacing: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def scheduled(self, scheduler: Any, steps: int, **changes: Any) -> Any:
        more: dict[str, Any] = {"timestep_spacing": self.spacing} if self.spacing else {}
        more |= {} if self.positions is None else {"positions": self.positions}
        return self.model.scheduled(scheduler, steps, **more, **changes)


def make_sampler(
    model: DiffusionModel, steps: int, name: str = "auto", *, eta: float = 0.0, positions: tuple[int, int] | None = None,
    spacing: str = "",
) -> Sampler:  # fmt: skip
    """The sampler of that name for a model and a number of steps.

    Args:
        model: gives the scheduler configuration of its folder and what its network predicts.
        steps: denoising steps.
        name: a name of :data:`pipeline.model.sampling.tables.DIFFUSION` or ``FLOW``, or ``auto``: what the folder names.
        eta: η of DDIM (Song et al. 2021, eq. 16): 0 is deterministic, 1 adds as much noise as DDPM; γ of TCD.
        positions: (h, w) of the latents, if not of the model's own size.
        spacing: ``leading``, ``trailing`` or ``linspace``, if not the folder's own.

    Raises:
        ConfigError: sampler, model and η do not go together, or the folder's scheduler needs what is not supported.
    """
    flow = model.prediction_type == "flow_prediction"
    config = model.scheduler_config
    _refuse_other_scaling(str(config.get("_class_name")))
    if name == "auto":
        name = sampler_of(config, flow=flow)[0]
    known = FLOW if flow else DIFFUSION
    if name not in known:
        choices = ", ".join(f'"{one}"' for one in (*known, "auto"))
        fix = f"Use one of {choices}"
        raise ConfigError(f"{name!r} cannot use {model.prediction_type!r} predictions", where="generation.scheduler", fix=fix)
    if model.prediction_type not in {"epsilon", "v_prediction", "sample", "flow_prediction"}:
        raise ConfigError(f"{model.prediction_type!r} predictions are not known", where="generation.scheduler", fix=OTHER)
    if eta and name not in WITH_ETA:
        raise ConfigError(f"{name!r} has no η", where="generation.eta", fix='Set it to 0, or use scheduler = "ddim"')
    if spacing and flow:
        what = "a rectified flow has no timesteps to spread, its schedule is that of its folder"
        raise ConfigError(what, where="generation.timestep_spacing", fix="Leave it out")
    if spacing and name in OWN_GRID:
        what = f"{name!r} has a grid of its own, which {spacing!r} does not change"
        raise ConfigError(what, where="generation.timestep_spacing", fix="Leave it out, or choose another generation.scheduler")
    if config.get("thresholding"):
        raise ConfigError("dynamic thresholding is for models of pixels", where=FOLDER, fix=OTHER)
    try:
        sampler = known[name](cast("DiffusionModel", _AtSize(model, positions, spacing)), steps, eta)
    except ClearanceError:
        raise
    except Exception as error:  # values of a type or size that diffusers does not check
        raise ConfigError(f"{name!r} cannot be made of it: {reason(error)}", where=FOLDER, fix=OTHER) from error
    tables = (sampler.signal, sampler.noise, sampler.signal_next, sampler.noise_next, sampler.correction, sampler.older,
              sampler.fresh)  # fmt: skip
    if not all(map(math.isfinite, (*sampler.timesteps, *(number for table in tables for number in table)))):
        raise ConfigError("its noise levels are not finite", where=FOLDER, fix=OTHER)
    if sampler.prediction_type == "epsilon" and sampler.signal[0] == 0:
        raise ConfigError(
            "an ε-prediction has no information at zero terminal SNR, where the latent is noise alone",
            where=f"{FOLDER}: rescale_betas_zero_snr",
            fix="Use a v-prediction model, or set it to false",
        )
    return replace(sampler, name=f"{sampler.name}, {spacing}") if spacing else sampler


def sampler_of(config: Mapping[str, Any], *, flow: bool) -> tuple[str, str]:
    """What ``scheduler = "auto"`` draws with.

    Args:
        config: the folder's scheduler configuration.
        flow: whether the model is a rectified flow.

    Returns:
        The sampler's name, and in what it differs from the folder's scheduler; empty where it does not.

    Raises:
        ConfigError: Clearance does not have that scheduler; the message names the one to use instead.
    """
    named = str(config.get("_class_name"))
    _refuse_other_scaling(named)
    if flow:
        return _of_flow(config, named)
    used = OF_SCHEDULER.get(named, "ddim")
    if used not in DIFFUSION or (named not in OF_SCHEDULER and named not in DRAWN_WITH_DDIM):
        raise _not_here(named, INSTEAD.get(named, "ddim"))
    if named not in OF_SCHEDULER:
        what = f"the model's folder names {named}, which Clearance does not have; 'ddim' is used"
        more = DRAWN_WITH_DDIM[named]
        return used, f"{what}; {more}" if more else f"{what} (generation.scheduler chooses another)"
    if used == "unipc":
        return _unipc_of(config)
    return _solver_of(config) if used == "dpmpp_2m" else (used, "")


def _of_flow(config: Mapping[str, Any], named: str) -> tuple[str, str]:
    if named == "FlowMatchEulerDiscreteScheduler":
        return "flow_match_euler", ""
    if named == "DPMSolverMultistepScheduler" and config.get("use_flow_sigmas"):
        return _solver_of(config, flow=True)
    if named == "UniPCMultistepScheduler" and config.get("use_flow_sigmas"):
        return _unipc_of(config)
    if named == "None":
        return "flow_match_euler", "the model's folder names no scheduler; 'flow_match_euler' is used"
    raise _not_here(named, "dpmpp_2m" if config.get("use_flow_sigmas") else "flow_match_euler")


def _solver_of(config: Mapping[str, Any], *, flow: bool = False) -> tuple[str, str]:
    """Which form of DPM-Solver++ a folder asks for."""
    wanted, order = str(config.get("algorithm_type", "dpmsolver++")), config.get("solver_order", 2)
    used = "dpmpp_2m_sde" if wanted.startswith("sde-") and not flow else "dpmpp_2m"
    drawn = "sde-dpmsolver++" if used == "dpmpp_2m_sde" else "dpmsolver++"
    if wanted == drawn and order == 2:
        return used, ""
    return used, f"the model's folder asks for {wanted} of order {order}; {drawn} of order 2 is used"


def _unipc_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """UniPC as it is drawn, and in what the folder asks for another form of it."""
    if config.get("solver_p") is not None:
        fix = 'Set it to "unipc", which has a predictor of its own'
        raise ConfigError("the model's folder gives UniPC another predictor (solver_p)", where="generation.scheduler", fix=fix)
    order, kind = config.get("solver_order", 2), str(config.get("solver_type", "bh2"))
    predicts = "x0" if config.get("predict_x0", True) else "noise"
    kind = "bh1" if kind == "bh1" else "bh2"  # diffusers takes bh2 for every other name that it accepts
    if (order, kind, predicts) == (2, "bh2", "x0"):
        return "unipc", ""
    return "unipc", f"the model's folder asks for UniPC of order {order} ({kind}, {predicts}); order 2 (bh2, x0) is used"


def _refuse_other_scaling(named: str) -> None:
    if named in OTHER_SCALING:
        what = f"the model's folder names {named}: its network was trained in another scaling, {OTHER_SCALING[named]}"
        raise ConfigError(
            what, where=FOLDER, fix="No sampler here draws it, and generation.scheduler changes nothing: use another model"
        )


def _not_here(named: str, instead: str) -> ConfigError:
    effort = "; it takes two network calls a step, so double generation.steps for the same effort" if named in TWO_CALLS else ""
    return ConfigError(
        f"the model's folder names {named}, which Clearance does not have",
        where="generation.scheduler",
        fix=f'Set it to "{instead}", the nearest{effort}',
    )
