"""Write the trained embedder for shipping: an open_clip folder with its card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jobs.lab.world.train_embedder import CONFIG, DIM


def export(work: Path, folder: Path, *, remarks: str = "") -> dict[str, Any]:
    """Write the trained embedder as an open_clip folder (fp16 safetensors, config, tokenizer, model card).

    Args:
        work: the built world, with ``embedder/state.pt``.
        folder: the folder to write.
        remarks: notes on this training for the card (Markdown).
    """
    import torch
    from safetensors.torch import save_file

    from jobs.lab.world.pictures import load
    from jobs.lab.world.tokenizer import make_tokenizer

    state = torch.load(work / "embedder" / "state.pt", weights_only=False, map_location="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state["model"].items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "open_clip_model.safetensors").chmod(0o644)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    _, _, names = load(work)
    make_tokenizer(folder, names)
    (folder / "training.json").write_text(json.dumps({"curve": state["curve"]}, indent=0) + "\n", encoding="utf-8")
    manifest = json.loads((work / "manifest.json").read_text(encoding="utf-8"))
    measured: list[dict[str, float]] = [row for row in state["curve"] if "held_out_ap" in row]
    (folder / "README.md").write_text(
        card(folder, manifest, measured, sum(v.numel() for v in weights.values()), remarks), encoding="utf-8"
    )
    return measured[-1]


def card(folder: Path, manifest: dict[str, Any], measured: list[dict[str, float]], parameters: int, remarks: str) -> str:
    """The model card: data, digests, licence, command, curve, measured numbers."""
    from jobs.lab.world.catalogue import concepts

    last, count = measured[-1], len(concepts())
    digests = "".join(
        f"| `{p.name}` | {p.stat().st_size:,} | `{hashlib.sha256(p.read_bytes()).hexdigest()}` |\n"
        for p in sorted(folder.iterdir())
        if p.name != "README.md"
    )
    data = "".join(f"| {p['package']} {p['version']} | {p['pictures']:,} | {p['licence']} |\n" for p in manifest["packages"])
    curve = "".join(
        f"| {int(r['views']):,} | {r['minutes']} | {r['held_out_ap']} | {r['recall_at_1pct']} | {r['caption_top5']} |\n"
        for r in measured
    )
    return f"""# Embedder of the embedded world

An open_clip model (ResNet image tower for 64 px, two-layer text tower, {DIM} dimensions, {parameters:,} values in
fp16) that answers two questions: is this picture an edited copy of that drawing, and which caption does it fit. It knows
icons and nothing else.

* **Load**: `open_clip.create_model_and_transforms("local-dir:FOLDER")`, or `OpenCLIPEmbedder.open("stickers")`.
* **Licence**: Apache-2.0 (weights). Training data below keeps its own licences; see ATTRIBUTION.
* **Train again**: `clearance lab world data`, then `clearance lab world embedder --minutes {round(last["minutes"])}
  --compiled`, then `clearance lab world calibrate`. The budget is wall time: a second training gives near, not equal, weights.

## Measured (held-out concepts: no drawing of their name was ever trained on)

| | |
|---|---|
| average precision, edited copies against other vendors' drawings of the same concept (bar: 0.98) | **{last["held_out_ap"]}** |
| the same with signs of prescribed form, which every vendor has to draw alike | {last["held_out_ap_with_signs"]} |
| recall at 1 % false positives on those | {last["recall_at_1pct"]} (cosine above {last["threshold_1pct"]}) |
| median cosine of copies / of other drawings | {last["copy_cosine"]} / {last["other_cosine"]} |
| world drawing → its caption of {count}, top 1 / top 5 (trained on) | {last["caption_top1"]} / {last["caption_top5"]} |

Edited copies are mirrored, shifted, scaled 0.7 to 1.15, turned, bent, put on a colour, recoloured, blurred, compressed or
marked, several at once (`index/edits.py`). The other drawings are compared unedited and edited.

{remarks}## Data ({manifest["pictures"]:,} drawings, pixels `{manifest["pixels_sha256"]}`)

| package | drawings | licence |
|---|---|---|
{data}
## Curve

| views | minutes | held-out AP | recall at 1 % | caption top 5 |
|---|---|---|---|---|
{curve}
## Files

| file | bytes | sha256 |
|---|---|---|
{digests}
Loaded in fp32. Limits: small icons on plain ground; photographs and large pictures are out of its world.
"""
