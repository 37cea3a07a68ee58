"""Early detection: probes catch a sample that is on its way to a reference, while it is still noise, and only to steer it.

Before the first step the prompt's text embedding is compared with the references' embeddings and titles. A reference that is
near is *armed*: it catches at a lower score, and nothing else follows. At a few steps the predicted clean latent x̂0 of every
unsteered sample is compared with the references. ``early.signal`` chooses how:

* ``latent``: by the cosine of the latents themselves, from the references' mean; for indexes that hold their pictures, of at
  most 512 references and a gigabyte of latents: every reference is compared, so all their latents are in memory. Nothing is
  trained, and references added later are found as well as the first. :func:`set_aside` says when an index is too large.
* ``head``: the latent head maps x̂0 to the embedder's space, where the index is searched. With a model or embedder that the
  head does not belong to, ``decode`` is used.
* ``decode``: x̂0 is decoded and embedded. The last two add the mean of ‖ε_text − ε_empty‖ so far to the score
  (arXiv 2407.21720).

Thresholds depend on the noise level and are calibrated on the embedded world (``head/thresholds.json``). Without a calibration
the threshold of finished pictures is used: it misses more and has fewer false alarms.

Looking changes nothing: a sample that is not caught keeps its bytes. Only the check of the finished picture accepts.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guards.copies import HARMLESS
from index.shipped import STICKERS
from pipeline.model.interface import DiffusionModel
from pipeline.outcome import Caught
from pipeline.respond.latent_head import LatentHead
from pipeline.respond.reference_latents import Near, ReferenceLatents
from pipeline.steer.filters import text_score

if TYPE_CHECKING:
    import torch

    from guards.copies import CopiesGuard
    from index.store import ReferenceIndex
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.sampling.sampler import Sampler
    from pipeline.policy import EarlyPolicy, Policy

HEAD = STICKERS / "head"
TURNED = "+hues"  # behind the signal of a sample caught by a reference in other colours
PROMPTS = 65536  # whose armed references are remembered
TITLES = 4096  # in a larger index only the pictures' embeddings arm, not the titles


@dataclass(frozen=True)
class Level:
    """What was calibrated at one noise level.

    Attributes:
        signal: a of the level.
        threshold, armed: score from which an unarmed or an armed reference catches.
        text_weight: weight of the mean ‖ε_text − ε_empty‖ so far, added to the cosine.
    """

    signal: float
    threshold: float
    armed: float
    text_weight: float = 0.0


@dataclass(frozen=True)
class Thresholds:
    """Calibrated thresholds of one way of looking, by noise level.

    Attributes:
        levels: from noise to picture.
        arm_from: text cosine from which a reference is armed; above 1: none ever is.
    """

    levels: tuple[Level, ...]
    arm_from: float = 2.0

    def at(self, signal: float) -> Level | None:
        """The level at signal a, linear between those calibrated, the last one beyond them; None below the first."""
        if signal < self.levels[0].signal - 1e-6:
            return None
        signals = [level.signal for level in self.levels]
        rows = zip(*((level.threshold, level.armed, level.text_weight) for level in self.levels), strict=True)
        return Level(signal, *(float(np.interp(signal, signals, values)) for values in rows))

    @classmethod
    def load(cls, path: Path, kind: str, model_digest: str, embedder_id: str) -> Thresholds | None:
        """Those of ``kind`` (latent, head, head+text …); None when not measured, or with another model or embedder."""
        if not path.exists():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["model_digest"], stored["embedder_id"]) != (model_digest, embedder_id):
            return None
        if any(kind not in row for row in stored["levels"]):
            return None
        levels = [
            Level(row["signal"], row[kind]["threshold"], row[kind]["armed"], row[kind].get("text_weight", 0.0))
            for row in stored["levels"]
        ]
        return cls(tuple(sorted(levels, key=lambda level: level.signal)), stored["arm_from"])


def calibrated_side(folder: Path = HEAD) -> int | None:
    """Side of the latents that head and thresholds were made with; None: there are none."""
    path = folder / "head.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["side"]) if path.exists() else None


@functools.lru_cache(maxsize=256)
def probe_steps(probes: Sequence[float], steps: int) -> frozenset[int]:
    """Numbers of steps taken after which a probe looks; the last step's picture is looked at anyway."""
    return frozenset(taken for share in probes if 0 < (taken := max(1, round(share * steps))) < steps)


def early_id(policy: Policy, model_digest: str, embedder_id: str, folder: Path = HEAD) -> str:
    """The identity of early detection: signal and digest of head and thresholds; "decode" for other models, "" when off."""
    if not wanted(policy) or not embedder_id:
        return ""
    path = folder / "head.json"
    card = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (card.get("model_digest"), card.get("embedder_id")) != (model_digest, embedder_id):
        return "decode"
    thresholds = folder / "thresholds.json"
    content = path.read_bytes() + (thresholds.read_bytes() if thresholds.exists() else b"")
    return f"{policy.early.signal}-" + hashlib.sha256(content).hexdigest()[:16]


