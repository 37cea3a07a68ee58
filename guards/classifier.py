"""A guard around any image classifier that a user brings: a folder of transformers, or an ONNX file.

A classifier knows labels; the policy names those that count, the category that rows hold, the threshold and the action. Several
guards may stand around one model: it is loaded once in a process, and looks at a picture once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import OrderedDict
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Defaults, Finding, Probe, import_package, require_package, require_pictures
from guards.classifier_files import ADAPTER, OUTPUT, PROCESSOR, ModelFiles, find_files, require_scores
from index.errors import ConfigError, IntegrityError
from index.foreign_models import advice, kept_shut
from index.padding import PaddedCalls, first_line

if TYPE_CHECKING:
    import torch

KIND, REVISION = "classifier", "1"
BATCH = 8  # rows of every call, padded: a score never depends on the pictures beside it
LESS = "Leave the guard out (its `enabled = false`), or use a machine with more memory"
INSTALL = "Install Clearance again: transformers and onnxruntime belong to it"
LONGEST = 8  # times as long as wide: a longer picture is squeezed to this
REMEMBERED = 64  # pictures whose scores are kept for the other guards around the same model
SHOWN = 8  # labels in a message


class Network:
    """A classifier: pictures → one score a label. Shared by the guards around it."""

    def __init__(self, files: ModelFiles, guard: str) -> None:
        from index.torchvision_ops import ensure

        ensure()
        where = f"guard {guard}: {files.folder}"
        self.files, self.device, self._channels_last = files, "cpu", False
        self.calls = PaddedCalls(BATCH, f"guard {guard}", LESS)
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()
        transformers = import_package("transformers", guard=guard, install=INSTALL)
        try:
            # trust_remote_code: unless it is refused, transformers asks at the terminal whether to run a file of the folder.
            with kept_shut(allow_download=False):  # whatever was to be fetched is here
                self._processor = transformers.AutoImageProcessor.from_pretrained(
                    files.folder, local_files_only=True, trust_remote_code=False
                )
                self._load(transformers)
            self._squares = self._wants_squares()
            self.tried = self._logits(_TRIED)
        except (ConfigError, IntegrityError):
            raise
        except Exception as error:  # transformers, safetensors and ONNX Runtime have exceptions of their own
            belong = "Check that the folder is that of an image classifier, and that weights and configuration belong together"
            fix = advice(error) or belong
            raise IntegrityError(f"cannot be loaded ({first_line(error)})", where=where, fix=fix) from error
        count = self.tried.shape[1]
        if count != len(files.labels):
            what = f"gives {count} numbers a picture, and its configuration names {len(files.labels)} labels"
            raise IntegrityError(what, where=where, fix="Put the configuration beside it that belongs to these weights")

    def _load(self, transformers: Any) -> None:
        files = self.files
        if files.onnx:
            self._open_session()
            return
        open_network = partial(
            transformers.AutoModelForImageClassification.from_pretrained, files.folder, local_files_only=True,
            use_safetensors=True, output_loading_info=True, trust_remote_code=False,
        )  # fmt: skip
        network, loading = open_network()
        absent = sorted(loading.get("missing_keys") or ())
        if not absent and ADAPTER in files.digests:  # what was said then is said of the adapter alone
            absent = sorted(open_network(adapter_kwargs={"subfolder": "none"})[1].get("missing_keys") or ())
        if absent:  # transformers would draw them at random
            what = f"the weights lack {len(absent)} tensors of the network, the first {absent[0]}"
            fix = "Name the folder of a whole classifier: a backbone without its head has no labels"
            raise IntegrityError(what, where=str(files.folder), fix=fix)
        self._network = network.float().eval().requires_grad_(False)

    def _open_session(self, provider: str = "CPUExecutionProvider") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = str(self.files.folder / self.files.onnx)
        self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        entered = self._session.get_inputs()
        if len(entered) != 1:
            raise ConfigError(
                f"takes {len(entered)} inputs ({', '.join(one.name for one in entered)}), not pictures alone", where=path,
                fix="Export the classifier with pixel_values as its one input",
            )  # fmt: skip
        shape, kind = entered[0].shape, entered[0].type
        if kind not in _FLOATS:
            fix = "Export the classifier with float numbers as its input, as its preprocessor_config.json makes them"
            raise ConfigError(f"takes {kind} as its input", where=path, fix=fix)
        if isinstance(shape[0], int) and shape[0] > 0:  # exported for calls of that many pictures alone
            self.calls = PaddedCalls(shape[0], self.calls.network, LESS)
        self._float = _FLOATS[kind]
        self._channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3  # as Keras and TensorFlow have them
        made = self._entered(_TRIED[0]).shape[:2] if self._channels_last else self._entered(_TRIED[0]).shape[1:]
        takes = shape[1:3] if self._channels_last else shape[2:4]
        if any(isinstance(side, int) and side != own for side, own in zip(takes, made, strict=False)):
            sides = [" × ".join(map(str, some)) for some in (takes, made)]
            fix = f"Write the size that it takes into {PROCESSOR}"
            raise ConfigError(
                f"takes pictures of {sides[0]} pixels, and {PROCESSOR} makes them {sides[1]}", where=path, fix=fix
            )
        outputs = [one.name for one in self._session.get_outputs()]
        self._output = OUTPUT if OUTPUT in outputs else outputs[0]

    def to(self, device: str) -> None:
        """Run on that torch device from now on; an ONNX file where ONNX Runtime has CUDA, else on the CPU."""
        if device == self.device:
            return
        if not self.files.onnx:
            self._network.to(device)
        elif device.startswith("cuda"):
            import onnxruntime

            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                self._open_session("CUDAExecutionProvider")
        self.device = device
        self._known.clear()

    def logits(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 RGB (H, W, 3) each → float32 (views, labels) each: one view, or squares along a longer side."""
        keys = [hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest() for picture in pictures]
        found = {key: self._known[key] for key in keys if key in self._known}
        fresh = {key: self._views(picture) for key, picture in zip(keys, pictures, strict=True) if key not in found}
        if fresh:
            rows = self._logits([view for views in fresh.values() for view in views])
            at = 0
            for key, views in fresh.items():
                found[key] = rows[at : at + len(views)]
                at += len(views)
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return [found[key] for key in keys]

    def _logits(self, views: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        def run(rows: list[int]) -> torch.Tensor:
            entered = {row: self._entered(views[row]) for row in dict.fromkeys(rows)}  # padding repeats a row
            batch = np.stack([entered[row] for row in rows])
            if self.files.onnx:
                entering = {self._session.get_inputs()[0].name: batch.astype(self._float)}
                (given,) = self._session.run([self._output], entering)
                numbers = np.asarray(given, np.float32)
                if numbers.shape[2:] != (1,) * (numbers.ndim - 2) or numbers.ndim < 2:
                    what = f"its output {self._output!r} has the shape {numbers.shape}, and not one number a label"
                    fix = f"Export the classifier with its numbers (pictures, labels) as the output {OUTPUT!r}"
                    raise ConfigError(what, where=str(self.files.folder / self.files.onnx), fix=fix)
                return torch.from_numpy(numbers.reshape(numbers.shape[:2]))
            out: torch.Tensor = self._network(pixel_values=torch.from_numpy(batch).to(self.device)).logits.float().cpu()
            return out

        with torch.inference_mode():
            found: np.ndarray = self.calls.run(run, len(views)).numpy()
        return found

    def _entered(self, picture: np.ndarray) -> np.ndarray:
        """One picture as the model's own processor makes it ready, by itself: float32 (3, h, w), or (h, w, 3) where an ONNX
        file wants channels last."""
        from PIL import Image

        made = np.asarray(self._processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0], np.float32)
        return np.ascontiguousarray(made.transpose(1, 2, 0) if self._channels_last else made)

    def _wants_squares(self) -> bool:
        """Whether the processor cuts something off a picture that is not square, or gives it another shape."""
        square, wide = (self._entered(np.zeros((64, width, 3), np.uint8)).shape for width in (64, 128))
        return bool(getattr(self._processor, "do_center_crop", False)) or square != wide

    def _views(self, picture: np.ndarray) -> list[np.ndarray]:
        """The picture; or the fewest squares that cover it, where the processor would cut its ends off."""
        high, wide = picture.shape[:2]
        short, long = sorted((high, wide))
        if long > LONGEST * short:
            from PIL import Image

            size = (LONGEST * short, short) if wide > high else (short, LONGEST * short)
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
            long = LONGEST * short
        if not self._squares or short == long:
            return [picture]
        count = -(-long // short)
        starts = [round(i * (long - short) / (count - 1)) for i in range(count)]
        across = picture.shape[1] > picture.shape[0]
        return [picture[:, at : at + short] if across else picture[at : at + short] for at in starts]


_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}  # inputs of ONNX files
_TRIED = [np.full((64, 64, 3), colour, np.uint8) for colour in ((0, 0, 0), (255, 255, 255), (230, 30, 20), (20, 90, 220))]
_networks: dict[str, Network] = {}  # by digest: guards around one model share it


