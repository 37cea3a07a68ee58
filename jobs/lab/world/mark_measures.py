"""Measure a mark detector on drawings that no training used: mAP50 with intervals, operating points, false alarms.

Both detectors are measured alike, through a function from pictures to the highest logit and its box of each kind.
A set of pictures holds clean drawings and, of each kind, drawings with one mark. A detection is right when it has the
mark's kind and overlaps its box by at least half (intersection over union). Every picture takes part in the ranking of every
kind, so a QR code taken for text counts against text. A detector returns at most one box per kind and picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guards.mark_network import KINDS, SIDE
from index.shipped import STICKERS
from jobs.erase.marks.overlays import HELD_OUT_DESIGNS, TRAIN_DESIGNS, overlay
from jobs.lab.world.autoencoder import load_autoencoder, round_trip
from jobs.lab.world.mark_examples import Examples, cells, choose
from jobs.lab.world.variants import jitter

Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 (N, 64, 64, 3) → logits (N, kinds), not shifted, and boxes (N, kinds, 4), x0, y0, x1, y1 in fractions."""

FLOOR = -2.0  # lowest operating point: generated pictures differ more from the training data than the clean ones do
ALARMS = 0.02  # of the clean pictures that set the operating points: each kind may take its part
BAR = 0.90  # mAP50 on held-out designs, plain
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Trial:
    """Pictures of one look with their judgements: logits (N, kinds), boxes and true boxes in fractions, kinds (-1: clean)."""

    logits: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray
    truth: np.ndarray


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (N, 4); 0 where either is empty."""
    extent = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    shared = extent[:, 0] * extent[:, 1]
    area = [np.prod(np.clip(box[:, 2:] - box[:, :2], 0, None), axis=1) for box in (a, b)]
    union = area[0] + area[1] - shared
    ratio: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def average_precision(scores: np.ndarray, right: np.ndarray, marks: int) -> float:
    """Area under the precision–recall curve, step-wise and without interpolation; ties count against the detector.

    Args:
        scores: (N,) of the detections.
        right: bool (N,), whether a detection found a mark.
        marks: number of marks to find.
    """
    order = np.lexsort((right, -scores))  # best first; among equals the wrong ones
    ranked = right[order]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / max(1, marks))


def precision_of(trial: Trial, kind: int, chosen: np.ndarray | None = None) -> float:
    """AP50 of one kind over a trial's pictures, or over those ``chosen`` (with repeats: a bootstrap sample)."""
    at = np.arange(len(trial.kinds)) if chosen is None else chosen
    marked = trial.kinds[at] == kind
    right = marked & (overlap(trial.boxes[at, kind], trial.truth[at]) >= 0.5)
    return average_precision(trial.logits[at, kind], right, int(marked.sum()))