def wanted(policy: Policy) -> bool:
    """Whether probes can act under this policy: they are enabled, copies are steered, and the ladder has rungs."""
    return policy.early.enabled and policy.copies.action == "steer" and bool(policy.ladder)


def set_aside(policy: Policy, index: ReferenceIndex, model_digest: str, numbers: int = 0, folder: Path = HEAD) -> str:
    """A sentence if the policy's probes are to compare latents and do not: nothing is calibrated, or the index is too large.

    Args:
        policy: its signal and its threshold.
        index: the references that probes look for.
        model_digest: of the run's model; empty: not known, and nothing is said.
        numbers: in a latent of the run; 0: not known.
        folder: of the calibrated thresholds.
    """
    early = policy.early
    if not wanted(policy) or early.signal != "latent" or not index.matching or not model_digest:
        return ""
    calibrated = Thresholds.load(folder / "thresholds.json", "latent", model_digest, index.embedder_id) is not None
    if not (calibrated or early.threshold is not None):
        return (
            "no thresholds of probes are calibrated for this model and embedder: probes decode and embed instead of comparing "
            "latents, at the threshold of finished pictures, and arm no reference and look for no other colours; "
            'state early.signal = "decode" in the policy if that is meant'
        )
    if not (why := ReferenceLatents.obstacle(index, numbers)):
        return ""
    counts = "" if early.threshold is None else f", and early.threshold = {early.threshold:g} counts for cosines of embeddings"
    fix = 'state early.signal = "head" or "decode" in the policy if that is meant, or split the index'
    return f"{why}: probes look in the embedder's space instead{counts}; {fix}"


