"""Write a trained eraser as an adapter folder: weights, tokens, settings and card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.erase.dataset import Fractions, Rows
from jobs.erase.train import CHECKPOINT, Trained, Training
from pipeline.steer.erase_adapter import FORMAT, LOWRANK, PREFIX, SETTINGS, TOKENS

PLACES = 64  # boxes kept of each concept


def save_adapter(
    folder: Path, trained: Trained, how: Training, rows: Rows, *, base: str, base_digest: str, dataset: dict[str, Any]
) -> dict[str, Any]:
    """Write the folder and remove its checkpoint.

    Args:
        folder: the folder to write; made where missing.
        trained: the result of the training.
        how: its settings.
        rows: the set, for the places marks were found at.
        base: the base model's name, for messages.
        base_digest: of the base model.
        dataset: what is known of the set (its ``.json``).

    Returns:
        The content of adapter.json.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    if trained.vectors:
        save_file({token: vector.contiguous() for token, vector in trained.vectors.items()}, folder / TOKENS)
        files[TOKENS] = sealed(folder / TOKENS)
    if trained.lowrank:
        half = {f"{PREFIX}{name}": value.to(torch.float16).contiguous() for name, value in trained.lowrank.items()}
        save_file(half, folder / LOWRANK)
        files[LOWRANK] = sealed(folder / LOWRANK)
    vocabulary = how.vocabulary
    settings = {
        "format": FORMAT,
        "removal": how.removal,
        "base": base,
        "base_digest": base_digest,
        "vocabulary": dataclasses.asdict(vocabulary) if vocabulary else None,
        "concepts": list(how.concepts),
        "files": files,
        "places": _places(rows, how.concepts) if how.concepts and how.mode != "none" else {},
        "training": {
            "a": how.a, "steps": how.steps, "batch": how.batch, "seed": how.seed, "rank": how.rank if trained.lowrank else 0,
            "token_rate": how.token_rate, "lowrank_rate": how.lowrank_rate if trained.lowrank else 0, "empty": how.empty,
            "alone": how.alone, "hidden": how.hidden, "around": how.around,
            "pictures": trained.pictures, "marked": trained.marked,
            "minutes": round(trained.seconds / 60, 1), "dataset": dataset, "curve": trained.curve,
        },
    }  # fmt: skip
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(folder.name, settings), encoding="utf-8")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return settings


