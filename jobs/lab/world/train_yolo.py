"""Train the world's YOLO mark detector: an ultralytics nano network from its YAML, on the examples of the marks guard.

ultralytics is licensed AGPL-3.0, and so are weights trained with it. This module and :mod:`guards.yolo` are the only
places that import it. Its trainer is not used, since it needs files, fonts, and downloaded weights to check half precision. Its
model and its loss are used, in the loop that also trains the marks guard.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from guards.mark_network import KINDS, SIDE
from guards.yolo import enlarge, fill, make_detector, strongest
from jobs.lab.world.autoencoder import to_input
from jobs.lab.world.mark_examples import Examples, training_examples
from jobs.lab.world.mark_measures import Judge, curve_table, evaluate, five, sources, tables
from jobs.lab.world.mark_training import averaged, fit

NETWORK = "yolo11n.yaml"
INPUT = 128  # pixels: 64-pixel pictures are enlarged, so that the finest grid (stride 8) is one of 4-pixel cells


def targets(rows: Examples) -> dict[str, Any]:
    """The batch in the form of ultralytics' loss: box centres and sizes in fractions, with class and picture number."""
    import torch

    marked = np.flatnonzero(rows.kinds >= 0)
    corners = rows.boxes[marked] / SIDE
    centre_size = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    return {
        "batch_idx": torch.from_numpy(marked.astype(np.float32)),
        "cls": torch.from_numpy(rows.kinds[marked].astype(np.float32))[:, None],
        "bboxes": torch.from_numpy(centre_size.astype(np.float32)),
    }


def loss_of(network: Any, x: Any, rows: Examples) -> Any:
    """ultralytics' detection loss (box, class, distribution focal) per picture."""
    import torch

    x = enlarge((x + 1) / 2, INPUT).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = network(x)
    raw = {**raw, "boxes": raw["boxes"].float(), "scores": raw["scores"].float()}
    parts, _ = network.loss({"img": x, **targets(rows)}, raw)
    return parts.sum() / len(x)


def make_trainable(network: str = NETWORK) -> Any:
    """The untrained detector, with ultralytics' default gains of the loss."""
    detector = make_detector(network, len(KINDS))
    from ultralytics.cfg import get_cfg

    detector.args = get_cfg()
    return detector