class EarlyDetector:
    """Looks at samples in mid-flight.

    Args:
        policy: which steps, whether prompts arm, and a fixed threshold if there is one.
        model: decodes x̂0 where there is no head.
        sampler: the engine's; gives the noise level of a step, for samples that have none of their own.
        copies: embedder, index and the threshold of finished pictures.
        head: of this model and embedder, or None.
        thresholds: calibrated for the way of looking, or None.
        with_text: the same for scores with ‖ε_text − ε_empty‖ in them; for samples with classifier-free guidance.
        latents: of the references, to compare x̂0 with directly; None to go through the embedder's space.
    """

    def __init__(
        self,
        policy: EarlyPolicy,
        model: DiffusionModel,
        sampler: Sampler,
        copies: CopiesGuard,
        head: LatentHead | None,
        thresholds: Thresholds | None,
        with_text: Thresholds | None = None,
        latents: ReferenceLatents | None = None,
    ) -> None:
        self.policy, self.model, self.sampler, self.copies = policy, model, sampler, copies
        self.head, self.thresholds, self.with_text = head, thresholds, with_text
        self.latents = latents
        self.kind = "latent" if latents is not None else "decode" if head is None else "head"
        self.steps = probe_steps(policy.probes, len(sampler))
        self._arms: dict[str, frozenset[str]] = {}
        self._titles: tuple[list[str], np.ndarray] | None = None

    @classmethod
    def open(
        cls,
        policy: EarlyPolicy,
        model: DiffusionModel,
        sampler: Sampler,
        copies: CopiesGuard,
        folder: Path = HEAD,
        latents: ReferenceLatents | None = None,
        size: tuple[int, int] | None = None,
    ) -> EarlyDetector:
        """With the shipped head and thresholds where they belong to this model and embedder.

        ``latents`` count where the policy's signal is ``latent``. The head, and the thresholds of latents, are of one size of
        picture: for latents of another ``size`` (h, w; None: the model's own) probes decode and embed, unless the policy states
        a threshold.

        Raises:
            ModelError: the head's weights do not match its card.
        """
        owners = model.digest, copies.embedder.embedder_id
        path = folder / "thresholds.json"
        if policy.signal != "latent" or not (policy.threshold is not None or Thresholds.load(path, "latent", *owners)):
            latents = None  # a cosine of latents means nothing without a calibration
        head = LatentHead.open(folder, *owners) if policy.signal != "decode" and latents is None else None
        side, size = calibrated_side(folder), size or model.latent_shape[1:]
        if side is not None and size != (side, side):
            head, latents = None, latents if policy.threshold is not None else None
        kind = "latent" if latents is not None else "decode" if head is None else "head"
        bare, with_text = (Thresholds.load(path, name, *owners) for name in (kind, f"{kind}+text"))
        return cls(policy, model, sampler, copies, head, bare, with_text, latents)

    def look(self, trajectories: Sequence[Trajectory], prompts: Sequence[str]) -> list[Caught | None]:
        """Look at N running samples, each having just taken a probe step, with their prompts: what each was caught by, or None.

        Depends on each sample's own x̂0, step and prompt alone.
        """
        if not trajectories:
            return []
        at = [(t.sampler or self.sampler).signal[t.step - 1] for t in trajectories]
        cleans = [t.clean.cpu() for t in trajectories if t.clean is not None]
        if self.latents is not None:
            found = self.latents.search(cleans, self.copies.k)
        else:
            found = [[Near(m) for m in row] for row in self.copies.index.search(self.place(cleans, at), self.copies.k)]
        return [
            self._caught(t, matches, armed) for t, matches, armed in zip(trajectories, found, self.arm(prompts), strict=True)
        ]

    def due(self, t: Trajectory) -> bool:
        """Whether a probe looks at a sample after the step that it has just taken."""
        return t.step in probe_steps(self.policy.probes, len(t.sampler or self.sampler))

    def place(self, cleans: Sequence[torch.Tensor], signals: Sequence[float]) -> np.ndarray:
        """N predicted clean latents (C, h, w) at signals a → float32 (N, dim), unit length, in the embedder's space."""
        import torch

        if self.head is not None:
            return self.head(cleans, signals)
        return self.copies.embedder.images(self.model.decode(torch.stack(list(cleans))))

    def arm(self, prompts: Sequence[str]) -> list[frozenset[str]]:
        """The references that each prompt is near to, before anything is drawn; none without calibrated thresholds."""
        if not self.policy.arm or self.thresholds is None:
            return [frozenset() for _ in prompts]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._arms]
        if len(self._arms) + len(new) > PROMPTS:
            self._arms, new = {}, list(dict.fromkeys(prompts))
        least = self.thresholds.arm_from
        for prompt, scores in zip(new, self.text_scores(new), strict=True):
            self._arms[prompt] = frozenset(ref_id for ref_id, score in scores.items() if score >= least)
        return [self._arms[prompt] for prompt in prompts]

    def text_scores(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        """Cosine of each prompt's text embedding to references: picture's embedding or title's, whichever is nearer."""
        if not prompts:
            return []
        texts = self.copies.embedder.texts(prompts)
        found = self.copies.index.search(texts, max(8, self.copies.k))
        if self._titles is None:
            references = self.copies.index.references() if len(self.copies.index) <= TITLES else []
            titled = [r for r in references if r.title and r.status not in HARMLESS]
            vectors = self.copies.embedder.texts([r.title for r in titled]) if titled else np.zeros((0, texts.shape[1]))
            self._titles = [r.ref_id for r in titled], np.asarray(vectors, np.float32)
        out = []
        for text, matches in zip(texts, found, strict=True):
            scores = {match.ref_id: match.similarity for match in matches}
            for ref_id, score in zip(self._titles[0], (self._titles[1] * text).sum(1), strict=True):
                scores[ref_id] = max(float(score), scores.get(ref_id, -1.0))
            out.append(scores)
        return out

    def level(self, step: int, *, text: bool, sampler: Sampler | None = None) -> Level | None:
        """The thresholds after step ``step``, for samples whose ‖ε_text − ε_empty‖ is known (``text``) or not."""
        signal = (sampler or self.sampler).signal[step]
        if self.policy.threshold is not None:
            return Level(signal, self.policy.threshold, self.policy.threshold)
        if text and self.with_text is not None:
            return self.with_text.at(signal)
        if self.thresholds is not None:
            return self.thresholds.at(signal)
        return Level(signal, self.copies.point.threshold, self.copies.point.threshold)

    def _caught(self, t: Trajectory, found: list[Near], armed: frozenset[str]) -> Caught | None:
        norm = text_score(t.guidance_norms, t.step)
        level = self.level(t.step - 1, text=norm is not None, sampler=t.sampler)
        if level is None:
            return None
        more = level.text_weight * norm if norm is not None else 0.0
        near = sorted((n for n in found if n.match.status not in HARMLESS), key=lambda n: -n.match.similarity)
        hits = [n for n in near if n.match.similarity + more >= (level.armed if n.match.ref_id in armed else level.threshold)]
        if not hits:
            return None
        best = hits[0].match
        is_armed = best.ref_id in armed
        kind = self.kind + ("+text" if level.text_weight else "") + (TURNED if hits[0].turned else "")
        return Caught(
            step=t.step,
            signal=kind,
            score=best.similarity + more,
            threshold=level.armed if is_armed else level.threshold,
            nearest=tuple(n.match for n in hits),
            armed=is_armed,
        )
