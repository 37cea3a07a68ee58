"""An adapter's file, looked at by its header alone: what it is, which models it is for, and what is refused by name.

Names of tensors show nearly all of it: low-rank pairs of any of the formats that diffusers converts, the vectors of a textual
inversion, and everything that looks like one of them and cannot be drawn with (DoRA, LoHa, LoKr, IP-Adapter, ControlNet, …).
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from index.counted import counted
from index.errors import ConfigError, ModelError
from index.places.cache import local_copy
from index.shipped import STICKERS
from index.storage import is_uri, place
from pipeline.config import AdapterConfig
from pipeline.model.folder.parts import PICKLES, read_header

Kind = Literal["eraser", "lora", "embedding"]
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

ERASER, ERASER_TOKENS = "adapter.json", "tokens.safetensors"  # files by which an eraser's folder is known
LONGEST_WORD = 100  # characters
OF_THE_WORLD = "stickers:"  # "stickers:marks" is an eraser that ships
SHIPPED = STICKERS / "adapters"
DOWN = re.compile(r"(lora_down|lora_A(\.\w+)?|\bdown|_down)\.weight$")  # the first half of a low-rank pair
UP = re.compile(r"(lora_up|lora_B(\.\w+)?|\bup|_up)\.weight$")
ALPHA = re.compile(r"alpha$")
KINDS = {"eraser": "an eraser of marks", "lora": "a LoRA", "embedding": "a textual inversion"}
MERGE = (
    "Merge it into a model with the program that trained it, save that with diffusers, and name the folder in model.path; or "
    "use a plain LoRA"
)
TEXT_ONLY = "Clearance draws from text alone: take the entry out, and describe in the prompt what the picture shall show"
VECTORS = {  # names of the vectors in a textual inversion → the text encoder
    "emb_params": "", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}  # fmt: skip


class Refused(NamedTuple):
    """What names of tensors show that cannot be drawn with."""

    names: re.Pattern[str]
    what: str
    fix: str


REFUSED = (
    Refused(re.compile(r"^(image_proj|ip_adapter)\.|to_[kv]_ip\b"), "an IP-Adapter, which is shown a picture", TEXT_ONLY),
    Refused(
        re.compile(r"control(net)?_cond_embedding|^control_model\.|input_hint_block|lora_controlnet|controlnet_|^zero_convs"),
        "a ControlNet, which is shown a picture", TEXT_ONLY,
    ),
    Refused(re.compile(r"(query_norm|key_norm)\.scale$"), "a control LoRA of Flux, which is shown a picture", TEXT_ONLY),
    Refused(re.compile(r"dora_scale|lora_magnitude_vector"), "a DoRA (weights split into direction and length)", MERGE),
    Refused(re.compile(r"\bhada_w[12]"), "a LoHa (Hadamard products)", MERGE),
    Refused(re.compile(r"\blokr_w[12]"), "a LoKr (Kronecker products)", MERGE),
    Refused(re.compile(r"oft_(blocks|diag)|oft_[Rr]\b|boft_"), "an OFT (rotations of weights)", MERGE),
    Refused(re.compile(r"\.on_input$|ia3_l$"), "an (IA)³ (scaled activations)", MERGE),
    Refused(re.compile(r"lora_mid\.weight$"), "a LoCon in Tucker's form (`lora_mid`)", MERGE),
    Refused(re.compile(r"lora_(B|up)(\.\w+)?\.bias$"), "a LoRA with biases (`lora_bias`)", MERGE),
    Refused(re.compile(r"\.diff(_b)?$|\.set_weight$"), "full differences of weights beside low-rank ones", MERGE),
)  # fmt: skip


class Base(NamedTuple):
    """The models that a LoRA was trained for, as its file shows.

    Attributes:
        name: for people; empty: unknown.
        families: of :class:`pipeline.model.families.latent.LatentDiffusion`, or how they begin; empty: unknown.
    """

    name: str = ""
    families: tuple[str, ...] = ()


SD1, SD2 = Base("Stable Diffusion 1.x", ("sd",)), Base("Stable Diffusion 2.x", ("sd",))
SDXL, SD3, FLUX = Base("SDXL", ("sdxl",)), Base("Stable Diffusion 3", ("sd3",)), Base("Flux", ("flux", "chroma"))
QWEN, Z_IMAGE = Base("Qwen-Image", ("qwen",)), Base("Z-Image", ("z",))
WIDTHS = {768: SD1, 1024: SD2, 2048: SDXL}  # of the text that a UNet attends to
STATED = {  # beginnings of what trainers write into the file
    "sdxl": SDXL, "stable-diffusion-xl": SDXL, "sd_v1": SD1, "stable-diffusion-v1": SD1, "sd_v2": SD2,
    "stable-diffusion-v2": SD2, "stable-diffusion-3": SD3, "sd3": SD3, "flux": FLUX, "qwen": QWEN, "z-image": Z_IMAGE,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter as its file shows it.

    Attributes:
        config: its entry in the run file.
        kind: what it is.
        path: the file, or an eraser's folder, on this machine.
        digest: of the file; empty for an eraser, whose settings have one.
        tensors: name → stored number format and shape.
        base: what it was trained for, as far as the file shows.
        licence: as the file states it; empty: it does not.
        word: of a textual inversion, the word that its file names.
    """

    config: AdapterConfig
    kind: Kind
    path: Path
    digest: str = ""
    tensors: Tensors = field(default_factory=dict, repr=False)
    base: Base = field(default_factory=Base)
    licence: str = ""
    word: str = ""

    @property
    def name(self) -> str:
        """In rows, prompt files and messages; of a textual inversion the word in prompts."""
        return self.config.name or self.word or self.config.called

    @property
    def layers(self) -> int:
        """Low-rank pairs in the file."""
        return sum(DOWN.search(name) is not None for name in self.tensors)


