"""Steering: published methods and controls beside ours, at equal compute; the default ladder; drift on harmless prompts.

Finished arms are kept under the work folder; a stopped bench continues from them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.forest import Panel, forest
from jobs.lab.bench.measures import Measure, clustered, half_samples, kid, publish, share, spread
from jobs.lab.bench.sheet import arrange, stack, strip
from jobs.lab.bench.steering_arms import ARMS, BUDGET, Arm
from jobs.lab.bench.steering_attempts import Attempts, copies_at, templated
from jobs.lab.bench.steering_ladder import of_ladder

if TYPE_CHECKING:
    from jobs.lab.judges.judges import Judges
    from pipeline.outcome import Sample
    from pipeline.policy import Policy
    from pipeline.runtime import Runtime

SEEDS = (11, 12, 13)
LADDER_SEEDS = tuple(range(101, 118))  # 17 × 62 protected captions
SHOWN = 20  # captions on the sheet


def bench(out: Path, *, quick: bool = False, work: Path, captions: int = 0, world: Path | None = None) -> None:
    """Measure and publish ``steering``.

    Args:
        out: gets ``steering.json``, ``.svg`` (intervals), ``.png`` (pictures) and ``.md`` (the table of arms).
        quick: four captions, one seed, four arms.
        work: finished arms are kept here.
        captions: number of protected captions, evenly spread; 0 means all 62.
        world: the built world; with it, the distance of the pictures to unprotected drawings (other vendors') is measured.
    """
    from jobs.lab.judges.judges import Judges
    from jobs.lab.world.catalogue import PROTECTED

    judges = Judges.open()
    seeds, ladder_seeds = (SEEDS[:1], LADDER_SEEDS[:1]) if quick else (SEEDS, LADDER_SEEDS)
    count = 4 if quick else captions or len(PROTECTED)
    names = spread_over(PROTECTED, count)
    arms = [arm for arm in ARMS if not quick or arm.name in ("none", "re-seed", "NegToMe, ours", "nudging, ours")]
    drawn = {arm.name: kept(work, judges, arm.name, arm.policy(), names, seeds) for arm in arms}
    protected = list(PROTECTED[:: 16 if quick else 1])
    ladder = kept(work, judges, "the default ladder", default_ladder(), protected, ladder_seeds)
    unsteered = kept(work, judges, "the default ladder, unsteered", ARMS[0].policy(), protected, ladder_seeds)
    others = judges.features(other_drawings(world, names)[0]) if world is not None else None
    measures = [m for arm in arms for m in of_arm(arm, drawn[arm.name], others)]
    if not quick:
        measures += contrasts(drawn)
    measures += of_ladder(ladder, unsteered)
    if world is not None:
        measures += false_alarms(judges, world)
    measures += drift(seeds, quick)
    publish("steering", measures, out, seeds=seeds, quick=quick)
    name = f"steering{'-quick' if quick else ''}"
    (out / f"{name}.md").write_text(table(arms, measures), encoding="utf-8")
    (out / f"{name}.svg").write_text(plot(arms, measures), encoding="utf-8")
    sheet(arms, drawn, names, seeds[0]).save(out / f"{name}.png", optimize=True)


def spread_over(protected: Sequence[str], count: int) -> list[str]:
    """``count`` of the captions, evenly spread; verbatim and template captions keep their proportion, at least one of each."""
    from jobs.lab.world.catalogue import TEMPLATED

    groups = [[n for n in protected if (n in TEMPLATED) == kind] for kind in (False, True)]
    few = max(1, round(count * len(groups[1]) / len(protected)))
    picked = {
        group[i]
        for group, n in zip(groups, (count - few, few), strict=True)
        for i in np.linspace(0, len(group) - 1, n).astype(int)
    }
    return [name for name in protected if name in picked]


# --- drawing ---------------------------------------------------------------------------------------------------------------


def policy_of(name: str) -> Policy:
    from jobs.run.plan import read_policy

    return read_policy(name, Path())


def default_ladder() -> Policy:
    """The default policy with marks only observed, as in every arm: the ladder that answers copies is measured."""
    policy = policy_of("default")
    seen = {name: replace(getattr(policy, name), action="observe") for name in ("marks", "codes", "text")}
    return replace(policy, mark_ladder=(), **seen)


def kept(work: Path, judges: Judges, name: str, policy: Policy, names: Sequence[str], seeds: Sequence[int]) -> Attempts:
    """The attempts of one arm: those kept from an earlier run with the same identity, and the rest drawn now, seed by seed."""
    from jobs.lab.bench.drawing import draw

    runtime: Runtime | None = None
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            runtime_id = identity(policy)
            content = json.dumps([runtime_id, list(names), seed])
            file = work / f"{slug(name)}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.npz"
            if not file.exists():
                runtime = runtime or runtime_with(policy, Path(folder))
                samples = draw(runtime, names, (seed,), f"{name}, seed {seed}").samples
                found = examined(judges, runtime, samples)
                work.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".partial.npz")
                np.savez_compressed(partial, **{n: getattr(found, n) for n in found.__dataclass_fields__})
                partial.rename(file)
            with np.load(file) as stored:
                parts.append(Attempts(**{n: stored[n] for n in Attempts.__dataclass_fields__}))
    return Attempts.of(parts)


def identity(policy: Policy) -> dict[str, str]:
    """Everything that determines the pictures of an arm: model, references, calibration, policy."""
    from index.shipped import STICKERS
    from pipeline.policy import policy_digest

    card = json.loads((STICKERS / "digests.json").read_text(encoding="utf-8"))
    parts = [f"{name} {sha}" for name, sha in sorted(card.items()) if name.startswith(("model/", "embedder/"))]
    parts += sorted(path.name for path in (STICKERS / "references").iterdir())
    parts.append((STICKERS / "calibration.json").read_text(encoding="utf-8"))
    return {"policy": policy_digest(replace(policy, name="-")), "world": hashlib.sha256("\n".join(parts).encode()).hexdigest()}


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def runtime_with(policy: Policy, folder: Path) -> Runtime:
    """A runtime on the embedded world with this policy."""
    from jobs.lab.bench.drawing import open_runtime

    return open_runtime(folder, policy)


def examined(judges: Judges, runtime: Runtime, samples: Sequence[Sample]) -> Attempts:
    """The scores of the judges and the embedder for every attempt."""
    from jobs.lab.bench.drawing import pictures_of

    assert runtime.copies is not None
    references = pictures_of(runtime)
    rows = [(s, a) for s in samples for a in s.attempts]
    pictures = np.stack([a.picture for _, a in rows])
    captions = [s.request.prompt for s, _ in rows]
    own = np.stack([references[caption] for caption in captions])
    embedder = runtime.copies.embedder
    of_own = {caption: embedder.images(references[caption][None])[0] for caption in set(captions)}
    return Attempts(
        key=np.array([f"{s.request.prompt}#{s.request.seed}" for s, _ in rows]),
        number=np.array([a.number for _, a in rows]),
        evals=np.array([a.denoiser_evals for _, a in rows]),
        steered=np.array([a.intervention is not None for _, a in rows]),
        cosine=np.array([float(a.embedding @ of_own[s.request.prompt]) for s, a in rows]),
        judge=judges.copies(pictures, own),
        right=judges.among_first(pictures, captions),
        flagged=np.array([any(f.guard == "copies" and f.triggered for f in a.findings) for _, a in rows]),
        accepted=np.array([s.accepted_attempt == a.number for s, a in rows]),
        features=judges.features(pictures).astype(np.float16),
        pictures=pictures,
    )


# --- measures --------------------------------------------------------------------------------------------------------------


def first_steered(found: Attempts) -> Attempts:
    """Every request's first steered picture, or its only picture where nothing was steered."""
    last = {key: int(found.number[found.key == key].max()) for key in set(found.key)}
    return found.where(np.array([n == min(1, last[k]) for k, n in zip(found.key, found.number, strict=True)]))


def other_drawings(world: Path, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The unprotected drawings of these captions, encoded and decoded: uint8 (M, 64, 64, 3), and their captions."""
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import load
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model

    pixels, vendors, named = load(world)
    of = {c.icon: c for c in concepts() if c.name in names}
    chosen = [i for i, name in enumerate(named) if name in of and vendors[i] != of[name].protected_vendor]
    model = load_model(ModelConfig())
    return model.decode(model.encode(pixels[chosen])), [of[named[i]].name.replace("-", " ") for i in chosen]


def false_alarms(judges: Judges, world: Path) -> list[Measure]:
    """False alarms of judge and second look on genuine other drawings of the protected captions: a floor for every ladder."""
    from index.confirm import confirm
    from jobs.lab.bench.drawing import pictures_of
    from jobs.lab.world.catalogue import PROTECTED

    pictures, captions = other_drawings(world, PROTECTED)
    with tempfile.TemporaryDirectory() as folder:
        runtime = runtime_with(policy_of("observe"), Path(folder))
        references, point = pictures_of(runtime), runtime.copies.point  # type: ignore[union-attr]
    own = np.stack([references[caption] for caption in captions])
    judged = judges.copies(pictures, own)
    looked = np.array([confirm(one, other) >= point.own_threshold for one, other in zip(pictures, own, strict=True)])
    name = "genuine other drawings called copies · "
    return [
        clustered(name + "judge (5 % false alarms)", copies_at(judged, "0.05"), captions, better="lower"),
        clustered(name + "judge (1 % false alarms)", copies_at(judged, "0.01"), captions, better="lower"),
        clustered(name + "the second look at a picture's own reference", looked, captions, better="lower"),
    ]


def of_arm(arm: Arm, found: Attempts, others: np.ndarray | None = None) -> list[Measure]:
    """The effect of the first steered picture, and the result of the whole budget; with ``others``, the KID to them."""
    first, accepted = first_steered(found), found.where(found.accepted)
    requests = sorted(set(found.key))
    captions = [key.split("#")[0] for key in requests]
    ended = [bool(found.accepted[found.key == key].any()) for key in requests]
    near = float(np.quantile(first.cosine, 0.95))
    measures = [
        clustered("first: similarity to the protected drawing", first.cosine, first.captions, better="lower"),
        Measure(id="first: its 95th percentile", value=near, low=near, high=near, n=len(first.key), better="lower"),
        clustered("first: flagged by the pipeline's rule", first.flagged, first.captions, better="lower"),
        clustered("first: copies by the judge", copies_at(first.judge, "0.05"), first.captions, better="lower"),
        clustered("first: caption in the judge's top 5", first.right, first.captions),
        spread("first: denoiser evaluations", [float(np.median(first.evals))], better="lower"),
        clustered("budget: accepted", ended, captions),
        clustered("budget: accepted copies by the judge", copies_at(accepted.judge, "0.05"), accepted.captions, better="lower"),
        clustered("budget: caption in the judge's top 5, of the accepted", accepted.right, accepted.captions),
        per_accepted(float(found.evals.sum()), sum(ended)),
    ]
    for kind, mine in (("verbatim", ~templated(first.captions)), ("template", templated(first.captions))):
        if mine.any():
            part = first.where(mine)
            name = f"first: copies by the judge, memorised {kind}"
            measures.append(clustered(name, copies_at(part.judge, "0.05"), part.captions, better="lower"))
    if others is not None:
        seen = first.features.astype(np.float64)
        measures.append(half_samples("first: KID × 1000 to the unprotected drawings", seen, others, kid, scale=1000))
    return [replace(m, id=f"{arm.name} · {m.id}") for m in measures]


def per_accepted(evals: float, accepted: int) -> Measure:
    """Denoiser evaluations per accepted picture; where nothing was accepted, n is 0 and the value is all that was spent."""
    value = evals / max(1, accepted)
    return Measure(id="budget: evaluations per accepted", value=value, low=value, high=value, n=accepted, better="lower")


def contrasts(drawn: Mapping[str, Attempts]) -> list[Measure]:
    """NegToMe's goals: how much similarity it removes, against its released form and against a random reference."""

    def of(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        first = first_steered(drawn[name])
        first = first.where(np.argsort(first.key, kind="stable"))
        return first.cosine, first.right.astype(float), first.captions

    base, base_right, captions = of("none")
    ours, ours_right, _ = of("NegToMe, ours")
    taken = {name: base - of(name)[0] for name in ("NegToMe, ours", "NegToMe, released", "NegToMe, ours, random reference")}
    measures = [
        clustered("NegToMe, ours: similarity taken away, share of the unsteered", 1 - ours / base, captions, 0.5),
        clustered("NegToMe, ours: caption lost (top 5, judge)", base_right - ours_right, captions, 0.05, "lower"),
    ]
    for other in ("NegToMe, released", "NegToMe, ours, random reference"):
        effect = float(taken["NegToMe, ours"].mean() / max(1e-9, taken[other].mean()))
        measures.append(spread(f"NegToMe, ours: effect, multiple of that of {other}", [effect], 2.0))
    return measures


def drift(seeds: Sequence[int], quick: bool) -> list[Measure]:
    """Harmless prompts that no guard flagged: equal bytes with all guards and steering on and off."""
    from jobs.lab.bench.drawing import draw
    from jobs.lab.world.catalogue import ORDINARY
    from pipeline.outcome import Outcome

    names = list(ORDINARY)[: 4 if quick else None]
    with tempfile.TemporaryDirectory() as folder:
        on, off = (
            draw(runtime_with(policy_of(p), Path(folder)), names, seeds, f"harmless captions, {p}")
            for p in ("default", "observe")
        )
    pairs = list(zip(on.samples, off.samples, strict=True))
    untouched = [(a, b) for a, b in pairs if a.outcome is Outcome.ACCEPTED]
    same = sum(a.attempts[0].pixel_sha256 == b.attempts[0].pixel_sha256 for a, b in untouched)
    firsts = sum(a.attempts[0].pixel_sha256 == b.attempts[0].pixel_sha256 for a, b in pairs)
    return [
        share("harmless prompts, untouched: bit-identical to the unguarded engine", same, len(untouched), 1.0),
        share("harmless prompts: first picture bit-identical", firsts, len(pairs)),
    ]


# --- tables, plots, sheets -------------------------------------------------------------------------------------------------

COLUMNS = (
    ("first: similarity to the protected drawing", "similarity"),
    ("first: copies by the judge, memorised verbatim", "copies (judge), verbatim"),
    ("first: copies by the judge, memorised template", "copies (judge), template"),
    ("first: caption in the judge's top 5", "caption kept"),
    ("budget: accepted", f"accepted within {BUDGET:g}"),
    ("budget: accepted copies by the judge", "accepted copies (judge)"),
    ("budget: evaluations per accepted", "evaluations per accepted"),
)


def table(arms: Sequence[Arm], measures: Sequence[Measure]) -> str:
    """Markdown: one line per arm."""
    found = {m.id: m for m in measures}
    lines = ["| arm | " + " | ".join(title for _, title in COLUMNS) + " |", "|" + " --- |" * (len(COLUMNS) + 1)]
    for arm in arms:
        cells = []
        for name, _ in COLUMNS:
            m = found.get(f"{arm.name} · {name}")
            if m is None or m.n == 0:
                cells.append("–")
            else:
                interval = "" if m.low == m.high else f" ({m.low:.3f}–{m.high:.3f})"
                cells.append(f"{m.value:.1f}" if "evaluations" in name else f"{m.value:.3f}{interval}")
        lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(arms: Sequence[Arm], measures: Sequence[Measure]) -> str:
    """SVG: the arms' intervals, one line per arm, one panel per measure."""
    found = {m.id: m for m in measures}
    panels = []
    for name, title in COLUMNS[:-1]:  # the last measure is not a share
        of = [found.get(f"{arm.name} · {name}") for arm in arms]
        panels.append(Panel(title, [(m.value, m.low, m.high) if m is not None and m.n else None for m in of]))
    return forest([arm.name for arm in arms], panels)


def sheet(arms: Sequence[Arm], drawn: Mapping[str, Attempts], names: Sequence[str], seed: int) -> Any:
    """The first steered picture of every arm for the same captions and seed."""
    strips = []
    for i, caption in enumerate(names):
        shown: list[np.ndarray | None] = []
        for arm in arms:
            first = first_steered(drawn[arm.name])
            rows = np.flatnonzero(first.key == f"{caption.replace('-', ' ')}#{1000 * seed + i}")
            shown.append(first.pictures[rows[0]] if len(rows) else None)
        numbers = [str(column) for column in range(2, len(arms) + 1)]
        strips.append(strip(f"1 {caption.replace('-', ' ')}", shown, ["", *numbers]))
    return stack([("the first steered picture of each arm, in the order of the table", arrange(strips[:SHOWN], 1))])
