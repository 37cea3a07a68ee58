"""Train the world's mark detector on synthetic marks: watermark, QR code, text.

The detector judges *generated* pictures, which pass through a small autoencoder and look smeared. Half of the training
pictures therefore take a round trip through the world's autoencoder, and all of them are blurred, rescaled and given
noise. Designs 3 and 4 of every mark, and one drawing name in ten, are kept for evaluation only.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.mark_network import CELLS, KINDS, SIDE, make_network, pool
from jobs.world.overlays import HELD_OUT_DESIGNS, TRAIN_DESIGNS, WORDS, jitter, overlay

if TYPE_CHECKING:
    from PIL.Image import Image

SHARES = (0.42, 0.24, 0.34)  # of the marked examples: watermarks are the hardest
VARIED = 0.25  # of the marked examples: variations instead of the numbered designs
FLOOR = -2.0  # no operating point below this logit, however quiet the clean pictures are: generated ones are odder
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

# Drawings that bear letters or figures of their own: neither a fair negative nor a mark.
LETTERED = re.compile(
    r"newspaper|calendar|medal|\batm\b|memo|scroll|copyright|registered|trade-mark|ticket|e-mail|passport|identification|"
    r"hundred|name-badge|zzz|keyboard|mark$|book$|books|page|document|credit-card|receipt|convenience|hospital|hotel|bank|"
    r"post-office|postbox|store|closet|restroom|womens-room|mens-room|pool-8|stop|japanese|free|new\b|cool|\bok\b|\bup\b|vs\b|\bsos\b|"
    r"\bid\b|\bback\b|\bend\b|\bsoon\b|\btop$|banknote|money|coin|currency|dollar|yen|euro|pound|letters|numbers|latin|symbols|"
    r"under-eighteen|non-potable|slot|love-letter|joker|mahjong|tear-off|spiral|file|chart|dvd|optical|computer-disk|floppy|"
    r"speech|bubble|clapper|label|tag|percent|information|playing|cinema|vibration|mobile-phone-off|school|jersey|shirt$|-letter|"
    r"ballot|rosette|ophiuchus|scorpius|virgo|leo$|tokyo|wireless|antenna|oclock|crossword|abacus|map|100"
)
SKIN = re.compile(r"-(dark|light|medium|medium-dark|medium-light)$")


def cells(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which 8×8-pixel cells a mark changed visibly: bool (8, 8). Exact, unlike the mark's bounding box."""
    changed = np.abs(before.astype(np.int16) - after.astype(np.int16)).max(2) > 12
    size = SIDE // CELLS
    share: np.ndarray = changed.reshape(CELLS, size, CELLS, size).mean((1, 3))
    return share > 0.06


def distract(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hard negative: paint a regular pattern (checker, stripes, dots) or loose strokes that are not a mark."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(pixels).convert("RGBA")
    width, height = (int(v) for v in rng.integers(10, 44, 2))
    x0, y0 = int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height))
    ink, paper = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    if rng.random() < 0.4:
        ink, paper = (20, 20, 20), (255, 255, 255)
    kind = int(rng.integers(5))
    if kind < 3:
        step = int(rng.integers(2, 9))
        row, column = np.mgrid[:height, :width]
        checker = (row // step + column // step) % 2 == 1
        stripes = (column if rng.random() < 0.5 else row) // step % 2 == 1
        dots = (row % (2 * step) - step) ** 2 + (column % (2 * step) - step) ** 2 < (0.7 * step) ** 2
        patch = np.where((checker, stripes, dots)[kind][..., None], ink, paper).astype(np.uint8)
        shape = Image.new("L", (width, height), 0)
        brush = ImageDraw.Draw(shape)
        (brush.ellipse if rng.random() < 0.4 else brush.rectangle)([0, 0, width - 1, height - 1], fill=255)
        picture.paste(Image.fromarray(patch), (x0, y0), shape)
    else:
        draw = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(1, 7))):
            points = [(int(a), int(b)) for a, b in rng.integers(2, SIDE - 2, (int(rng.integers(2, 5)), 2))]
            draw.line(points, fill=(*ink, 255), width=int(rng.integers(1, 5)), joint="curve")
    return np.asarray(picture.convert("RGB"))


