"""The text guard, for words that can be read: RapidOCR with the weights its wheel ships. Nothing is downloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Defaults, Finding, Probe, file_digest, import_package, require_package, require_pictures
from guards.code_reader import INSTALL, covered, decoded
from guards.own_label import without_own_label
from guards.words import LEAST_SIGNS, SURE, Word, counts, merged
from index.errors import GuardUnavailable, IntegrityError

SHORT_SIDE = 256  # pixels; smaller pictures are enlarged to it
LONG_SIDE = 2048  # but not beyond this
TILE = 640  # pixels; the recogniser overlooks small words in larger pictures
OVERLAP = 128  # pixels that neighbouring tiles share, so that what one cuts the other holds whole
WHOLE = 512  # longer side at which a picture that was cut into tiles is looked at as a whole, for letters larger than a tile
LONGEST = 8  # times the shorter side; longer strips are widened, or the recogniser enlarges them without bound
DETAIL = 80  # characters of recognised words kept in a finding
AGAIN = "Install rapidocr 3.10 again, whose wheel holds it; this guard never downloads weights"
MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}


def model_paths() -> dict[str, Path]:
    """The three weight files inside the installed wheel, found without importing it.

    Raises:
        GuardUnavailable: RapidOCR is missing, or this release ships other weights.
    """
    import importlib.util

    require_package("rapidocr", "rapidocr", guard="text", install="Install it with `pip install 'rapidocr>=3.10' onnxruntime`")
    require_package("onnxruntime", "onnxruntime", guard="text", install="Install it with `pip install onnxruntime`")
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "models"
    paths = {part: folder / name for part, name in MODELS.items()}
    for path in paths.values():
        if not path.is_file():
            raise GuardUnavailable(f"{path.name} is not in the installed package", where="guard text", fix=AGAIN)
    return paths


class TextGuard:
    """Readable text; category ``text.ocr``, score = confidence of the surest word that counts (:mod:`guards.words`), else 0.

    What is in a code that decodes is no text: where words are found, such codes are covered and the picture is read again.

    A picture of more than 640 pixels is looked at in overlapping tiles of its own size, for small words, and as a whole, made
    smaller, for large letters.

    The recogniser runs on one thread, so that results do not depend on the number of cores. It is not shipped to other
    processes: a pickled guard loads its own.

    Args:
        threshold: the confidence from which a word is flagged.
        least_signs: signs that a word must have to count; see :func:`guards.words.counts`.
        sure: the confidence that prices, numbers and two Chinese letters must have to count.

    Raises:
        GuardUnavailable: RapidOCR or a file of its weights is missing, or zxing-cpp.
    """

    name: str = "text"
    categories: tuple[str, ...] = ("text.ocr",)
    licence: str = "Apache-2.0"
    defaults = Defaults()

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        import importlib.metadata

        weights = {path.name: file_digest(path, guard=cls.name, fix=AGAIN) for path in model_paths().values()}
        reader = f"zxing-cpp {require_package('zxingcpp', 'zxing-cpp', guard=cls.name, install=INSTALL)}"
        ocr = f"rapidocr {importlib.metadata.version('rapidocr')} PP-OCRv6-small"
        return Probe(version=f"4+{ocr}+{reader}", weights=weights)

    @classmethod
    def open(cls, settings: Any) -> TextGuard:
        rule = {key: getattr(settings, key) for key in ("least_signs", "sure") if hasattr(settings, key)}
        guard = cls(settings.threshold, **rule)
        guard._load()
        import_package("zxingcpp", guard=cls.name, install=INSTALL)
        return guard

    def __init__(self, threshold: float = 0.5, *, least_signs: float = LEAST_SIGNS, sure: float = SURE) -> None:
        self._paths = model_paths()
        self.version = self.probe(None).version
        self.threshold, self.least_signs, self.sure = threshold, least_signs, sure
        self._engine: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): one finding per picture, with the words and the box around them. Our own label is none.

        Raises:
            IntegrityError: the recogniser cannot read its weights.
        """
        require_pictures(pictures, guard=self.name)
        return [[self._one(picture)] for picture in without_own_label(pictures)]

    def _one(self, picture: np.ndarray) -> Finding:
        words = self._counted(picture)
        if words and (codes := decoded(picture)):  # the recogniser takes modules for letters
            words = self._counted(covered(picture, codes))
        broken = not all(math.isfinite(word.score) for word in words)
        found: dict[str, Any] = {"score": 0.0}
        if words:
            x0, y0, x1, y1 = zip(*(word.box for word in words), strict=True)
            high, wide = picture.shape[:2]
            box = (min(x0) / wide, min(y0) / high, max(x1) / wide, max(y1) / high)
            inside = box[0] < box[2] and box[1] < box[3]
            score = words[0].score if broken else min(1.0, max(word.score for word in words))
            found = {"score": score, "box": box if inside else None, "detail": " ".join(word.text for word in words)[:DETAIL]}
        category = self.categories[0]
        return Finding(guard=self.name, version=self.version, category=category, threshold=self.threshold, **found)

    def _counted(self, picture: np.ndarray) -> list[Word]:
        """The words that are text; where a score is no number, those words: no rule holds for them, the finding refuses it."""
        read = self._words(picture)
        broken = [word for word in read if not math.isfinite(word.score)]
        return broken or [word for word in read if counts(word, self.least_signs, self.sure)]

    def _words(self, picture: np.ndarray) -> list[Word]:
        """Every word of a picture, once."""
        high, wide = picture.shape[:2]
        if max(high, wide) <= TILE:
            return self._read(picture, 0, 0, max(1.0, min(SHORT_SIDE / min(high, wide), LONG_SIDE / max(high, wide))))
        words = self._read(picture, 0, 0, WHOLE / max(high, wide))
        for top, left, bottom, right in tiles(high, wide):
            tile = picture[top:bottom, left:right]
            if (tile != tile[0, 0]).any():  # in a tile of one colour there is nothing to read
                words += self._read(
                    tile, top, left, max(1.0, min(SHORT_SIDE / min(tile.shape[:2]), TILE / max(tile.shape[:2])))
                )
        return merged(words)

    def _read(self, picture: np.ndarray, top: int, left: int, scale: float) -> list[Word]:
        """The words of one tile; the boxes are in pixels of the whole picture."""
        from PIL import Image

        shown = picture
        if scale != 1:
            size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
            how = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
            shown = np.asarray(Image.fromarray(picture).resize(size, how))
        high, wide = shown.shape[:2]
        out = self._load()(np.ascontiguousarray(_widened(shown)[..., ::-1]))  # the recogniser wants BGR
        if out.txts is None:
            return []
        corners = np.asarray(out.boxes, np.float64) / [wide, high]  # (words, 4, 2)
        corners = np.clip(corners, 0, 1) * [picture.shape[1], picture.shape[0]] + [left, top]
        return [
            Word(text=text, score=float(score), box=(*four.min(0).tolist(), *four.max(0).tolist()))
            for text, score, four in zip(out.txts, out.scores, corners, strict=True)
        ]

    def _load(self) -> Any:
        if self._engine is None:
            package = import_package("rapidocr", guard=self.name, install=AGAIN)
            params: dict[str, Any] = {f"{part}.model_path": str(path) for part, path in self._paths.items()}
            params |= {
                "Global.log_level": "critical",
                "Global.text_score": 0.0,  # the policy's threshold decides, not the library's
                "Det.limit_side_len": SHORT_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
            try:
                engine: Any = package.RapidOCR(params=params)
                for load in (engine._load_det_model, engine._load_cls_model, engine._load_rec_model):
                    load()
            except Exception as error:  # ONNX Runtime has exceptions of its own for files that it cannot read
                what = f"the recogniser cannot read its weights ({str(error).splitlines()[0]})"
                raise IntegrityError(what, where=f"guard text: {next(iter(self._paths.values())).parent}", fix=AGAIN) from None
            self._engine = engine
        return self._engine


def _widened(picture: np.ndarray) -> np.ndarray:
    """A strip with its last row or column repeated until the recogniser takes it."""
    least = max(32, math.ceil(max(picture.shape[:2]) / LONGEST))
    more = [max(0, least - side) for side in picture.shape[:2]]
    return np.pad(picture, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge") if any(more) else picture


def tiles(high: int, wide: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, bottom and right of the fewest tiles of one size, at most 640 pixels, of which neighbours share 128."""
    for top, bottom in _spans(high):
        for left, right in _spans(wide):
            yield top, left, bottom, right


def _spans(length: int) -> list[tuple[int, int]]:
    count = 1 if length <= TILE else math.ceil((length - OVERLAP) / (TILE - OVERLAP))
    size = math.ceil((length + (count - 1) * OVERLAP) / count)
    starts = [round(i * (length - size) / max(1, count - 1)) for i in range(count)]
    return [(start, start + size) for start in starts]