def look_at_adapters(configured: Sequence[AdapterConfig], *, base: Path) -> list[AdapterFile]:
    """Every adapter of a run file, looked at without loading it.

    Raises:
        ModelError: a file is not there, or of a kind that cannot be drawn with.
        ConfigError: its entry contradicts what it is, or two have one name.
    """
    found = [look_at_adapter(config, base=base) for config in configured]
    names = [one.name.lower() for one in found if one.kind != "eraser"]
    for one in found:
        if one.kind != "eraser" and names.count(one.name.lower()) > 1:
            raise ConfigError(f"two of them are called {one.name!r}", where="adapters", fix="Give each a `name` of its own")
    return found


def look_at_adapter(config: AdapterConfig, *, base: Path) -> AdapterFile:
    """One adapter; see :func:`look_at_adapters`."""
    where = f"adapter {config.path}"
    path = _found(config, base)
    if _is_eraser(config, path):
        return _checked(AdapterFile(config=config, kind="eraser", path=path), where)
    file = _file_in(path, where)
    tensors, stated = read_header(file), _metadata(file)
    kind = _kind_of(tensors, where)
    _require_numbers(file, tensors, where)
    if kind == "lora" and (key := _stated_dora(file, stated)):
        what = f"is a DoRA by its metadata ({key}), and the magnitudes of its weights are not in it"
        again = "Fetch or save the file again, since a part of it is missing"
        fix = f"{again}. A whole DoRA is not supported either: {MERGE[:1].lower()}{MERGE[1:]}"
        raise ModelError(what, where=where, fix=fix)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    licence = next((stated[key] for key in ("modelspec.license", "license", "licence") if stated.get(key)), "")
    named = [name for name in tensors if name not in VECTORS and name.isprintable() and len(name) <= LONGEST_WORD]
    return _checked(
        AdapterFile(
            config=config, kind=kind, path=file, digest=digest, tensors=tensors, base=base_of(tensors, stated),
            licence=licence[:200], word=next(iter(named), "") if kind == "embedding" else "",
        ),
        where,
    )  # fmt: skip


def base_of(tensors: Iterable[str] | Tensors, stated: Mapping[str, str]) -> Base:
    """What a LoRA was trained for, by the names and shapes of its tensors, or as its trainer wrote it into the file."""
    shapes: Tensors = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors, ("", ()))
    names = "\n".join(shapes)
    if re.search(r"single_(transformer_)?blocks", names):
        return FLUX
    if re.search(r"joint_blocks", names):
        return SD3
    if re.search(r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)", names):
        return QWEN
    if re.search(r"(context|noise)_refiner", names):
        return Z_IMAGE
    if re.search(r"^(lora_te2_|text_encoder_2\.)", names, re.MULTILINE) and re.search("unet", names):
        return SDXL
    across = [shape for name, (_, shape) in shapes.items() if re.search(r"attn2[._].*to_[._]?k\b", name) and DOWN.search(name)]
    if across and (known := WIDTHS.get(across[0][-1] if len(across[0]) == 2 else across[0][1])):
        return known
    for key in ("modelspec.architecture", "ss_base_model_version", "base_model"):
        said = stated.get(key, "").lower()
        if known := next((base for begin, base in STATED.items() if said.startswith(begin)), None):
            return known
    return Base()


