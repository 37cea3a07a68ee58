"""How many processes look beside the denoiser, and what each of them opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from guards.base import Guard
from pipeline.config import RunConfig
from pipeline.looking.study import Looker
from pipeline.model.device import cores
from pipeline.opening import open_copies, open_policy_guards, prepare
from pipeline.policy import Policy

if TYPE_CHECKING:
    from guards.copies import CopiesGuard
    from pipeline.model.decoder import Decoder

MOST = 4  # processes by "auto" beside an accelerator, of which each holds decoder and embedder; beside a CPU one is enough


def guard_processes(config: RunConfig, processors: int | None = None) -> int:
    """Number of guard processes of one worker. "auto": what the denoiser's threads leave of ``processors`` (default: those of
    this process), at most one beside a CPU model and four beside an accelerator; so none on one processor."""
    if config.guards.workers != "auto":
        return config.guards.workers
    accelerated = config.model.device != "cpu"
    left = (cores() if processors is None else processors) - (1 if accelerated else config.generation.threads)
    return max(0, min(left, MOST if accelerated else 1))


def open_looker(config: RunConfig, policy: Policy, base: Path, decoder: Decoder) -> Looker:
    """Open the guards of a run in a process of their own; arguments as of :meth:`pipeline.runtime.Runtime.open`.

    Raises:
        ClearanceError: a guard, the embedder or the index cannot be opened.
    """
    from index.torchvision_ops import ensure

    ensure()
    prepare(config)
    guards, _ = open_policy_guards(policy, config.guard_device, base=base)
    copies = open_copies(config, policy, base=base, device=config.embedder_device)
    found = copies.guard if copies is not None else None
    return Looker(decoder, found, guards, identity=looker_identity(found, guards), decoder_calls=decoder.calls)


def looker_identity(copies: CopiesGuard | None, guards: Sequence[Guard]) -> dict[str, str]:
    """What determines the findings of these guards: processes that agree in it report the same."""
    found = {f"guard {guard.name}": guard.version for guard in guards}
    if copies is None:
        return found
    index = {"index": copies.index.index_id, "embedder": copies.embedder.embedder_id}
    return found | index | {"guard copies": copies.version, "calibration": repr(copies.point)}