def train(
    work: Path,
    *,
    minutes: float,
    steps: int | None = None,
    examples: int = 60000,
    batch: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train for a time budget (or a number of steps); the state goes to ``work/yolo/state.pt``, from where it resumes."""
    import torch

    torch.manual_seed(seed)
    network = make_trainable()
    data = training_examples(work, count=examples, seed=seed, say=say)
    return fit(network, loss_of, data, work / "yolo", minutes=minutes, steps=steps, batch=batch, rate=rate, seed=seed, say=say)


def judge_of(network: Any) -> Judge:
    """The detector as :mod:`jobs.lab.world.mark_measures` takes it."""

    def look(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            strongest(network, enlarge((to_input(pictures[at : at + 64]) + 1) / 2, INPUT)) for at in range(0, len(pictures), 64)
        ]
        logits, boxes = zip(*parts, strict=True)
        return np.concatenate(logits), np.clip(np.concatenate(boxes), 0, 1)

    return look


def export(work: Path, out: Path, *, count: int = 200, version: str = "stickers-yolo 2") -> dict[str, Any]:
    """Write ``out``/model.safetensors (fp16), config.json, LICENSE and the card README.md from ``work/yolo/state.pt``.

    The shipped weights are measured: the moving average after rounding to fp16. Returns the report.
    """
    from safetensors.torch import save

    half, training = averaged(work / "yolo")
    detector = make_detector(NETWORK, len(KINDS))
    fill(detector, half)
    report = evaluate(judge_of(detector), work, count=count)
    out.mkdir(parents=True, exist_ok=True)
    raw = save(half)
    (out / "model.safetensors").write_bytes(raw)
    left_out = ("yaml_file", "channels")  # the file's path, and an argument of the constructor
    release = importlib.metadata.version("ultralytics")
    card = {
        "architecture": "yolo",
        "version": version,
        "kinds": list(KINDS),
        "ultralytics": release,
        "input_pixels": INPUT,
        "parameters": sum(p.numel() for p in detector.parameters()),
        "weights_sha256": hashlib.sha256(raw).hexdigest(),
        "operating_logits": report["operating_logits"],
        "calibrated_on": "stickers",  # the family of models whose pictures the operating points were measured on
        "licence": "AGPL-3.0",
        "network": {key: value for key, value in detector.yaml.items() if key not in left_out},
    }
    (out / "config.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_card(card, report, training, sources(work)), encoding="utf-8")
    (out / "LICENSE").write_text(NOTICE + _agpl(), encoding="utf-8")
    return report


NOTICE = """The files in this folder (model.safetensors, config.json) were made with ultralytics, which is licensed under
the GNU Affero General Public License, version 3. Its licensor holds that networks trained with it are covered by that
licence, and so they are offered under it here: AGPL-3.0, no warranty. The rest of this repository is licensed
Apache-2.0; it runs without these files and does not load them unless asked to.

If you pass these files on, or let others use a service over a network that runs them, you must offer those people the
complete source of the work that contains them under the same licence. The source of these files is this repository
(`clearance lab world yolo` trains them) and ultralytics, https://github.com/ultralytics/ultralytics.

------------------------------------------------------------------------------------------------------------------------

"""


def _agpl() -> str:
    """The text of AGPL-3.0, from the installed ultralytics."""
    for file in importlib.metadata.files("ultralytics") or []:
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    return "The text of the licence: https://www.gnu.org/licenses/agpl-3.0.txt\n"


def _card(card: dict[str, Any], report: dict[str, Any], training: dict[str, Any], data: str) -> str:
    """The model card, with the numbers just measured."""
    last = training["curve"][-1]
    return f"""# YOLO marks: watermark, QR code, text, logo

`{NETWORK}` of ultralytics {card["ultralytics"]} ({card["parameters"]:,} parameters, fp16 weights), trained from random weights:
no weights of a hub are in it. Loaded by `guards.yolo.YoloMarksGuard`, which builds the network from `config.json` and reads
safetensors; no pickle, no download.

{five(report)}

## Licence: AGPL-3.0

These weights are **not** Apache-2.0 like the rest of the repository. ultralytics is AGPL-3.0, and its licensor holds that
networks trained with it are too. Whoever passes these files on, or lets others use a service that runs them, must offer
those people the complete source of the work that contains them under AGPL-3.0 (or buy another licence from Ultralytics).
The guard is therefore an extra (`pip install 'clearance[yolo]'`) and never the default; the rest runs without this folder
(`clearance doctor` then reports it as missing). The default guard `marks` does the same work under Apache-2.0. See LICENSE.

## Training

    clearance lab world yolo --work world

{training["steps"]:,} steps of 32 pictures in {last["minutes"]:.1f} minutes on a part of one shared CPU core
(`jobs.lab.world.train_yolo`: ultralytics' network and loss, AdamW, peak rate 2e-3, seed 0; what ships is the moving average of
the weights). Pictures of 64 pixels are enlarged to {card["input_pixels"]}. The examples are those of the `marks` guard:
drawings with one synthetic mark, or none: three in ten marks are designs 0–2 of `jobs.erase.marks.overlays`, the others are all
different (`jobs.erase.marks.designs`, which lists what is held out and never drawn); half of them smeared by the
world's autoencoder.

{curve_table(training["curve"])}

{data}

## Measured

{tables(report)}

The guard reports one box per kind and picture, the surest; so does this measurement. No overlapping boxes, hence no
suppression of them.

## Limits

It knows these drawings and marks on white: it is a guard for the embedded world, not a general watermark detector. Pictures of
other sizes are squeezed to 64×64 first, so small marks in large pictures are lost.
Weights: sha256 `{card["weights_sha256"]}`.
"""