def interval(trial: Trial, kinds: tuple[int, ...], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap, over pictures, of the mean AP50 of ``kinds``."""
    rng = np.random.default_rng(seed)
    samples = [rng.integers(0, len(trial.kinds), len(trial.kinds)) for _ in range(BOOTSTRAPS)]
    means = [np.mean([precision_of(trial, kind, chosen) for kind in kinds]) for chosen in samples]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def operating_logits(quiet: dict[str, np.ndarray]) -> list[float]:
    """Per kind the lowest logit that at most its part of ``ALARMS`` of the clean pictures reach, plain and smeared; at least
    ``FLOOR``. ``quiet``: logits (N, kinds) of clean pictures, by look.
    """
    points, kinds = [], len(next(iter(quiet.values()))[0])
    for kind in range(kinds):
        allowed = [np.sort(q[:, kind])[-int(len(q) * ALARMS / kinds) - 1] for q in quiet.values()]
        points.append(round(max(FLOOR, float(max(allowed)) + 1e-3), 4))
    return points


def marked_drawings(
    pixels: np.ndarray,
    ids: np.ndarray,
    designs: tuple[int, ...],
    count: int,
    rng: np.random.Generator,
    kinds: Sequence[str] = KINDS,
) -> Examples:
    """``count`` drawings of ``ids`` per kind of mark, each with one numbered design; kinds are numbered as in ``kinds``."""
    from PIL import Image

    pictures, of, boxes, changed = [], [], [], []
    for kind, name in enumerate(kinds):
        for i in rng.choice(ids, count):
            before = Image.fromarray(pixels[i])
            after, box = overlay(before, name, rng, designs)
            pictures.append(np.asarray(after))
            of.append(kind)
            boxes.append(box)
            changed.append(cells(np.asarray(before), np.asarray(after)))
    return Examples(np.stack(pictures), np.array(of), np.array(boxes, dtype=np.float32), np.stack(changed))


def clean_drawings(pixels: np.ndarray, ids: np.ndarray, copies: int, rng: np.random.Generator) -> np.ndarray:
    """Every drawing of ``ids`` as it is, and ``copies`` times placed a little differently."""
    from PIL import Image

    jittered = [np.asarray(jitter(Image.fromarray(pixels[i]), rng)) for i in np.tile(ids, copies)]
    return np.concatenate([pixels[ids], np.stack(jittered)])


def evaluate(
    judge: Judge, work: Path, *, kinds: Sequence[str] = KINDS, shown_by: Path | None = None, count: int = 200, seed: int = 1
) -> dict[str, Any]:
    """Measure a detector; every picture shows a held-out drawing, "smeared" ones after the world's autoencoder.

    Half of the held-out drawings set the operating points (their clean pictures only); the false alarms are counted on
    the other half. The marked pictures show drawings of both halves.

    Args:
        judge: the detector, with the weights that ship.
        work: the world's folder.
        kinds: that the detector knows, in the order of its logits.
        shown_by: a diffusers folder whose autoencoder smears; the world's own where it is absent, or the one that ships.
        count: marked pictures per kind and set of designs.
        seed: of the pictures.
    """
    from jobs.lab.world.pictures import load

    rng = np.random.default_rng(seed)
    pixels, _, names = load(work)
    held = choose(names)[2]
    vae = load_autoencoder(shown_by or work) or load_autoencoder(STICKERS / "model")

    def looks(pictures: np.ndarray) -> dict[str, np.ndarray]:
        return {"plain": pictures, "smeared": round_trip(vae, pictures, rng, noise=0.3)}

    setting = {name for i, name in enumerate(sorted({names[i] for i in held})) if i % 2}
    first = np.array([i for i in held if names[i] in setting])
    second = np.array([i for i in held if names[i] not in setting])
    quiet = {look: judge(seen)[0] for look, seen in looks(clean_drawings(pixels, first, 3, rng)).items()}
    points = operating_logits(quiet)
    clean = {look: judge(seen) for look, seen in looks(clean_drawings(pixels, second, 3, rng)).items()}
    report: dict[str, Any] = {
        "operating_logits": dict(zip(kinds, points, strict=True)),
        "false_alarms": {
            look: {kind: float((logits[:, k] >= points[k]).mean()) for k, kind in enumerate(kinds)}
            | {"any": float((logits >= np.array(points)).any(1).mean()), "pictures": len(logits)}
            for look, (logits, _) in clean.items()
        },
        "designs": {},
    }
    for which, designs in (("held-out", HELD_OUT_DESIGNS), ("trained", TRAIN_DESIGNS)):
        drawn = marked_drawings(pixels, held, designs, count, rng, kinds)
        for look, seen in looks(drawn.pictures).items():
            logits, boxes = judge(seen)
            quiet_logits, quiet_boxes = (part[: len(second)] for part in clean[look])
            trial = Trial(
                np.concatenate([logits, quiet_logits]),
                np.concatenate([boxes, quiet_boxes]),
                np.concatenate([drawn.kinds, np.full(len(quiet_logits), -1)]),
                np.concatenate([drawn.boxes / SIDE, np.zeros((len(quiet_logits), 4), np.float32)]),
            )
            report["designs"][f"{which}, {look}"] = _results(trial, np.array(points), count, kinds)
    return report


def _results(trial: Trial, points: np.ndarray, count: int, kinds: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"marks_per_kind": count, "clean": int((trial.kinds < 0).sum()), "kinds": {}}
    for k, kind in enumerate(kinds):
        mine = trial.logits[trial.kinds == k]
        result["kinds"][kind] = {
            "ap50": precision_of(trial, k),
            "interval": interval(trial, (k,)),
            "ap": average_precision(trial.logits[:, k], trial.kinds == k, count),
            "recall": float((mine[:, k] >= points[k]).mean()),
            "any_mark": float((mine >= points).any(1).mean()),
        }
    result["map50"] = float(np.mean([by["ap50"] for by in result["kinds"].values()]))
    result["interval"] = interval(trial, tuple(range(len(kinds))))
    return result


def five(report: dict[str, Any]) -> str:
    """The five numbers that matter, as a Markdown table for the top of a model card."""
    rows = [f"| mAP50, {which} | **{result['map50']:.3f}** |" for which, result in report["designs"].items()]
    alarms = f"| clean pictures flagged with any mark, plain | **{100 * report['false_alarms']['plain']['any']:.2f} %** |"
    return "\n".join(["| on held-out drawings | |", "|---|---|", *rows, alarms])


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown tables, for a model card."""
    columns = (*report["operating_logits"], "any")
    alarms = "\n".join(
        f"| {look} | {by['pictures']} | " + " | ".join(f"{100 * by[kind]:.2f} %" for kind in columns) + " |"
        for look, by in report["false_alarms"].items()
    )
    rows = []
    for which, result in report["designs"].items():
        low, high = result["interval"]
        count, kinds = result["marks_per_kind"], result["kinds"]
        rows.append(f"| **all, {which}** | {len(kinds) * count} | **{result['map50']:.3f}** ({low:.3f}–{high:.3f}) | | | |")
        for kind, by in kinds.items():
            low, high = by["interval"]
            rates = " | ".join(f"{by[column]:.3f}" for column in ("ap", "recall", "any_mark"))
            rows.append(f"| {kind}, {which} | {count} | {by['ap50']:.3f} ({low:.3f}–{high:.3f}) | {rates} |")
    middle = "\n".join(rows)
    clean = report["designs"]["held-out, plain"]["clean"]
    points_of = report["operating_logits"]
    points = ", ".join(f"{kind} {value:g}" for kind, value in points_of.items())
    reached = {look: report["designs"][f"held-out, {look}"]["map50"] for look in report["false_alarms"]}
    verdict = "met" if reached["plain"] >= BAR else f"missed by {BAR - reached['plain']:.2f}"
    return f"""The bar is mAP50 ≥ {BAR:.2f} on held-out designs: {verdict}.

Pictures show held-out drawings (names that no training saw). Every ranking holds the marks of all kinds and {clean} clean
pictures. "Held-out" are designs 3 and 4 of `jobs.erase.marks.overlays` (a band, a pentagon; Micro QR, an inverted code; a
vertical and an outlined word; a crescent, slanted bars), which no training saw; "trained" are designs 0–2. "Smeared": after the
autoencoder of the world's model, with up to 0.3 standard deviations of noise on the latents. AP50 needs the right kind and half
of the box (intersection over union), AP the right kind only; intervals are 95 % percentile bootstraps over pictures.

| designs | marks | AP50 (95 % interval) | AP | found as this kind | found as any mark |
|---|---|---|---|---|---|
{middle}

A score of 0.5 is the operating point of each kind (logits: {points}). It was set on clean pictures
of one half of the held-out drawings, at most {100 * ALARMS / len(points_of):.2f} % flagged per kind, plain and smeared, and not
below {FLOOR:g}; the other half gives:

| clean pictures flagged | pictures | {" | ".join(columns)} |
|---|---|{"---|" * len(columns)}
{alarms}"""


def sources(work: Path) -> str:
    """The packages whose drawings the marks were laid on, as a Markdown list."""
    manifest = json.loads((work / "manifest.json").read_text(encoding="utf-8"))
    packages = [f"* {p['package']} {p['version']} ({p['licence']}, {p['rightsholder']})" for p in manifest["packages"]]
    return f"Data (pixels sha256 `{manifest['pixels_sha256']}`):\n\n" + "\n".join(packages)


def curve_table(curve: list[dict[str, float]], rows: int = 12) -> str:
    """A training curve as a Markdown table of about ``rows`` rows, the last one included."""
    shown = curve[:: max(1, len(curve) // rows)]
    shown += curve[-1:] if curve and shown[-1] is not curve[-1] else []  # a trial may end before its first point
    lines = [f"| {point['step']:,.0f} | {point['minutes']:.1f} | {point['loss']:.3f} |" for point in shown]
    return "| step | minutes | loss |\n|---|---|---|\n" + "\n".join(lines)
