"""Fit all three judges, measure them on data they were not fitted on, write heads, numbers and card.

Examples and their maps are kept in ``work/judges``: a stopped fit continues from them, and another fit starts at once. Delete
the folder to draw them anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.judges.judges import SETTINGS, WEIGHTS, Judges
from jobs.lab.judges.own_marks import KINDS
from jobs.lab.judges.trunk import SHA256, Trunk

VIEWS, TEST_VIEWS = 24, 5  # per drawing, caption judge
EXAMPLES = (60000, 60000, 30000)  # mark judge: of the world's drawings, of others, of the painter's pictures
CHUNK, MINUTES = 2500, 215  # mark judge: examples a file; minutes of one core
PAINTED, TUNED, APART = 900, 600, 400  # mark judge: pictures by the painter and by its fine-tuning; those kept apart, of each
NAMES, PER_DRAWING = 150, 3  # copy judge: names fitted on; copies and near misses per drawing
Say = Callable[[str], None]


def make(work: Path, target: Path, *, share: float = 1.0, say: Say = print) -> dict[str, Any]:
    """Fit the judges on the world in ``work`` and write them to ``target``; returns the measured numbers.

    Args:
        work: the built world; examples are kept here.
        target: gets weights, numbers and card.
        share: of the examples and of the time that the judges that ship took; what they are measured on stays the same.
        say: where progress goes.
    """
    from safetensors.torch import save_file

    from jobs.lab.judges.card import card

    kept = work / "judges"
    kept.mkdir(parents=True, exist_ok=True)
    trunk, started = Trunk.open(), time.time()
    weights: dict[str, Any] = {}
    settings: dict[str, Any] = {"version": 1, "trunk_sha256": SHA256}
    for name, stage in (("captions", captions), ("copies", copies), ("marks", marks)):
        found, settings[name] = stage(work, kept, trunk, share, say)
        weights |= {f"{name}.{key}": value.half().contiguous() for key, value in found.items()}
        say(f"{name}: {json.dumps(settings[name]['measured'])} ({time.time() - started:.0f} s)")
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    (target / WEIGHTS).chmod(0o644)
    (target / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    manifest = json.loads((work / "manifest.json").read_text(encoding="utf-8"))
    (target / "README.md").write_text(card(target, settings, manifest), encoding="utf-8")
    Judges.open(target)  # what was written can be read
    return settings


def captions(work: Path, kept: Path, trunk: Trunk, share: float, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
    """The caption judge: (weights, settings). Measured on views by another seed, and on each vendor left out of the fit."""
    from jobs.lab.judges.captions import describe
    from jobs.lab.judges.fit_captions import fit, top, views, world_rows
    from jobs.lab.world.pictures import load

    _, vendors, names = load(work)
    rows, concept, order = world_rows(names)

    def draw(each: int, seed: int) -> dict[str, np.ndarray]:
        pictures, shown, sources = views(work, rows, concept, each=each, seed=seed)
        vectors = np.concatenate([describe(trunk.look(pictures[at : at + 64])).numpy() for at in range(0, len(pictures), 64)])
        return {"vectors": vectors, "concept": shown, "sources": sources}

    each = max(2, round(VIEWS * share))
    seen = _keep(kept / f"captions_fit_{each}.npz", lambda: draw(each, 0), say)
    test = _keep(kept / "captions_test.npz", lambda: draw(TEST_VIEWS, 1), say)
    weight, bias = fit(seen["vectors"], seen["concept"], len(order))
    measured: dict[str, Any] = {"views": len(test["vectors"])}
    for k in (1, 5):
        measured[f"top{k}"] = _rate(top(test["vectors"], test["concept"], weight, bias, k))
    by = np.array(vendors)
    for vendor in sorted(set(vendors)):
        away = (by[seen["sources"]] != vendor).all(1)
        theirs = (by[test["sources"]] == vendor).all(1)
        w, b = fit(seen["vectors"][away], seen["concept"][away], len(order), epochs=10)
        for k in (1, 5):
            measured[f"without_{vendor}_top{k}"] = _rate(top(test["vectors"][theirs], test["concept"][theirs], w, b, k))
    return {"weight": weight, "bias": bias}, {"names": list(order), "measured": measured}


def copies(work: Path, kept: Path, trunk: Trunk, share: float, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
    """The copy judge: (weights, settings). Measured on held-out names and on the protected drawings, beside the embedder."""
    import torch

    from index.embed import OpenCLIPEmbedder
    from jobs.lab.judges.copies import evidence
    from jobs.lab.judges.fit_copies import fit, names_to_fit, pairs
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out, load, prescribed

    _, _, names = load(work)
    works = {(c.protected_vendor, c.icon) for c in concepts() if c.protected_vendor}
    count = max(10, round(NAMES * share))
    some = set(np.random.default_rng(3).permutation(names_to_fit(names))[:count].tolist())

    def draw(wanted: set[str], seed: int, each: int, only: Any = None) -> dict[str, np.ndarray]:
        made = pairs(work, wanted, seed=seed, each=each, only=only)
        embedder = OpenCLIPEmbedder.open("stickers")
        cosine = np.sum(embedder.images(made.pictures) * embedder.images(made.references), axis=1)
        found = evidence(trunk, made.pictures, made.references)
        return {"found": found, "row": made.row, "copy": made.copy, "plain": made.plain, "cosine": cosine}

    unseen = {n for n in names if held_out(n) and not prescribed(n)}
    fitted = _keep(kept / f"copies_fit_{count}.npz", lambda: draw(some, 0, PER_DRAWING), say)
    held = _keep(kept / "copies_held_out.npz", lambda: draw(unseen, 1, 2), say)
    world = _keep(kept / "copies_protected.npz", lambda: draw({n for _, n in works}, 2, 2, works), say)
    weight, bias = fit(fitted["found"], fitted["copy"])
    stored = weight.astype(np.float16).astype(np.float32)  # as it ships
    logit = {"held_out": held["found"] @ stored + bias, "protected": world["found"] @ stored + bias}
    near = logit["held_out"][~held["copy"]]
    points = {f"{share:g}": float(np.quantile(near, 1 - share)) for share in (0.01, 0.05)}
    measured: dict[str, Any] = {"fitted_pairs": len(fitted["copy"])}
    for label, data in (("held_out", held), ("protected", world)):
        group = np.array([names[i] for i in data["row"]])
        for sort, rows in (("all", np.ones(len(group), bool)), ("plain", data["plain"]), ("edited", ~data["plain"])):
            measured[f"{label}_{sort}"] = copies_report(logit[label][rows], data["copy"][rows], group[rows], points)
        measured[f"{label}_embedder"] = copies_report(data["cosine"], data["copy"], group, {})
    odds = {share: float(1 / (1 + np.exp(-at))) for share, at in points.items()}
    settings = {"bias": bias, "operating_points": odds, "measured": measured}
    return {"weight": torch.from_numpy(weight)}, settings


def marks(work: Path, kept: Path, trunk: Trunk, share: float, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mark judge: (weights, settings). Measured on the world's numbered designs, smeared, and on clean pictures."""
    from jobs.lab.judges.fit_marks import SMEARED, SMEARED_AGAIN, examples, fit, numbered
    from jobs.lab.judges.painted import apart, fine_tune, known, painted, tuned
    from jobs.lab.judges.smears import smear
    from jobs.lab.world.mark_examples import choose
    from jobs.lab.world.pictures import load

    pixels, _, names = load(work)
    world, other, held = choose(names)

    captions = {"painter": known(), "fine-tuned painter": [icon.replace("-", " ") for icon in tuned(names)]}
    weights_of = {"painter": None, "fine-tuned painter": fine_tune(work, kept / "tuned").lowrank}
    counts = {"painter": max(48, round(PAINTED * share)), "fine-tuned painter": max(48, round(TUNED * share))}

    def drawn() -> dict[str, np.ndarray]:
        made = [painted(apart(captions[by], False), counts[by], seed=7, lowrank=weights_of[by]) for by in captions]
        return {"pictures": np.concatenate(made)}

    pools = (pixels[world], pixels[other], _keep(kept / f"marks_drawn_{sum(counts.values())}.npz", drawn, say)["pictures"])

    def draw(part: int, seed: int) -> dict[str, np.ndarray]:
        again = SMEARED_AGAIN if part == 2 else SMEARED
        pictures, where = examples(work, pools[part], CHUNK, seed=seed, smeared=again)
        return {"pictures": pictures, "where": where}

    def trials() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(5)
        found = {
            f"{by} clean drawn": painted(apart(captions[by], True), APART, seed=8, lowrank=weights_of[by], usual=True)
            for by in captions
        }
        for label, rows in (("held_out", held), ("world", rng.choice(world, 200, replace=False))):
            found[f"{label} clean plain"] = pixels[rows]
            found[f"{label} clean smeared"] = smear(work, pixels[rows], rng, noise=0.3)
            for kind in KINDS:
                for design in range(5):
                    chosen = rng.choice(rows, 60, replace=False)
                    found[f"{label} {kind} {design}"] = numbered(work, chosen, kind, (design,), seed=design, smeared=True)
        return found

    seen = [
        _keep(kept / f"marks_{part}_{chunk}.npz", partial(draw, part, 1000 * part + chunk), say)
        for part, most in enumerate(EXAMPLES)
        for chunk in range(max(1, round(most * share) // CHUNK))
    ]
    pictures, where = (np.concatenate([some[name] for some in seen]) for name in ("pictures", "where"))
    test = _keep(kept / "marks_trials_painted.npz", trials, say)
    weights, steps = fit(pictures, where, kept / "marks", minutes=MINUTES * share, say=say)
    return weights, marks_measured(weights, test, examples=len(pictures), steps=steps)


def marks_measured(weights: dict[str, Any], trials: dict[str, np.ndarray], *, examples: int, steps: int) -> dict[str, Any]:
    """The mark judge's operating points and rates, with the weights as they ship; ``trials``: pictures by sort."""
    from jobs.lab.judges.fit_marks import thresholds
    from jobs.lab.judges.marks import look, make_network

    network = make_network()
    network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    logits = {name: look(network.eval(), some) for name, some in trials.items()}
    at = np.array(thresholds([found for name, found in logits.items() if " clean " in name]))
    measured: dict[str, Any] = {
        "parameters": sum(value.numel() for value in network.parameters()), "examples": examples, "steps": steps,
    }  # fmt: skip
    for name in (name for name in logits if " clean " in name):
        fired: np.ndarray = logits[name] >= at
        measured[name.replace(" ", "_")] = {kind: _rate(fired[:, k]) for k, kind in enumerate(KINDS)} | {
            "any": _rate(fired.any(1))
        }
    for label in ("held_out", "world"):
        for k, kind in enumerate(KINDS):
            for designs in ((0, 1, 2), (3, 4)):
                fired = np.concatenate([logits[f"{label} {kind} {design}"] >= at for design in designs])
                sort = "".join(str(design) for design in designs)
                measured[f"{label}_{kind}_{sort}"] = {"kind": _rate(fired[:, k]), "any": _rate(fired.any(1))}
            for design in range(5):
                fired = logits[f"{label} {kind} {design}"] >= at
                measured[f"{label}_{kind}_design_{design}"] = _rate(fired[:, k])
    return {"thresholds": at.tolist(), "measured": measured}


def _keep(path: Path, build: Callable[[], dict[str, np.ndarray]], say: Say) -> dict[str, np.ndarray]:
    """Read the arrays at ``path``; make them first if they are not there."""
    if not path.exists():
        say(f"drawing {path.stem}")
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, **build())  # type: ignore[arg-type]
        unfinished.rename(path)
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def _rate(hits: Any) -> list[float]:
    """Share of true values in a bool array, with its Wilson interval at 95 %."""
    from index.rate import Rate

    rate = Rate.of(int(hits.sum()), len(hits))
    return [round(v, 4) for v in (rate.value, rate.low, rate.high)]


def copies_report(score: np.ndarray, copy: np.ndarray, group: np.ndarray, points: dict[str, float]) -> dict[str, Any]:
    """Average precision and recall at 1 % and 5 % false positives, with intervals from resampling whole names."""
    from index.precision import average_precision

    def numbers(rows: np.ndarray) -> list[float]:
        s, c = score[rows], copy[rows]
        return [average_precision(s, c), *(float((s[c] > np.quantile(s[~c], 1 - share)).mean()) for share in (0.01, 0.05))]

    rng = np.random.default_rng(0)
    members = [np.flatnonzero(group == name) for name in np.unique(group)]
    drawn = [numbers(np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])) for _ in range(400)]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    report: dict[str, Any] = {
        name: [round(float(v), 4) for v in (value, low[k], high[k])]
        for k, (name, value) in enumerate(zip(("ap", "recall_at_1", "recall_at_5"), numbers(np.arange(len(copy))), strict=True))
    }
    for share, at in points.items():  # the fixed operating points, chosen on all held-out near misses
        report[f"at_{share}"] = {"recall": _rate(score[copy] > at), "false": _rate(score[~copy] > at)}
    return report | {"pairs": len(copy), "names": len(members)}
