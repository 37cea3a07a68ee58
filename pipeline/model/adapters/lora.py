"""LoRA files of every format that diffusers converts, as pairs of low-rank weights for our own modules.

diffusers loads the file into the loaded parts and converts its names and scales; the pairs are then read from peft's layers,
and the layers are taken out again, so that every module is the object that it was. Every pair of the file has to be found:
what has no place is refused, never dropped. Scales are α/r of each pair: diffusers 0.42 loses those of attention layers where
a kohya file has a different α from layer to layer, so they are read from the file here.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from index.counted import counted
from index.errors import ModelError
from pipeline.model.adapters.file import ALPHA, DOWN, UP, AdapterFile
from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.libraries import quiet, reason

LOADED = "clearance"  # the name in peft while it is read
TEXT = "text_encoder"


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """A LoRA that fits the model.

    Attributes:
        file: what it was read from.
        denoiser: its pairs for the denoiser; None: it has none.
        text: text encoder → its pairs.
    """

    file: AdapterFile
    denoiser: LowRank | None
    text: Mapping[str, LowRank]

    @property
    def parts(self) -> Iterator[tuple[str, LowRank]]:
        """Name of a part ("" for the denoiser) and its pairs."""
        if self.denoiser is not None:
            yield "", self.denoiser
        yield from self.text.items()


def load_lora(found: AdapterFile, pipeline: Any, denoiser: str) -> Lora:
    """Read a LoRA for a loaded diffusers pipeline, which is afterwards as it was.

    Args:
        found: the file, looked at.
        pipeline: of a class with ``load_lora_weights``.
        denoiser: the name of its denoiser ("unet", "transformer").

    Raises:
        ModelError: the pipeline's class takes none, the file is for another model, or a pair has no place in this one.
    """
    where = f"adapter {found.config.path}"
    if not hasattr(pipeline, "load_lora_weights"):
        what = f"diffusers reads no LoRA for a {type(pipeline).__name__}"
        raise ModelError(what, where=where, fix="Take the entry out, or use another class of models")
    try:
        with quiet(errors=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what has no place and of lost scales: both are looked after here
            expected, alphas = _converted(found, pipeline)
            pipeline.load_lora_weights(
                str(found.path.parent), weight_name=found.path.name, adapter_name=LOADED, local_files_only=True,
                use_safetensors=True,
            )  # fmt: skip
        pairs = {
            name: _harvested(getattr(pipeline, name, None), name, found.name, alphas)
            for name in pipeline._lora_loadable_modules
        }
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(f"cannot be read: {reason(error)}", where=where, fix="Install peft: pip install peft") from error
    except Exception as error:
        what = f"does not fit this {type(pipeline).__name__}: {reason(error)[:300]}"
        raise ModelError(what, where=where, fix=_advice(found, pipeline)) from error
    finally:
        with quiet():
            pipeline.unload_lora_weights()
    lost = _without_place(expected, pairs)
    if lost or found.layers > len(expected):
        many = max(len(expected), found.layers)
        what = f"{many - sum(len(one.pairs) for one in pairs.values())} of its {many} layers have no place in this model"
        first = f" (first {lost[0]})" if lost else ""
        raise ModelError(what + first, where=where, fix=_advice(found, pipeline))
    text = {name: one for name, one in pairs.items() if name.startswith(TEXT) and one.pairs}
    own = pairs.get(denoiser)
    for name, one in (*text.items(), *([(denoiser, own)] if own is not None and own.pairs else [])):
        one.products(getattr(pipeline, name))  # whether they fit is known before anything is drawn
    return Lora(file=found, denoiser=own if own is not None and own.pairs else None, text=text)


def fuse(loras: Sequence[tuple[Lora, float]], network_of: Mapping[str, Any]) -> None:
    """Merge LoRAs into the weights of the networks, W + Σ s·BA, worked out in float32 and rounded once.

    Args:
        loras: each with its strength.
        network_of: name of a part ("" for the denoiser) → the network.
    """
    import torch

    with torch.no_grad():
        for part, network in network_of.items():
            modules = dict(network.named_modules())
            wanted = [(one, strength) for lora, strength in loras for name, one in lora.parts if name == part]
            for name in dict.fromkeys(name for one, _ in wanted for name in one.pairs):
                weight = modules[name].weight
                whole = weight.float()
                for one, strength in wanted:
                    if name in one.pairs:
                        down, up = (half.to(weight.device).float() for half in one.pairs[name])
                        factor = strength * one.scales.get(name, 1.0)
                        whole = whole + factor * (up.flatten(1) @ down.flatten(1)).view_as(weight)
                weight.copy_(whole.to(weight.dtype))


def _converted(found: AdapterFile, pipeline: Any) -> tuple[list[str], dict[str, float]]:
    """Names of the first halves of the pairs in diffusers' words, and the α that the file states, by plain name.

    Raises:
        ModelError: diffusers leaves a tensor that is no half of a pair.
    """
    network = getattr(pipeline, "unet", None)
    more = {"unet_config": network.config} if network is not None else {}
    with _left_out() as messages:
        converted = type(pipeline).lora_state_dict(
            str(found.path.parent), weight_name=found.path.name, local_files_only=True, use_safetensors=True, **more
        )
    if messages:
        what = f"holds tensors that diffusers does not convert, which would be lost ({messages[0][:200]})"
        raise ModelError(what, where=f"adapter {found.config.path}", fix=_advice(found, pipeline))
    state, beside = (converted[0], converted[1] or {}) if isinstance(converted, tuple) else (converted, {})
    if others := [name for name in state if not any(kind.search(name) for kind in (DOWN, UP, ALPHA))]:
        what = f"holds {counted(len(others), 'tensor')} beside low-rank pairs, which would be lost (first {others[0]})"
        raise ModelError(what, where=f"adapter {found.config.path}", fix="Use a plain LoRA, or merge this one into a model")
    stated = {name: value for name, value in (*state.items(), *beside.items()) if name.endswith(".alpha")}
    return [name for name in state if DOWN.search(name)], {_plain(name): float(value) for name, value in stated.items()}


@contextmanager
def _left_out() -> Iterator[list[str]]:
    """Collects what diffusers' converters log of tensors that they leave out (FLUX.2 in kohya's names): they raise nothing, and
    one fused pair that became three hides in the count of pairs that another is missing."""
    messages: list[str] = []
    log, handler = logging.getLogger("diffusers.loaders.lora_conversion_utils"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    level, propagates = log.level, log.propagate
    log.setLevel(logging.WARNING)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield messages
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        log.propagate = propagates


def _harvested(network: Any, part: str, name: str, alphas: Mapping[str, float]) -> LowRank:
    """The pairs that peft's layers hold, with α/r of each."""
    pairs, scales = {}, {}
    for module, layer in network.named_modules() if network is not None else ():
        if LOADED in getattr(layer, "lora_A", {}):
            down, up = (halves[LOADED].weight.detach() for halves in (layer.lora_A, layer.lora_B))
            alpha = alphas.get(_plain(f"{part}.{module}"))
            pairs[module], scales[module] = (down, up), layer.scaling[LOADED] if alpha is None else alpha / len(down)
    return LowRank(name, pairs, scales)


