"""What a diffusers folder is made of, read from its JSON files and the headers of its weights; no tensor is loaded.

:func:`read_parts` refuses what could not be drawn with (a class that is not known, weights that are missing, cut short, pickled
or quantised) and notes what is drawn with differently from the folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from index.errors import ModelError
from pipeline.config import ModelConfig
from pipeline.model.folder.components import UNUSED, components, read_index
from pipeline.notes import Note

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # how each library names its weights
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
RESTORE = "Restore the file: copy or download the folder again"
LFS = b"version https://git-lfs"


class ModelClass(Protocol):
    """What a class of models declares about the folders it takes."""

    pipeline: ClassVar[str]
    denoiser: ClassVar[str]
    denoiser_class: ClassVar[str]
    required: ClassVar[tuple[str, ...]]
    narrow: ClassVar[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component with weights.

    Attributes:
        name: of its folder: ``unet``, ``vae``, …
        folder: where it is.
        library, class_name: its class in model_index.json.
        dtype: the number format it is drawn with.
        tensors: name → stored number format and shape, from the headers.
        files: the weights, largest pieces of the folder.
    """

    name: str
    folder: Path
    library: str
    class_name: str
    dtype: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    files: tuple[Path, ...]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for kind, shape in self.tensors.values() if kind in FLOATS)

    @property
    def memory(self) -> int:
        """Bytes its weights take when loaded."""
        return self.parameters * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True)
class Parts:
    """A folder that can be drawn with, judged by its files alone.

    Attributes:
        parts: those with weights.
        classes: library and class of every part that is loaded.
        scheduler: the scheduler's configuration.
        notes: what lies in the folder and is not used, or used differently.
    """

    parts: tuple[Part, ...]
    classes: Mapping[str, tuple[str, str]]
    scheduler: Mapping[str, Any]
    notes: tuple[Note, ...]

    @property
    def memory(self) -> int:
        return sum(part.memory for part in self.parts)


def read_parts(folder: Path, config: ModelConfig, cls: type[ModelClass]) -> Parts:
    """Every part of a folder, looked at without loading it.

    Args:
        folder: a diffusers folder whose class is that of ``cls``.
        config: which variant and number format are wanted.
        cls: what the class needs.

    Raises:
        ModelError: a part is missing or cannot be used; ``where`` names the file.
    """
    index = read_index(folder)
    present = components(folder)
    for name in (*cls.required, cls.denoiser, "vae", "scheduler"):
        if name not in present:
            what = f"has no {name}"
            raise ModelError(what, where=str(folder), fix=f"{cls.pipeline} needs one: restore the folder")
    for name in present:
        if not (folder / name).is_dir():
            what = f"model_index.json names {name}, which is not there"
            raise ModelError(what, where=str(folder / name), fix="Restore the folder: copy or download it again")
    notes: list[Note] = []
    parts = []
    for name in present:
        library, class_name = index[name]
        if name.startswith("tokenizer"):
            _check_tokenizer(folder / name)
        elif name != "scheduler":
            parts.append(_part(folder / name, library, class_name, config, cls, notes))
    _check_variant(folder, parts, config, notes)
    notes += _unused(folder, index, cls)
    classes = {name: (index[name][0], index[name][1]) for name in present}
    return Parts(tuple(parts), classes, read_json(folder / "scheduler" / "scheduler_config.json"), tuple(notes))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the folder.

    Raises:
        ModelError: it is missing or not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("is missing", where=str(path), fix=RESTORE) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON ({str(error) or 'nested too deeply'})", where=str(path), fix=RESTORE) from None
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), fix=RESTORE) from None
    if not isinstance(found, dict):
        raise ModelError(f"is a {type(found).__name__}, not an object", where=str(path), fix=RESTORE)
    return found


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number format and shape of every tensor in a safetensors file, from its header.

    Raises:
        ModelError: it is no safetensors file, or is cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            start = file.read(len(LFS))
        if start == LFS:
            raise ModelError("is a pointer of Git LFS, not the weights", where=str(path), fix="Fetch the weights: git lfs pull")
        with safe_open(path, framework="np") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
            return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
    except SafetensorError as error:
        size = path.stat().st_size
        what = f"is not a complete safetensors file: it may be cut short ({size} bytes; {error})"
        raise ModelError(what, where=str(path), fix=RESTORE) from None
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=str(path), fix=RESTORE) from None


def _part(folder: Path, library: str, class_name: str, config: ModelConfig, cls: type[ModelClass], notes: list[Note]) -> Part:
    name = folder.name
    if name == cls.denoiser and class_name != cls.denoiser_class:
        what = f"its {name} is of class {class_name}; {cls.pipeline} draws with {cls.denoiser_class}"
        raise ModelError(what, where=str(folder.parent / "model_index.json"), fix="Use the model that this class was made for")
    settings = read_json(folder / "config.json")
    if (scheme := settings.get("quantization_config")) is not None:
        method = scheme.get("quant_method") if isinstance(scheme, dict) else scheme
        what = f"its {name} is quantised ({method or 'no method named'}), which is not supported"
        raise ModelError(what, where=str(folder / "config.json"), fix="Use the weights in float32, float16 or bfloat16")
    if library == "transformers" and (elsewhere := settings.get("transformers_weights")):  # that one is not looked at
        what = f"its {name} takes its weights from another file (transformers_weights: {str(elsewhere)[:80]!r})"
        fix = "Save the part again with its `save_pretrained`, which leaves the key out"
        raise ModelError(what, where=str(folder / "config.json"), fix=fix)
    files = _weights(folder, STEMS.get(library, STEMS["diffusers"]), config.variant)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in files:
        tensors |= read_header(path)
    wrong = [(tensor, kind) for tensor, (kind, _) in tensors.items() if kind not in {*FLOATS, "I64", "I32", "BOOL"}]
    if wrong:
        what = f"{wrong[0][0]} is stored as {wrong[0][1]}: quantised weights are not supported"
        raise ModelError(what, where=str(files[0]), fix="Use the weights in float32, float16 or bfloat16")
    dtype = config.dtype if name in (cls.denoiser, *cls.narrow) else "float32"
    stored = {FLOATS[kind] for kind, _ in tensors.values() if kind in FLOATS}
    if name == cls.denoiser and stored and stored != {dtype} and dtype != "float32":
        text = f"the weights of {name} are stored as {' and '.join(sorted(stored))} and rounded to {dtype} (model.dtype)"
        notes.append(Note("dtype", text))
    return Part(
        name=name, folder=folder, library=library, class_name=class_name, dtype=dtype, tensors=tensors, files=tuple(files)
    )


