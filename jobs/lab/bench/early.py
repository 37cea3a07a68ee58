"""Early detection: how early and how reliably does each signal predict which sample ends as a copy, and what does it cost?

Half-memorised captions name a protected subject beside another thing, or a protected subject alone at a low guidance scale:
some seeds copy, others do not. *Seed level* compares samples of one caption only, so that only the course of the sample
itself can separate them. *Half-memorised* compares all samples of such captions. *Overall* adds captions that are always or
never copied. A sample is a copy when the copies guard flags its finished picture; the copy judge's answer is measured too.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.measures import RESAMPLES, Measure, publish, spread
from jobs.lab.world.flights import KEPT, STEPS, Flight, mixed, subjects, watch

if TYPE_CHECKING:
    from guards.copies import CopiesGuard
    from pipeline.model.interface import DiffusionModel
    from pipeline.respond.early import EarlyDetector
    from pipeline.respond.reference_latents import ReferenceLatents

SEEDS = (1, 2, 3)
GOAL, COST = 0.97, 0.02
TOLD = (3, 5, 6, 10)  # after so many of 20 steps
BY_A_QUARTER = 5
LEVELS = ("seed level", "half-memorised", "overall")
LOOSE = 1.0  # guidance scale at which a protected caption is only half-memorised
HALF = ("mixed", "loose")  # kinds of flights
SHIPPED = "latent cosine"  # the signal of the shipped policy's probes
PLAIN = "latent cosine, colours as they are"
DSM = "change of the text direction"  # from one step to the next
LITERATURE = ("text norm", "update norm", DSM)
RARE = 0.01  # share of the harmless samples at which the share of found copies counts


@dataclass(frozen=True)
class Seen:
    """The flights of all seeds: their captions, whether they copied, and each signal's score (N, kept) by step."""

    flights: list[Flight]
    copy: np.ndarray
    judged: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def captions(self) -> np.ndarray:
        return np.array([f.caption for f in self.flights])


def bench_flights(seed: int, *, quick: bool = False) -> list[Flight]:
    """The flights of one seed: half-memorised captions four times each, protected and ordinary ones once.

    Half of the protected subjects of half-memorised captions were kept from the head's training.
    """
    rng = np.random.default_rng(4242)  # the same captions for every seed
    seen, unseen, ordinary = subjects()
    pairs = zip([*rng.permutation(unseen)[:6], *rng.permutation(seen)[:6]], rng.permutation(ordinary)[:12], strict=True)
    half = [("mixed", mixed(str(a), str(b), turn), str(a)) for turn, (a, b) in enumerate(pairs)]
    plain = [("plain", str(name), str(name)) for name in rng.permutation([*seen, *unseen])[: 3 if quick else 10]]
    rest = [("ordinary", str(name), "") for name in rng.permutation(ordinary)[: 3 if quick else 20]]
    alone = [*rng.permutation(unseen)[: 2 if quick else 8], *rng.permutation(seen)[: 2 if quick else 8]]
    half = (half[4:8] if quick else half) + [("loose", f"a drawing of a {name}", str(name)) for name in alone]
    wanted = [one for one in half for _ in range(3 if quick else 4)] + plain + rest
    return [
        Flight(
            kind=kind, caption=caption, subject=subject, seed=1_000_000 * seed + i, guidance=LOOSE if kind == "loose" else 3.0
        )
        for i, (kind, caption, subject) in enumerate(wanted)
    ]