def _without_place(expected: Sequence[str], pairs: Mapping[str, LowRank]) -> list[str]:
    """Those of the converted names that are in no module; the three styles of names that diffusers keeps are one here."""
    there = {f"{part}.{_plain(name)}" for part, one in pairs.items() for name in one.pairs}
    alone = {_plain(name) for one in pairs.values() for name in one.pairs}
    lost = [name for name in expected if _plain(name) not in there and _plain(name) not in alone]
    return lost if len(expected) != sum(len(one.pairs) for one in pairs.values()) else []


def _plain(name: str) -> str:
    """``unet.…attn1.processor.to_out_lora.down.weight`` and ``…attn1.to_out.0`` are one name."""
    short = re.sub(r"(_lora|\.lora|\.lora_linear_layer)?(\.(lora_A(\.\w+)?|lora_down|down)\.weight)?(\.alpha)?$", "", name)
    short = short.replace(".processor.", ".").replace("text_model.", "").replace(".to_out.0", ".to_out")
    return re.sub(r"self_attn\.to_([qkv])$", r"self_attn.\1_proj", short).replace("self_attn.to_out", "self_attn.out_proj")


def _advice(found: AdapterFile, pipeline: Any) -> str:
    known = f"It looks like one for {found.base.name}. " if found.base.name else ""
    if found.tensors and all(name.startswith("base_model.model.") for name in found.tensors):
        known = "peft saved it without its model's names: load it with peft and save it by the pipeline's save_lora_weights. "
    return f"{known}Use a LoRA that was trained for the model's class ({type(pipeline).__name__}) and version"
