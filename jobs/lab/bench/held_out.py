"""The world's networks on drawings that no training used; needs the built world (`clearance lab world data`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.lab.bench.measures import Measure, clustered

RESAMPLES = 400


def held_out_measures(work: Path) -> list[Measure]:
    """The goals of autoencoder, embedder, copies guard and mark detectors, measured on the shipped weights."""
    return [autoencoder(work), *embedder(work), *recoloured(work), *detectors(work)]


def autoencoder(work: Path) -> Measure:
    """Mean PSNR of the shipped autoencoder over held-out drawings, in dB (pictures in [0, 1])."""
    import torch

    from jobs.lab.world.pictures import held_out, load
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model

    pixels, _, names = load(work)
    rows = [i for i, name in enumerate(names) if held_out(name)]
    model = load_model(ModelConfig())
    found = []
    for start in range(0, len(rows), 32):
        shown = pixels[rows[start : start + 32]]
        again = model.decode(torch.stack(list(model.encode(shown))))
        error = np.square((again.astype(np.float64) - shown) / 255).mean((1, 2, 3))
        found += (-10 * np.log10(error)).tolist()
    return clustered("autoencoder, held-out drawings: PSNR in dB", found, [names[i] for i in rows], 27.0)


def embedder(work: Path) -> list[Measure]:
    """Edited copies against other vendors' drawings of the same concept: average precision on held-out names."""
    from index.edits import foregrounds
    from index.embed import OpenCLIPEmbedder
    from jobs.lab.world.measure_embedder import pairs_of
    from jobs.lab.world.pictures import held_out, load, prescribed

    pixels, _, names = load(work)
    original, pictures, copy = pairs_of(pixels, names, foregrounds(pixels), {n for n in set(names) if held_out(n)})
    model = OpenCLIPEmbedder.open("stickers")
    base = dict(zip(np.unique(original).tolist(), model.images(pixels[np.unique(original)]), strict=True))
    cosine: np.ndarray = np.einsum("md,md->m", np.stack([base[i] for i in original.tolist()]), model.images(pictures))
    of = np.array([names[i] for i in original])
    drawn = np.array([not prescribed(name) for name in of])
    measured = "embedder, edited copies against other vendors' drawings, held-out names: average precision"
    return [
        precision_measure(measured, cosine[drawn], copy[drawn], of[drawn].tolist(), 0.98),
        precision_measure("… signs of prescribed form included", cosine, copy, of.tolist()),
    ]


def recoloured(work: Path) -> list[Measure]:
    """The copies guard with turned hues and without: protected drawings in other colours, and genuine other drawings."""
    import tempfile

    from jobs.lab.bench.drawing import no_copies, open_runtime, pictures_of
    from jobs.lab.world.variants import recolour

    rng = np.random.default_rng(0)
    same_subjects, other_subjects = no_copies(work)
    measures = []
    with tempfile.TemporaryDirectory() as folder:
        runtime = open_runtime(Path(folder), "observe")
        copies = runtime.copies
        assert copies is not None
        works = [(title, picture) for title, picture in sorted(pictures_of(runtime).items()) for _ in range(4)]
        turned = np.stack([np.asarray(recolour(Image.fromarray(picture), rng)) for _, picture in works])
        sets = (
            ("protected drawings in other colours, found", turned, [title for title, _ in works], "higher"),
            ("genuine other drawings of these subjects, called copies", *_apart(same_subjects), "lower"),
            ("drawings of other subjects, called copies", *_apart(other_subjects), "lower"),
        )
        for hues in (1, copies.hues):
            copies.hues = hues
            for shown, pictures, of, better in sets:
                flagged = [any(finding.triggered for finding in found) for found in copies.check(pictures)]
                measures.append(clustered(f"copies guard, {hues} hues: {shown}", flagged, of, better=better))  # type: ignore[arg-type]
    return measures


def _apart(named: Sequence[tuple[str, np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    return np.stack([picture for _, picture in named]), [name for name, _ in named]


def detectors(work: Path) -> list[Measure]:
    """mAP50 of the mark detectors on held-out names with designs that no training used; YOLO with the extra ``yolo`` only."""
    from guards.marks import MarksGuard
    from guards.yolo import YoloMarksGuard
    from index.errors import GuardUnavailable
    from jobs.lab.world import train_marks, train_yolo
    from jobs.lab.world.mark_measures import evaluate
    from pipeline.config import ModelConfig
    from pipeline.model.folder.resolve import resolve

    network = MarksGuard(logos=True)
    judges = {"marks network": (train_marks.judge_of(network.network), network.categories)}
    try:
        yolo = YoloMarksGuard()
        judges = {"YOLO": (train_yolo.judge_of(yolo.network), yolo.categories)} | judges
    except GuardUnavailable:
        print("YOLO was not measured: the extra 'yolo' is not installed")
    measures = []
    for name, (judge, categories) in judges.items():
        kinds = [category.removeprefix("mark.") for category in categories]
        report = evaluate(judge, work, kinds=kinds, shown_by=resolve(ModelConfig()))
        for look, found in report["designs"].items():
            goal = 0.90 if look == "held-out, plain" else None
            low, high = found["interval"]
            pictures = found["marks_per_kind"] * len(kinds) + found["clean"]
            measures.append(
                Measure(id=f"{name}, mAP50, {look} designs", value=found["map50"], low=low, high=high, n=pictures, goal=goal)
            )
    return measures


def precision_measure(
    name: str, scores: np.ndarray, positive: np.ndarray, clusters: Sequence[str], goal: float | None = None
) -> Measure:
    """Average precision with a bootstrap interval over whole clusters."""
    from index.precision import average_precision

    of = np.asarray(clusters)
    groups = [np.flatnonzero(of == cluster) for cluster in np.unique(of)]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        drawn.append(average_precision(scores[rows], positive[rows]))
    low, high = (float(v) for v in np.quantile(drawn, (0.025, 0.975)))
    return Measure(id=name, value=average_precision(scores, positive), low=low, high=high, n=len(scores), goal=goal)