def bench(out: Path, *, quick: bool = False, work: Path | None = None) -> None:
    """Measure and publish ``early``; the chart is ``out/early.svg``. ``work`` keeps the flights of a stopped bench."""

    from jobs.lab.judges.judges import Judges
    from jobs.lab.world.calibrate_head import copied, copies_guard
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model
    from pipeline.model.sampling.choose import make_sampler
    from pipeline.policy import EarlyPolicy
    from pipeline.respond.early import HEAD, EarlyDetector, Thresholds
    from pipeline.respond.latent_head import LatentHead
    from pipeline.respond.reference_latents import ReferenceLatents

    seeds = SEEDS[:1] if quick else SEEDS
    model = load_model(ModelConfig())
    sampler = make_sampler(model, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        guard = copies_guard(Path(folder))
        ReferenceLatents.require_few(guard.index)
        head = LatentHead.open(HEAD, model.digest, guard.embedder.embedder_id)
        ways = {"head": head, "decode + embed": None} if head is not None else {"decode + embed": None}
        owners = model.digest, guard.embedder.embedder_id
        looks = {}
        for name, h in ways.items():
            kinds = ("decode", "decode+text") if h is None else ("head", "head+text")
            bare, with_text = (Thresholds.load(HEAD / "thresholds.json", kind, *owners) for kind in kinds)
            looks[name] = EarlyDetector(EarlyPolicy(), model, sampler, guard, h, bare, with_text)
        flights = [f for seed in seeds for f in bench_flights(seed, quick=quick)]
        data = [_flown(model, bench_flights(seed, quick=quick), work) for seed in seeds]
        joined = {name: np.concatenate([part[name] for part in data]) for name in data[0]}
        ids = [r.ref_id for r in guard.index.references()]
        references = np.stack([_picture(guard, ref_id) for ref_id in ids])
        latents = ReferenceLatents.encoded(guard.index, model, guard.hues)
        plain = ReferenceLatents.encoded(guard.index, model, 1)
        nearest = guard.embedder.images(joined["pictures"]) @ guard.embedder.images(references).T
        judges = Judges.open()
        judged = judges.copies(joined["pictures"], references[nearest.argmax(1)])
        seen = Seen(
            flights,
            copied(guard, joined["pictures"]),
            np.asarray(judged >= judges.settings["copies"]["operating_points"]["0.05"]),
            _scores(joined, flights, guard, looks, {SHIPPED: latents, PLAIN: plain}, references),
        )
        costs = _costs(model, guard, looks, latents, quick=quick)
    curves = {
        level: {name: [area(name, s[:, i], seen, level) for i in range(KEPT)] for name, s in seen.scores.items()}
        for level in LEVELS
    }
    measures = [*_rates(seen), *_areas(seen, curves), *costs]
    lines = {
        level: {name: [[m.value, m.low, m.high] for m in found] for name, found in by.items()} for level, by in curves.items()
    }
    publish("early", measures, out, seeds=seeds, quick=quick, more={"steps": list(range(1, KEPT + 1)), "auc": lines})
    (out / f"early{'-quick' if quick else ''}.svg").write_text(chart(lines), encoding="utf-8")


def area(name: str, scores: np.ndarray, seen: Seen, level: str, goal: float | None = None, label: str = "guard") -> Measure:
    """Area under the ROC curve with a bootstrap interval over whole captions.

    Args:
        name: of the measure.
        scores: (N,): higher means a copy.
        seen: labels and captions.
        level: ``seed level`` counts pairs within one caption alone; ``half-memorised`` all pairs of such captions; ``overall``
            all there are; ``unseen`` those of protected subjects that the head never saw, and of ordinary captions.
        goal: if any.
        label: ``guard`` or ``judge``: which of them decides whether a finished picture is a copy.
    """
    copy, captions = (seen.copy if label == "guard" else seen.judged), seen.captions
    if level in ("unseen", "half-memorised"):
        unseen = subjects()[1]
        half = level == "half-memorised"
        held = np.array([f.kind in HALF if half else f.kind == "ordinary" or f.subject in unseen for f in seen.flights])
        copy, captions, scores = copy[held], captions[held], scores[held]
    names, of = np.unique(captions, return_inverse=True)
    yes, no = np.flatnonzero(copy), np.flatnonzero(~copy)
    wins = (scores[yes, None] > scores[None, no]) + 0.5 * (scores[yes, None] == scores[None, no])
    pairs = (of[yes, None] == of[None, no]).astype(float) if level == "seed level" else np.ones_like(wins)
    if not pairs.sum():
        return Measure(id=name, value=0.5, low=0.0, high=1.0, n=0, goal=goal)
    clusters = np.zeros((2, len(names), len(names)))
    for table, values in zip(clusters, (wins * pairs, pairs), strict=True):
        np.add.at(table, (of[yes, None].repeat(len(no), 1), of[None, no].repeat(len(yes), 0)), values)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES).astype(float)
    if level != "seed level":  # pairs of two captions count as often as both were drawn
        sums = [np.einsum("bi,ij,bj->b", drawn, table, drawn, optimize=True) for table in clusters]
    else:
        sums = [drawn @ np.diagonal(table) for table in clusters]
    kept = sums[1] > 0
    low, high = np.quantile(sums[0][kept] / sums[1][kept], (0.025, 0.975))
    return Measure(
        id=name,
        value=float((wins * pairs).sum() / pairs.sum()),
        low=float(low),
        high=float(high),
        n=int(pairs.sum()),
        goal=goal,
    )


