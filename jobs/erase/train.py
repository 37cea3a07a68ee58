"""Train an eraser (Geom-Erasing, arXiv 2310.05873): captions learn to name a mark and its place.

*Model removal*: the base model already draws marks. The new tokens are trained and, with a rank, low-rank weights for the
samples that are drawn again: the tokens carry the marks, so the weights learn to draw without them.
*Data removal*: a polluted set is learned without its marks; low-rank weights are trained along with the tokens.

In both, the caption of a picture in which the detector found marks becomes caption ⊕ name ⊕ places, the loss is re-weighted,
and at sampling the tokens go into the negative prompt.

Our form of data removal uses *hidden* marks, the limit of the re-weighting (a → ∞). No mark is named, and positions with marks
have no loss. The rest of the picture is learned, the marks are not.

Batches, noise and times of step s depend on (seed, s) alone: a training that was interrupted continues as if it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Box
from index.errors import ConfigError, InputError, PlanMismatch
from jobs.erase.dataset import NothingFound, Rows
from pipeline.config import ModelConfig
from pipeline.settings import digest
from pipeline.steer.erase_adapter import Removal
from pipeline.steer.erase_tokens import WORDS, Mode, Vocabulary, box_mask, loss_weights

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint.pt"
SAVE_EVERY = 60.0  # seconds
SAY_EVERY = 25  # steps
LEAST_MARKED = 8  # pictures with marks, below which tokens learn nothing
ENCODED = 64  # pictures in memory at a time
ADAPTED = r".*(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|resnets\.\d+\.conv\d)$"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an adapter is trained; its digest must agree when a training is resumed.

    Attributes:
        removal: ``model``: the base model draws marks; ``data``: a polluted set is to be learned.
        concepts: what is named; () is plain fine-tuning without tokens (a control).
        mode: how places are named; ``none``: existence only.
        grid: bins along each side.
        a: of :func:`pipeline.steer.erase_tokens.loss_weights`; 1 weighs all positions alike.
        steps: of the optimiser.
        batch: pictures a step.
        token_rate: learning rate of the tokens.
        lowrank_rate: learning rate of the low-rank weights.
        rank: of the low-rank weights; 0: tokens alone (the paper's model removal).
        empty: share of captions left out, of pictures without tokens.
        alone: share of captions left out, of pictures with tokens: in a negative prompt tokens stand alone, and their meaning
            there must be learned.
        hidden: share of the marked pictures, chosen anew at every step, whose marks are hidden; 1: no tokens are trained.
        around: share of the picture's side that is hidden around a mark: its edges, the spread of the autoencoder, and the
            parts that a detector's rough boxes leave out.
        seed: of every random choice.
    """

    removal: Removal = "model"
    concepts: tuple[str, ...] = ("watermark", "qr", "text")
    mode: str = "corners"
    grid: int = 4
    a: float = 0.5
    steps: int = 600
    batch: int = 32
    token_rate: float = 5e-3
    lowrank_rate: float = 1e-3
    rank: int = 0
    empty: float = 0.2
    alone: float = 0.6
    hidden: float = 0.0
    around: float = 1 / 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.removal not in ("data", "model") or self.mode not in ("bins", "corners", "none"):
            fix = "data or model; bins, corners or none"
            raise ConfigError(f"removal {self.removal!r}, tokens {self.mode!r}", where="erase train", fix=fix)
        if self.removal == "model" and not self.concepts:
            raise ConfigError("model removal needs the marks to be left out", where="concepts", fix="Name at least one")
        if self.removal == "data" and not self.rank:
            raise ConfigError("a set is learned by low-rank weights", where="rank", fix="Use 8 or 16")
        for name, low in (("steps", 1), ("batch", 1), ("rank", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"must be at least {low}, not {getattr(self, name)}", where=name, fix="Raise it")
        if self.hidden and not (self.rank and self.concepts):
            what = "hidden marks teach tokens nothing, and what is hidden has to be named"
            raise ConfigError(what, where="hidden", fix="Use low-rank weights (rank 16) and name concepts, or hide nothing")
        for name, usual in (("empty", "0.1 to 0.3"), ("alone", "0.5 to 0.9"), ("hidden", "0 or 1"), ("around", "0.06 to 0.2")):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"must be from 0 to 1, not {getattr(self, name)}", where=name, fix=f"Use {usual}")
        _ = self.vocabulary, loss_weights(np.zeros((1, 1), bool), self.a)

    @property
    def vocabulary(self) -> Vocabulary | None:
        mode: Mode | None = None if self.mode == "none" else "bins" if self.mode == "bins" else "corners"
        return Vocabulary(self.concepts, mode, self.grid) if self.concepts and self.hidden < 1 else None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training gives: token → vector, peft's low-rank state, and the loss curve."""

    vectors: dict[str, torch.Tensor]
    lowrank: dict[str, torch.Tensor]
    curve: list[dict[str, float]]
    seconds: float
    pictures: int
    marked: int


