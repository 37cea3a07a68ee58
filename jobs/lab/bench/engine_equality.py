"""Equal bytes: a sample in any schedule and the same sample alone; a picture with guards and without."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.fingerprint import pixel_digest
from jobs.lab.bench.engine_runs import contexts_of, digest, engine, plain
from jobs.lab.bench.measures import Measure, share, spread

if TYPE_CHECKING:
    import torch

    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.interface import DiffusionModel

SAMPLES, SCHEDULES = 8, (1, 2, 3)


def equality(model: DiffusionModel, dtype: str, *, steps: int) -> list[Measure]:
    """Guided, unguided, pushed and nudged samples in random schedules, each compared with the same sample drawn alone."""
    contexts = contexts_of(model)

    def make(e: Engine, tag: int) -> Trajectory:
        return _mixed(plain(e, tag, contexts), e)

    alone = {tag: digest((e := engine(model, steps)).finish([make(e, tag)])[tag]) for tag in range(SAMPLES)}
    equal, occupancy = 0, list[float]()
    for seed in SCHEDULES:
        e, rng = engine(model, steps), random.Random(seed)
        coming = sorted((rng.randint(0, steps), rng.random(), tag) for tag in range(SAMPLES))
        clock, done = 0, dict[int, "torch.Tensor"]()
        while coming or e.busy:
            while coming and coming[0][0] <= clock:
                e.submit(make(e, coming.pop(0)[2]))
            done |= {t.tag: t.latent for t in e.step()}
            clock += 1
        equal += sum(digest(z) == alone[tag] for tag, z in done.items())
        occupancy.append(e.rows_used / (e.calls * e.rows))
    name = f"byte-equal to being drawn alone, {len(SCHEDULES)} random schedules of mixed rows, {dtype}"
    return [
        share(name, equal, SAMPLES * len(SCHEDULES), 1.0),
        spread(f"rows in use in those schedules ({SAMPLES} samples, the last of them alone), {dtype}", occupancy),
    ]


def _mixed(t: Trajectory, e: Engine) -> Trajectory:
    """One to four rows: every fourth without a negative row, two of three pushed from one or two references, some nudged."""
    import torch

    from pipeline.steer.negtome import NegToMe
    from pipeline.steer.nudge import Nudge

    references = tuple(e.initial_noise(900 + t.tag + i) for i in range(1 + t.tag % 2))
    window = len(e.sampler) // 2
    if t.tag % 3:
        assert t.negative is not None
        t.push = NegToMe(latents=references, noises=references, context=t.negative, alpha=0.9, threshold=0.3, until_step=window)
    elif t.tag % 2:
        t.nudge = Nudge(
            references=references, centre=torch.zeros_like(references[0]), step_size=0.05, iterations=3, until_step=window
        )
    if t.tag % 4 == 1:
        t.negative = None
    return t


def benign_equality(*, captions: int, seeds: Sequence[int]) -> list[Measure]:
    """First pictures of ordinary captions under the default policy with all guards, compared with the engine alone."""
    import torch

    from jobs.lab.bench.drawing import draw, open_runtime
    from jobs.lab.world.catalogue import ORDINARY
    from pipeline.engine.engine import Engine

    names = list(ORDINARY)[:captions]
    with tempfile.TemporaryDirectory() as folder:
        runtime = open_runtime(Path(folder), "default")
        guarded = draw(runtime, names, seeds, "ordinary captions, guarded").samples
        g = runtime.config.generation
        e = Engine(
            runtime.model, rows=g.rows, steps=g.drawn_steps, guidance_scale=g.drawn_guidance, scheduler=g.scheduler, eta=g.eta
        )
        empty = runtime.context_of("")
        from pipeline.engine.trajectory import Trajectory

        unguarded = e.finish(
            [
                Trajectory(
                    tag=i,
                    latent=e.initial_noise(s.request.seed),
                    step=0,
                    context=runtime.context_of(s.request.prompt),
                    negative=empty,
                    seed=s.request.seed,
                )
                for i, s in enumerate(guarded)
            ],
        )
        pictures = runtime.model.decode(torch.stack([unguarded[i] for i in range(len(guarded))]))
    equal = sum(s.attempts[0].pixel_sha256 == pixel_digest(picture) for s, picture in zip(guarded, pictures, strict=True))
    torch.set_num_threads(1)
    return [share("first pictures of ordinary captions, bit-identical with guards and without", equal, len(guarded), 1.0)]