def found_at(name: str, scores: np.ndarray, seen: Seen, level: str, alarms: float = RARE) -> Measure:
    """The share of copies whose score is above all but a share ``alarms`` of the others' (TPR at that FPR).

    The interval resamples whole captions, the threshold along with them. A signal that is lower for copies is turned round.
    """
    kinds = np.array([f.kind for f in seen.flights])
    held = np.isin(kinds, HALF) if level == "half-memorised" else np.ones(len(kinds), bool)
    copy, captions, scores = seen.copy[held], seen.captions[held], scores[held]
    if copy.all() or not copy.any():
        return Measure(id=name, value=0.0, low=0.0, high=1.0, n=0)
    if scores[copy].mean() < scores[~copy].mean():
        scores = -scores

    def share(rows: np.ndarray) -> float:
        s, c = scores[rows], copy[rows]
        return float((s[c] > np.quantile(s[~c], 1 - alarms)).mean()) if c.any() and not c.all() else np.nan

    groups = [np.flatnonzero(captions == one) for one in np.unique(captions)]
    rng = np.random.default_rng(0)
    drawn = [share(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])) for _ in range(400)]
    low, high = (float(v) for v in np.nanquantile(drawn, (0.025, 0.975)))
    return Measure(id=name, value=share(np.arange(len(copy))), low=low, high=high, n=int(copy.sum()))


def _flown(model: DiffusionModel, flights: Sequence[Flight], work: Path | None) -> dict[str, np.ndarray]:
    """The recorded flights; kept under ``work`` by a digest of the model and the flights."""
    digest = hashlib.sha256(repr((model.digest, flights)).encode()).hexdigest()[:16]
    kept = work / "early" / f"flights-{digest}.npz" if work is not None else None
    if kept is not None and kept.exists():
        with np.load(kept) as stored:
            return dict(stored)
    seen = watch(model, flights)
    found = {
        "clean": seen.clean, "text_norms": seen.text_norms, "update_norms": seen.update_norms,
        "score_changes": seen.score_changes, "pictures": seen.pictures,
    }  # fmt: skip
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".tmp.npz")
        np.savez(temporary, **found)  # type: ignore[arg-type]
        temporary.rename(kept)
    return found


def _picture(guard: CopiesGuard, ref_id: str) -> np.ndarray:
    picture = guard.index.picture(ref_id)
    assert picture is not None
    return picture


def _scores(
    data: dict[str, np.ndarray],
    flights: Sequence[Flight],
    guard: CopiesGuard,
    looks: dict[str, EarlyDetector],
    latents: dict[str, ReferenceLatents],
    references: np.ndarray,
) -> dict[str, np.ndarray]:
    """Every signal's score (N, kept): after step i + 1, higher means a copy."""
    import torch

    clean = data["clean"].astype(np.float32)
    n, embedded = len(clean), guard.embedder.images(references)
    taken = np.arange(1, KEPT + 1)
    found = {
        "text norm": np.cumsum(data["text_norms"][:, :KEPT], 1) / taken,
        "update norm": data["update_norms"][:, :KEPT],
        DSM: np.cumsum(data["score_changes"][:, :KEPT], 1) / taken,
    }
    for name, searched in latents.items():
        near = searched.search([torch.from_numpy(x) for flight in clean for x in flight], 1)
        found[name] = np.array([hit.match.similarity for (hit,) in near], np.float32).reshape(n, KEPT)
    for name, look in looks.items():
        best = np.zeros((n, KEPT), np.float32)
        for step in range(KEPT):
            for at in range(0, n, 64):
                rows = [torch.from_numpy(x) for x in clean[at : at + 64, step]]
                best[at : at + 64, step] = (look.place(rows, [look.sampler.signal[step]] * len(rows)) @ embedded.T).max(1)
        found[name] = best
        levels = [look.level(step, text=True) for step in range(KEPT)]
        weights = np.array([level.text_weight if level is not None else 0.0 for level in levels])
        if weights.any():  # the score that probes decide by
            found[f"{name} + text norm"] = best + weights * found["text norm"]
    captions = list(dict.fromkeys(f.caption for f in flights))
    by_reference = next(iter(looks.values())).text_scores(captions)
    texts = {caption: max(scores.values()) for caption, scores in zip(captions, by_reference, strict=True)}
    found["prompt"] = np.repeat(np.array([[texts[f.caption]] for f in flights], np.float32), KEPT, 1)
    return found


def _rates(seen: Seen) -> list[Measure]:
    from jobs.lab.bench.measures import clustered

    kinds = np.array([f.kind for f in seen.flights])
    names = {"mixed": "captions of two things copy (guard)", "loose": f"protected captions at guidance {LOOSE:g} copy (guard)"}
    names |= {"plain": "protected captions copy (guard)"}
    names |= {"ordinary": "ordinary captions copy (guard)"}
    found = [clustered(text, seen.copy[kinds == kind], seen.captions[kinds == kind].tolist()) for kind, text in names.items()]
    agree = (seen.copy == seen.judged).astype(float)
    return [*found, clustered("guard and judge agree on the finished picture", agree, seen.captions.tolist())]


