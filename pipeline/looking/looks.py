"""Hand finished pictures to the guards, and take their answers: in the denoiser's process, or in processes beside it.

Findings and pictures do not depend on where they are made, nor on which pictures are looked at together: networks run in
calls of one fixed, padded shape, with the number of threads that the plan states. Where memory runs out, a process halves its
calls for good, and the last bits may change; every attempt's row has the shapes of the process that looked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.looking.activity import Activity
from pipeline.looking.study import Failed, Study, each_study

if TYPE_CHECKING:
    import torch

    from pipeline.looking.pool import Pool

AHEAD = 16  # pictures at the guards for every process, from which on no more are handed over: none is idle between two looks
WAIT_SECONDS = 1.0  # for an answer; the caller may have something else to attend to


class Looks:
    """Pictures at the guards.

    Args:
        study: looks in this process: latents, own references → studies.
        activity: where the time goes.
        pool: processes beside this one; while none of them is ready, this one looks.
    """

    def __init__(
        self,
        study: Callable[[list[torch.Tensor], list[Sequence[str]]], list[Study]],
        activity: Activity,
        pool: Pool | None = None,
    ) -> None:
        self._study, self.activity, self._pool = study, activity, pool
        self._away: dict[int, tuple[torch.Tensor, Sequence[str]]] = {}
        self._answers: list[tuple[int, Study | Failed]] = []

    @property
    def waiting(self) -> int:
        """Pictures at the guards, and answers that were not taken yet."""
        return len(self._away) + len(self._answers)

    @property
    def full(self) -> bool:
        """Whether the guards are so far behind that the denoiser should wait, or pictures would pile up in memory."""
        return self._pool is not None and len(self._away) >= AHEAD * self._pool.workers

    def show(self, tags: Sequence[int], latents: Sequence[torch.Tensor], own: Sequence[Sequence[str]]) -> None:
        """Hand over finished latents (C, h, w), with a name for each; never waits."""
        if not tags:
            return
        if self._pool is None or not self._pool.ready:
            return self._look(tags, latents, own)
        self._away |= dict(zip(tags, zip(latents, own, strict=True), strict=True))
        self.activity.depth(len(self._away))
        self._pool.submit(tags, latents, own)

    def answers(self, *, wait: bool = False) -> list[tuple[int, Study | Failed]]:
        """Tag and study, or why there is none, of pictures whose look has ended; ``wait``: for one, a second."""
        if self._away:
            self._collect(wait=wait and not self._answers)
        found, self._answers = self._answers, []
        return found

    def _collect(self, *, wait: bool) -> None:
        assert self._pool is not None
        if wait:
            with self.activity.spending("blocked"):
                found = self._pool.answers(WAIT_SECONDS)
        else:
            found = self._pool.answers()
        back = []
        for tag, answer in found:
            latent, own = self._away.pop(tag)
            if answer is None:
                back.append((tag, latent, own))
            else:
                self._note(answer, beside=True)
                self._answers.append((tag, answer))
        self.activity.depth(len(self._away))
        if back:
            self._look(*zip(*back, strict=True))

    def _look(self, tags: Sequence[int], latents: Sequence[torch.Tensor], own: Sequence[Sequence[str]]) -> None:
        with self.activity.spending("looked"):
            found = each_study(self._study, latents, own)
        for answer in found:
            self._note(answer)
        self._answers += zip(tags, found, strict=True)

    def _note(self, answer: Study | Failed, *, beside: bool = False) -> None:
        self.activity.pictures += 1
        self.activity.beside += beside
        if isinstance(answer, Study):
            self.activity.guards.update(dict(answer.guard_seconds))
