"""A probe of steered samples: is what steering makes of them on its way back to the reference?

A sample that was pushed away may return once the push has ended. Its x̂0 is no copy of the reference's latent then (the
thresholds of :mod:`pipeline.respond.early` hardly find it), but a picture that the guard would flag. So x̂0 is decoded in
mid-flight, and the copies guard takes the second look at the references that the sample is steered away from. What is too like
one takes the ladder's next rung at once; nothing is accepted by it. A look costs a decoder's call of one row and the second
look, no embedding and no evaluation of the denoiser, and changes no byte of a sample that it lets go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.outcome import Caught
from pipeline.respond.early import probe_steps

if TYPE_CHECKING:
    import torch

    from guards.copies import CopiesGuard
    from pipeline.engine.trajectory import Trajectory

SIGNAL = "picture"


class SteeredProbe:
    """Looks at steered samples in mid-flight.

    Args:
        shares: of the steps, after which it looks (``early.steered``).
        decode: a clean latent (C, h, w) → its picture uint8 RGB (H, W, 3).
        copies: the guard of finished pictures.
    """

    def __init__(self, shares: Sequence[float], decode: Callable[[torch.Tensor], np.ndarray], copies: CopiesGuard) -> None:
        self.shares, self.decode, self.copies = tuple(shares), decode, copies

    def due(self, t: Trajectory) -> bool:
        """Whether a steered sample is looked at after the step that it has just taken."""
        return t.sampler is not None and t.step in probe_steps(self.shares, len(t.sampler))

    def look(self, trajectories: Sequence[Trajectory], own: Sequence[Sequence[str]]) -> list[Caught | None]:
        """N running samples, and the ids of each one's own references → what each was caught by, or None.

        Each sample is looked at alone.
        """
        return [self._look(t, ref_ids) for t, ref_ids in zip(trajectories, own, strict=True)]

    def _look(self, t: Trajectory, own: Sequence[str]) -> Caught | None:
        if t.clean is None or not own:
            return None
        found = self.copies.likeness(self.decode(t.clean), own)
        if found is None:
            return None
        match, bar = found
        return Caught(step=t.step, signal=SIGNAL, score=match.similarity, threshold=bar, nearest=(match,))