def _areas(seen: Seen, curves: dict[str, dict[str, list[Measure]]]) -> list[Measure]:
    from dataclasses import replace

    found = []
    for level, by in curves.items():
        for name, steps in by.items():
            for taken in TOLD if name == SHIPPED else (BY_A_QUARTER,):
                goal = GOAL if (name, level, taken) == (SHIPPED, "seed level", BY_A_QUARTER) else None
                found.append(replace(steps[taken - 1], id=f"AUC {level} after {taken} of {STEPS} steps: {name}", goal=goal))
    at = BY_A_QUARTER - 1
    when = f"after {BY_A_QUARTER} of {STEPS} steps"
    shipped = seen.scores[SHIPPED][:, at]
    found.append(area(f"… overall {when}, by the judge's word: {SHIPPED}", shipped, seen, "overall", label="judge"))
    for name in (SHIPPED, *(n for n in seen.scores if n.startswith("head"))):
        found.append(area(f"… subjects the head never saw, {when}: {name}", seen.scores[name][:, at], seen, "unseen"))
    for level in ("half-memorised", "overall"):
        for name, scores in seen.scores.items():
            found.append(
                found_at(f"copies found at {RARE:.0%} false alarms {level} {when}: {name}", scores[:, at], seen, level)
            )
    for level in LEVELS:
        rivals = [max(m.value, 1 - m.value) for m in (curves[level][name][at] for name in LITERATURE)]
        lead = curves[level][SHIPPED][at].value - max(rivals)
        found.append(
            Measure(
                id=f"{SHIPPED} above the better of {' and '.join(LITERATURE)}, {level}",
                value=lead,
                low=lead,
                high=lead,
                n=1,
                goal=0.0,
            )
        )
    return found


def _costs(
    model: DiffusionModel, guard: CopiesGuard, looks: dict[str, EarlyDetector], latents: ReferenceLatents, *, quick: bool
) -> list[Measure]:
    """Time of the default probes of eight samples and of arming their eight prompts, as a share of the time to denoise them."""
    import torch

    from pipeline.policy import EarlyPolicy

    probes = len(EarlyPolicy().probes)
    rows = torch.zeros(16, *model.latent_shape)
    context = model.encode_prompts([""])[0].expand(16)
    stamps = torch.full((16,), 500)
    cleans = list(torch.randn(8, *model.latent_shape, generator=torch.Generator().manual_seed(0)))
    shares: dict[str, list[float]] = {name: [] for name in (SHIPPED, *looks, "prompt")}
    for turn in range(3 if quick else 9):
        call = min(_seconds(lambda: model.denoise(rows, stamps, context, 1.0)) for _ in range(2))
        shares[SHIPPED].append(probes * _seconds(lambda: latents.search(cleans, guard.k)) / (STEPS * call))
        for name, look in looks.items():
            took = _seconds(lambda look=look: guard.index.search(look.place(cleans, [look.sampler.signal[4]] * 8), guard.k))  # type: ignore[misc]
            shares[name].append(probes * took / (STEPS * call))
        prompts = [f"a drawing of {turn} and {i}" for i in range(8)]
        took = _seconds(lambda prompts=prompts: next(iter(looks.values())).text_scores(prompts))  # type: ignore[misc]
        shares["prompt"].append(took / (STEPS * call))
    single = [spread(f"share of the denoising time: {probes} probes, {name}", shares[name]) for name in (SHIPPED, *looks)]
    single.append(spread("share of the denoising time: arming by the prompt", shares["prompt"]))
    both = [a + b for a, b in zip(shares[SHIPPED], shares["prompt"], strict=True)]
    return [*single, spread(f"share of the denoising time: {SHIPPED} and arming", both, COST, "lower")]


def _seconds(job: Any) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def chart(lines: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """The bench's chart from the entry ``auc`` of its JSON: level → signal → (value, low, high) after every step."""
    from jobs.lab.bench.curves import Curve, Panel, charts

    words = {"seed level": "same caption, other seeds", "overall": "all captions"}
    panels = [
        Panel(
            f"AUC for ending as a copy: {words.get(level, 'half-memorised captions')}",
            [Curve(name, [(value, low, high) for value, low, high in values]) for name, values in by.items()],
            SHIPPED,
        )
        for level, by in lines.items()
    ]
    return charts(
        panels,
        range(1, KEPT + 1),
        at=BY_A_QUARTER - 1,
        goal=GOAL,
        below=f"denoising steps taken, of {STEPS}; dashed: the goal",
        beside=f"After {BY_A_QUARTER} steps, with 95 % intervals",
    )
