"""Measure the copy check on the world's drawings: fit the second look, choose the threshold, write the calibration.

Three disjoint sets of names: the second look is fitted on names outside the world that the embedder was trained on; the
threshold is chosen on held-out names, which neither was trained on; both are then measured on the protected drawings. Copies
come in two kinds: *plain* (once through the autoencoder, perhaps mirrored, as a model that memorised a drawing draws it) and
*edited* (several edits at once, see :func:`index.edits.edit`). Near misses are other vendors' drawings of the same concept,
treated alike.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from index.embed import Embedder
    from index.second_look import Look

# A flagged picture is steered, not rejected (a rejection needs the second look as well). A false alarm costs some denoiser
# evaluations, a miss releases a copy: the operating point favours recall.
STEER_FALSE_ALARMS = 0.02
ALONE_FALSE_ALARMS = 0.0025  # false alarms that the second look may add where it flags alone
VETOED_COPIES = 0.01  # share of copies that it may lose where it clears a picture that the embedder flags


@dataclass(frozen=True)
class Comparisons:
    """Pairs with labels: references and pictures uint8 (M, S, S, 3); copy and plain bool (M,)."""

    references: np.ndarray
    pictures: np.ndarray
    copy: np.ndarray
    plain: np.ndarray

    def measured(self, embedder: Embedder, confirm: Look) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and second looks of the pairs, each float64 (M,)."""
        references, pictures = (embedder.images(some).astype(np.float64) for some in (self.references, self.pictures))
        looks = [confirm(picture, reference) for picture, reference in zip(self.pictures, self.references, strict=True)]
        return np.sum(references * pictures, axis=1), np.array(looks)


def comparisons(work: Path, wanted: set[str], *, seed: int = 1, protected_only: bool = False) -> Comparisons:
    """Every drawing of the wanted names against copies of itself and near misses, two of each kind per drawing.

    Raises:
        FileNotFoundError: the autoencoder has not been trained yet.
    """
    from index.edits import foregrounds
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.copies import edit, smear
    from jobs.lab.world.pictures import load

    pixels, vendors, names = load(work)
    smeared = smear(work, pixels)
    if smeared is None:
        raise FileNotFoundError(f"{work / 'vae' / 'state.pt'}: train the autoencoder first")
    inside = foregrounds(pixels)
    rng = np.random.default_rng(seed)
    protected = {(c.protected_vendor, c.icon) for c in concepts() if c.protected_vendor}
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        if name in wanted:
            groups[name].append(i)
    rows: list[tuple[np.ndarray, np.ndarray, bool, bool]] = []
    for group in (groups[name] for name in sorted(groups) if len(groups[name]) > 1):
        for i in group:
            if protected_only and (vendors[i], names[i]) not in protected:
                continue
            other = int(rng.choice([j for j in group if j != i]))
            for source, copy in ((i, True), (other, False)):
                plain = smeared[source][:, ::-1] if rng.random() < 0.5 else smeared[source]
                rows.append((pixels[i], np.ascontiguousarray(plain), copy, True))
                start = smeared if rng.random() < 0.5 else pixels
                rows.append((pixels[i], edit(start[source], inside[source], rng), copy, False))
    references, pictures, copies, kinds = zip(*rows, strict=True)
    return Comparisons(np.stack(references), np.stack(pictures), np.array(copies), np.array(kinds))


def fit_confirm(work: Path, *, names: int = 120, seed: int = 0) -> tuple[np.ndarray, float]:
    """Weights and bias for :data:`index.confirm.WEIGHTS` and ``BIAS``: balanced logistic regression, Newton's method."""
    from index.confirm import evidence
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out, load, prescribed

    icons = {c.icon for c in concepts()}
    eligible = sorted({n for n in load(work)[2] if not held_out(n) and not prescribed(n)} - icons)
    chosen = set(np.random.default_rng(seed).choice(eligible, names, replace=False).tolist())
    pairs = comparisons(work, chosen, seed=seed)
    found = np.array([evidence(a, b) for a, b in zip(pairs.pictures, pairs.references, strict=True)])
    design = np.c_[found, np.ones(len(found))]
    weight = np.zeros(design.shape[1])
    ridge = 1e-3 * np.append(np.ones(found.shape[1]), 0)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weight))
        gradient = design.T @ (p - pairs.copy) / len(p) + ridge * weight
        hessian = (design * (p * (1 - p))[:, None]).T @ design / len(p) + np.diag(ridge + 1e-9)
        weight -= np.linalg.solve(hessian, gradient)
    return weight[:-1], float(weight[-1])


def calibrate_world(work: Path, folder: Path, path: Path, *, limit: int = 150, seed: int = 1) -> dict[str, Any]:
    """Calibrate the embedder in ``folder`` on held-out names, write ``path``, and measure it on the protected drawings.

    Args:
        work: the built world.
        folder: the shipped embedder.
        path: the calibration's file.
        limit: most held-out names to use.
    """
    from index.calibrate import calibrate
    from index.confirm import confirm
    from index.embed import OpenCLIPEmbedder
    from index.precision import average_precision
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out, load, prescribed

    embedder = OpenCLIPEmbedder.open(str(folder))
    names = sorted({n for n in load(work)[2] if held_out(n) and not prescribed(n)})
    chosen = set(np.random.default_rng(seed).permutation(names)[:limit].tolist())
    pairs = comparisons(work, chosen, seed=seed)
    cosine, second = pairs.measured(embedder, confirm)
    calibration = calibrate(
        embedder.embedder_id,
        cosine,
        pairs.copy,
        confirm=second,
        max_false_positive_rate=STEER_FALSE_ALARMS,
        max_added_rate=ALONE_FALSE_ALARMS,
        max_vetoed_rate=VETOED_COPIES,
        source=f"{len(chosen)} held-out names of the embedded world: plain and edited copies against other vendors' drawings",
    )
    calibration.save(path)
    world = comparisons(work, {c.icon for c in concepts() if c.protected_vendor}, seed=seed, protected_only=True)
    near, look = world.measured(embedder, confirm)
    report: dict[str, Any] = {"embedder_id": embedder.embedder_id, "threshold": calibration.threshold}
    for label, sample, cosines, looks in (("held_out", pairs, cosine, second), ("protected", world, near, look)):
        for kind, rows in (("plain", sample.plain), ("edited", ~sample.plain)):
            copy, above, agrees = sample.copy[rows], cosines[rows] >= calibration.threshold, looks[rows] >= 0.5
            point = calibration.point
            alone = (cosines[rows] >= point.look_from) & (looks[rows] >= point.alone_threshold)
            either = (above & (looks[rows] >= point.veto_below)) | alone
            report[f"{label}_{kind}"] = {
                "pairs": int(rows.sum()),
                "cosine_ap": round(average_precision(cosines[rows], copy), 4),
                "confirm_ap": round(average_precision(looks[rows], copy), 4),
                "recall": round(float(above[copy].mean()), 4),
                "near_misses_flagged": round(float(above[~copy].mean()), 4),
                "confirm_recall": round(float(agrees[copy].mean()), 4),
                "confirm_false": round(float(agrees[~copy].mean()), 4),
                "either_recall": round(float(either[copy].mean()), 4),
                "either_false": round(float(either[~copy].mean()), 4),
                "both_recall": round(float((above & agrees)[copy].mean()), 4),
                "both_false": round(float((above & agrees)[~copy].mean()), 4),
            }
    return report
