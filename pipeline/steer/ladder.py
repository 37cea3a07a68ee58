"""From a rung of the policy's ladder to a trajectory: what the next attempt does differently."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import Rung
from pipeline.engine import Engine, Trajectory
from pipeline.outcome import Intervention
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge

if TYPE_CHECKING:
    import torch

RESEED = Rung(kind="reseed")


def next_seed(seed: int, attempt: int) -> int:
    """The seed of a re-seeded attempt: derived from the request's seed and the attempt's number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:8], "big") >> 1


def retry(
    engine: Engine,
    last: Trajectory,
    rung: Rung,
    *,
    seed: int,
    attempt: int,
    ref_ids: Sequence[str],
    latents: Sequence[torch.Tensor],
    reference_context: torch.Tensor,
    centre: torch.Tensor,
) -> tuple[Trajectory, Intervention, int]:
    """The next trajectory of a sample, the intervention to record, and the seed in force.

    Args:
        engine: gives the number of steps and the noise of a seed.
        last: the finished trajectory of the failed attempt; its ring is what is resumed from.
        rung: what to do. Steering away without a reference picture at hand becomes a re-seed, and is recorded as one.
        seed: seed of the failed attempt.
        attempt: number of the new attempt.
        ref_ids, latents: the sample's own nearest references, best first, and their clean latents (C, h, w).
        reference_context: text embedding of the reference rows.
        centre: mean reference latent (C, h, w), for nudging.
    """
    steps = len(engine.sampler)
    ref_ids, latents = ref_ids[: rung.references], latents[: rung.references]
    if rung.kind == "reseed" or not latents:
        seed = next_seed(seed, attempt)
        fresh = Trajectory(last.tag, engine.initial_noise(seed), 0, last.context, last.negative)
        return fresh, Intervention("reseed"), seed
    begin = min(int(rung.resume_fraction * steps), steps - 1)
    begin = begin if begin in last.ring else min(last.ring)
    again = Trajectory(
        last.tag, last.ring[begin], begin, last.context, last.negative, ring={s: z for s, z in last.ring.items() if s < begin}
    )
    until = begin + max(1, round(rung.window * steps))
    if rung.kind == "negtome":
        noises = tuple(engine.initial_noise(next_seed(int(ref_id[:8], 16), 0)) for ref_id in ref_ids)
        again.push = NegToMe(tuple(latents), noises, reference_context, rung.alpha, rung.token_threshold, until)
        return again, Intervention("negtome", rung.alpha, tuple(ref_ids)), seed
    again.nudge = Nudge(tuple(latents), centre, rung.step_size, rung.iterations, until, enough=rung.enough)
    return again, Intervention("nudge", rung.step_size * rung.iterations, tuple(ref_ids)), seed