def vary(picture: Image, kind: str, rng: np.random.Generator) -> Image:
    """A mark of ``kind`` unlike any numbered design: other words, angles, inks, places and sizes.

    Three designs alone teach the network those three; these teach it the kind. The held-out designs stay out: no grey
    band, no polygon, no Micro QR or inverted code, no vertical and no outlined word.
    """
    import segno
    from PIL import Image, ImageDraw, ImageFont

    side = picture.width
    layer = Image.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    word = str(rng.choice(WORDS)) if rng.random() < 0.5 else "".join(rng.choice(LETTERS, int(rng.integers(3, 8))))
    if kind == "qr":
        code = segno.make(str(rng.integers(10**6, 10**12)), version=int(rng.integers(1, 3)), error="l", micro=False)
        tile = np.pad(
            255 * (1 - np.array([list(row) for row in code.matrix], dtype=np.uint8)),
            int(rng.integers(1, 3)),
            constant_values=255,
        )
        tile = tile.repeat(int(rng.integers(1, 64 // len(tile) + 1)), 0)
        tile = tile.repeat(len(tile) // tile.shape[1], 1)
        marked = picture.copy()
        x, y = (int(v) for v in rng.integers(0, side - len(tile) + 1, 2))
        marked.paste(Image.fromarray(tile), (x, y))
        return marked
    middle = side + rng.uniform(-0.22, 0.22, 2) * side
    centre = (int(middle[0]), int(middle[1]))
    if kind == "text":
        ink = tuple(int(v) for v in rng.integers(0, 200, 3))
        font = ImageFont.load_default(int(side * rng.uniform(0.16, 0.32)))
        if rng.random() < 0.35:
            x0, y0, x1, y1 = draw.textbbox(centre, word, font=font, anchor="mm")
            draw.rectangle([x0 - 3, y0 - 2, x1 + 3, y1 + 3], fill=(*ink, 255))
            ink = (255, 255, 255)
        draw.text(centre, word, font=font, fill=(*ink, 255), anchor="mm")
        layer = layer.rotate(float(rng.uniform(-25, 25)), center=centre)
    else:
        grey = (*[int(rng.integers(80, 150))] * 3, int(rng.integers(90, 175)))
        form = int(rng.integers(4))
        width = int(rng.integers(1, 4))
        if form == 0:
            draw.text(centre, word, font=ImageFont.load_default(int(side * rng.uniform(0.18, 0.34))), fill=grey, anchor="mm")
        elif form == 1:  # small words all over
            font = ImageFont.load_default(int(side * rng.uniform(0.12, 0.18)))
            for y in range(side // 4, 2 * side, int(side * rng.uniform(0.25, 0.45))):
                draw.text((side, y), "  ".join([word] * 4), font=font, fill=grey, anchor="mm")
        elif form == 2:  # parallel lines, or a cross
            step = int(rng.integers(side // 6, side // 2))
            for x in range(0, 2 * side, step):
                draw.line([(x, 0), (x, 2 * side)], fill=grey, width=width)
                if rng.random() < 0.3:
                    draw.line([(0, x), (2 * side, x)], fill=grey, width=width)
        else:  # a ring with a letter
            radius = int(side * rng.uniform(0.14, 0.34))
            ring = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
            draw.ellipse(ring, outline=grey, width=width + 1)
            draw.text(centre, word[0], font=ImageFont.load_default(radius * 1.3), fill=grey, anchor="mm")
        layer = layer.rotate(float(rng.uniform(-60, 60)), center=centre)
    marked = picture.convert("RGBA")
    marked.alpha_composite(layer.crop((side // 2, side // 2, side // 2 + side, side // 2 + side)))
    return marked.convert("RGB")


def draw_one(
    pixels: np.ndarray, rng: np.random.Generator, *, marked: float, designs: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """One example from one drawing: the picture, uint8 (64, 64, 3), and its cells, bool (3, 8, 8)."""
    from PIL import Image

    target = np.zeros((len(KINDS), CELLS, CELLS), dtype=bool)
    picture = jitter(Image.fromarray(pixels), rng) if rng.random() < 0.6 else Image.fromarray(pixels)
    if rng.random() < 0.15:
        picture = Image.fromarray(distract(np.asarray(picture), rng))
    if rng.random() < marked:
        kind = int(rng.choice(len(KINDS), p=SHARES))
        after = vary(picture, KINDS[kind], rng) if rng.random() < VARIED else overlay(picture, KINDS[kind], rng, designs)[0]
        target[kind] = cells(np.asarray(picture), np.asarray(after))
        picture = after
    return np.asarray(picture), target


def load_autoencoder(work: Path) -> Any | None:
    """The world's autoencoder: finished, or the last checkpoint of its training; None when there is neither."""
    import torch

    from index.torchvision_ops import ensure

    ensure()
    folder = work / "vae"
    if (folder / "config.json").exists():
        from diffusers import AutoencoderTiny

        vae: Any = AutoencoderTiny.from_pretrained(folder)  # type: ignore[no-untyped-call]
    elif (folder / "state.pt").exists():
        from jobs.world.train_vae import make_vae

        vae = make_vae()
        vae.load_state_dict(torch.load(folder / "state.pt", weights_only=False)["vae"])
    else:
        return None
    return vae.eval().to(memory_format=torch.channels_last)


def round_trip(vae: Any, pixels: np.ndarray, rng: np.random.Generator, *, noise: float, batch: int = 32) -> np.ndarray:
    """Encode and decode uint8 (N, 64, 64, 3), with up to ``noise`` standard deviations of noise on each picture's latents."""
    import torch

    out = np.empty_like(pixels)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for at in range(0, len(pixels), batch):
            latents = vae.encode(to_input(pixels[at : at + batch])).latents.float()
            strength = torch.from_numpy(rng.uniform(0, noise, (len(latents), 1, 1, 1)).astype(np.float32))
            jolt = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
            decoded = vae.decode(latents + strength * jolt).sample.float()
            shown = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
            out[at : at + batch] = shown.numpy()
    return out


def to_input(pixels: np.ndarray) -> Any:
    """uint8 (N, 64, 64, 3) → the network's float (N, 3, 64, 64) in [-1, 1]."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def smear(x: Any, rng: np.random.Generator) -> Any:
    """What generated pictures suffer: soft edges, lost resolution, noise, other contrast; one severity per batch."""
    import torch
    from torch.nn import functional

    if rng.random() < 0.3:
        small = int(rng.integers(36, SIDE))
        x = functional.interpolate(
            functional.interpolate(x, size=small, mode="bilinear", antialias=True), size=SIDE, mode="bilinear"
        )
    if rng.random() < 0.4:
        sigma = float(rng.uniform(0.3, 1.0))
        taps = torch.exp(-0.5 * (torch.arange(-2, 3).float() / sigma) ** 2)
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        x = functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="replicate"), kernel.expand(3, 1, 5, 5), groups=3)
    if rng.random() < 0.3:
        x = x[:, torch.from_numpy(rng.permutation(3))]
    gain = torch.from_numpy(rng.uniform(0.8, 1.1, (len(x), 1, 1, 1)).astype(np.float32))
    x = ((x - 1) * gain + 1).clamp(-1, 1)  # white stays white
    if rng.random() < 0.5:
        x = x + float(rng.uniform(0, 0.12)) * torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
    return x.contiguous(memory_format=torch.channels_last)


def examples(
    pixels: np.ndarray, ids: np.ndarray, count: int, rng: np.random.Generator, *, marked: float, designs: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` examples from the drawings ``ids``: pictures (count, 64, 64, 3) and cells (count, 3, 8, 8)."""
    drawn = [draw_one(pixels[i], rng, marked=marked, designs=designs) for i in rng.choice(ids, count)]
    return np.stack([p for p, _ in drawn]), np.stack([t for _, t in drawn])


def choose(names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the world's drawings, of other training drawings, and of held-out ones (one skin tone each, unlettered)."""
    from jobs.world.catalogue import concepts
    from jobs.world.pictures import held_out

    inside = {c.icon for c in concepts()}
    fair = [i for i, n in enumerate(names) if n in inside or not (SKIN.search(n) or LETTERED.search(n))]
    world = np.array([i for i in fair if names[i] in inside])
    other = np.array([i for i in fair if names[i] not in inside and not held_out(names[i])])
    return world, other, np.array([i for i in fair if held_out(names[i])])


def train(
    work: Path,
    *,
    minutes: float,
    pool_size: int = 9000,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train for a time budget; the network's state goes to ``work/marks/state.pt``. Returns the curve.

    Args:
        work: the world's folder, with ``pictures.npz`` and, better, ``vae``.
        minutes: time for the training proper; drawing the examples comes on top (one to three minutes).
        pool_size: examples drawn once; half of them take the round trip.
        batch: pictures per step.
        rate: peak learning rate of the one-cycle schedule.
        seed: of the examples, the augmentation and the initial weights.
        resume: go on from ``work/marks/state.pt``, with examples drawn anew; give another seed.
        say: where progress goes.
    """
    import torch
    from torch.nn import functional

    from jobs.world.pictures import load

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pixels, _, names = load(work)
    world, other, _ = choose(names)
    pictures, targets = (
        np.concatenate(pair)
        for pair in zip(
            examples(pixels, world, pool_size // 2, rng, marked=0.6, designs=TRAIN_DESIGNS),
            examples(pixels, other, pool_size - pool_size // 2, rng, marked=0.6, designs=TRAIN_DESIGNS),
            strict=True,
        )
    )
    say(f"{len(pictures)} examples from {len(world)} + {len(other)} drawings")
    vae = load_autoencoder(work)
    if vae is not None:
        chosen = rng.permutation(len(pictures))[: len(pictures) // 2]
        pictures[chosen] = round_trip(vae, pictures[chosen], rng, noise=0.5)
        say(f"{len(chosen)} of them went through the autoencoder")
    network = make_network().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02, fused=True)
    folder = work / "marks"
    folder.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, float]] = []
    if resume and (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        curve = state["curve"]
    step, spent = (int(curve[-1]["step"]), curve[-1]["minutes"]) if curve else (0, 0.0)
    start, first, total = time.monotonic(), step, 0.0
    while (elapsed := time.monotonic() - start) < 60 * minutes:
        done = elapsed / (60 * minutes)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step - first + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * done)))
        at = rng.integers(0, len(pictures), batch)
        x = smear(to_input(pictures[at]), rng)
        y = torch.from_numpy(targets[at]).float()
        if rng.random() < 0.3:  # a flip would mirror letters, but a shift is harmless
            dx, dy = (8 * int(v) for v in rng.integers(-1, 2, 2))
            x, y = torch.roll(x, (dy, dx), (2, 3)), torch.roll(y, (dy // 8, dx // 8), (2, 3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x).float()
        whole = y.flatten(2).amax(2)
        entropy = functional.binary_cross_entropy_with_logits
        loss = entropy(logits, y) + 0.5 * entropy(pool(logits), whole)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        total += float(loss.detach())
        if step % 50 == 0:
            curve.append({"step": step, "minutes": spent + (time.monotonic() - start) / 60, "loss": total / 50})
            total = 0.0
            say(json.dumps(curve[-1]))
            torch.save({"network": network.state_dict(), "curve": curve}, folder / "state.tmp")
            (folder / "state.tmp").rename(folder / "state.pt")
    torch.save({"network": network.state_dict(), "curve": curve}, folder / "state.tmp")
    (folder / "state.tmp").rename(folder / "state.pt")
    return {"curve": curve, "steps": step, "batch": batch, "pool": len(pictures), "round_trip": vae is not None}


def logits_of(network: Any, pixels: np.ndarray) -> np.ndarray:
    """Picture logits (N, 3) in fp32, as the guard computes them before its shift."""
    import torch

    out = []
    with torch.inference_mode():
        for at in range(0, len(pixels), 64):
            out.append(pool(network(to_input(pixels[at : at + 64]))).numpy())
    return np.concatenate(out)


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the precision–recall curve, step-wise; ties count against the detector."""
    scores = np.concatenate([negative, positive])
    truth = np.concatenate([np.zeros(len(negative)), np.ones(len(positive))])
    ranked = truth[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / max(1, len(positive)))


def evaluate(network: Any, work: Path, *, count: int = 200, seed: int = 1) -> dict[str, Any]:
    """Measure on held-out drawings: thresholds at ≤ 1 % false alarms, average precision and recall per design.

    "plain" are drawings with the mark as painted, "smeared" the same after the autoencoder with noise on its latents.
    """
    from PIL import Image

    from jobs.world.pictures import load

    rng = np.random.default_rng(seed)
    pixels, _, names = load(work)
    _, _, held = choose(names)
    vae = load_autoencoder(work)
    clean = {"plain": np.stack([np.asarray(jitter(Image.fromarray(pixels[i]), rng)) for i in np.concatenate([held, held])])}
    clean["plain"][: len(held)] = pixels[held]
    if vae is not None:
        clean["smeared"] = round_trip(vae, clean["plain"], rng, noise=0.3)
    quiet = {look: logits_of(network, shown) for look, shown in clean.items()}
    # The operating point of each kind, a logit: at most one clean picture in a hundred at or above it, under either look.
    shift = [max(float(np.sort(q[:, k])[-max(1, len(q) // 100)]) + 1e-3 for q in quiet.values()) for k in range(len(KINDS))]
    shift = [max(FLOOR, value) for value in shift]
    alarms = {look: {kind: float((q[:, k] >= shift[k]).mean()) for k, kind in enumerate(KINDS)} for look, q in quiet.items()}
    report: dict[str, Any] = {
        "clean_pictures": len(clean["plain"]),
        "operating_logits": {kind: round(shift[k], 4) for k, kind in enumerate(KINDS)},
        "false_alarms": alarms,
        "any_false_alarm": {look: float((q >= np.array(shift)).any(1).mean()) for look, q in quiet.items()},
        "kinds": {},
    }
    for k, kind in enumerate(KINDS):
        for which, designs in (("train", TRAIN_DESIGNS), ("held-out", HELD_OUT_DESIGNS)):
            chosen = [Image.fromarray(pixels[i]) for i in rng.choice(held, count)]
            marked = np.stack([np.asarray(overlay(picture, kind, rng, designs)[0]) for picture in chosen])
            shown = {"plain": marked}
            if vae is not None:
                shown["smeared"] = round_trip(vae, marked, rng, noise=0.3)
            for look, pictures in shown.items():
                scores = logits_of(network, pictures)
                report["kinds"][f"{kind}, {which} designs, {look}"] = {
                    "ap": average_precision(scores[:, k], quiet[look][:, k]),
                    "recall": float((scores[:, k] >= shift[k]).mean()),
                    "any_mark": float((scores >= np.array(shift)).any(1).mean()),
                }
    return report


def export(
    work: Path, out: Path, *, training: dict[str, Any], version: str = "stickers-marks 1", count: int = 200
) -> dict[str, Any]:
    """Write ``out``/model.safetensors (fp16), config.json and the card README.md from ``work/marks/state.pt``.

    What is evaluated is what is shipped: the network after rounding to fp16.
    """
    import torch
    from safetensors.torch import save

    state = torch.load(work / "marks" / "state.pt", weights_only=True)["network"]
    half = {k: v.half().contiguous() for k, v in state.items() if v.is_floating_point()}  # leaves out batch counters
    network = make_network()
    network.load_state_dict({k: v.float() for k, v in half.items()}, strict=False)
    report = evaluate(network.eval(), work, count=count)
    out.mkdir(parents=True, exist_ok=True)
    raw = save(half)
    (out / "model.safetensors").write_bytes(raw)
    card = {
        "architecture": "cells",
        "version": version,
        "widths": [16, 32, 64, 128],
        "depth": 2,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights_sha256": hashlib.sha256(raw).hexdigest(),
        "operating_logits": report["operating_logits"],
        "licence": "Apache-2.0",
    }
    (out / "config.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    manifest = json.loads((work / "manifest.json").read_text(encoding="utf-8"))
    (out / "README.md").write_text(_card(card, report, training, manifest), encoding="utf-8")
    return report


def _card(card: dict[str, Any], report: dict[str, Any], training: dict[str, Any], manifest: dict[str, Any]) -> str:
    """The model card, with the numbers just measured."""
    packages = "\n".join(f"* {p['package']} {p['version']} ({p['licence']}, {p['rightsholder']})" for p in manifest["packages"])
    rows = "\n".join(f"| {n} | {r['ap']:.3f} | {r['recall']:.3f} | {r['any_mark']:.3f} |" for n, r in report["kinds"].items())
    alarms = "\n".join(
        f"| {look} | {' | '.join(f'{100 * v:.2f} %' for v in by.values())} | {100 * report['any_false_alarm'][look]:.2f} % |"
        for look, by in report["false_alarms"].items()
    )
    last = training["curve"][-1]
    trip = "took" if training["round_trip"] else "did not take, for want of one,"
    pace = f"{training['steps']:,} steps of {training['batch']} pictures in {last['minutes']:.1f} minutes"
    return f"""# Marks: watermark, QR code, text

A fully convolutional network ({card["parameters"]:,} parameters, fp16 weights) that says for each cell of 8×8 pixels of a
64×64 picture whether a watermark, a QR code or text covers it. Loaded by `guards.marks.MarksGuard`; licence Apache-2.0.

## Training

`jobs.world.train_marks.train`, then `export`: {pace} on one shared
CPU core (last mean loss {last["loss"]:.3f}), from {training["pool"]:,} examples at a time: drawings with one synthetic mark
(designs 0–2 of `jobs.world.overlays`, some of them free variations) or none. Half of the examples {trip} a round
trip through the world's autoencoder; all were blurred, rescaled, made noisy and recoloured at random. Drawings that bear
letters of their own were left out, except where the world itself draws them. {training.get("note", "")}

Data (pixels sha256 `{manifest["pixels_sha256"]}`):

{packages}

## Measured on held-out drawings

{report["clean_pictures"]:,} clean pictures of names that no training saw. "Smeared": after the world's autoencoder, with up to
0.3 standard deviations of noise on the latents. A score of 0.5 is the operating point: the logit recorded in `config.json`,
set so that at most 1 % of the clean pictures are flagged per kind, plain or smeared, and not below {FLOOR:g}; it was chosen on
these same pictures.

| clean pictures flagged | watermark | qr | text | any |
|---|---|---|---|---|
{alarms}

| marked pictures | average precision | found as this kind | found as any mark |
|---|---|---|---|
{rows}

Held-out designs (a band, a corner logo; a Micro QR code, an inverted one; vertical and outlined words) were seen by no
training.

## Limits

It knows these drawings and these marks on white: it is a guard for the embedded world, not a general watermark detector.
Pictures of other sizes are squeezed to 64×64, so small marks in large pictures are lost.
Weights: sha256 `{card["weights_sha256"]}`.
"""
