"""A probe of steered samples: is what steering makes of them on its way back to the reference?

A sample that was pushed away may return once the push has ended. Its x̂0 is no copy of the reference's latent then (the
thresholds of :mod:`pipeline.respond.early` hardly find it), but a picture that the copies guard would flag. So x̂0 is decoded in
mid-flight, and the copies guard looks at it as it would at the finished picture. What it flags takes the ladder's next rung
at once; nothing is accepted by it. A look costs a decoder's call and one of the guard, no evaluation of the denoiser, and
changes no byte of a sample that it lets go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from guards.copies import RECOLOURED
from pipeline.outcome import Caught
from pipeline.respond.early import TURNED, probe_steps

if TYPE_CHECKING:
    import torch

    from guards.copies import CopiesGuard, Examination
    from pipeline.engine.trajectory import Trajectory

SIGNAL = "picture"


class SteeredProbe:
    """Looks at steered samples in mid-flight.

    Args:
        shares: of the steps, after which it looks (``early.steered``).
        decode: clean latents (N, C, h, w) → pictures uint8 RGB (N, H, W, 3).
        copies: the guard of finished pictures.
    """

    def __init__(self, shares: Sequence[float], decode: Callable[[torch.Tensor], np.ndarray], copies: CopiesGuard) -> None:
        self.shares, self.decode, self.copies = tuple(shares), decode, copies

    def due(self, t: Trajectory) -> bool:
        """Whether a steered sample is looked at after the step that it has just taken."""
        return t.sampler is not None and t.step in probe_steps(self.shares, len(t.sampler))

    def look(self, trajectories: Sequence[Trajectory], own: Sequence[Sequence[str]]) -> list[Caught | None]:
        """N running samples of one size, and the ids of each one's own references → what each was caught by, or None.

        Depends on each sample's own x̂0, step and references alone.
        """
        import torch

        pictures = self.decode(torch.stack([t.clean for t in trajectories if t.clean is not None]))
        return [caught(t.step, found) for t, found in zip(trajectories, self.copies.examine(pictures, own), strict=True)]


def caught(step: int, found: Examination) -> Caught | None:
    """The guard's answer about a predicted picture after ``step`` steps, as what the sample was caught by; None: by nothing."""
    near = {match.ref_id: match for match in found.nearest}
    flagged = sorted((f for f in found.findings if f.triggered and f.ref_id in near), key=lambda f: f.threshold - f.score)
    if not flagged:
        return None
    worst = flagged[0]
    return Caught(
        step=step,
        signal=SIGNAL + (TURNED if worst.category == RECOLOURED else ""),
        score=worst.score,
        threshold=worst.threshold,
        nearest=tuple(near[ref_id] for ref_id in dict.fromkeys(f.ref_id for f in flagged)),
    )