def check_base(found: AdapterFile, family: str, pipeline: str) -> None:
    """Whether a LoRA may fit a class of models.

    Raises:
        ModelError: its file shows that it was trained for another class.
    """
    if found.kind == "lora" and found.base.families and not family.startswith(found.base.families):
        raise _wrong_base(found, pipeline)
    if found.kind == "lora" and family in ("sdxl", "sd3") and "sd" in found.base.families:
        raise _wrong_base(found, pipeline)


def _wrong_base(found: AdapterFile, pipeline: str) -> ModelError:
    what = f"is a LoRA for {found.base.name}, and the model is a {pipeline}"
    fix = f"Use it with a model of {found.base.name}, or a LoRA that was trained for this one"
    return ModelError(what, where=f"adapter {found.config.path}", fix=fix)


def _found(config: AdapterConfig, base: Path) -> Path:
    if config.path.startswith(OF_THE_WORLD):
        return SHIPPED / config.path.removeprefix(OF_THE_WORLD)
    return local_copy(place(config.path)) if is_uri(config.path) else base / config.path


def _is_eraser(config: AdapterConfig, path: Path) -> bool:
    """An eraser's folder, or one that is meant as such: its loader names what is missing."""
    if config.path.startswith(OF_THE_WORLD) or (path.is_dir() and any((path / n).is_file() for n in (ERASER, ERASER_TOKENS))):
        return True
    return not path.is_file() and (config.kind == "eraser" or (path.is_dir() and not list(path.glob("*.safetensors"))))


