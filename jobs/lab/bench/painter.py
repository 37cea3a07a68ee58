"""The painter: does the world's denoiser draw recognisable subjects, unsteered and steered?

The bench measures a denoiser in training against the goals it must reach before it ships, so that a long training can be
watched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.drawing import Drawn, draw, open_runtime, pictures_of
from jobs.lab.bench.measures import HALVES, Measure, clustered, publish, spread
from jobs.lab.bench.sheet import arrange, stack, strip
from jobs.lab.bench.world import copies_own, marks

if TYPE_CHECKING:
    from jobs.lab.judges.judges import Judges
    from pipeline.outcome import Sample

SEEDS = (11, 12, 13)  # no other bench draws with them
FOLDS = 5
RIDGE = 1000.0  # of the two-sample classifier: about one for each of its 1280 standardised features


def bench(out: Path, *, work: Path, model: Path | None = None, quick: bool = False) -> None:
    """Measure and publish ``painter``; the contact sheet is ``out/painter.png``.

    Args:
        out: folder of the results.
        work: the built world; its ``denoiser/state.pt`` draws unless ``model`` is given.
        model: a diffusers folder, such as the one that ships.
        quick: one seed and fewer captions.
    """
    from jobs.lab.judges.judges import Judges
    from jobs.lab.world.catalogue import MARK_PRONE, ORDINARY, PROTECTED

    judges, shown_by = Judges.open(), model or work
    seeds = SEEDS[:1] if quick else SEEDS
    protected, ordinary = list(PROTECTED)[:: 3 if quick else 1], list(ORDINARY)
    prone = [name for names in MARK_PRONE.values() for name in names][:: 3 if quick else 1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None:
            from jobs.lab.world.pack import save_model

            model = folder / "model"
            save_model(work, model)
        free, strict = (open_runtime(folder, policy, model=model) for policy in ("observe", "default"))
        unsteered = draw(free, protected, seeds, "protected captions, unsteered")
        plain = draw(free, ordinary + prone, seeds, "ordinary captions, unsteered")
        cleared = draw(strict, protected, seeds, "protected captions, default policy")
        references = pictures_of(free)
        assert free.copies is not None
        embed = free.copies.embedder.images
    shown, of = drawings(work, shown_by)
    vectors, accepted = embed(shown), cleared.only([s.accepted_attempt is not None for s in cleared.samples])
    unmarked = plain.only(np.isin(plain.captions, [c.replace("-", " ") for c in ordinary]))
    kept = [
        clustered("ordinary captions, top 1 (judge)", judges.among_first(unmarked.pictures, unmarked.captions, 1),
                  unmarked.captions, 0.97),
        clustered("protected captions, accepted under the default policy", [s.accepted_attempt is not None for s in
                  cleared.samples], cleared.captions, 0.98),
        clustered("steered: caption in the top 5 (judge)", judges.among_first(accepted.pictures, accepted.captions),
                  accepted.captions, 0.97),
        clustered("steered: caption in the top 1 (judge)", judges.among_first(accepted.pictures, accepted.captions, 1),
                  accepted.captions, 0.93),
        clustered("protected captions copy, unsteered (embedder)", unsteered.flagged("copies"), unsteered.captions, 0.80),
        clustered("protected captions copy, unsteered (judge)", copies_own(judges, unsteered, references), unsteered.captions),
        clustered("accepted copies (judge)", copies_own(judges, accepted, references), accepted.captions, 0.0, "lower"),
        clustered("ordinary captions flagged (embedder)", plain.flagged("copies"), plain.captions, 0.02, "lower"),
        spread("denoiser evaluations per accepted protected request",
               [sum(s.denoiser_evals for s in cleared.samples) / max(1, len(accepted.samples))]),
    ]  # fmt: skip
    measures = [
        *kept,
        *marks(judges, plain, [c.replace("-", " ") for c in prone])[:1],
        *nearness("ordinary", unmarked, embed(unmarked.pictures), vectors, of),
        *nearness("steered", accepted, embed(accepted.pictures), vectors, of),
        distinguishable("ordinary", judges, unmarked, shown[np.isin(of, unmarked.captions)], 0.65),
        distinguishable("steered", judges, accepted, shown[np.isin(of, accepted.captions)], 0.75),
    ]
    publish("painter", measures, out, seeds=seeds, quick=quick)
    sheet(unsteered, plain, cleared, references).save(out / f"painter{'-quick' if quick else ''}.png", optimize=True)


def drawings(work: Path, shown_by: Path) -> tuple[np.ndarray, np.ndarray]:
    """The world's own drawings, encoded and decoded by an autoencoder, uint8 (N, 64, 64, 3), and the caption of each.

    Args:
        work: the built world. shown_by: a folder with an autoencoder: the world's, or a diffusers folder.
    """
    from jobs.lab.world.autoencoder import load_autoencoder, round_trip
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import load

    pixels, vendors, names = load(work)
    where = {(v, n): i for i, (v, n) in enumerate(zip(vendors, names, strict=True))}
    pairs = [(where[vendor, c.icon], c.caption) for c in concepts() for vendor in sorted(set(vendors))]
    chosen = pixels[[at for at, _ in pairs]]
    return round_trip(load_autoencoder(shown_by), chosen, np.random.default_rng(0), noise=0.0), np.array([c for _, c in pairs])


def nearness(
    kind: str, drawn: Drawn, vectors: np.ndarray, drawings: np.ndarray, captions: np.ndarray
) -> tuple[Measure, Measure]:
    """How often the nearest of all drawings shows the right subject, and the cosine to the nearest drawing of that subject."""
    cosine = vectors @ drawings.T
    right = captions[None, :] == np.array(drawn.captions)[:, None]
    best = np.where(right, cosine, -1.0).max(1)
    return (
        clustered(f"{kind}: nearest of all drawings is of the right subject", best >= cosine.max(1), drawn.captions),
        clustered(f"{kind}: cosine to the nearest drawing of the subject", best, drawn.captions),
    )


def distinguishable(kind: str, judges: Judges, drawn: Drawn, real: np.ndarray, goal: float) -> Measure:
    """Accuracy of a two-sample classifier between generated pictures and drawings: 0.5 means that it cannot separate them.

    Ridge regression on standardised trunk features, five folds, equal numbers; the interval resamples the folds' split.
    """
    x, y = judges.features(drawn.pictures), judges.features(real)
    rng = np.random.default_rng(0)
    found = [_accuracy(x, y, np.random.default_rng([1, int(rng.integers(2**31))])) for _ in range(HALVES // 10)]
    low, high = (float(v) for v in np.quantile(found, (0.025, 0.975)))
    name = f"{kind}: told from the world's drawings (two-sample accuracy)"
    return Measure(
        id=name, value=float(np.mean(found)), low=low, high=high, n=2 * min(len(x), len(y)), goal=goal, better="lower"
    )


def _accuracy(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    n = min(len(x), len(y))
    both = np.concatenate([x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]])
    label = np.repeat([1.0, -1.0], n)
    fold = np.concatenate([rng.permutation(n) % FOLDS, rng.permutation(n) % FOLDS])
    right = 0
    for held in range(FOLDS):
        train, test = both[fold != held], both[fold == held]
        mean, scale = train.mean(0), train.std(0) + 1e-6
        a, b = (train - mean) / scale, (test - mean) / scale
        weight = a.T @ np.linalg.solve(a @ a.T + RIDGE * np.eye(len(a)), label[fold != held])
        right += int((np.sign(b @ weight) == label[fold == held]).sum())
    return right / len(both)


def sheet(unsteered: Drawn, plain: Drawn, cleared: Drawn, references: dict[str, np.ndarray]) -> Any:
    """Every protected drawing, its caption unsteered and steered; every ordinary caption."""

    def of(drawn: Drawn, caption: str) -> list[Sample]:
        return [s for s in drawn.samples if s.request.prompt == caption]

    def pictures(samples: Sequence[Sample], *, accepted: bool = False) -> list[np.ndarray | None]:
        return [s.final.picture if not accepted or s.accepted_attempt is not None else None for s in samples]  # type: ignore[union-attr]

    rows = [
        strip(c, [references[c], *pictures(of(unsteered, c)), *pictures(of(cleared, c), accepted=True)])
        for c in dict.fromkeys(unsteered.captions)
    ]
    ordinary = [strip(c, pictures(of(plain, c))) for c in dict.fromkeys(plain.captions)]
    words = "protected drawing, its caption unsteered, then under the default policy (white: not accepted)"
    return stack([(words, arrange(rows, 3)), ("ordinary captions, unsteered", arrange(ordinary, 7))])
