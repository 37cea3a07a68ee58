"""The arms of the bench of negative token merging: one form each, beside its control with a random reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = 20  # denoising steps of every picture
# The paper's strengths for transformers; both attentions, all steps, both rows, all blocks, no norm kept.
PUBLISHED: Mapping[str, Any] = {
    "alpha": 0.9, "threshold": 0.65, "match": "paper", "form": "paper", "placement": "paper", "attention": "both",
    "rows": "both", "keep_norm": False, "noised": True, "masked": False, "first": 0, "end": STEPS,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One form of token merging.

    Attributes:
        name: in tables and files.
        change: what differs from :data:`PUBLISHED`. ``first`` and ``end`` are steps; ``noised``, ``masked``: the reference.
        measured: on all captions, not in the search alone.
    """

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)
    measured: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Every key that is in force."""
        return {**PUBLISHED, **self.change}


def _before(**change: Any) -> dict[str, Any]:
    """The paper's match before the residual, from the clean reference, and what differs from that."""
    return {"placement": "released", "noised": False, **change}


def _kernel(**change: Any) -> dict[str, Any]:
    return {"form": "kernel", "alpha": 2.0, "threshold": 0.5, "masked": True, "keep_norm": True, **change}


SEARCH = (
    # after the residual, from the noised reference, as the paper has it and the product
    Arm("paper", measured=True),
    Arm("kernel, the ladder's rung", _kernel(alpha=3.0, threshold=-0.5, rows="conditional", end=6), measured=True),
    Arm("paper, α 2", {"alpha": 2.0}),
    Arm("paper, conditional row", {"rows": "conditional"}),
    # before the residual, from the clean reference
    Arm("released code", {"match": "released", "placement": "released", "noised": False}, measured=True),
    Arm("before", _before(), measured=True),
    Arm("before, α .5", _before(alpha=0.5)),
    Arm("before, first 6 steps", _before(end=6)),
    Arm("before, steps 4 to 10", _before(first=3, end=10)),
    Arm("before, steps 7 to 20", _before(first=6)),
    Arm("before, finest blocks", _before(min_tokens=256)),
    Arm("before, norms kept", _before(keep_norm=True)),
    Arm("before, unit push, α .5", _before(form="unit", alpha=0.5)),
    Arm("before, soft match", _before(match="soft"), measured=True),
    Arm("before, conditional row, α .3", _before(rows="conditional", alpha=0.3)),
    # the other two of placement × noise
    Arm("before, noised reference", {"placement": "released"}),
    Arm("paper, clean reference", {"noised": False}),
)  # fmt: skip
