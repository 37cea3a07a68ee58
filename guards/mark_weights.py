"""The folder of a mark detector: a card (``config.json``) and the weights it was written for, checked against each other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guards.base import Probe, file_digest
from guards.mark_network import KINDS
from index.errors import GuardUnavailable, IntegrityError
from index.shipped import STICKERS

if TYPE_CHECKING:
    import torch

CARD, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class MarkWeights:
    """The content of a mark detector's folder.

    Attributes:
        folder: the folder.
        guard: name of the guard it is for.
        command: the command that trains such weights, for messages.
        card: the content of ``config.json``.
    """

    folder: Path
    guard: str
    command: str
    card: Mapping[str, Any]

    @classmethod
    def find(cls, folder: str | Path, *, guard: str, architecture: str, needs: Mapping[str, type]) -> MarkWeights:
        """Read the card of a folder, without loading the weights.

        Args:
            folder: "stickers", the weights that ship for this guard, or a folder.
            guard: name of the guard.
            architecture: what the card must name.
            needs: further keys that the card must have, and their types.

        Raises:
            GuardUnavailable: folder, weights or card are missing or not of this guard.
        """
        path = STICKERS / guard if str(folder) == "stickers" else Path(folder)
        command = f"clearance lab world {guard}"
        for name in (CARD, WEIGHTS):
            if not (path / name).is_file():
                fix = f"Train them with `{command}`, or name a folder that holds them"
                raise GuardUnavailable(f"{path / name} does not exist", where=f"guard {guard}", fix=fix)
        try:
            card = json.loads((path / CARD).read_text(encoding="utf-8"))
            if problem := _problem(card, architecture, needs):
                raise ValueError(problem)
        except (ValueError, OSError, RecursionError) as error:
            where, fix = str(path / CARD), f"Use a folder written by `{command}`"
            raise GuardUnavailable(f"not a {guard} configuration ({error})", where=where, fix=fix) from None
        return cls(folder=path, guard=guard, command=command, card=card)

    @property
    def version(self) -> str:
        """The guard's version: the card's name, and a piece of the weights' digest."""
        return f"{self.card['version']}+{self.card['weights_sha256'][:8]}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of marks that the detector knows, in the order of its outputs."""
        return tuple(self.card["kinds"])

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of its findings, in the order of :attr:`kinds`."""
        return tuple(f"mark.{kind}" for kind in self.kinds)

    @property
    def operating_logits(self) -> list[float]:
        """The shift of each kind's logit, in the order of :attr:`kinds`."""
        return [float(self.card["operating_logits"][kind]) for kind in self.kinds]

    def probe(self) -> Probe:
        """Version and digest; the digest is computed from the file, not read from the card."""
        found = file_digest(self.folder / WEIGHTS, guard=self.guard, fix=f"Train them with `{self.command}`")
        return Probe(version=self.version, weights={WEIGHTS: found}, calibrated_on=self.card["calibrated_on"])

    def load(self) -> dict[str, torch.Tensor]:
        """The tensors, as fp32.

        Raises:
            GuardUnavailable: the file is gone.
            IntegrityError: the file is not the one that the card was written for, or cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path, again = self.folder / WEIGHTS, f"Restore the file, or train it again with `{self.command}`"
        if file_digest(path, guard=self.guard, fix=again) != self.card["weights_sha256"]:
            raise IntegrityError("weights do not match the digest in config.json", where=str(path), fix=again)
        try:
            return {name: tensor.float() for name, tensor in load(path.read_bytes()).items()}
        except (SafetensorError, ValueError, OSError) as error:
            raise IntegrityError(f"cannot be read ({error})", where=str(path), fix=again) from None


def _problem(card: Any, architecture: str, needs: Mapping[str, type]) -> str:
    """The first error of a card; empty when there is none."""
    if not isinstance(card, dict) or card.get("architecture") != architecture:
        return f"architecture is not {architecture!r}"
    always = {"version": str, "weights_sha256": str, "calibrated_on": str, "operating_logits": dict, "kinds": list}
    for key, kind in (always | dict(needs)).items():
        if not isinstance(card.get(key), kind) or isinstance(card.get(key), bool):
            return f"{key!r} is missing or is no {kind.__name__}"
    if not re.fullmatch("[0-9a-f]{64}", card["weights_sha256"]):
        return "weights_sha256 is not a digest"
    kinds, logits = card["kinds"], card["operating_logits"]
    if not kinds or [kind for kind in KINDS if kind in kinds] != kinds:
        return f"'kinds' is no list of {', '.join(KINDS)}, in this order"
    numbers = [value for value in logits.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    if set(logits) != set(kinds) or len(numbers) != len(kinds) or not all(map(math.isfinite, numbers)):
        return f"operating_logits is not a number for each of {', '.join(kinds)}"
    return ""
