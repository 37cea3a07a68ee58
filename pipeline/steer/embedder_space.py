"""Nudging in the embedder's space (arXiv 2408.15450): the gradient goes through the decoder and the embedder, not the denoiser.

    minimise  β·Σ p_u·cos(f(x̂0), u) − α·mean cos(f(x̂0), d) + λ·‖x̂0 − x̂0⁰‖²/‖x̂0⁰‖²,   f = embed ∘ decode

ε is held constant, so that no step needs a denoiser evaluation. U: the references' own embeddings; D: the caption's text
embedding, which keeps what the prompt names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError
from pipeline.steer.objective import Objective, weigh

if TYPE_CHECKING:
    import torch

Features = Callable[["torch.Tensor"], "torch.Tensor"]
"""A clean latent (C, h, w) → its embedding (E,), differentiable."""


def nudge_through(
    clean: torch.Tensor,
    features: Features,
    undesired: torch.Tensor,
    desired: torch.Tensor | None = None,
    *,
    objective: Objective,
    step_size: float,
    iterations: int,
) -> torch.Tensor:
    """k normalised gradient steps on x̂0 with the objective taken in the embedder's space.

    Args:
        clean: x̂0 float32 (C, h, w).
        features: embeds a latent.
        undesired: U (n, E), unit length.
        desired: D (m, E), unit length, or None.
        objective: ``push``, ``pull``, ``keep``, ``weights``, ``temperature`` and ``enough`` (a cosine of embeddings) count.
        step_size: length of a step, relative to ‖x̂0‖.
        iterations: steps k; each costs one decoding and embedding, forward and backward.

    Returns:
        x̂0 of the same shape, detached; no further from ``clean`` than k·step_size·‖x̂0‖.
    """
    import torch

    scale = clean.norm()
    x = clean.detach().clone()
    for _ in range(iterations):
        with torch.inference_mode(False), torch.enable_grad():
            point = x.clone().requires_grad_(True)
            embedding = torch.nn.functional.normalize(features(point), dim=0)
            cosines = undesired.to(embedding.device) @ embedding
            if float(cosines.detach().max()) <= objective.enough:
                break
            loss = objective.push * (weigh(cosines.detach(), objective) * cosines).sum()
            if desired is not None and objective.pull:
                loss = loss - objective.pull * (desired.to(embedding.device) @ embedding).mean()
            loss = loss + (objective.keep * ((point - clean) ** 2).sum() / scale**2).to(loss.device)
            (downhill,) = torch.autograd.grad(loss, point)
        length = downhill.norm()
        if length == 0:
            break
        x = x - step_size * scale * downhill / length
    return x


@dataclass(frozen=True, kw_only=True)
class EmbedderNudge:
    """The same as a hook of a trajectory; see :class:`pipeline.steer.nudge.Nudge`.

    Attributes:
        features: embeds a latent.
        undesired, desired: U (n, E) and D (m, E) or None, unit length.
        objective, step_size, iterations: see :func:`nudge_through`.
        until_step: acts in denoising steps below this one.
    """

    features: Features
    undesired: torch.Tensor
    desired: torch.Tensor | None
    objective: Objective
    step_size: float
    iterations: int
    until_step: int

    def __call__(self, clean: torch.Tensor, step: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """x̂0 float32 (C, h, w) at ``step`` → nudged x̂0; the identity outside the window."""
        if step >= self.until_step or self.step_size == 0 or len(self.undesired) == 0:
            return clean
        return nudge_through(
            clean, self.features, self.undesired, self.desired, objective=self.objective, step_size=self.step_size,
            iterations=self.iterations,
        )  # fmt: skip


@dataclass(frozen=True)
class EmbedderSpace:
    """What nudging in the embedder's space needs of a model and an embedder.

    Attributes:
        features: embeds a latent.
        text: embeds a caption: str → unit length (E,).
    """

    features: Features
    text: Callable[[str], torch.Tensor]

    @classmethod
    def of(cls, model: Any, embedder: Any) -> EmbedderSpace:
        """The space of a model's decoder and an embedder.

        Args:
            model: with ``decode_tensor``: latents (N, C, h, w) → pictures (N, 3, H, W) in [−1, 1], differentiable.
            embedder: with ``image_features``: pixels (N, 3, H, W) in [0, 1] → (N, E), differentiable, and ``texts``.

        Raises:
            ConfigError: one of them is not differentiable.
        """
        import torch

        for owner, name in ((model, "decode_tensor"), (embedder, "image_features")):
            if not hasattr(owner, name):
                raise ConfigError(
                    f"{type(owner).__name__} has no {name}", where='nudge, space = "embedder"', fix='Use space = "clean"'
                )

        def features(latent: torch.Tensor) -> torch.Tensor:
            picture = (model.decode_tensor(latent[None]).clamp(-1, 1) + 1) / 2
            found: torch.Tensor = embedder.image_features(picture)[0]
            return found

        return cls(features, lambda caption: torch.from_numpy(embedder.texts([caption])[0]))

    def of_latents(self, latents: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Clean latents (C, h, w) → their embeddings, unit length (n, E)."""
        import torch

        with torch.no_grad():
            return torch.stack([torch.nn.functional.normalize(self.features(z), dim=0) for z in latents])
