"""The three judges in one class. Benches use them; the pipeline and its trainings never do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import InputError
from index.shipped import STICKERS
from jobs.lab.judges.captions import CaptionJudge
from jobs.lab.judges.copies import CopyJudge
from jobs.lab.judges.errors import JudgeUnavailable
from jobs.lab.judges.marks import MarkJudge
from jobs.lab.judges.trunk import SHA256, Trunk, require_pictures

WEIGHTS, SETTINGS = "heads.safetensors", "judges.json"
BATCH = 32


class Judges:
    """Judges of generated pictures that share no weights and no training with the pipeline.

    Build with :meth:`open`. Every method is deterministic and takes uint8 RGB pictures (N, S, S, 3) of any size.

    Attributes:
        names: the concepts, in the order of :meth:`captions`' columns.
        kinds: the marks, in the order of :meth:`marks`' columns.
        settings: the content of ``judges.json``: numbers measured when the heads were fitted.
    """

    def __init__(self, trunk: Trunk, weights: dict[str, Any], settings: dict[str, Any]) -> None:
        part = {
            kind: {name.removeprefix(f"{kind}."): value for name, value in weights.items() if name.startswith(f"{kind}.")}
            for kind in ("copies", "captions", "marks")
        }
        self.trunk, self.settings = trunk, settings
        self.names: tuple[str, ...] = tuple(settings["captions"]["names"])
        self._copies = CopyJudge(part["copies"]["weight"].float().numpy(), settings["copies"]["bias"])
        self._captions = CaptionJudge(part["captions"]["weight"], part["captions"]["bias"], self.names)
        self._marks = MarkJudge(part["marks"], tuple(settings["marks"]["thresholds"]))
        self.kinds = MarkJudge.kinds

    @classmethod
    def open(cls, folder: Path | None = None) -> Judges:
        """Load the shipped heads, or those in ``folder``.

        Raises:
            JudgeUnavailable: the extra ``lab`` is missing, or the folder holds no heads for this trunk.
        """
        folder = shipped() if folder is None else folder
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            trunk_of_heads = settings["trunk_sha256"]
        except (OSError, ValueError, KeyError) as error:
            fix = "Fit them: clearance lab judges fit --work WORLD"
            raise JudgeUnavailable(f"holds no judges ({error})", where=str(folder), fix=fix) from None
        if trunk_of_heads != SHA256:
            fix = "Fit them again: clearance lab judges fit --work WORLD"
            raise JudgeUnavailable("the heads were fitted on another trunk", where=str(folder), fix=fix)
        trunk = Trunk.open()
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise JudgeUnavailable(f"cannot be read ({error})", where=str(folder / WEIGHTS), fix="Check it out again") from None
        return cls(trunk, weights, settings)

    def copies(self, pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The probability that each picture is a copy of the reference in the same row, float32 (N,) in [0, 1].

        0.5 is even odds between a copy and another drawing of the same thing. ``settings["copies"]["operating_points"]``
        holds the probabilities that 1 % and 5 % of held-out near misses reach.
        """
        if len(pictures) != len(references):
            what = f"{len(pictures)} pictures and {len(references)} references"
            raise InputError(what, where="judges", fix="Give one reference per picture")
        require_pictures(pictures)
        require_pictures(references)
        return self._copies.score(self.trunk, pictures, references)

    def captions(self, pictures: np.ndarray) -> np.ndarray:
        """Log-probability of every concept, float32 (N, C), columns ordered as :attr:`names`."""
        return self._look(pictures, self._captions.score, len(self.names))

    def among_first(self, pictures: np.ndarray, captions: Sequence[str], places: int = 5) -> np.ndarray:
        """Whether each picture's caption, a concept's name, is among its ``places`` likeliest: bool (N,)."""
        scores = self.captions(pictures)
        at = {name.replace("-", " "): i for i, name in enumerate(self.names)}
        own = scores[np.arange(len(scores)), [at[caption] for caption in captions]]
        return np.asarray((scores > own[:, None]).sum(1) < places)

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """The trunk's pooled features, for distances between sets of pictures: float64 (N, 1280)."""
        require_pictures(pictures)
        rows = [self.trunk.look(pictures[at : at + BATCH]).pooled.numpy() for at in range(0, len(pictures), BATCH)]
        return np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, 1280))

    def marks(self, pictures: np.ndarray) -> np.ndarray:
        """Watermark, QR code, text: float32 (N, 3) in [0, 1]; 0.5 and above is a mark of that kind."""
        require_pictures(pictures)
        return self._marks.score(pictures)

    def _look(self, pictures: np.ndarray, score: Any, columns: int) -> np.ndarray:
        require_pictures(pictures)
        rows = [score(self.trunk.look(pictures[at : at + BATCH])) for at in range(0, len(pictures), BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, columns), np.float32)


def shipped() -> Path:
    """The folder of the heads that ship with Clearance."""
    return STICKERS / "judges"