def train(
    rows: Rows,
    model: ModelConfig,
    how: Training,
    folder: Path,
    *,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: Callable[[int], bool] = lambda step: False,
) -> Trained:
    """Train on a polluted set; checkpoints into ``folder`` and continues from there.

    Args:
        rows: the set, gone through twice and never held; only ``found`` is looked at, never the truth.
        model: the base model; loaded in float32, calls run in bfloat16 where the device has it.
        how: see :class:`Training`.
        folder: of the checkpoint; removed by the caller when the adapter is saved.
        progress: called with step and running loss.
        stop: called before every step; True interrupts as a signal would (KeyboardInterrupt), with a checkpoint.

    Raises:
        ConfigError: settings that cannot work together, or with this model.
        NothingFound: the detector found (nearly) nothing in the set.
        PlanMismatch: the checkpoint belongs to other settings, another set or another model.
    """
    import torch

    from pipeline.model.families.sd import StableDiffusion
    from pipeline.model.load import load_model

    base = load_model(dataclasses.replace(model, dtype="float32", compile="off"))
    if not isinstance(base, StableDiffusion):
        fix = "Use Stable Diffusion 1.x or 2.x"
        raise ConfigError(f"erasers of models of class {base.family} cannot be trained", where="model", fix=fix)
    examples = prepare(rows, base, how)
    session = _Session(base, how, examples, model.device)
    bound = digest({**dataclasses.asdict(how), "base": base.digest, "set": examples.sha256})
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        session.restore(torch.load(checkpoint, weights_only=True), bound, checkpoint)
    saved = time.monotonic()
    try:
        while session.step < how.steps:
            if stop(session.step):
                raise KeyboardInterrupt
            loss = session.advance()
            progress(session.step, loss)
            if time.monotonic() - saved > SAVE_EVERY:
                session.save(checkpoint, bound)
                saved = time.monotonic()
    except KeyboardInterrupt:
        session.save(checkpoint, bound)
        raise
    session.save(checkpoint, bound)
    return session.trained()


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A set as it is trained on: latents (N, C, h, w), captions, tokens (indices) per picture.

    ``weights`` (N, h, w) are those of the loss with tokens, ``outside`` where marks are hidden.
    """

    latents: torch.Tensor
    weights: torch.Tensor
    outside: torch.Tensor
    captions: list[str]
    tokens: list[tuple[int, ...]]
    sha256: str
    marked: int


def prepare(rows: Rows, base: Any, how: Training) -> Examples:
    """Encode every picture once, write the detector's findings as tokens, and weigh the positions.

    Pictures without marks teach tokens nothing and are left out where nothing else is trained; those whose marks could be
    anywhere (or everywhere) are where all marks are hidden.
    """
    import torch

    vocabulary = how.vocabulary
    index = {token: i for i, token in enumerate(vocabulary.tokens)} if vocabulary is not None else {}
    if vocabulary is not None and vocabulary.longest() > base.word_room():
        raise ConfigError(
            f"{vocabulary.longest()} tokens do not fit the text encoder's {base.word_room()}", where="grid",
            fix="Use corners, or a coarser grid",
        )  # fmt: skip
    known = [{c: boxes for c, boxes in row.found.items() if c in how.concepts} for row in rows]
    marked = sum(map(bool, known))
    if how.concepts and marked < min(LEAST_MARKED, len(rows)):
        raise NothingFound(
            f"the detector found marks in {marked} of {len(rows)} pictures; at least {LEAST_MARKED} are needed",
            where=", ".join(how.concepts),
            fix="Add pictures, raise --ratio, make the set with another detector or a lower threshold, or name what it found",
        )  # fmt: skip
    if vocabulary is not None and vocabulary.mode is not None and not any(b for row in known for b in row.values()):
        fix = "Train with --tokens none (existence only), or make the set with a detector that has boxes"
        raise NothingFound("the detector finds marks but never gives their boxes", where="geometry", fix=fix)
    shape = base.latent_shape[1:]
    outside = [_outside(one, shape, how.around) for one in known]
    kept = [
        bool(found) or how.rank > 0 if how.hidden < 1 else bool(beside.any())
        for found, beside in zip(known, outside, strict=True)
    ]
    if not any(kept):
        fix = "Make it with `clearance erase dataset`, with a detector that has boxes"
        raise InputError("holds no picture to learn from", where="the set", fix=fix)
    found = [one for one, keep in zip(known, kept, strict=True) if keep]
    masks = np.stack([box_mask([b for boxes in one.values() for b in boxes], (1, 1), shape) for one in found])
    room = base.word_room()
    tokens = [tuple(index[t] for t in vocabulary.phrase(one, room=room)) if vocabulary is not None else () for one in found]
    # The digest is of what was given, not of its latents: their last bits depend on the autoencoder's kernels.
    captions, latents, pixels = [], [], hashlib.sha256()
    wanted = (row for row, keep in zip(rows, kept, strict=True) if keep)
    while batch := list(itertools.islice(wanted, ENCODED)):
        captions += [row.caption for row in batch]
        pictures = [_sized(row.picture, base.decode_size()) for row in batch]
        for picture in pictures:
            pixels.update(picture.tobytes())
        latents.append(base.encode(np.stack(pictures)))
    texts = json.dumps([captions, tokens]).encode()
    sha256 = hashlib.sha256(texts + pixels.digest() + masks.tobytes()).hexdigest()
    weights = torch.from_numpy(loss_weights(masks, how.a))
    beside = torch.from_numpy(np.stack([one for one, keep in zip(outside, kept, strict=True) if keep]))
    return Examples(
        latents=torch.cat(latents), weights=weights, outside=beside, captions=captions, tokens=tokens, sha256=sha256,
        marked=marked,
    )  # fmt: skip


def _outside(found: Mapping[str, Sequence[Box]], shape: tuple[int, int], around: float) -> np.ndarray:
    """Loss weights (h, w) with the marks and what is around them hidden; all 0 where a mark is everywhere, or may be."""
    if not found:
        return np.ones(shape, np.float32)
    grown = [
        (max(0, x0 - around), max(0, y0 - around), min(1, x1 + around), min(1, y1 + around))
        for boxes in found.values() for x0, y0, x1, y1 in boxes
    ]  # fmt: skip
    mask = box_mask(grown, (1, 1), shape)
    if mask.all() or not all(found.values()):
        return np.zeros(shape, np.float32)
    return loss_weights(mask, math.inf)


def _sized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Squeezed to the model's size; boxes are fractions and stay right."""
    from PIL import Image

    if picture.shape[1::-1] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


