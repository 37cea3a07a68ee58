"""Estimate the time and size of a run from one call of each network, measured on this machine."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guards.vision_language import UNANSWERED
from index.errors import ClearanceError, ModelError
from pipeline.config import RunConfig
from pipeline.model.conditioning import stack
from pipeline.outcome import Request
from pipeline.policy import Policy

if TYPE_CHECKING:
    from pipeline.runtime import Runtime

SLOW = 2.0  # seconds from which one row (one picture) is measured and the others are counted like it
ROW_BYTES = 8192  # what the rows of a request and its attempt take beside their pictures; 5,760 in a run of 34 requests
LOOKED_AT = 8  # pictures that are looked at together: see pipeline.moderate


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measured cost of one call on this machine.

    Attributes:
        call_seconds: of a denoiser call of all its rows.
        rows: that were measured; fewer than ``generation.rows`` where one was slow.
        look_seconds: of decoding one picture and letting every guard look at it.
        picture_bytes: of a picture decoded from noise, as it is stored; a drawing takes less.
        width, height: of a picture.
        memory_bytes: most that the process, or the GPU, held.
        unanswered: guard → why its model gave no answer about these pictures.
    """

    call_seconds: float
    rows: int
    look_seconds: float
    picture_bytes: int
    width: int
    height: int
    memory_bytes: int
    unanswered: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes if nothing is steered, and how many times as much its ladders allow.

    Attributes:
        calls: of the denoiser, of one worker.
        seconds: wall time.
        bytes: on the disk.
        times: pictures drawn per request at most.
    """

    calls: int
    seconds: float
    bytes: int
    times: int


def measure(runtime: Runtime, config: RunConfig) -> Measured:
    """Draw nothing that is kept: one denoiser call, and one look at pictures decoded from noise.

    Raises:
        ModelError: denoiser or decoder fail, or give numbers that are not finite.
    """
    import torch

    from pipeline.marking.encode import thumbnail
    from pipeline.marking.mark import Origin, mark

    model, g = runtime.model, config.generation
    context = runtime.context_of("")
    noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(0))
    step = torch.tensor(runtime.engine.sampler.timesteps[:1])

    def call(rows: int) -> None:
        latents = noise.expand(rows, *noise.shape).contiguous()
        if (
            not model.denoise(latents, step.expand(rows), stack([context] * rows), runtime.engine.inner_guidance)
            .isfinite()
            .all()
        ):
            fix = 'Choose model.dtype = "bfloat16" or "float32"; if it stays so, the weights are damaged'
            raise ModelError(f"the denoiser's output is not finite in {config.model.dtype}", where="model", fix=fix)

    studies: list[Any] = []

    def look(count: int) -> None:
        # Finished latents are about as large as noise: that is what an autoencoder's scaling factor is for.
        studies[:] = runtime.study([noise] * count)

    with _edge("the denoiser", "model"):
        rows, call_seconds = _timed(call, g.rows)
    with _edge("decoder or guards", "model"):
        _, look_seconds = _timed(look, LOOKED_AT)
    picture = studies[0].picture
    stored = mark(picture, config.image_format, Origin("model", "", "Clearance"), runtime.markers).data  # with its marks
    height, width = picture.shape[:2]
    findings = [finding for study in studies for finding in study.findings]
    return Measured(
        call_seconds=call_seconds, rows=rows, look_seconds=look_seconds / LOOKED_AT,
        picture_bytes=len(stored) + len(thumbnail(picture)), width=width, height=height, memory_bytes=_memory(config),
        unanswered={one.guard: one.detail for one in findings if one.category == UNANSWERED and one.triggered},
    )  # fmt: skip


@contextmanager
def _edge(what: str, where: str) -> Iterator[None]:
    """An error that a network raises in its first call would end every request of the run."""
    from pipeline.model.libraries import reason

    try:
        yield
    except ClearanceError:
        raise
    except Exception as error:
        fix = "Restore the model's folder; see the traceback with CLEARANCE_DEBUG=1"
        raise ModelError(f"{what} cannot be called: {reason(error)}", where=where, fix=fix) from error


def _timed(work: Callable[[int], None], count: int) -> tuple[int, float]:
    """Items that were measured, and the seconds that ``count`` take."""
    work(1)  # the first call also chooses kernels
    started = time.perf_counter()
    work(1)
    one = time.perf_counter() - started
    if one > SLOW or count == 1:
        return 1, one * count
    if one * count < SLOW:
        work(count)
    started = time.perf_counter()
    work(count)
    return count, time.perf_counter() - started


def _memory(config: RunConfig) -> int:
    import torch

    if config.model.device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(config.model.device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def estimate(
    measured: Measured,
    config: RunConfig,
    policy: Policy,
    todo: Sequence[Request],
    *,
    guides: Callable[[float | None, int | None], bool],
    workers: int,
) -> Estimate:
    """The estimate of a run. What a picture of another size takes is assumed to grow with its pixels.

    Args:
        measured: what one call takes.
        config, policy: of the run.
        todo: requests that are still to be drawn.
        guides: whether a sample with this guidance scale and number of steps (None: the run's) takes two rows while guidance
            acts.
        workers: side by side, each as fast as this one.
    """
    g, sizes = config.generation, dict[tuple[int, int], list[Request]]()
    for request in todo:
        if request.problem is None:
            size = request.stated.width or measured.width, request.stated.height or measured.height
            sizes.setdefault(size, []).append(request)
    calls, seconds, stored = 0, 0.0, 0.0
    for (width, height), those in sizes.items():
        share, pixels = math.ceil(len(those) / workers) / len(those), width * height / (measured.width * measured.height)
        steps = [request.stated.steps or g.drawn_steps for request in those]
        guided = [guides(request.stated.guidance_scale, request.stated.steps) for request in those]
        rows = sum(
            taken + guided_too * round(g.guidance_until * taken) for taken, guided_too in zip(steps, guided, strict=True)
        )
        # A call is never smaller than its fixed number of rows, and a picture takes its steps one after the other.
        own = max(max(steps), math.ceil(round(share * rows, 6) / g.rows))
        calls += own
        seconds += pixels * (own * measured.call_seconds + share * len(those) * measured.look_seconds)
        stored += len(those) * (pixels * measured.picture_bytes + ROW_BYTES)
    return Estimate(calls=calls, seconds=seconds, bytes=round(stored), times=most_pictures(policy))


def most_pictures(policy: Policy) -> int:
    """Pictures that a request may be drawn at most."""
    return 1 + len(policy.ladder) + len(policy.mark_ladder)


def free_memory(device: str) -> int:
    """Bytes that are free on a device, or in this machine's memory; 0 where that is unknown."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    for path, name in (("/proc/meminfo", "MemAvailable:"), ("/sys/fs/cgroup/memory.max", "")):
        try:
            text = Path(path).read_text(encoding="ascii")
        except OSError:
            continue
        if name:
            limits += [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name)]
        elif text.strip().isdigit():
            limits.append(int(text))
    return min(limits, default=0)


def size(count: float) -> str:
    """Bytes for display: "312 MiB"."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