def _file_in(path: Path, where: str) -> Path:
    """The one file of weights."""
    if path.is_file():
        if path.suffix in PICKLES:
            fix = (
                "Convert it on a machine you can afford to lose: safetensors.torch.save_file(torch.load(FILE, "
                "weights_only=True), NEW); or find its .safetensors file"
            )
            raise ModelError(
                f"is pickled ({path.suffix}): opening it can run code, so it is never opened", where=where, fix=fix
            )
        if path.suffix != ".safetensors":
            fix = "Name a .safetensors file, or the folder of an eraser"
            raise ModelError(f"is a file of kind {path.suffix or 'unknown'!r}", where=where, fix=fix)
        if (path.parent / ERASER).is_file():
            raise ModelError("is a part of an eraser", where=where, fix="Name the eraser's folder")
        return path
    if not path.is_dir():
        fix = "Correct the path; relative ones start from the run file's folder"
        raise ModelError("there is no file or folder of this name", where=where, fix=fix)
    files = sorted(path.glob("*.safetensors"))
    usual = [file for file in files if file.name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")]
    if len(usual) == 1 or len(files) == 1:
        return (usual or files)[0]
    names = ", ".join(file.name for file in files[:5])
    raise ModelError(f"the folder holds {len(files)} weight files ({names})", where=where, fix="Name the file itself")


def _require_numbers(file: Path, tensors: Tensors, where: str) -> None:
    """Refuse a file that is empty in part or holds what is no number, before a model is called with it.

    Raises:
        ModelError: with the first such tensor.
    """
    import torch
    from safetensors import safe_open

    again = "Fetch or save the file again; a training that diverged leaves such files"
    if empty := next((name for name, (_, shape) in tensors.items() if 0 in shape), ""):
        raise ModelError(f"has no numbers in {empty[:200]} (shape {tensors[empty][1]})", where=where, fix=again)
    with safe_open(file, framework="pt") as weights:
        for name in tensors:
            tensor = weights.get_tensor(name)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                raise ModelError(f"has values in {name[:200]} that are not finite", where=where, fix=again)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as weights:
        return dict(weights.metadata() or {})


def _stated_dora(path: Path, stated: Mapping[str, str]) -> str:
    """The key by which a trainer states that the file is a DoRA; empty: none does.

    diffusers writes it into the file (``lora_adapter_metadata``: ``unet.use_dora``), kohya's script for LyCORIS too
    (``ss_network_args``: ``dora_wd``), peft into ``adapter_config.json`` beside its ``adapter_model.safetensors``.
    """
    config = path.with_name("adapter_config.json")
    beside = ""
    if path.name == "adapter_model.safetensors" and config.is_file():
        with suppress(OSError, UnicodeDecodeError):
            beside = config.read_text(encoding="utf-8")
    for where, text in ((name, stated.get(name, "")) for name in ("lora_adapter_metadata", "ss_network_args")):
        if key := _true_of(text, ("use_dora", "dora_wd")):
            return f"{where}: {key}"
    key = _true_of(beside, ("use_dora",))
    return f"{config.name}: {key}" if key else ""


def _true_of(text: str, names: tuple[str, ...]) -> str:
    """The first key of a JSON object, behind whatever prefix, that has one of these names and is true; empty: there is none."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    items = plain.items() if isinstance(plain, dict) else ()
    return next((key for key, value in items if key.rpartition(".")[2] in names and str(value).lower() == "true"), "")


def _kind_of(tensors: Tensors, where: str) -> Kind:
    """LoRA or textual inversion.

    Raises:
        ModelError: it is something else, or a part of it is.
    """
    for refused in REFUSED:
        if name := next((name for name in tensors if refused.names.search(name)), None):
            raise ModelError(f"is {refused.what}, which is not supported (first {name})", where=where, fix=refused.fix)
    downs = sum(DOWN.search(name) is not None for name in tensors)
    if downs:
        others = [name for name in tensors if not any(part.search(name) for part in (DOWN, UP, ALPHA))]
        if others:
            what = f"holds {counted(len(others), 'tensor')} beside low-rank pairs, which would be lost (first {others[0]})"
            raise ModelError(what, where=where, fix=MERGE)
        halves = [{name[: found.start()] for name in tensors if (found := half.search(name))} for half in (DOWN, UP)]
        if alone := sorted(halves[0] ^ halves[1]):
            what = f"of {len(alone)} low-rank pairs it holds one half alone (first {alone[0]})"
            raise ModelError(what, where=where, fix="Fetch or save the file again: a part of it is missing")
        return "lora"
    vectors = [shape for _, shape in tensors.values()]
    if tensors and all(len(shape) in (1, 2) for shape in vectors) and (set(tensors) <= set(VECTORS) or len(tensors) == 1):
        return "embedding"
    if any(re.match(r"model\.diffusion_model\.|first_stage_model\.|cond_stage_model\.|conditioner\.", n) for n in tensors):
        fix = "Make a folder of it with diffusers' from_single_file(FILE).save_pretrained(NEW), and name that in model.path"
        raise ModelError("is a whole checkpoint, not an adapter", where=where, fix=fix)
    first = next(iter(tensors), "none")
    fix = "Name a LoRA, a textual inversion or an eraser"
    raise ModelError(f"holds no low-rank pairs and no vectors of a word (first tensor: {first})", where=where, fix=fix)


def _checked(found: AdapterFile, where: str) -> AdapterFile:
    """Whether the entry suits what was found.

    Raises:
        ConfigError: it does not.
    """
    config, kind = found.config, found.kind
    if config.kind not in ("auto", kind):
        fix = f'Write kind = "{kind}", or remove the key'
        raise ConfigError(f"is {KINDS[kind]}, not {KINDS[config.kind]}", where=where, fix=fix)
    plain = AdapterConfig(path=config.path)
    keys = {"rows": ("lora",), "lowrank": ("eraser",), "tokens": ("eraser",), "weight": ("lora", "eraser")}
    for key, kinds in keys.items():
        if kind not in kinds and getattr(config, key) != getattr(plain, key):
            more = "; write (word:1.2) in the prompt, with generation.prompt_weighting" if key == "weight" else ""
            what = f"`{key}` is a key of {' and '.join(KINDS[one] for one in kinds)}; this is {KINDS[kind]}"
            raise ConfigError(what, where=where, fix=f"Remove the key{more}")
    if kind == "eraser" and config.weight < 0:
        raise ConfigError("an eraser cannot have a negative weight", where=where, fix="Set `weight` from 0 to 10")
    if kind == "lora" and found.name != found.name.strip():
        fix = "Give it a `name` without them: blanks around a name in a prompt file are not read"
        raise ConfigError(f"its name {found.name!r} begins or ends with a blank", where=where, fix=fix)
    if kind == "lora" and re.search(r"[,:]", found.name):
        fix = "Give it a `name` without them: prompt files separate names by commas, and strengths by colons"
        raise ConfigError(f"its name {found.name!r} holds a comma or a colon", where=where, fix=fix)
    return found
