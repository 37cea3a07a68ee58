"""The embedded world: its captions, copies and marks, and the default policy on it, measured by independent judges."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.before_after import before_after, trios
from jobs.lab.bench.drawing import Drawn, draw, open_runtime, pictures_of
from jobs.lab.bench.measures import Measure, clustered, publish, spread
from jobs.lab.bench.sheet import arrange, stack, strip

if TYPE_CHECKING:
    from jobs.lab.judges.judges import Judges
    from pipeline.outcome import Sample
    from pipeline.runtime import Runtime

SEEDS = (1, 2, 3)


def bench(out: Path, *, quick: bool = False, work: Path | None = None) -> None:
    """Measure and publish ``world``; the contact sheet is ``out/world.png``, the README's picture ``out/before-after.png``."""
    from jobs.lab.judges.judges import Judges
    from jobs.lab.world.catalogue import MARK_PRONE, ORDINARY, PROTECTED

    judges = Judges.open()
    seeds = SEEDS[:1] if quick else SEEDS
    protected, ordinary = list(PROTECTED)[: 6 if quick else None], list(ORDINARY)[: 4 if quick else None]
    prone = [name for names in MARK_PRONE.values() for name in names][: 4 if quick else None]
    with tempfile.TemporaryDirectory() as folder:
        free, strict = (open_runtime(Path(folder), policy) for policy in ("observe", "default"))
        unsteered = draw(free, protected, seeds, "protected captions, unsteered")
        plain = draw(free, ordinary + prone, seeds, "ordinary captions, unsteered")
        cleared = draw(strict, protected, seeds, "protected captions, default policy")
        references = pictures_of(free)
    measures = [
        *captions_kept(judges, unsteered, plain),
        *copies(judges, free, unsteered, plain, references),
        *marks(judges, plain, [c.replace("-", " ") for c in prone]),
        *policy(judges, cleared, references),
    ]
    if work is not None:
        from jobs.lab.bench.held_out import held_out_measures

        measures += held_out_measures(work)
    publish("world", measures, out, seeds=seeds, quick=quick)
    suffix = "-quick" if quick else ""
    sheet = contact_sheet(judges, unsteered, plain, cleared, references, len(seeds))
    sheet.save(out / f"world{suffix}.png", optimize=True)
    before_after(trios(unsteered, cleared, references)).save(out / f"before-after{suffix}.png", optimize=True)


def right_in_five(judges: Judges, drawn: Drawn) -> np.ndarray:
    """bool (N,): the right caption is among the caption judge's five likeliest."""
    return judges.among_first(drawn.pictures, drawn.captions)


