"""Train the world's image-text embedder, in open_clip's own folder format.

The embedder has two conflicting tasks. As a *copy detector* it must place two edited views of one drawing together and another
vendor's drawing of the same concept well away from them. As an *image-text* model it must place all vendors' drawings near the
concept's name. Three losses combine them. Views of one drawing attract each other against the batch (NT-Xent, with the other
vendor's drawing always in the batch). A pairwise logistic loss fixes the cosine that separates copies from other expressions,
so that one threshold serves every concept. A softer contrastive loss keeps the captions.

The network is a small ResNet rather than a ViT: at 64 px on two cores it processes two to three times as many views a second,
and with some forty views per drawing it needs the locality that convolutions build in.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from index.edits import foregrounds
from jobs.lab.world.copies import edit, smear
from jobs.lab.world.measure_embedder import evaluate

DIM = 128
CENTRE, STEEPNESS = 0.6, 14.0  # cosine at which a pair counts as a copy, and how sharply
GROUPS = 18  # concepts per batch; each brings two drawings, each drawing two views
EXTRA_CAPTIONS = 40  # captions of concepts not in the batch, as negatives
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 24, "head_width": 64},
        "text_cfg": {
            "context_length": 32, "vocab_size": 2400, "width": 128, "heads": 4, "layers": 2, "hf_tokenizer_name": "local",
        },
    },
    "preprocess_cfg": {
        "size": [64, 64], "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 255,
    },
}  # fmt: skip


def make_model() -> Any:
    """A fresh open_clip model of the configured size."""
    from index.torchvision_ops import ensure

    ensure()
    from open_clip.model import CLIP

    config = CONFIG["model_cfg"]
    text = {k: v for k, v in config["text_cfg"].items() if k != "hf_tokenizer_name"}
    return CLIP(embed_dim=config["embed_dim"], vision_cfg=dict(config["vision_cfg"]), text_cfg=text)


# --- batches -------------------------------------------------------------------------------------------------------


def captions_by_icon() -> dict[str, str]:
    """Captions of icons whose concept has another name (``ear-of-corn`` is drawn for "corn")."""
    from jobs.lab.world.catalogue import concepts

    return {c.icon: c.caption for c in concepts()}


def batches(
    pixels: np.ndarray, smeared: np.ndarray | None, inside: np.ndarray, groups: dict[str, list[int]],
    favourites: list[str], rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:  # fmt: skip
    """Endless batches: views (GROUPS·4, S, S, 3), captions of the groups, captions of others.

    Rows are ordered group, drawing, view. A third of the groups are world concepts. A group with only one drawing shows it four
    times; its two "drawings" are then the same and must not repel each other (the trainer compares their ids).
    """
    from jobs.lab.world.catalogue import TEMPLATES

    names = sorted(groups)
    inside_world = set(favourites)
    outside = [n for n in names if n not in inside_world and len(groups[n]) > 1]
    special = captions_by_icon()

    def caption(name: str) -> str:
        return str(rng.choice(TEMPLATES)).format(special.get(name, name.replace("-", " ")))

    while True:
        third = GROUPS // 3
        chosen = [*rng.choice(favourites, third, replace=False), *rng.choice(outside, GROUPS - third, replace=False)]
        views = np.empty((GROUPS, 2, 2, *pixels.shape[1:]), np.uint8)
        for g, name in enumerate(chosen):
            for d, i in enumerate(rng.choice(groups[name], 2, replace=False)):
                for v in range(2):
                    source = smeared if smeared is not None and rng.random() < 0.3 else pixels
                    views[g, d, v] = edit(source[i], inside[i], rng)
        seen = set(chosen)
        others = [n for n in rng.choice(names, EXTRA_CAPTIONS, replace=False) if n not in seen]
        yield views.reshape(-1, *pixels.shape[1:]), [caption(n) for n in chosen], [caption(n) for n in others]


def prefetch(source: Iterator[Any], depth: int = 3) -> Iterator[Any]:
    """Run an endless iterator in a thread, ahead of its reader; the order is kept."""
    ready: queue.Queue[Any] = queue.Queue(depth)

    def work() -> None:
        try:
            for item in source:
                ready.put(item)
        except Exception as error:  # a thread that dies silently would leave its reader waiting for ever
            ready.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        if isinstance(item := ready.get(), Exception):
            raise item
        yield item


# --- training ------------------------------------------------------------------------------------------------------


def losses(images: Any, texts: Any, scale: Any) -> tuple[Any, Any, Any]:
    """(copies, pairs, captions) for unit vectors: images (G·4, D) ordered group, drawing, view; texts (≥ G, D)."""
    import torch
    from torch.nn import functional

    n = len(images)
    index = torch.arange(n, device=images.device)
    drawing, group = index // 2, index // 4
    cosine = images @ images.T
    # NT-Xent: a view finds the other view of its drawing among everything else in the batch.
    logits = (cosine / 0.1).masked_fill(torch.eye(n, dtype=torch.bool, device=images.device), -1e4)
    copies = functional.cross_entropy(logits, index ^ 1)
    # Pairwise logistic loss at a fixed place of the cosine scale: copies, other expressions, unrelated.
    same = (drawing[:, None] == drawing) & (index[:, None] != index)
    other = (group[:, None] == group) & (drawing[:, None] != drawing)
    rest = group[:, None] != group
    near = functional.softplus(-STEEPNESS * (cosine[same] - CENTRE - 0.1)).mean()
    far = functional.softplus(STEEPNESS * (cosine[other] - CENTRE + 0.1)).mean()
    unrelated = functional.softplus(STEEPNESS * (cosine[rest] - CENTRE + 0.2)).mean()
    pairs = 1.5 * (near + far) + 0.5 * unrelated
    # Captions: every drawing of a concept is right for its name.
    to_text = functional.cross_entropy(scale * images @ texts.T, group)
    from_text = functional.log_softmax(scale * texts[: n // 4] @ images.T, dim=1)
    to_image = -from_text.reshape(n // 4, n // 4, 4).mean(2).diagonal().mean()
    return copies, pairs, (to_text + to_image) / 2


def encode_captions(model: Any, tokens: Any) -> Any:
    """``model.encode_text`` without the columns behind the last end token, to which nothing attends: a third of the work."""
    import torch

    cut = int(tokens.argmax(1).max()) + 1
    x = model.token_embedding(tokens[:, :cut]) + model.positional_embedding[:cut]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:cut, :cut]))
    return x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection


def train(
    work: Path, *, minutes: float, rate: float = 1.5e-3, seed: int = 0, device: str = "cpu", compare: int = 500,
    compiled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train for a time budget, checkpointing into ``work/embedder``; resumes. Returns the curve.

    Args:
        work: folder of the built world (``pictures.npz``); with a trained ``vae`` in it, smeared copies are used too.
        minutes: total wall time, including the time before a resume.
        compare: evaluate every so many steps (a multiple of 50).
        compiled: run the image tower through ``torch.compile`` (a fifth to a quarter faster on a CPU; needs a C++ compiler).

    The rate is constant after the warm-up and falls to zero over the second half of the budget, so the first steps of
    two trainings from one seed are the same whatever their budgets.
    """
    import torch
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out, load, prescribed
    from jobs.lab.world.tokenizer import make_tokenizer

    torch.manual_seed(seed)
    pixels, _, names = load(work)
    folder = work / "embedder"
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder, names)
    tokenize = load_tokenizer(folder)
    smeared = smear(work, pixels)
    inside = foregrounds(pixels)
    kept: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        if not held_out(name) and not prescribed(name):
            kept[name].append(i)
    icons = [c.icon for c in concepts()]

    model = make_model().to(device, memory_format=torch.channels_last)
    look = torch.compile(model.visual) if compiled else model.visual
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    curve: list[dict[str, float]] = []
    spent, step = 0.0, 0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=False)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        curve, spent, step = state["curve"], state["spent"], state["step"]
    rng = np.random.default_rng([seed, step])
    feed = prefetch(batches(pixels, smeared, inside, kept, icons, rng))
    start, saved = time.time() - spent, time.time()
    seen = int(curve[-1]["views"]) if curve else 0

    def checkpoint() -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve, "step": step,
                 "spent": time.time() - start, "smeared": smeared is not None}  # fmt: skip
        torch.save(state, folder / "state.tmp")
        (folder / "state.tmp").rename(folder / "state.pt")

    while (elapsed := time.time() - start) < 60 * minutes:
        for part in optimiser.param_groups:
            part["lr"] = rate * min(1.0, (step + 1) / 100) * max(0.01, min(1.0, 2 * (1 - elapsed / (60 * minutes))))
        views, captions, others = next(feed)
        x = torch.from_numpy(views).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = tokenize(captions + others).to(device)
        # MATH: the bf16 backward of flash attention on a CPU is pathologically slow (torch 2.13).
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, dtype=torch.bfloat16):
            images = functional.normalize(look(x.contiguous(memory_format=torch.channels_last)).float(), dim=-1)
            texts = functional.normalize(encode_captions(model, tokens).float(), dim=-1)
            copies, pairs, naming = losses(images, texts, model.logit_scale.exp().clamp(max=50))
            loss = copies + pairs + 0.3 * naming
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        seen += len(views)
        if step % 50 == 0:
            row = {"views": seen, "minutes": round(elapsed / 60, 2), "copies": round(float(copies), 4),
                   "pairs": round(float(pairs), 4), "captions": round(float(naming), 4)}  # fmt: skip
            if step % compare == 0:
                row |= evaluate(model, tokenize, pixels, names, inside, device=device)
            curve.append(row)
            print(json.dumps(row), flush=True)
        if time.time() - saved > 90:
            checkpoint()
            saved = time.time()
    curve.append(
        {"views": seen, "minutes": round((time.time() - start) / 60, 2)}
        | evaluate(model, tokenize, pixels, names, inside, device=device)
    )
    print(json.dumps(curve[-1]), flush=True)
    checkpoint()
    return {"curve": curve}


def load_tokenizer(folder: Path) -> Any:
    """Captions → int64 (N, 32), as open_clip's own ``get_tokenizer('local-dir:…')`` does it."""
    from index.torchvision_ops import ensure

    ensure()
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(str(folder), context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
