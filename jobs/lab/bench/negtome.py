"""Negative token merging on its own ground: how far does a push move a picture from its reference, at which loss of captions?

The method's paper measures references that the model knows and has not memorised. So the ground here is ordinary captions, and
a picture's reference is that drawing of its subject, of three vendors', which the unsteered picture is nearest to. Works that
were memorised, as templates or to the line, stand apart. Every form is drawn from the same noise twice: pushed from its
reference, and, as the control, from a random one, a drawing of another subject. What a form takes of the similarity and its
control does not take is the match's doing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.bench.measures import RESAMPLES, Measure, change, clustered, paired, publish, spread
from jobs.lab.bench.negtome_arms import SEARCH, STEPS, Arm
from jobs.lab.bench.negtome_draw import Drawer, Ground
from jobs.lab.bench.sheet import arrange, stack, strip
from jobs.lab.bench.steering_attempts import copies_at
from jobs.lab.bench.trade import Line, Point, trade

SEEDS = (51, 52, 53, 54)
SEARCH_SEEDS = (61, 62)  # the forms were chosen on these, on every fourth ordinary caption
EFFECT, LOSS, SHARE = (
    -0.3457,
    -0.05,
    0.5,
)  # the paper's effect; what it may cost in captions; what a random reference may do of it
SHOWN = 16  # captions on the sheet

Parts = Mapping[tuple[str, bool], Mapping[str, np.ndarray]]  # (form, control) → what was measured of its pictures


def bench(
    out: Path, *, quick: bool = False, work: Path, world: Path, minutes: float = 600.0, model: Path | None = None
) -> None:
    """Measure and publish ``negtome``, with its chart and contact sheet.

    Args:
        out: folder of the results.
        quick: two captions of each kind, one seed, three forms.
        work: what was drawn is kept here; a stopped bench goes on.
        world: the built world, which holds the vendors' drawings.
        minutes: stop after so many; the next call goes on.
        model: a diffusers folder that draws in place of the denoiser that ships.
    """
    stop, measured = time.monotonic() + 60 * minutes, grounds(quick)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        drawer = Drawer(Path(folder), work, world, model)
        most = max(len(ground.parts) for ground in measured)
        todo = [
            (g, seeds, *one)
            for n in range(most)
            for g in measured
            for seeds in g.parts[n : n + 1]
            for one in drawn_on(g, quick)
        ]
        for ground, seeds, arm, control in todo:
            if time.monotonic() > stop:
                print(f"stopped on the ground {ground.name!r}, seeds {seeds}; call it again to go on")
                return
            drawer.part(ground, seeds, arm, control=control)
        of = {ground.name: gathered(drawer, ground, quick) for ground in measured}
        found = [m for g in measured for m in measures(g, [a for a, c in drawn_on(g, quick) if a and not c], of[g.name])]
        shown = sheet(drawer, measured[1], of["ordinary"])
    publish(
        "negtome", found, out, seeds=[*SEARCH_SEEDS, *SEEDS], quick=quick, more={"forms": {a.name: a.settings for a in SEARCH}}
    )
    name = f"negtome{'-quick' if quick else ''}"
    (out / f"{name}.svg").write_text(chart(found), encoding="utf-8")
    shown.save(out / f"{name}.png", optimize=True)


def grounds(quick: bool) -> list[Ground]:
    """Where the search was; all ordinary captions; works memorised as templates; works memorised to the line."""
    from jobs.lab.world.catalogue import ORDINARY, PROTECTED, TEMPLATED

    verbatim = [name for name in PROTECTED if name not in TEMPLATED]

    def ground(name: str, names: Sequence[str], seeds: Sequence[int], *, protected: bool = False) -> Ground:
        captions = tuple(one.replace("-", " ") for one in names)
        return Ground(name, captions[:2] if quick else captions, tuple(seeds[:1] if quick else seeds), protected)

    return [
        ground("search", ORDINARY[::4], SEARCH_SEEDS),
        ground("ordinary", ORDINARY, SEEDS),
        ground("templates", TEMPLATED, SEEDS, protected=True),
        ground("verbatim", verbatim[:: len(verbatim) // 10][:10], SEEDS, protected=True),
    ]


def drawn_on(ground: Ground, quick: bool = False) -> list[tuple[Arm | None, bool]]:
    """What is drawn on a ground: unsteered (None); in the search every form, elsewhere the chosen ones and each as control."""
    searching = ground.name == "search"
    arms = [arm for arm in SEARCH if arm.measured or searching][: 2 if quick else None]
    return [(None, False), *((arm, control) for arm in arms for control in ((False,) if searching else (False, True)))]


def gathered(drawer: Drawer, ground: Ground, quick: bool) -> dict[tuple[str, bool], dict[str, np.ndarray]]:
    """All seeds of a ground together, in the order of seed and caption."""
    found = {}
    for arm, control in drawn_on(ground, quick):
        parts = [drawer.part(ground, seeds, arm, control=control) for seeds in ground.parts]
        found[arm.name if arm else "", control] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return found


def measures(ground: Ground, arms: Sequence[Arm], parts: Parts) -> list[Measure]:
    """The published numbers of a ground. Intervals resample captions. The goals are those of ordinary captions."""
    plain, of = parts["", False], list(ground.captions) * len(ground.seeds)
    goals = ground.name == "ordinary"
    found = [
        clustered(f"{ground.name} · unsteered · copies by the judge (5 % false alarms)", copies_at(plain["judge"], "0.05"), of,
                  better="lower"),
        clustered(f"{ground.name} · unsteered · similarity", plain["cosine"], of, better="lower"),
        clustered(f"{ground.name} · unsteered · copy judge's mean", plain["judge"], of, better="lower"),
        clustered(f"{ground.name} · unsteered · caption in the top 5", plain["first five"], of),
        clustered(f"{ground.name} · unsteered · caption in the top 1", plain["first"], of),
    ]  # fmt: skip
    for arm in arms:
        own, control = parts[arm.name, False], parts.get((arm.name, True))
        name = f"{ground.name} · {arm.name} · "
        found += [
            change(name + "similarity, change", plain["cosine"], own["cosine"], of, EFFECT if goals else None),
            clustered(name + "copy judge's mean", own["judge"], of, better="lower"),
            paired(name + "captions in the top 5, change", plain["first five"], own["first five"], of, LOSS if goals else None),
            paired(name + "captions in the top 1, change", plain["first"], own["first"], of),
            clustered(name + "copies by the judge (5 % false alarms)", copies_at(own["judge"], "0.05"), of, better="lower"),
            spread(name + "denoiser evaluations, multiple of an unsteered picture's", [price(arm)], better="lower"),
        ]
        if control is not None:
            by = " by a random reference"
            found += [
                change(f"{name}similarity, change{by}", plain["cosine"], control["cosine"], of),
                taken_by_control(name, plain["cosine"], own["cosine"], control["cosine"], of, SHARE if goals else None),
                clustered(name + "copy judge's mean, random reference", control["judge"], of, better="lower"),
                paired(f"{name}captions in the top 5, change{by}", plain["first five"], control["first five"], of),
            ]
    return found


def taken_by_control(
    name: str, plain: np.ndarray, own: np.ndarray, control: np.ndarray, of: Sequence[str], goal: float | None
) -> Measure:
    """Which share of a form's effect its random reference has as well; bootstrap over captions.

    Below 0: the random reference brings pictures nearer to their own. Where the form itself takes nothing there is no share:
    1, as if the control did all.
    """
    clusters = np.asarray(of)
    groups = [np.flatnonzero(clusters == one) for one in np.unique(clusters)]
    falls = np.array([[(plain - x)[g].sum() for g in groups] for x in (own, control)])
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))

    def share(both: np.ndarray) -> np.ndarray:
        return np.where(both[0] > 0, both[1] / np.where(both[0] > 0, both[0], 1.0), 1.0)

    low, high = (float(v) for v in np.quantile(share(falls[:, drawn].sum(2)), (0.025, 0.975)))
    value = float(share(falls.sum(1)))
    full = name + "share of the change that a random reference makes"
    return Measure(id=full, value=value, low=low, high=high, n=len(of), goal=goal, better="lower")


def price(arm: Arm) -> float:
    """Denoiser evaluations of a guided picture, in multiples of an unsteered one's, its reference's row included: two rows make
    one evaluation."""
    stated = arm.settings
    steps: float = stated["end"] - stated["first"]
    return 1 + steps / (2 * STEPS)


def chart(found: Sequence[Measure]) -> str:
    """Loss of captions over change of similarity, on all ordinary captions: each form, joined to its control."""
    of = {m.id: m for m in found}

    def point(arm: str, control: str) -> Point:
        effect, paid = (of[f"ordinary · {arm} · {key}, change{control}"] for key in ("similarity", "captions in the top 5"))
        return Point((effect.value, effect.low, effect.high), (paid.value, paid.low, paid.high))

    names = [m.id.split(" · ")[1] for m in found if m.id.startswith("ordinary") and m.id.endswith("similarity, change")]
    lines = [Line(name, point(name, ""), point(name, " by a random reference")) for name in names]
    return trade(lines, effect=EFFECT, loss=LOSS)


def sheet(drawer: Drawer, ground: Ground, parts: Parts) -> Any:
    """The same captions and seed in every form: the reference, unsteered, then form and control in turn."""
    forms = [key for key in parts if key[0]]
    rows = []
    for i, caption in enumerate(ground.captions[:SHOWN]):
        reference = drawer.pixels[parts["", False]["reference"][i]]
        pictures = [reference, parts["", False]["picture"][i], *(parts[form]["picture"][i] for form in forms)]
        rows.append(
            strip(caption, pictures, ["", "", *(f"{n // 2 + 1}{' random' if n % 2 else ''}" for n in range(len(forms)))])
        )
    words = "the reference; unsteered; then each form of the chart, and behind it the same with a random reference"
    return stack([(words, arrange(rows, 1))])