def is_copy(judges: Judges, pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """bool (N,): the copy judge, set to 5 % false alarms, calls the picture a copy of the reference."""
    return np.asarray(judges.copies(pictures, references) >= judges.settings["copies"]["operating_points"]["0.05"])


def copies_own(judges: Judges, drawn: Drawn, references: dict[str, np.ndarray]) -> np.ndarray:
    """bool (N,): the copy judge finds the drawing protected under the picture's own caption."""
    return is_copy(judges, drawn.pictures, np.stack([references[caption] for caption in drawn.captions]))


def copies_any(judges: Judges, drawn: Drawn, runtime: Runtime) -> np.ndarray:
    """bool (N,): the copy judge finds one of the references nearest to the picture."""
    assert runtime.index is not None
    cases = [
        (i, picture)
        for i, s in enumerate(drawn.samples)
        for match in s.final.nearest  # type: ignore[union-attr]
        if (picture := runtime.index.picture(match.ref_id)) is not None
    ]
    rows = np.array([i for i, _ in cases], int)
    found = np.zeros(len(drawn.samples), bool)
    np.logical_or.at(found, rows, is_copy(judges, drawn.pictures[rows], np.stack([picture for _, picture in cases])))
    return found


def captions_kept(judges: Judges, unsteered: Drawn, plain: Drawn) -> list[Measure]:
    both = Drawn([*unsteered.samples, *plain.samples])
    return [
        clustered("captions right in the top 5 (judge)", right_in_five(judges, both), both.captions, 0.80),
        clustered("… of ordinary captions alone", right_in_five(judges, plain), plain.captions),
    ]


def copies(
    judges: Judges, runtime: Runtime, unsteered: Drawn, plain: Drawn, references: dict[str, np.ndarray]
) -> list[Measure]:
    by_embedder, by_judge = unsteered.flagged("copies"), copies_own(judges, unsteered, references)
    return [
        clustered("protected captions copy, unsteered (embedder)", by_embedder, unsteered.captions, 0.80),
        clustered("protected captions copy, unsteered (judge)", by_judge, unsteered.captions, 0.80),
        clustered("ordinary captions copy (embedder)", plain.flagged("copies"), plain.captions, 0.02, "lower"),
        clustered("ordinary captions copy (judge)", copies_any(judges, plain, runtime), plain.captions, 0.02, "lower"),
    ]


def marks(judges: Judges, plain: Drawn, prone: Sequence[str]) -> list[Measure]:
    ours = plain.flagged("marks")
    judged: np.ndarray = np.max(judges.marks(plain.pictures) >= 0.5, axis=1)
    both: np.ndarray = np.logical_and(ours, judged)
    rest: np.ndarray = ~np.isin(plain.captions, prone)
    found = [
        clustered("ordinary pictures marked (detector and judge agree)", both, plain.captions, 0.15, most=0.40),
        clustered("… by the pipeline's detector", ours, plain.captions),
        clustered("… by the judge", judged, plain.captions),
        clustered("… by both, subjects not prone to marks", both[rest], plain.only(rest).captions),
    ]
    if (yolo := by_yolo(plain.pictures)) is not None:
        agreed: np.ndarray = np.logical_and(ours, yolo)
        found.append(clustered("ordinary pictures marked (detector and YOLO agree)", agreed, plain.captions, 0.15, most=0.40))
        found.append(clustered("… by YOLO", yolo, plain.captions))
    return found


def by_yolo(pictures: np.ndarray) -> np.ndarray | None:
    """bool (N,): YOLO finds a mark; None without the extra ``yolo``."""
    from guards.yolo import YoloMarksGuard
    from index.errors import GuardUnavailable

    try:
        guard = YoloMarksGuard()
    except GuardUnavailable:
        return None
    return np.array([any(finding.triggered for finding in findings) for findings in guard.check(pictures)])


def policy(judges: Judges, cleared: Drawn, references: dict[str, np.ndarray]) -> list[Measure]:
    from pipeline.outcome import Outcome

    ended = np.array([s.accepted_attempt is not None for s in cleared.samples])
    accepted = cleared.only(ended)
    steered = cleared.only([s.outcome is Outcome.ACCEPTED_AFTER_STEERING for s in cleared.samples])
    evals = sum(s.denoiser_evals for s in cleared.samples)
    return [
        clustered("protected captions, default policy: accepted", ended, cleared.captions, 0.98),
        clustered("accepted copies (embedder)", accepted.flagged("copies"), accepted.captions, 0.0, "lower"),
        clustered("accepted copies (judge)", copies_own(judges, accepted, references), accepted.captions, 0.0, "lower"),
        clustered("steered pictures still right in the top 5 (judge)", right_in_five(judges, steered), steered.captions, 0.80),
        spread("denoiser evaluations per accepted protected request", [evals / max(1, len(accepted.samples))]),
    ]


# --- pictures --------------------------------------------------------------------------------------------------------------


def contact_sheet(
    judges: Judges, unsteered: Drawn, plain: Drawn, cleared: Drawn, references: dict[str, np.ndarray], seeds: int
) -> Any:
    """Protected drawings beside the model's pictures of their captions; ordinary captions; marked samples."""

    def of(drawn: Drawn, caption: str) -> list[Sample]:
        return [s for s in drawn.samples if s.request.prompt == caption]

    rows = []
    for caption in list(dict.fromkeys(unsteered.captions))[:24]:
        free = [s.final.picture for s in of(unsteered, caption)]  # type: ignore[union-attr]
        ours = [s.final.picture if s.accepted_attempt is not None else None for s in of(cleared, caption)]  # type: ignore[union-attr]
        rows.append(strip(caption, [references[caption], *free, *ours]))
    ordinary = [
        strip(caption, [s.final.picture for s in of(plain, caption)])  # type: ignore[union-attr]
        for caption in dict.fromkeys(plain.captions)
    ]
    scores = judges.marks(plain.pictures)
    worst = [i for i in np.argsort(-scores.max(1), kind="stable")[:36] if scores[i].max() >= 0.5]
    kinds = ("watermark", "qr", "text")
    marked = [strip(kinds[int(scores[i].argmax())], [plain.pictures[i]]) for i in worst]
    many = f"{seeds} seed{'s' if seeds > 1 else ''}"
    words = f"protected drawing, then {many} unsteered, then the same under the default policy (white: not accepted)"
    parts = [(words, arrange(rows, 3)), (f"ordinary captions, {many}, unsteered", arrange(ordinary, 7))]
    return stack([*parts, *([("what the mark judge is surest of", arrange(marked, 18))] if marked else [])])
