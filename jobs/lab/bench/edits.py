"""Copies that hide behind an edit: how many the copies guard finds with ``copies.edits`` and without, and what else it flags.

Protected drawings are turned, inverted, or put into a frame, on a page, on a wall or into another drawing. The same is done to
other vendors' drawings of the same subjects and to drawings of other subjects, which are no copies. The guard, its operating
point and the policy are those that ship; only ``copies.edits`` differs. The windows of :mod:`index.undone` were chosen on other
draws of these edits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.measures import Measure, clustered, publish, spread

if TYPE_CHECKING:
    from guards.copies import CopiesGuard

SEEDS = (1, 2, 3)
SIDE = 64
GOAL = 0.90  # of the copies behind each edit
AT_ONCE = 62
Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Shown = tuple[str, np.ndarray]  # a subject and a drawing of it


def _small(picture: np.ndarray, side: int) -> np.ndarray:
    import cv2

    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _put(picture: np.ndarray, ground: np.ndarray, rng: np.random.Generator, shares: tuple[float, float]) -> np.ndarray:
    """The picture, smaller, anywhere on a ground."""
    side = round(SIDE * rng.uniform(*shares))
    top, left = rng.integers(0, SIDE - side + 1, 2)
    out = ground.copy()
    out[top : top + side, left : left + side] = _small(picture, side)
    return out


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8)


def as_it_is(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """No edit at all, to compare with."""
    return picture


def framed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In the middle of a coloured mat of 8 to 20 % of the side; half of them have a line round the picture."""
    import cv2

    border = int(rng.integers(5, 14))
    out, side = _plain(rng), SIDE - 2 * border
    out[border:-border, border:-border] = _small(picture, side)
    if rng.random() < 0.5:
        line = tuple(int(v) for v in rng.integers(0, 256, 3))
        cv2.rectangle(out, (border - 2, border - 2), (border + side + 1, border + side + 1), line, 2)
    return out


