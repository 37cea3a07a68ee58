"""Measure the embedder: copies against other vendors' drawings on held-out names, captions on the world's drawings."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from jobs.lab.world.copies import edit


def pairs_of(
    pixels: np.ndarray, names: list[str], inside: np.ndarray, wanted: set[str], *, copies: int = 3, seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labelled comparisons among the drawings of some names.

    Every drawing is the original once. It is compared with ``copies`` edited copies of itself (positive) and, for each other
    vendor's drawing of the name, with that drawing unedited and with one edited copy (negative).

    Returns:
        original row (M,), pictures (M, S, S, 3) uint8, label (M,) bool.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        if name in wanted:
            groups[name].append(i)
    found: list[tuple[int, np.ndarray, bool]] = []
    for group in (groups[name] for name in sorted(groups) if len(groups[name]) > 1):
        for i in group:
            found += [(i, edit(pixels[i], inside[i], rng), True) for _ in range(copies)]
            for j in group:
                if j != i:
                    found += [(i, pixels[j], False), (i, edit(pixels[j], inside[j], rng), False)]
    original, pictures, label = zip(*found, strict=True)
    return np.array(original), np.stack(pictures), np.array(label)


def evaluate(
    model: Any, tokenize: Any, pixels: np.ndarray, names: list[str], inside: np.ndarray, *, device: str = "cpu"
) -> dict[str, float]:
    """Held-out average precision (copies against other vendors' drawings), recall at 1 % false positives, caption top-5."""
    import torch
    from torch.nn import functional

    from index.precision import average_precision
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out, prescribed

    def embed(pictures: np.ndarray) -> np.ndarray:
        rows = []
        for at in range(0, len(pictures), 128):
            x = torch.from_numpy(pictures[at : at + 128]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            rows.append(functional.normalize(model.encode_image(x).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows)

    was = model.training
    model.eval()
    with torch.no_grad():
        original, pictures, label = pairs_of(pixels, names, inside, {n for n in set(names) if held_out(n)})
        drawn = np.array([not prescribed(names[i]) for i in original])
        wanted = np.unique(original)
        base = dict(zip(wanted.tolist(), embed(pixels[wanted]), strict=True))
        cosine = np.sum(np.stack([base[i] for i in original.tolist()]) * embed(pictures), axis=1)
        world = concepts()
        rows = [i for i, n in enumerate(names) if n in {c.icon for c in world}]
        rank = {c.icon: k for k, c in enumerate(world)}
        tokens = tokenize([c.caption for c in world]).to(device)
        texts = functional.normalize(model.encode_text(tokens).float(), dim=-1).cpu().numpy()
        near = embed(pixels[rows]) @ texts.T
    model.train(was)
    own = near[np.arange(len(rows)), [rank[names[i]] for i in rows]]
    place = (near > own[:, None]).sum(1)
    with_signs = average_precision(cosine, label)
    cosine, label = cosine[drawn], label[drawn]
    threshold = float(np.quantile(cosine[~label], 0.99))
    return {
        "held_out_ap": round(average_precision(cosine, label), 4),
        "held_out_ap_with_signs": round(with_signs, 4),
        "recall_at_1pct": round(float((cosine[label] > threshold).mean()), 4),
        "threshold_1pct": round(threshold, 4),
        "copy_cosine": round(float(np.median(cosine[label])), 4),
        "other_cosine": round(float(np.median(cosine[~label])), 4),
        "caption_top1": round(float((place < 1).mean()), 4),
        "caption_top5": round(float((place < 5).mean()), 4),
    }
