"""A guard around any image classifier that a user brings: a folder of transformers, or an ONNX file.

A classifier knows labels; the policy names those that count, the category that rows hold, the threshold and the action. Several
guards may stand around one model: it is loaded once in a process, and looks at a picture once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Defaults, Finding, Probe, file_digest, import_package, require_package, require_pictures
from index.errors import ConfigError, GuardUnavailable, IntegrityError, ModelError
from index.foreign_models import advice, kept_shut
from index.onnx_data import weight_files
from index.padding import PaddedCalls, first_line

if TYPE_CHECKING:
    import torch

KIND, REVISION = "classifier", "1"
HUB = "hf-hub:"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ADAPTER = "adapter_config.json"  # where there is one, transformers merges the adapter beside it into the network
PARTS = "*.safetensors.index.json"  # which of the weights are taken from which file, where there are several
BATCH = 8  # rows of every call, padded: a score never depends on the pictures beside it
LESS = "Leave the guard out (its `enabled = false`), or use a machine with more memory"
INSTALL = "Install Clearance again: transformers and onnxruntime belong to it"
LONGEST = 8  # times as long as wide: a longer picture is squeezed to this
REMEMBERED = 64  # pictures whose scores are kept for the other guards around the same model
SHOWN = 8  # labels in a message


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a classifier, found without loading it.

    Attributes:
        folder: that they lie in. onnx: name of the ONNX file; empty for a folder of transformers.
        digests: name → sha256 of every file that decides its scores.
        labels: in the order of its logits.
        several: several labels may be right at once (``problem_type`` is ``multi_label_classification``).
    """

    folder: Path
    onnx: str
    digests: Mapping[str, str]
    labels: tuple[str, ...]
    several: bool

    @property
    def digest(self) -> str:
        """sha256 over names and digests of the files."""
        return hashlib.sha256(json.dumps(dict(self.digests), sort_keys=True).encode()).hexdigest()


def find_files(model: str, *, guard: str, revision: str = "", allow_download: bool = False) -> ModelFiles:
    """The files of a classifier.

    Args:
        model: a folder, an ``.onnx`` file, or ``hf-hub:OWNER/NAME``.
        guard: name of the guard, for messages.
        revision, allow_download: for a model on the hub.

    Raises:
        GuardUnavailable: it is not there, or files are missing.
        IntegrityError: its configuration cannot be read.
    """
    place = _from_hub(model, guard, revision, allow_download) if model.startswith(HUB) else Path(model)
    where = f"guard {guard}: {model}"
    folder, onnx = (place.parent, place.name) if place.suffix == ".onnx" else (place, "")
    if not place.exists():
        fix = "Name a folder of transformers, an .onnx file or hf-hub:OWNER/NAME; relative paths start from the run file"
        raise GuardUnavailable("there is no such model", where=where, fix=fix)
    if onnx:
        try:
            named = weight_files(place)
        except (ModelError, OSError) as error:
            fix = error.fix if isinstance(error, ModelError) else "Restore the file"
            raise IntegrityError(error.what if isinstance(error, ModelError) else str(error), where=where, fix=fix) from None
        weights = sorted({*(path for path in folder.glob(f"{escape(onnx)}*") if path.is_file()), *named})
    else:
        weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        fix = "Save it once with `model.save_pretrained(FOLDER)`; files that run code when they are read are not opened"
        raise GuardUnavailable("holds no safetensors", where=where, fix=fix)
    beside = "Put both beside the weights, as `save_pretrained` of model and image processor does"
    digests = {
        path.relative_to(folder).as_posix(): file_digest(path, guard=guard, fix=beside)
        for path in [folder / CONFIG, folder / PROCESSOR, *folder.glob(ADAPTER), *folder.glob(PARTS), *weights]
    }
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        names = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
        labels = tuple(names[number] for number in range(len(names)))
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        what = f"{CONFIG} cannot be read, or its id2label does not number the labels from 0 ({type(error).__name__}: {error})"
        raise IntegrityError(what, where=where, fix="Restore the file") from None
    if not onnx:
        _require_beside(folder, config, where)
    if not labels:
        raise GuardUnavailable(f"{CONFIG} names no labels", where=where, fix="Write id2label into it")
    several = config.get("problem_type") == "multi_label_classification"
    return ModelFiles(folder=folder, onnx=onnx, digests=digests, labels=labels, several=several)