def on_page(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """On white paper, 47 to 67 % of the side, with lines as of text below it."""
    import cv2

    side = int(rng.integers(30, 44))
    top, left = int(rng.integers(2, 20)), int(rng.integers(2, SIDE - 1 - side))
    out = np.full((SIDE, SIDE, 3), 245, np.uint8)
    out[top : top + side, left : left + side] = _small(picture, side)
    for row in range(top + side + 3, SIDE - 2, 4):
        cv2.line(out, (4, row), (int(rng.integers(30, 60)), row), (60, 60, 60), 1)
    return out


def in_scenes(scenes: np.ndarray) -> Edit:
    """On a drawing of another subject, 40 to 65 % of the side, anywhere."""

    def edit(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scene = scenes[int(rng.integers(len(scenes)))]
        return _put(picture, _small(scene[8:-8, 8:-8], SIDE), rng, (0.4, 0.65))

    return edit


def edits(scenes: np.ndarray) -> dict[str, Edit]:
    """Every edit by its name in the table."""
    return {
        "turned by a quarter": lambda picture, rng: np.ascontiguousarray(np.rot90(picture, int(rng.choice([1, 3])))),
        "upside down": lambda picture, rng: np.ascontiguousarray(np.rot90(picture, 2)),
        "negative": lambda picture, rng: 255 - picture,
        "in a frame": framed,
        "on a page": on_page,
        "on a plain wall": lambda picture, rng: _put(picture, _plain(rng), rng, (0.4, 0.65)),
        "in another drawing": in_scenes(scenes),
    }


def bench(out: Path, *, world: Path, quick: bool = False) -> None:
    """Measure and publish ``edits``, with a picture of every edit.

    Args:
        world: the built world, whose drawings of other vendors and subjects are no copies.
        quick: one draw of each edit, a few drawings.
    """
    from index.undone import EDITS, FORMS
    from jobs.lab.bench.drawing import no_copies, open_runtime, pictures_of

    same_subjects, other_subjects = no_copies(world)
    harmless = [*same_subjects, *other_subjects][:: 20 if quick else 2]
    seeds, kinds = SEEDS[:1] if quick else SEEDS, edits(np.stack([picture for _, picture in other_subjects]))
    with tempfile.TemporaryDirectory() as folder:
        runtime = open_runtime(Path(folder), "default")
        copies, works = runtime.copies, sorted(pictures_of(runtime).items())[: 6 if quick else None]
        assert copies is not None
        measures = [
            *found(copies, "copies, found", works, kinds, seeds, goal=GOAL, better="higher"),
            *found(copies, "other drawings, called copies", harmless, kinds, seeds[:1], goal=None, better="lower"),
            cost(copies, [picture for _, picture in harmless[:AT_ONCE]], rounds=1 if quick else 5),
        ]
    more = {"views": {"no edit undone": copies.hues, "edits undone": copies.hues + sum(FORMS[e] for e in EDITS)}}
    publish("edits", measures, out, seeds=seeds, quick=quick, more=more | {"works": len(works), "others": len(harmless)})
    contact_sheet(works[:8], kinds).save(out / f"edits{'-quick' if quick else ''}.png")


def found(
    copies: CopiesGuard, what: str, pictures: Sequence[Shown], kinds: Mapping[str, Edit], seeds: Sequence[int],
    *, goal: float | None, better: str,
) -> list[Measure]:  # fmt: skip
    """How many are flagged, not edited and behind each edit, with no edit undone and with all."""
    from jobs.console import say

    measures = []
    for kind, edit in ({"not edited": as_it_is} | dict(kinds)).items():
        say(f"{kind}: {what}")
        shown = [edit(picture, np.random.default_rng([seed, i])) for seed in seeds for i, (_, picture) in enumerate(pictures)]
        of = [name for name, _ in pictures] * len(seeds)
        flagged = _flagged(copies, shown)
        measures += [
            clustered(f"{kind}, {what}, no edit undone", [plain for plain, _ in flagged], of, None, better),
            clustered(f"{kind}, {what}, edits undone", [either for _, either in flagged], of, goal, better),
        ]
    return measures


def _guard(copies: CopiesGuard, undone: tuple[str, ...]) -> CopiesGuard:
    """The guard that ships, with these edits undone."""
    from guards.copies import CopiesGuard

    return CopiesGuard(copies.index, copies.embedder, point=copies.point, k=copies.k, hues=copies.hues, edits=undone)


def _flagged(copies: CopiesGuard, shown: list[np.ndarray]) -> list[tuple[bool, bool]]:
    """Of each picture, whether it is flagged with no edit undone, and with all; the guard's other findings are the same."""
    from index.undone import EDITS

    guard, flagged = _guard(copies, EDITS), []
    for start in range(0, len(shown), AT_ONCE):
        for findings in guard.check(np.stack(shown[start : start + AT_ONCE])):
            hits = {finding.category for finding in findings if finding.triggered}
            flagged.append((bool(hits & set(copies.categories)), bool(hits)))
    return flagged


def cost(copies: CopiesGuard, pictures: list[np.ndarray], rounds: int) -> Measure:
    """Processor time with all edits undone over that without, on drawings that are no copies, in turns."""
    from index.undone import EDITS

    guards, ratios = [_guard(copies, undone) for undone in ((), EDITS)], []
    for _ in range(rounds):
        spent = []
        for guard in guards:
            began = time.process_time()
            guard.check(np.stack(pictures))
            spent.append(time.process_time() - began)
        ratios.append(spent[1] / spent[0])
    return spread("the guard's processor time, edits undone / not", ratios, better="lower")


def contact_sheet(works: Sequence[Shown], kinds: Mapping[str, Edit]) -> Any:
    """A row for every edit, of the works as its first draw shows them."""
    from jobs.lab.bench.sheet import arrange, stack, strip

    parts = []
    for kind, edit in ({"not edited": as_it_is} | dict(kinds)).items():
        row = [strip(name, [edit(picture, np.random.default_rng([SEEDS[0], i]))]) for i, (name, picture) in enumerate(works)]
        parts.append((kind, arrange(row, len(row))))
    return stack(parts)
