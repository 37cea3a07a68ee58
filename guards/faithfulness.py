"""Whether a picture still shows what was asked: its similarity to its prompt, against the range that such similarities have.

A cosine of picture and text means little by itself: every embedder has its own scale. The guard measures it on the index,
whose works have titles: how near a title is to its own work, and how near to another one. The score says where between the
two a picture lies, from 0 (as near to its prompt as works are to their titles, or as the same request's picture that nothing
steered) to 1 (as near as to anything).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Defaults, Finding, Probe
from index.errors import ConfigError

if TYPE_CHECKING:
    from index.embed import Embedder
    from index.reference import Match

REVISION = "1"
CATEGORY = "caption.lost"
PAIRS = 512  # works that the range is measured on
FEWEST = 8
TELLS = 0.8  # AUC of own works against others below which the embedder and the titles do not go together
PROMPTS = 65_536  # whose embeddings are kept


@dataclass(frozen=True, kw_only=True)
class UsualRange:
    """Cosines of texts and pictures, as an index has them.

    Attributes:
        shown: median of titles and their own works. other: median of titles and other works.
        auc: probability that an own work is nearer than another one. pairs: how many were measured; 0: the policy states both.
    """

    shown: float
    other: float
    auc: float = 1.0
    pairs: int = 0

    @classmethod
    def measured(
        cls, titles: Sequence[tuple[str, str]], embedder: Embedder, compare: Callable[[np.ndarray, str], Match]
    ) -> UsualRange:
        """Measure it on works with a title.

        Args:
            titles: (id, title) of works, in any order; the first :data:`PAIRS` by id count.
            embedder: of the index. compare: embedding and id → match, as :meth:`index.store.ReferenceIndex.compare`.

        Raises:
            ConfigError: there are too few, or the titles do not describe their works to this embedder.
        """
        where, fix = "policy: faithfulness", "Set faithfulness.shown and faithfulness.other to cosines that you measured"
        works = sorted((ref_id, title) for ref_id, title in titles if title.strip())[:PAIRS]
        if len(works) < FEWEST:
            what = f"the index has {len(works)} works with a title, and {FEWEST} are needed to measure what is usual"
            raise ConfigError(what, where=where, fix=fix)
        texts = embedder.texts([title for _, title in works])
        own = np.array([compare(text, ref_id).similarity for text, (ref_id, _) in zip(texts, works, strict=True)])
        shifts = [max(1, len(works) // 3), max(1, len(works) // 2)]
        other = np.array([
            compare(text, works[(i + shift) % len(works)][0]).similarity for shift in shifts for i, text in enumerate(texts)
        ])  # fmt: skip
        auc = float((own[:, None] > other[None]).mean())
        found = cls(shown=float(np.median(own)), other=float(np.median(other)), auc=auc, pairs=len(works))
        if auc < TELLS or found.shown <= found.other:
            what = (
                f"the titles of the index do not describe its works to this embedder (AUC {auc:.2f} of own against other works)"
            )
            raise ConfigError(what, where=where, fix=f"{fix}, or use an embedder that knows such texts")
        return found


class FaithfulnessGuard:
    """Compares a picture with its prompt, by the embeddings that the copies guard made; category ``caption.lost``.

    Args:
        usual: the range of cosines.
        embedder: of the index.
        threshold: score from which the prompt counts as lost.
        version: as :meth:`probe` gives it.
    """

    name = "faithfulness"
    categories: tuple[str, ...] = (CATEGORY,)
    licence: str = "Apache-2.0"
    defaults = Defaults(action="review")

    @classmethod
    def probe(cls, settings: Any, *, embedder_id: str = "", index_id: str = "") -> Probe:
        """The guard's version with an index; ``settings`` without a ``shown`` of its own: whether there could be one."""
        if not hasattr(settings, "shown"):
            return Probe(version=REVISION)
        if not embedder_id:
            fix = "Name an index in the run file, or set faithfulness.enabled = false"
            raise ConfigError("there is no index, whose embedder would compare pictures with prompts", where="policy", fix=fix)
        content = {"embedder": embedder_id, "index": index_id if settings.shown is None else ""}
        digest = hashlib.sha256(json.dumps([content, settings.shown, settings.other]).encode()).hexdigest()
        return Probe(version=f"{REVISION}+{digest[:8]}", weights=content)

    def __init__(self, usual: UsualRange, embedder: Embedder, *, threshold: float = 0.5, version: str = REVISION) -> None:
        self.usual, self.threshold, self.version = usual, float(threshold), version
        self._text = lru_cache(maxsize=PROMPTS)(lambda prompt: embedder.texts([prompt])[0].astype(np.float64))

    def check(self, prompt: str, embedding: np.ndarray, unsteered: np.ndarray | None = None) -> Finding:
        """The finding of one picture.

        Args:
            prompt: that was drawn.
            embedding: of the picture, float32 (D,), unit length.
            unsteered: of the same request's picture that nothing steered; None where there is none.

        Raises:
            InputError: the similarity is not a number.
        """
        text, usual = self._text(prompt), self.usual
        now = float(text @ embedding.astype(np.float64))
        shown, against = usual.shown, "usual"
        if unsteered is not None:
            before = float(text @ unsteered.astype(np.float64))
            if before < shown:  # nothing that steering did
                shown, against = before, "unsteered"
        detail = f"similarity to the prompt {now:.3f}, {against} {shown:.3f}, of other pictures {usual.other:.3f}"
        room = shown - usual.other
        if room <= 0:  # the picture that nothing steered was no nearer: the embedder does not know this prompt
            score, detail = 0.0, f"{detail}; not judged: the unsteered picture was no nearer to it"
        else:
            score = float(np.clip((shown - now) / room, 0.0, 1.0))
        return Finding(
            guard=self.name, version=self.version, category=CATEGORY, score=score, threshold=self.threshold, detail=detail
        )

    def plain(self) -> dict[str, float]:
        """The range, for JSON."""
        return asdict(self.usual)
