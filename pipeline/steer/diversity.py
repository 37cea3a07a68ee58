"""Batch (diversity) mode of negative token merging (arXiv 2412.01339): the other members of a group are the references.

A sample then depends on its mates, by definition. So mates are *declared*, by a group id: only members of a group look at each
other, a group steps together in the same calls, and its bytes depend on nothing outside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from index.errors import ConfigError
from pipeline.steer.negtome import NegToMe, RowPush

if TYPE_CHECKING:
    from pipeline.config import DiversityConfig
    from pipeline.model.conditioning import Conditioning


@dataclass(frozen=True)
class Group:
    """A declared group: its members share every call, from the first step to the last.

    Attributes:
        id: unique among the groups in an engine.
        size: number of members.
        settings: how they push one another apart; without latents or features of its own.
    """

    id: str
    size: int
    settings: NegToMe


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One row of a packed batch that belongs to a declared group; see :func:`group_pushes`.

    Attributes:
        row: its position in the batch.
        group: the group's id.
        member: the sample's number in the group.
        branch: 0 for the unconditional row, 1 for the conditional one: each looks at its own kind (CFG, both halves).
        step: the denoising step it stands at.
    """

    row: int
    group: str
    member: int
    branch: int
    step: int


def pushing_steps(settings: DiversityConfig, steps: int) -> range:
    """The steps in which members push one another apart: at least one."""
    first = min(round(settings.window_from * steps), steps - 1)
    return range(first, max(first + 1, round(settings.window * steps)))


def mates_push(settings: DiversityConfig, steps: int, context: Conditioning, finest: int) -> NegToMe:
    """How the members of a group push one another apart.

    Args:
        settings: of the run file.
        steps: denoising steps of a picture.
        context: conditioning of the empty prompt.
        finest: image tokens of the blocks that have the most of them; asked for where ``resolution`` is ``finest``.
    """
    acting = pushing_steps(settings, steps)
    return NegToMe(
        latents=(), noises=None, context=context, alpha=settings.alpha, threshold=settings.token_threshold,
        from_step=acting.start, until_step=acting.stop, placement=settings.placement, attention=settings.attention,
        rows=settings.rows, min_tokens=finest if settings.resolution == "finest" else 0,
    )  # fmt: skip


def too_few_rows(size: int, *, guided: bool, rows: int, by: str = "guidance") -> ConfigError:
    """The error of a run whose calls do not hold a whole group; ``by``: what makes a member take two rows."""
    each = 2 if guided else 1
    what = f"a call has {rows} rows, and a group of {size} takes {size * each}"
    more = f" ({each} a member, with {by})" if guided else ""
    fewer = f", or generation.diversity.size = {rows // each}" if rows // each >= 2 else ""
    return ConfigError(what + more, where="generation.rows", fix=f"Set it to {size * each} or more{fewer}")


def group_pushes(rows: Sequence[GroupRow], sizes: Mapping[str, int], settings: NegToMe) -> list[RowPush]:
    """Batch (diversity) mode in a packed call: every sample is pushed away from all its mates.

    With mates a sample's bytes depend on them. That stays reproducible only when the mates are declared (the group), all
    present in the call and standing at the same step; anything else is refused.

    Args:
        rows: the rows of samples that belong to groups.
        sizes: number of samples in each group.
        settings: strength, threshold, window; without latents or features of its own.

    Raises:
        ConfigError: a group is not complete in this call, or its members stand at different steps.
    """
    pushes = []
    for group in sorted({r.group for r in rows}):
        mates = sorted((r for r in rows if r.group == group), key=lambda r: (r.branch, r.member))
        members, steps = {r.member for r in mates}, {r.step for r in mates}
        if len(members) != sizes[group] or len(steps) != 1:
            raise ConfigError(
                f"{len(members)} of {sizes[group]} members are in this call, at steps {sorted(steps)}",
                where=f"group {group!r}",
                fix="Admit a group as a whole and let it step together: its pictures depend on one another",
            )
        if not settings.acts_at(mates[0].step):
            continue
        for own in mates:
            if settings.rows == "conditional" and own.branch == 0:
                continue
            others = tuple(r.row for r in mates if r.branch == own.branch and r.member != own.member)
            if others:
                pushes.append(RowPush(row=own.row, references=others, settings=settings, step=own.step))
    return pushes