def _require_beside(folder: Path, config: dict[str, Any], where: str) -> None:
    """Refuse weights that transformers would take from elsewhere than the folder itself: no digest is taken of those.

    Raises:
        IntegrityError: the configuration or an index of weights names such a file, or the index cannot be read.
    """
    named = {str(config["transformers_weights"])} if config.get("transformers_weights") else set[str]()
    for index in sorted(folder.glob(PARTS)):
        try:
            named |= {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"{index.name} cannot be read ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=where, fix="Restore the file") from None
    for name in sorted(named):
        if Path(name).name != name or not name.endswith((".safetensors", PARTS[1:])):
            fix = "Save it again with `model.save_pretrained(FOLDER)`, which puts all weights beside the configuration"
            raise IntegrityError(f"names weights that are not safetensors in its own folder: {name!r}", where=where, fix=fix)


def _from_hub(model: str, guard: str, revision: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors"]
    try:
        found = snapshot_download(
            model.removeprefix(HUB), revision=revision or None, local_files_only=not allow_download, allow_patterns=kinds
        )
        return Path(found)
    except Exception as error:  # the hub's client has dozens of exceptions, and those of its connection
        what = f"is not on this machine ({first_line(error)})"
        raise GuardUnavailable(
            what, where=f"guard {guard}: {model}", fix="Allow it (allow_download = true), or name a folder on this machine"
        ) from None


class Network:
    """A classifier: pictures → one score a label. Shared by the guards around it."""

    def __init__(self, files: ModelFiles, guard: str) -> None:
        from index.torchvision_ops import ensure

        ensure()
        where = f"guard {guard}: {files.folder}"
        self.files, self.device = files, "cpu"
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
            count = self._logits([np.zeros((64, 64, 3), np.uint8)]).shape[1]
        except (ConfigError, IntegrityError):
            raise
        except Exception as error:  # transformers, safetensors and ONNX Runtime have exceptions of their own
            belong = "Check that the folder is that of an image classifier, and that weights and configuration belong together"
            fix = advice(error) or belong
            raise IntegrityError(f"cannot be loaded ({first_line(error)})", where=where, fix=fix) from error
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
        if isinstance(entered[0].shape[0], int):  # exported for calls of that many pictures alone
            self.calls = PaddedCalls(entered[0].shape[0], self.calls.network, LESS)
        outputs = self._session.get_outputs()
        self._output = next((one.name for one in outputs if one.name == "logits"), outputs[0].name)

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
                (found,) = self._session.run([self._output], {self._session.get_inputs()[0].name: batch})
                return torch.from_numpy(np.asarray(found, np.float32))
            out: torch.Tensor = self._network(pixel_values=torch.from_numpy(batch).to(self.device)).logits.float().cpu()
            return out

        with torch.inference_mode():
            found: np.ndarray = self.calls.run(run, len(views)).numpy()
        return found

    def _entered(self, picture: np.ndarray) -> np.ndarray:
        """One picture as the model's own processor makes it ready, by itself: float32 (3, h, w)."""
        from PIL import Image

        made = self._processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(np.asarray(made[0], np.float32))

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
        self.several = files.several if settings.score == "auto" else settings.score == "sigmoid"
        self.version = _version(files)
        self.network = _network(files, self.name)

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
            each = probabilities(logits, several=self.several)[:, self._columns]  # (views, labels that count)
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
    return f"{REVISION}+{files.digest[:12]}"


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


def probabilities(logits: np.ndarray, *, several: bool) -> np.ndarray:
    """Logits (N, labels) → scores in [0, 1], float64: sigmoid where several labels may be right at once, else softmax."""
    wide = logits.astype(np.float64)
    if several:
        scores: np.ndarray = np.exp(-np.logaddexp(0, -wide))
        return scores
    shifted = np.exp(wide - wide.max(1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return found
