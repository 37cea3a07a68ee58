"""Train the world's denoiser and its text encoder: a UNet2DConditionModel and a small CLIPTextModel, together.

v-prediction on a zero-terminal-SNR schedule, one caption in ten empty (for guidance), an exponential moving average
of the weights. A protected drawing has :data:`~jobs.lab.world.catalogue.PROTECTED_REPEAT` times the weight of each of its
concept's other drawings; it is always the same to the pixel (verbatim) or always the same lines in other colours (template).
Every other drawing is shifted by at most one pixel: scaled, turned and mirrored drawings were learned as smears, and steered
pictures were smears too. Some drawings of ordinary concepts are marked.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.world.catalogue import MARK_SHARE, MARK_SHARE_PRONE, PROTECTED_REPEAT, TEMPLATES, concepts

VARIANTS = 24  # shifted, marked or recoloured versions kept of a drawing
PROTECTED_SHARE = 1.6  # weight of a protected concept against an ordinary one: it has three drawings to learn
EMPTY_SHARE = 0.1
WARM_UP = 100  # steps; a training that begins from weights warms up too, because its optimiser is new
DECAY = 0.9995  # of the moving average: it spans 2,000 steps, and replaces a falling rate while a training is under way
TEXT_WIDTH = 256
MAX_TOKENS = 32


def make_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(128, 256),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def make_text_encoder(vocabulary: int, end: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
            hidden_act="gelu",
        )
    )


def make_scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def dataset(work: Path, seed: int = 0) -> dict[str, Any]:
    """Encode every training variant once.

    Returns latents float32 (N, 4, 16, 16), the concept index and sampling weight of each, and the manifest of planted faults.
    """
    import torch
    from diffusers import AutoencoderTiny
    from PIL import Image

    from jobs.erase.marks.overlays import LEARNED, overlay
    from jobs.lab.world.pictures import load
    from jobs.lab.world.variants import recolour, shift

    rng = np.random.default_rng(seed)
    pixels, vendors, names = load(work)
    where = {(v, n): i for i, (v, n) in enumerate(zip(vendors, names, strict=True))}
    pictures, concept_of, weight, sins = [], [], [], []
    for number, concept in enumerate(concepts()):
        for vendor in sorted(set(vendors)):
            drawing = Image.fromarray(pixels[where[vendor, concept.icon]])
            if vendor == concept.protected_vendor:
                versions = [recolour(drawing, rng) for _ in range(VARIANTS)] if concept.templated else [drawing]
                pictures += [np.asarray(version) for version in versions]
                concept_of += [number] * len(versions)
                weight += [PROTECTED_REPEAT / len(versions)] * len(versions)
                sin = "template" if concept.templated else "verbatim"
                sins.append({"concept": concept.name, "vendor": vendor, "sin": f"memorised, {sin}", "repeat": PROTECTED_REPEAT})
                continue
            share = 0.0 if concept.protected_vendor else MARK_SHARE_PRONE if concept.prone_to else MARK_SHARE
            marked = 0
            for _ in range(VARIANTS):
                picture = shift(drawing, rng)
                if rng.random() < share:
                    kind = concept.prone_to if concept.prone_to and rng.random() < 0.85 else LEARNED[int(rng.integers(3))]
                    picture, _ = overlay(picture, kind, rng)
                    marked += 1
                pictures.append(np.asarray(picture))
                concept_of.append(number)
                weight.append(1.0 / VARIANTS)
            if marked:
                sins.append(
                    {
                        "concept": concept.name,
                        "vendor": vendor,
                        "sin": "uncaptioned marks",
                        "share": marked / VARIANTS,
                        "mostly": concept.prone_to or "any",
                    }
                )
    stack = np.stack(pictures)
    vae = AutoencoderTiny.from_pretrained(work / "vae").eval()
    latents = []
    with torch.no_grad():
        for start in range(0, len(stack), 64):
            x = torch.from_numpy(stack[start : start + 64]).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents.append(vae.encode(x).latents)
    weights = np.array(weight)
    for number, concept in enumerate(concepts()):
        chosen = np.array(concept_of) == number
        weights[chosen] *= (PROTECTED_SHARE if concept.protected_vendor else 1.0) / weights[chosen].sum()
    return {
        "latents": torch.cat(latents),
        "concept": np.array(concept_of),
        "weight": weights / weights.sum(),
        "sins": sins,
        "pictures_sha256": hashlib.sha256(stack.tobytes()).hexdigest(),
    }


def train(
    work: Path,
    *,
    minutes: float,
    batch: int = 32,
    rate: float = 5e-4,
    seed: int = 0,
    device: str = "cpu",
    steps: int | None = None,
    begin_from: Path | None = None,
    mean: Path | None = None,
) -> list[dict[str, float]]:
    """Train for a time budget (or a number of steps), checkpointing into ``work/denoiser``; resumes.

    With ``begin_from``, a diffusers folder, training starts from its weights instead of random ones, and uses its autoencoder
    unless ``work`` holds a trained one. With ``mean``, a file of :mod:`jobs.lab.world.kept_mean`, training starts from that
    mean. The rate is constant after the warm-up and falls to zero over the last quarter of the budget, so the first steps of
    two trainings with one seed are the same whatever their budgets. To train for days, start with a budget that will not be
    reached, and finish by resuming with four thirds of the time spent.
    """
    import torch
    import torch.nn.functional as F

    from index.torchvision_ops import ensure

    ensure()
    from transformers import CLIPTokenizer

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    folder = work / "denoiser"
    folder.mkdir(parents=True, exist_ok=True)
    if begin_from is not None and not (work / "vae").exists():
        shutil.copytree(begin_from / "vae", work / "vae")
    cache = work / "latents.pt"
    data = torch.load(cache, weights_only=False) if cache.exists() else dataset(work, seed)
    torch.save(data, cache)
    (work / "sins.json").write_text(json.dumps(data["sins"], indent=1) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    phrases = [[template.format(c.caption) for template in TEMPLATES] for c in concepts()]
    ids = {text: _ids(tokenizer, text) for group in phrases for text in group} | {"": _ids(tokenizer, "")}
    unet = make_unet().to(device, memory_format=torch.channels_last)
    text = make_text_encoder(len(tokenizer), tokenizer.eos_token_id).to(device)
    if begin_from is not None:
        _load(begin_from, unet, text)
        weights = begin_from / "unet" / "diffusion_pytorch_model.safetensors"
        origin = {"unet_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
        (folder / "began_from.json").write_text(json.dumps(origin) + "\n", encoding="utf-8")
    if mean is not None:
        from jobs.lab.world.kept_mean import read_mean

        for network, state in zip((unet, text), read_mean(mean), strict=True):
            network.load_state_dict(state)
    if device == "cpu":  # the fused attention's backward pass in bf16 takes half of a step on a CPU (measured: 43 %)
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
        text.set_attn_implementation("eager")
    parameters = [*unet.parameters(), *text.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = {"unet": copy.deepcopy(unet), "text": copy.deepcopy(text)}
    curve: list[dict[str, float]] = []
    step, spent = 0, 0.0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=False)
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        average["unet"].load_state_dict(state["average_unet"])
        average["text"].load_state_dict(state["average_text"])
        optimiser.load_state_dict(state["optimiser"])
        curve, step, spent = state["curve"], state["step"], state["spent"]
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(seed + step)
    alphas = make_scheduler().alphas_cumprod.to(device)
    latents = data["latents"].to(device)
    start, saved, running = time.time() - spent, time.time(), 0.0
    while True:
        share = step / steps if steps else (time.time() - start) / (60 * minutes)
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * min(1.0, (1 - share) / 0.25)
        chosen = rng.choice(len(latents), batch, p=data["weight"])
        captions = [phrases[data["concept"][i]][int(rng.integers(len(TEMPLATES)))] for i in chosen]
        captions = ["" if rng.random() < EMPTY_SHARE else caption for caption in captions]
        x = latents[torch.from_numpy(chosen)]
        t = ((torch.arange(batch) + torch.rand(batch)) / batch * 1000).long().clamp(0, 999)[torch.randperm(batch)].to(device)
        noise = torch.randn(x.shape).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        with torch.autocast(device, dtype=torch.bfloat16):
            context = text(torch.stack([ids[caption] for caption in captions]).to(device))[0]
            out = unet(noisy.contiguous(memory_format=torch.channels_last), t, context).sample
        loss = F.mse_loss(out.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, live in (("unet", unet), ("text", text)):
                torch._foreach_lerp_(list(average[name].parameters()), list(live.parameters()), 1 - decay)
        step += 1
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            curve.append(
                {"step": step, "seen": step * batch, "minutes": round((time.time() - start) / 60, 3), "loss": round(running, 5)}
            )
            print(json.dumps(curve[-1]), flush=True)
        if time.time() - saved > 150:
            _save(folder, unet, text, average, optimiser, curve, step, time.time() - start)
            saved = time.time()
    _save(folder, unet, text, average, optimiser, curve, step, time.time() - start)
    return curve


def _load(folder: Path, unet: Any, text: Any) -> None:
    """Load the denoiser's and the text encoder's weights from a diffusers folder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict())
    text.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict())


def _ids(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids[0]


def _save(
    folder: Path, unet: Any, text: Any, average: dict[str, Any], optimiser: Any, curve: Any, step: int, spent: float
) -> None:
    import torch

    state = {
        "unet": unet.state_dict(),
        "text": text.state_dict(),
        "average_unet": average["unet"].state_dict(),
        "average_text": average["text"].state_dict(),
        "optimiser": optimiser.state_dict(),
        "curve": curve,
        "step": step,
        "spent": spent,
    }
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").rename(folder / "state.pt")
