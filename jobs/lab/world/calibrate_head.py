"""Choose the cosine from which a probe catches, by noise level, on flights that the head was not trained on; write the card.

A flight *copies* when the copies guard finds its finished picture too near to a reference. Every level has two thresholds. The
one of an *armed* reference (the prompt is near to it) is reached by at most :data:`FALSE_ALARMS` of the flights that do not
copy. The one of any other reference lies :data:`MARGIN` above the highest score of a flight that does not copy.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import InputError
from jobs.lab.world.flights import STEPS
from pipeline.respond.latent_head import ROWS

if TYPE_CHECKING:
    from guards.copies import CopiesGuard
    from pipeline.respond.reference_latents import Near

FALSE_ALARMS = 0.02
MARGIN = 0.03
TEXT_SHARE = 0.5  # of ‖ε_text − ε_empty‖ in the score, beside the cosine
ARMED_COPIES = 0.8  # share of copies whose reference must be armed by its prompt
LEVELS = (1, 2, 3, 4, 5, 6, 7, 9)  # steps of 20; at step 0 of a schedule with zero terminal SNR x̂0 is the prompt's alone


def copies_guard(folder: Path) -> CopiesGuard:
    """The guard of the embedded world with its shipped operating point, its index built in ``folder``."""
    from guards.copies import CopiesGuard
    from index.calibrate import Calibration
    from index.collect import read_references
    from index.embed import OpenCLIPEmbedder
    from index.shipped import STICKERS
    from index.store import ReferenceIndex
    from pipeline.policy import CopiesPolicy

    embedder = OpenCLIPEmbedder.open("stickers")
    index = ReferenceIndex.build(folder / "index", read_references(STICKERS / "references"), embedder)
    point = Calibration.load(STICKERS / "calibration.json").point
    return CopiesGuard(index, embedder, point=point, hues=CopiesPolicy().hues)


def copied(guard: CopiesGuard, pictures: np.ndarray) -> np.ndarray:
    """bool (N,): the guard flags the finished picture as a copy."""
    return np.array([any(f.triggered for f in findings) for findings in guard.check(pictures)])


def likeness(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Unit vectors (N, E) and (M, E) → cosines float32 (N, M)."""
    return np.asarray(embeddings @ references.T)


def _by_id(found: list[Near]) -> dict[str, float]:
    return {near.match.ref_id: near.match.similarity for near in found}


def choose(best: np.ndarray, best_armed: np.ndarray, copy: np.ndarray) -> dict[str, Any]:
    """Thresholds and rates at one level.

    Args:
        best: highest cosine to any reference (N,).
        best_armed: highest cosine to an armed one (N,); −1 where none is armed.
        copy: bool (N,).
    """
    from index.rate import wilson

    negatives = np.sort(best_armed[~copy])
    allowed = int(FALSE_ALARMS * len(negatives))
    free = float(best[~copy].max()) + MARGIN
    armed = min(free, float(negatives[-1 - allowed]) + 1e-4)
    hit = (best >= free) | (best_armed >= armed)
    low, high = wilson(int(hit[~copy].sum()), int((~copy).sum()))
    return {
        "threshold": round(free, 4),
        "armed": round(armed, 4),
        "caught": round(float(hit[copy].mean()), 4),
        "false_alarms": round(float(hit[~copy].mean()), 4),
        "false_alarms_interval": [round(low, 4), round(high, 4)],
    }