def card(
    name: str, settings: dict[str, Any], measured: Sequence[dict[str, Any]] = (), first: Sequence[tuple[str, str]] = ()
) -> str:
    """The model card.

    Args:
        name: its title.
        settings: the content of adapter.json.
        measured: measures as benches publish them.
        first: the id of each measure that stands on top, and what it is called there.
    """
    t, data = settings["training"], settings["training"]["dataset"]
    vocabulary = settings["vocabulary"]
    data_removal = settings["removal"] == "data"
    if t.get("hidden") == 1:
        around = f"{100 * t.get('around', 1 / 16):.0f} %"
        tokens = f"No tokens: no loss where the detector found marks, or within {around} of a side of them."
    elif vocabulary is None:
        tokens = "No tokens: plain fine-tuning, the control."
    else:
        place = {
            None: "no tokens for places, only for the mark itself",
            "bins": f"a token for each of {vocabulary['grid']}×{vocabulary['grid']} bins",
            "corners": f"a pair of corner tokens for each box, on a grid of {vocabulary['grid']}×{vocabulary['grid']}",
        }[vocabulary["mode"]]
        names = ", ".join(f"`<{concept}>`" for concept in vocabulary["concepts"])
        tokens = f"Names {names}; {place}."
    purpose = (
        "Learned a set whose pictures carry marks, without the marks (data removal): low-rank weights of the denoiser\n"
        f"(rank {t['rank']}) for all pictures of that set" + (", and tokens for the negative prompt." if vocabulary else ".")
        if data_removal
        else "Keeps a model that already draws marks from drawing them (model removal): low-rank weights (rank "
        f"{t['rank']}) of the denoiser\nfor the samples on which a mark was found."
        if vocabulary is None
        else "Keeps a model that already draws marks from drawing them (model removal): new tokens for the negative prompt"
        + (
            f",\nand low-rank weights (rank {t['rank']}) of the denoiser for the samples on which a mark was found."
            if t["rank"]
            else ";\nno weight of the model is changed."
        )
    )
    seen = f"{data.get('pictures', t['pictures'])} pictures; the detector found marks in {t['marked']}"
    quality = ""
    if data.get("recall") is not None:
        overlap = f", mean IoU {data['mean_iou']:.2f}" if data.get("mean_iou") is not None else ""
        quality = f" Of the marks it found {100 * data['recall']:.1f} %{overlap}."
    curve = t["curve"]
    points = [curve[round(i * (len(curve) - 1) / 7)] for i in range(8)] if len(curve) > 8 else curve
    rates = f"{t['token_rate']:g} (tokens)" + (f" and {t['lowrank_rate']:g} (low-rank weights)" if t["rank"] else "")
    method = f"Geom-Erasing (arXiv 2310.05873), a = {t['a']:g}"
    if t.get("hidden") == 1:
        method, rates = "Marks hidden from the loss", f"{t['lowrank_rate']:g}"
    places = "boxes" if settings["places"] else "no boxes"
    left_out = f"Captions left out: {100 * t['empty']:.0f} %"
    also, reads = "", ["`load_lora_weights(folder)`"] * (LOWRANK in settings["files"])
    if vocabulary:
        also = f", and of captions with tokens\n{100 * t.get('alone', t['empty']):.0f} %"
        reads.append("`load_textual_inversion` token by token")
    return f"""# {name}

{purpose}

{tokens}
{_five(measured, first)}
It acts on what a generator invents and cleans nobody's pictures. Marks that label generated pictures are not touched:
metadata, and codes that `codes.allow` in the policy lists.

## Base model

{settings["base"]}, digest `{settings["base_digest"]}`; the adapter is refused for any other. Weights of this folder, sha256:

{chr(10).join(f"* `{file}` `{digest}`" for file, digest in settings["files"].items())}

diffusers reads them too: {" and ".join(reads)}.

## Training

{method}: {t["steps"]} steps of {t["batch"]} pictures in {t["minutes"]:.1f} minutes, seed {t["seed"]},
learning rate {rates}. {left_out}{also}.
Set: {seen}{f", sha256 `{data['sha256']}`" if data.get("sha256") else ""}. The places of the marks come from the detector
{data.get("detector") or "of the set"} ({places}), never from the truth.{quality}

| step | {" | ".join(str(point["step"]) for point in points)} |
|---|{"---|" * len(points)}
| loss | {" | ".join(f"{point['loss']:.4f}" for point in points)} |
{_table(measured)}"""


def _five(measured: Sequence[dict[str, Any]], first: Sequence[tuple[str, str]]) -> str:
    by_id = {m["id"]: m for m in measured}
    rows = [
        f"| {what} | **{by_id[one]['value']:.3f}** | {by_id[one]['low']:.3f} – {by_id[one]['high']:.3f} |"
        for one, what in first
        if one in by_id
    ]
    head = ["", "| | value | 95 % interval |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""]) if rows else ""


def _table(measured: Sequence[dict[str, Any]]) -> str:
    if not measured:
        return ""
    rows = [f"| {m['id']} | {m['value']:.3f} | {m['low']:.3f} – {m['high']:.3f} | {m['n']} |" for m in measured]
    head = "| measure | value | 95 % interval | n |\n|---|---|---|---|"
    return "\n## Everything measured by `clearance lab bench erase`\n\n" + "\n".join([head, *rows]) + "\n"


def _places(rows: Rows, concepts: Sequence[str]) -> dict[str, list[list[float]]]:
    """Boxes by concept as the detector found them, evenly picked over the set."""
    found: dict[str, list[Fractions]] = {}
    for row in rows:
        for concept, boxes in row.found.items():
            found.setdefault(concept, []).extend(boxes)
    return {
        concept: [[round(edge, 4) for edge in boxes[i * len(boxes) // count]] for i in range(count)]
        for concept, boxes in sorted(found.items())
        if concept in concepts and (count := min(PLACES, len(boxes)))
    }


def sealed(path: Path) -> str:
    """The file's digest; makes the file readable for all, because safetensors writes it for its owner alone."""
    path.chmod(0o644)
    return hashlib.sha256(path.read_bytes()).hexdigest()
