"""Prompt-embedding optimisation (arXiv 2407.21720), kind ``prompt``: change the prompt's embedding until it has less effect.

A memorised prompt has a large ‖ε_text − ε_empty‖ at the first step. AdamW minimises this norm over the prompt's embedding until
it falls below a target; the sample is drawn with the embedding found. Each iteration is a forward and a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from index.errors import ConfigError
from pipeline.fields import choice, flag, number
from pipeline.methods import register
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, from_its_noise, renewed
from pipeline.rungs import KIND, SteeringMethod
from pipeline.settings import settings

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning

Denoise = Callable[["torch.Tensor", "Conditioning"], "torch.Tensor"]
"""Latents (N, C, h, w), contexts (N, …) at the first step → raw output (N, C, h, w), differentiable in the contexts."""


@settings
class PromptRung:
    """The prompt's embedding is optimised until the text makes little difference (arXiv 2407.21720)."""

    kind: Literal["prompt"] = choice("prompt", KIND)
    renew: bool = flag(False, "start from new noise instead of the failed attempt's")
    iterations: int = number(5, 0, 1000, "steps of the optimiser")
    learning_rate: float = number(0.1, 1e-6, 10, "of AdamW")
    norm_target: float = number(3.0, 0, 1_000_000, "norm of the difference that text makes, at which it stops")


def optimise_prompt(
    denoise: Denoise,
    latent: torch.Tensor,
    context: Conditioning,
    empty: Conditioning,
    *,
    learning_rate: float = 0.1,
    iterations: int = 10,
    target: float = 3.0,
) -> tuple[Conditioning, list[float]]:
    """Minimise ‖ε(z, e) − ε(z, ∅)‖ over the embedding e.

    Args:
        denoise: the denoiser at the first step.
        latent: z (C, h, w), pure noise.
        context: e, the prompt's embedding.
        empty: ∅, the empty prompt's, of the same shape.
        learning_rate: of AdamW.
        iterations: at most so many.
        target: stop once the norm is at or below it.

    Returns:
        The embedding with the smallest norm, and the norms of all embeddings tried.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        start, z = context.map(lambda part: part.detach().clone()), latent.detach().clone()[None]
        with torch.no_grad():
            without = denoise(z, empty.map(lambda part: part.detach().clone()[None]))
        e = start.map(lambda part: part.float().requires_grad_(True), floats=True)
        optimiser = torch.optim.AdamW([part for part in e.parts if part.requires_grad], lr=learning_rate)
        norms: list[float] = []
        best, least = start, float("inf")
        for _ in range(iterations + 1):
            norm = (denoise(z, e.map(lambda part: part[None])) - without).norm()
            norms.append(float(norm.detach()))
            if norms[-1] < least:
                best, least = e.map(lambda part: part.detach().clone()).to(start.tokens.device, start.tokens.dtype), norms[-1]
            if norms[-1] <= target or len(norms) > iterations:
                break
            optimiser.zero_grad()
            norm.backward()
            optimiser.step()
    return best, norms


def differentiable_denoiser(model: Any, timestep: float) -> Denoise:
    """A model's denoiser at one timestep, with gradients.

    Args:
        model: with ``denoise_tensor``: (latents, timesteps, contexts) → raw output, differentiable.
        timestep: the network's timestep input.

    Raises:
        ConfigError: the model has no such method.
    """
    import torch

    if not hasattr(model, "denoise_tensor"):
        raise ConfigError(
            f"{type(model).__name__} has no gradients of its denoiser", where='ladder, kind = "prompt"', fix="Use another kind"
        )

    def denoise(latents: torch.Tensor, contexts: Conditioning) -> torch.Tensor:
        found: torch.Tensor = model.denoise_tensor(latents, torch.full((len(latents),), timestep), contexts)
        return found

    return denoise


def answer(failed: Failed, rung: PromptRung, tools: Tools) -> NextTry:
    """From the same noise, with the prompt's embedding optimised."""
    failed, engine = renewed(failed, rung.renew, tools), tools.engine
    again = from_its_noise(failed, tools)
    again.context, norms = optimise_prompt(
        differentiable_denoiser(engine.model, engine.sampler_of(failed.last).timesteps[0]), again.latent, failed.last.context,
        tools.reference_context, learning_rate=rung.learning_rate, iterations=rung.iterations, target=rung.norm_target,
    )  # fmt: skip
    # One row for each forward pass, twice that for each backward pass (all but the last), and ∅ once.
    again.evals += (3 * len(norms) - 1) / again.own_rows
    return NextTry(again, Intervention(kind="prompt", strength=min(norms)), failed.seed)


METHOD = SteeringMethod(rung=PromptRung, answer=answer)
register(METHOD)