def _network(files: ModelFiles, guard: str) -> Network:
    if files.digest not in _networks:
        _networks[files.digest] = Network(files, guard)
    return _networks[files.digest]


class ClassifierGuard:
    """Labels of an image classifier as one category.

    Args:
        settings: name, model, labels, category, score, threshold; see :class:`pipeline.guard_settings.ClassifierPolicy`.

    Raises:
        GuardUnavailable: the model is not here.
        IntegrityError: it cannot be loaded, or has other labels than its configuration names.
        ConfigError: it has no such label.
    """

    name: str = KIND
    categories: tuple[str, ...] = ("classifier.NAME",)
    licence: str = "that of the model"
    defaults = Defaults(action="review")

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        if not getattr(settings, "model", ""):  # no model is named: whether there could be one
            require_package("transformers", "transformers", guard=KIND, install=INSTALL)
            runtime = require_package("onnxruntime", "onnxruntime", guard=KIND, install=INSTALL)
            return Probe(version=f"transformers {importlib.metadata.version('transformers')}, onnxruntime {runtime}")
        files, name = _files(settings), f"{KIND}:{settings.name}"
        require_labels(settings.labels, files.labels, guard=name)
        require_scores(settings.score, files, guard=name)
        return Probe(version=_version(files), weights=files.digests)

    @classmethod
    def open(cls, settings: Any) -> ClassifierGuard:
        return cls(settings)

    def __init__(self, settings: Any) -> None:
        self.name = f"{KIND}:{settings.name}"
        self.categories = (settings.category or f"classifier.{settings.name}",)
        self.threshold = float(settings.threshold)
        files = _files(settings)
        self._columns = require_labels(settings.labels, files.labels, guard=self.name)
        require_scores(settings.score, files, guard=self.name)
        self.several = files.several(settings.score)
        self.version = _version(files)
        self.network = _network(files, self.name)
        require_logits(self.network, several=self.several, guard=self.name)

    def to(self, device: str) -> None:
        """Run the network on that torch device from now on."""
        self.network.to(device)

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): one finding per picture, with the likeliest of its labels.

        Raises:
            InputError: a score is not a number.
            OutOfMemory: not even one picture fits into memory.
        """
        require_pictures(pictures, guard=self.name)
        return [[self._finding(logits)] for logits in self.network.logits(list(pictures))] if len(pictures) else []

    def _finding(self, logits: np.ndarray) -> Finding:
        """The finding of a picture from the logits of its views (views, labels): the worst view counts."""
        with np.errstate(invalid="ignore"):  # what is not a number stays so, and makes no finding
            given = bool(self.network.files.ends_in)
            each = (logits.astype(np.float64) if given else probabilities(logits, several=self.several))[:, self._columns]
        score = each.max() if self.several else each.sum(1).max()
        best = self.network.files.labels[self._columns[int(each.max(0).argmax())]]
        return Finding(
            guard=self.name, version=self.version, category=self.categories[0], score=float(np.minimum(score, 1.0)),
            threshold=self.threshold, detail=best,
        )  # fmt: skip


def _files(settings: Any) -> ModelFiles:
    name = f"{KIND}:{settings.name}"
    return find_files(settings.model, guard=name, revision=settings.revision, allow_download=settings.allow_download)


def _version(files: ModelFiles) -> str:
    """Scores of a file with a softmax in itself, and of one label, were others at first: softmax was taken of them again."""
    revision = "2" if files.ends_in or len(files.labels) == 1 else REVISION
    return f"{revision}+{files.digest[:12]}"


def require_labels(wanted: Sequence[str], labels: Sequence[str], *, guard: str) -> list[int]:
    """The numbers of a model's labels, in its order: all of them where several have one name.

    Raises:
        ConfigError: it has no such label; the nearest is named.
    """
    for label in wanted:
        if label not in labels:
            by_case = {known.casefold(): known for known in labels}
            near = get_close_matches(label.casefold(), by_case, 1)
            listed = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
            fix = f"Did you mean {by_case[near[0]]!r}? It has {listed}" if near else f"It has {listed}"
            raise ConfigError(f"its model has no label {label!r}", where=f"guard {guard}", fix=fix)
    return [number for number, label in enumerate(labels) if label in wanted]


def require_logits(network: Network, *, several: bool, guard: str) -> None:
    """Refuse an ONNX file that gives scores where logits are due, and does not show the function that made them.

    Softmax of probabilities lies near 1 / labels whatever the picture is, and sigmoid of them above a half.

    Raises:
        ConfigError: on every picture that was tried the numbers are probabilities.
    """
    files, tried = network.files, network.tried.astype(np.float64)
    if not files.onnx or files.ends_in or len(files.labels) < 2 or not (tried.min() >= 0 and tried.max() <= 1):
        return
    if several or np.allclose(tried.sum(1), 1, atol=1e-3):
        what = f"{files.onnx} gives numbers from 0 to 1, which are scores already, and they would be taken for logits"
        fix = "Export it with the logits as its output, or with a Softmax or Sigmoid as its last step, which is seen"
        raise ConfigError(what, where=f"guard {guard}: {files.folder / files.onnx}", fix=fix)


def probabilities(logits: np.ndarray, *, several: bool) -> np.ndarray:
    """Logits (N, labels) → scores in [0, 1], float64: sigmoid where several labels may be right at once, else softmax."""
    wide = logits.astype(np.float64)
    if several:
        scores: np.ndarray = np.exp(-np.logaddexp(0, -wide))
        return scores
    shifted = np.exp(wide - wide.max(1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return found
