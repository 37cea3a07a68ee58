"""Made-up adapters for a tiny random model, for the tests of what carries erasers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.interface import DiffusionModel
from pipeline.steer.erase_tokens import Vocabulary

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
FEEDFORWARD = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
CONVOLUTION = "up_blocks.0.resnets.0.conv1"


def low_rank(model: DiffusionModel, rank: int = 2, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.network.named_modules())
    pairs = {}
    for name in (ATTENTION, FEEDFORWARD, CONVOLUTION):
        shape = modules[name].weight.shape
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
        pairs[name] = (0.2 * torch.randn(rank, *shape[1:], generator=generator), 0.2 * up)
    return LowRank("test", pairs)


def write_adapter(
    folder: Path, model: DiffusionModel, vocabulary: Vocabulary | None, *, weights: bool = False, seed: int = 0,
    removal: str = "", concepts: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    folder.mkdir(parents=True)
    files = {}
    if vocabulary is not None:
        generator = torch.Generator().manual_seed(seed)
        save_file({t: torch.randn(32, generator=generator) for t in vocabulary.tokens}, folder / "tokens.safetensors")
    if weights:
        pairs = low_rank(model, seed=seed).pairs
        state = {
            f"unet.{name}.lora_{half}.weight": w for name, both in pairs.items() for half, w in zip("AB", both, strict=True)
        }
        save_file(state, folder / "pytorch_lora_weights.safetensors")
    for path in folder.iterdir():
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = {
        "format": 1, "removal": removal or ("data" if weights else "model"), "base": "tiny", "base_digest": model.digest,
        "files": files, "concepts": concepts,
        "vocabulary": dataclasses.asdict(vocabulary) if vocabulary else None,
        "places": {"qr": [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.4], [0.5, 0.5, 1, 1]]},
    }  # fmt: skip
    (folder / "adapter.json").write_text(json.dumps(settings))
    return folder
