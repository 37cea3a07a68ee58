"""The files of an image classifier that a user brings: which they are, their digests, and what its configuration says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from guards.base import file_digest
from index.errors import ConfigError, GuardUnavailable, IntegrityError, ModelError
from index.onnx_data import ends_in, weight_files
from index.padding import first_line

HUB = "hf-hub:"
OUTPUT = "logits"  # of an ONNX file, where it has several
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
OF_SEVERAL = "processor_config.json"  # where it holds an image processor, transformers reads that and not the file above
ADAPTER = "adapter_config.json"  # where there is one, transformers merges the adapter beside it into the network
PARTS = "*.safetensors.index.json"  # which of the weights are taken from which file, where there are several


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a classifier, found without loading it.

    Attributes:
        folder: that they lie in. onnx: name of the ONNX file; empty for a folder of transformers.
        digests: name → sha256 of every file that decides its scores.
        labels: in the order of its logits.
        problem: the configuration's ``problem_type``; empty where it says nothing.
        ends_in: softmax or sigmoid, where an ONNX file has it in itself: its numbers are scores already.
    """

    folder: Path
    onnx: str
    digests: Mapping[str, str]
    labels: tuple[str, ...]
    problem: str = ""
    ends_in: str = ""

    @property
    def digest(self) -> str:
        """sha256 over names and digests of the files."""
        return hashlib.sha256(json.dumps(dict(self.digests), sort_keys=True).encode()).hexdigest()

    def several(self, score: str) -> bool:
        """Whether each label is right or not by itself, and not one of them all; ``score``: as the policy states it."""
        if score != "auto":
            return score == "sigmoid"
        return self.ends_in == "sigmoid" or (
            not self.ends_in and (self.problem == "multi_label_classification" or len(self.labels) == 1)
        )


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
    function = ""
    if not place.exists():
        fix = "Name a folder of transformers, an .onnx file or hf-hub:OWNER/NAME; relative paths start from the run file"
        raise GuardUnavailable("there is no such model", where=where, fix=fix)
    if onnx:
        try:
            named = weight_files(place)
            function = ends_in(place, OUTPUT)[1]
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
    processors = [folder / OF_SEVERAL] if (folder / OF_SEVERAL).is_file() else []
    if (folder / PROCESSOR).is_file() or not processors:
        processors.append(folder / PROCESSOR)
    digests = {
        path.relative_to(folder).as_posix(): file_digest(path, guard=guard, fix=beside)
        for path in [folder / CONFIG, *processors, *folder.glob(PARTS), *folder.glob(ADAPTER), *weights]
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
        fix = 'Write them into it in the order of its numbers: "id2label": {"0": "safe", "1": "unsafe"}'
        raise GuardUnavailable(f"{CONFIG} names no labels", where=where, fix=fix)
    problem = str(config.get("problem_type") or "")
    return ModelFiles(folder=folder, onnx=onnx, digests=digests, labels=labels, problem=problem, ends_in=function)


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


def require_scores(score: str, files: ModelFiles, *, guard: str) -> None:
    """Whether a model's numbers can become scores in the way that the policy states.

    Raises:
        ConfigError: it has one label, whose softmax is always 1; or is a regression, and the policy does not say what it gives.
    """
    where = f"guard {guard}"
    if score == "softmax" and len(files.labels) == 1 and not files.ends_in:
        what = "its model has one label, and softmax of one number is always 1"
        raise ConfigError(what, where=where, fix='Set score = "sigmoid" for this classifier')
    if score == "auto" and files.problem == "regression" and not files.ends_in:
        what = f"{CONFIG} calls its model a regression, whose numbers need not be logits"
        fix = 'Set score = "sigmoid" where they are, label by label; leave the classifier out where they are not'
        raise ConfigError(what, where=where, fix=fix)