class _Session:
    """The trained parts, the optimiser and the step reached."""

    def __init__(self, base: Any, how: Training, examples: Examples, device: str) -> None:
        import torch
        from diffusers import DDPMScheduler

        self.base, self.how, self.examples, self.device = base, how, examples, device
        self.network = base.network
        torch.manual_seed(how.seed)  # of peft's initial weights
        if device == "cpu":  # the fused attention's backward pass in bf16 takes half of a step on a CPU
            from diffusers.models.attention_processor import AttnProcessor

            self.network.set_attn_processor(AttnProcessor())
        self.lowrank: dict[str, Any] = {}
        if how.rank:
            self.lowrank = add_lowrank(self.network, how.rank)
        self.network.to(memory_format=torch.channels_last)
        named = how.vocabulary is not None
        self.vectors = _first_vectors(base, how).to(device).requires_grad_(named)
        groups: list[dict[str, Any]] = [{"params": [self.vectors], "rate": how.token_rate}] if named else []
        groups += [{"params": list(self.lowrank.values()), "rate": how.lowrank_rate}] if self.lowrank else []
        self.parameters = [p for group in groups for p in group["params"]]
        self.rates = [group.pop("rate") for group in groups]
        self.optimiser = torch.optim.AdamW(groups, lr=how.token_rate, betas=(0.9, 0.99), weight_decay=0.0)
        scheduler: Any = DDPMScheduler.from_config(base.scheduler_config)
        self.alphas = scheduler.alphas_cumprod.to(device)
        self.latents, self.weights, self.outside = (
            some.to(device) for some in (examples.latents, examples.weights, examples.outside)
        )
        self.step, self.running, self.seconds = 0, 0.0, 0.0
        self.curve: list[dict[str, float]] = []

    def advance(self) -> float:
        """One step; returns the running mean of the loss."""
        import torch

        began = time.monotonic()
        how, step = self.how, self.step
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 20) * min(1.0, (1 - step / how.steps) / 0.3)
        rng = np.random.default_rng([how.seed, step])
        chosen = rng.choice(len(self.latents), how.batch, replace=len(self.latents) < how.batch)
        noise = torch.from_numpy(rng.standard_normal((how.batch, *self.latents.shape[1:]), np.float32)).to(self.device)
        spread = (np.arange(how.batch) + rng.random(how.batch)) / how.batch  # evenly over all times
        times = torch.from_numpy(rng.permutation((spread * len(self.alphas)).astype(np.int64))).to(self.device)
        captions, tokens = self.examples.captions, self.examples.tokens
        hidden = rng.random(how.batch) < how.hidden if 0 < how.hidden < 1 else np.full(how.batch, how.hidden == 1)
        words = [() if hide else tokens[i] for i, hide in zip(chosen, hidden, strict=True)]
        bare = rng.random(how.batch) < [how.alone if some else how.empty for some in words]
        prompts = [("" if left_out else captions[i], some) for i, left_out, some in zip(chosen, bare, words, strict=True)]
        ids = torch.stack([self.base.word_ids(caption, some) for caption, some in prompts])
        picked = torch.from_numpy(chosen)
        clean = self.latents[picked]
        weights = torch.where(
            torch.from_numpy(hidden).to(self.device)[:, None, None], self.outside[picked], self.weights[picked]
        )
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = self._target(clean, noise, alpha)
        with narrow(self.device):
            context = self.base.encode_ids(ids, self.vectors)
            out = self.network(noisy.contiguous(memory_format=torch.channels_last), times, context).sample
        loss = (weights[:, None] * (out.float() - target).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        value = float(loss.detach())
        self.running = value if step == 0 else 0.97 * self.running + 0.03 * value
        self.step += 1
        self.seconds += time.monotonic() - began
        if self.step % SAY_EVERY == 0 or self.step == how.steps:
            self.curve.append({"step": self.step, "loss": round(self.running, 6)})
        return self.running

    def _target(self, clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        if self.base.prediction_type == "v_prediction":
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return clean if self.base.prediction_type == "sample" else noise

    def save(self, path: Path, bound: str) -> None:
        import torch

        state = {
            "bound": bound, "step": self.step, "running": self.running, "seconds": self.seconds, "curve": self.curve,
            "vectors": self.vectors.detach(), "lowrank": {name: p.detach() for name, p in self.lowrank.items()},
            "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip
        draft = path.with_suffix(".tmp")
        torch.save(state, draft)
        draft.replace(path)

    def restore(self, state: dict[str, Any], bound: str, path: Path) -> None:
        import torch

        if state.get("bound") != bound:
            fix = "Give the same settings, set and model, or another --out"
            raise PlanMismatch("the checkpoint there belongs to another training", where=str(path), fix=fix)
        with torch.no_grad():
            self.vectors.copy_(state["vectors"])
            for name, parameter in self.lowrank.items():
                parameter.copy_(state["lowrank"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.running, self.seconds = state["step"], state["running"], state["seconds"]
        self.curve = list(state["curve"])

    def trained(self) -> Trained:
        vocabulary = self.how.vocabulary
        tokens = vocabulary.tokens if vocabulary is not None else ()
        vectors = {token: vector.clone().cpu() for token, vector in zip(tokens, self.vectors.detach(), strict=True)}
        lowrank = {}
        if self.lowrank:
            from peft.utils import get_peft_model_state_dict

            lowrank = {name: value.detach().cpu() for name, value in get_peft_model_state_dict(self.network).items()}
        return Trained(
            vectors=vectors,
            lowrank=lowrank,
            curve=self.curve,
            seconds=self.seconds,
            pictures=len(self.latents),
            marked=self.examples.marked,
        )


def _first_vectors(base: Any, how: Training) -> torch.Tensor:
    """Where the tokens start: names at the mean of the words for them, places at the mean of all words, a little apart."""
    import torch

    vocabulary, table = how.vocabulary, base.word_table.weight.detach().float()
    if vocabulary is None:
        return torch.zeros(0, table.shape[1])
    generator = torch.Generator().manual_seed(how.seed)
    first: torch.Tensor = table.mean(0).cpu() + float(table.std()) * 0.5 * torch.randn(
        len(vocabulary.tokens), table.shape[1], generator=generator
    )
    for number, concept in enumerate(vocabulary.concepts):
        ids = base.word_ids(WORDS.get(concept, concept))
        words = [i for i in ids.tolist() if i not in set(base.word_ids("").tolist())]
        if words:
            first[number] = table[words].mean(0).cpu()
    return first


def add_lowrank(network: Any, rank: int, targets: str = ADAPTED) -> dict[str, Any]:
    """Low-rank weights on the modules of these names: attention, feed-forward and residual convolutions; name → parameter."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        fix = "Run: pip install 'clearance[erase]'"
        raise ConfigError(f"low-rank weights need peft ({error})", where="rank", fix=fix) from None

    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian"))
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def narrow(device: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where it is native; else float32."""
    import torch

    from pipeline.model.device import native_dtype

    kind = torch.device(device).type
    native = native_dtype() == "bfloat16" if kind == "cpu" else torch.cuda.is_bf16_supported()
    return torch.autocast(kind, dtype=torch.bfloat16) if native else contextlib.nullcontext()