def _weights(folder: Path, stem: str, variant: str) -> list[Path]:
    """The safetensors files of a part: of the variant where there are any, else the plain ones."""
    there = variants(folder, stem)
    for wanted in dict.fromkeys((variant, "")):
        mark = f".{wanted}" if wanted else ""
        whole, listing = folder / f"{stem}{mark}.safetensors", folder / f"{stem}.safetensors.index{mark}.json"
        if whole.is_file():
            return [whole]
        if listing.is_file():
            return _pieces(listing)
    if there:
        names = ", ".join(f'"{name}"' for name in there)
        what = f"has no weights without a variant; there is {names}"
        raise ModelError(what, where=str(folder), fix=f'Set model.variant = "{there[0]}"')
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled:
        what = f"its weights are pickled ({pickled[0]}): opening them can run code, so they are never opened"
        fix = (
            f"Convert them on a machine you can afford to lose: {_loader(folder)}.save_pretrained(NEW) with "
            "use_safetensors=False at loading; or use a folder with .safetensors files"
        )
        raise ModelError(what, where=str(folder), fix=fix)
    what = f"holds no weights ({stem}.safetensors)"
    raise ModelError(what, where=str(folder), fix="Restore the file: copy or download the folder again")


def _loader(folder: Path) -> str:
    return f'diffusers.DiffusionPipeline.from_pretrained("{folder.parent}")'


def variants(folder: Path, stem: str) -> list[str]:
    """Names of the variants that a part has weights of."""
    whole = re.compile(rf"{re.escape(stem)}\.([A-Za-z0-9_]+?)(-\d+-of-\d+)?\.safetensors")
    listing = re.compile(rf"{re.escape(stem)}\.safetensors\.index\.([A-Za-z0-9_]+)\.json")
    names = [path.name for path in folder.iterdir()]
    return sorted({found[1] for name in names if (found := whole.fullmatch(name) or listing.fullmatch(name))})


def _pieces(listing: Path) -> list[Path]:
    """The files that an index of sharded weights names."""
    placed = read_json(listing).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise ModelError("names no files (weight_map)", where=str(listing), fix=RESTORE)
    files = [listing.parent / name for name in sorted(set(placed.values()))]
    for path in files:
        if path.parent != listing.parent or path.name in ("", ".."):
            raise ModelError(f"names a file outside its folder: {path.name}", where=str(listing), fix=RESTORE)
        if not path.is_file():
            raise ModelError(f"is missing; {listing.name} names it", where=str(path), fix=RESTORE)
    return files


def _check_variant(folder: Path, parts: Sequence[Part], config: ModelConfig, notes: list[Note]) -> None:
    if not config.variant:
        return
    without = [part.name for part in parts if f".{config.variant}" not in part.files[0].name]
    if len(without) == len(parts):
        there = sorted({name for part in parts for name in variants(part.folder, STEMS[part.library])})
        what = f"no part has weights of variant {config.variant!r}; there is " + (", ".join(map(repr, there)) or "none")
        fix = f'Set model.variant = "{there[0]}", or remove the key' if there else "Remove model.variant"
        raise ModelError(what, where=str(folder), fix=fix)
    if without:
        notes.append(Note("variant", f"no {config.variant} weights for {', '.join(without)}: the plain ones are used"))


def _check_tokenizer(folder: Path) -> None:
    vocabularies = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
    if not any((folder / name).is_file() for name in vocabularies):
        raise ModelError("holds no vocabulary", where=str(folder), fix="Restore the folder: copy or download it again")


def _unused(folder: Path, index: Mapping[str, Any], cls: type[ModelClass]) -> list[Note]:
    """What lies in the folder and is not loaded. The safety checker is spoken of where the guards are known."""
    notes = []
    ignored = [name for name in UNUSED if name != "safety_checker" and isinstance(index.get(name), list) and index[name][0]]
    ignored = [name for name in ignored if name != "feature_extractor"]  # of the safety checker
    if ignored:
        notes.append(Note("model", f"{', '.join(ignored)} of the folder is not used: Clearance draws from text"))
    if "text_encoder_3" in index and index["text_encoder_3"] == [None, None]:
        notes.append(Note("model", "the folder has no T5 (text_encoder_3): long prompts are followed less closely"))
    stray = sorted(path.name for path in folder.glob("*.safetensors"))
    if stray:
        notes.append(Note("model", f"{', '.join(stray)} beside model_index.json is not used"))
    return notes