def calibrate_head(work: Path, target: Path) -> dict[str, Any]:
    """Write ``target/thresholds.json`` for the head in ``target`` and, at the same levels, for decode + embed.

    Raises:
        InputError: the denoiser drew no copy, so that nothing tells copies from others.
    """
    import torch

    from jobs.lab.world.head_data import calibrating
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model
    from pipeline.model.sampling.choose import make_sampler
    from pipeline.policy import EarlyPolicy
    from pipeline.respond.early import EarlyDetector
    from pipeline.respond.latent_head import LatentHead
    from pipeline.respond.reference_latents import ReferenceLatents

    model = load_model(ModelConfig())
    sampler = make_sampler(model, STEPS)
    data = calibrating(work)
    with tempfile.TemporaryDirectory() as folder:
        guard = copies_guard(Path(folder))
        ReferenceLatents.require_few(guard.index)
        head = LatentHead.open(target, model.digest, guard.embedder.embedder_id)
        assert head is not None, "export the head first"
        ways = {"head": head, "decode": None}
        looks = {kind: EarlyDetector(EarlyPolicy(), model, sampler, guard, h, None) for kind, h in ways.items()}
        ids = [r.ref_id for r in guard.index.references()]
        references = np.stack([guard.index.embedding(ref_id) for ref_id in ids])
        latents = ReferenceLatents.encoded(guard.index, model, guard.hues)
        latents.search([], 1)  # reads the index while its folder exists
        copy = copied(guard, data["pictures"])
        if not copy.any():
            what = f"none of {len(copy)} pictures that the denoiser drew is a copy: there is nothing to tell from the others"
            raise InputError(what, where=str(work), fix="Train the denoiser longer: `clearance lab world denoiser`")
        captions = list(dict.fromkeys(data["caption"].tolist()))
        scores = dict(zip(captions, looks["head"].text_scores(captions), strict=True))
        text = np.array([[scores[c].get(ref_id, -1.0) for ref_id in ids] for c in data["caption"].tolist()])
    own = likeness(data["embedding"], references).argmax(1)
    arm_from = float(np.quantile(text[np.arange(len(own)), own][copy], 1 - ARMED_COPIES))
    armed = text >= arm_from
    levels = []
    for step in LEVELS:
        row: dict[str, Any] = {"step": step, "signal": round(float(sampler.signal[step]), 6)}
        cleans = [torch.from_numpy(x).float() for x in data["clean"][:, step]]
        for kind, look in looks.items():
            parts = [
                look.place(cleans[at : at + ROWS], [look.sampler.signal[step]] * len(cleans[at : at + ROWS]))
                for at in range(0, len(cleans), ROWS)
            ]
            near = likeness(np.concatenate(parts), references)
            row[kind] = choose(near.max(1), np.where(armed, near, -1.0).max(1), copy)
            # Each in units of its own spread, the norm counting half: the best of 1/2, 1 and 2 on a first set of flights.
            norms = data["text_norms"][:, : step + 1].mean(1)
            weight = round(TEXT_SHARE * float(near.max(1).std() / norms.std()), 8)
            more = near + weight * norms[:, None]
            row[f"{kind}+text"] = choose(more.max(1), np.where(armed, more, -1.0).max(1), copy) | {"text_weight": weight}
        near = np.stack([[found[ref_id] for ref_id in ids] for found in map(_by_id, latents.search(cleans, len(ids)))])
        row["latent"] = choose(near.max(1), np.where(armed, near, -1.0).max(1), copy)
        levels.append(row)
        print(json.dumps(row), flush=True)
    body = {
        "model_digest": model.digest,
        "embedder_id": guard.embedder.embedder_id,
        "false_alarms": FALSE_ALARMS,
        "flights": len(copy),
        "copies": int(copy.sum()),
        "ordinary": int((data["kind"] == "ordinary").sum()),
        "arm_from": round(arm_from, 4),
        "armed_references": round(float(armed.mean(0).sum()), 2),
        "levels": levels,
    }
    (target / "thresholds.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return body


def write_card(target: Path) -> None:
    """Write the head's model card from ``head.json`` and ``thresholds.json``."""
    head = json.loads((target / "head.json").read_text(encoding="utf-8"))
    measured = json.loads((target / "thresholds.json").read_text(encoding="utf-8"))
    training = head["training"]
    curve = "".join(f"| {row['step']:,} | {row['minutes']:g} | {row['loss']:.4f} |\n" for row in training["curve"])
    levels = "".join(
        f"| {row['step']} | {row['signal']:.3f} | "
        + " | ".join(
            f"{100 * row[kind]['caught']:.0f} % | {100 * row[kind]['false_alarms']:.1f} %"
            for kind in ("latent", "head+text", "head", "decode+text", "decode")
        )
        + " |\n"
        for row in measured["levels"]
    )
    last = measured["levels"][-1]
    five = "".join(
        f"| {what} | **{100 * last[kind]['caught']:.0f} %** | {100 * last[kind]['false_alarms']:.1f} % |\n"
        for kind, what in (
            ("head", "the head"), ("head+text", "the head and the text norm"), ("latent", "comparing latents"),
            ("decode", "decoding and embedding"), ("decode+text", "decoding, embedding and the text norm"),
        )
    )  # fmt: skip
    arm, budget = f"{measured['arm_from']:.3f}", f"{100 * measured['false_alarms']:g} %"
    shape = f"{head['channels']}×{head['side']}×{head['side']}"
    flights = f"{measured['flights']} other flights: {measured['copies']} copied, {measured['ordinary']} had ordinary captions"
    spent = f"{training['steps']:,} steps of {training['batch']} in {training['minutes']:g} minutes of a shared CPU core"
    text = f"""# Latent head of the embedded world

A convolutional network ({head["parameters"]:,} parameters, fp16) that maps the clean latent a sample is expected to end at
(x̂0, {shape}) and the noise level to the embedder's space ({head["dim"]} dimensions), so that probes
in mid-flight need no decoding and embedding. `pipeline/respond/latent_head.py` loads it; licence Apache-2.0.

| way of probing, at step {last["step"]} of 20 | copies caught | false alarms |
|---|---|---|
{five}
It belongs to one diffusion model (digest `{head["model_digest"][:16]}…`) and one embedder (`{head["embedder_id"]}`); with any
other, probes decode and embed.

## Training

`clearance lab world head`: {spent}, on {training["examples"]:,} examples:
x̂0 at the first ten of twenty steps of samples the model drew to the end (target: the embedding of the finished picture), and
drawings of the world noised to the same levels and denoised once, with their caption or without (target: the drawing's
embedding). Every fifth protected drawing, and every caption that names it, was kept out.

| step | minutes | mean loss |
|---|---|---|
{curve}
## Thresholds

Chosen on {flights}.
A reference is armed when the prompt's text embedding has a cosine of {arm} to it; armed references catch where at most
{budget} of the flights that do not copy would be caught, others only above all of those. Samples with classifier-free
guidance are scored by the cosine and the mean ‖ε_text − ε_empty‖ so far, others by the cosine alone. Caught: share of the
copies. False alarms: share of the others, in sample.

Each way of looking: caught, false alarms.

| step of 20 | signal a | latents | | head + text norm | | head | | decode + text norm | | decode | |
|---|---|---|---|---|---|---|---|---|---|---|---|
{levels}
`clearance lab bench early` measures it on captions and seeds of its own.

## Limits

It knows this model's latents, and icons. A false alarm steers a picture that needed no steering; a miss costs the
evaluations of a finished picture, which the guards check anyway.
Weights: sha256 `{head["sha256"]}`.
"""
    (target / "README.md").write_text(text, encoding="utf-8")
