"""Check that the weights belong to the network of config.json, by name and shape; no tensor is loaded.

diffusers and transformers fill what is missing with random numbers and go on, which draws noise and looks like success.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index.counted import counted
from index.errors import ClearanceError, ModelError
from index.torchvision_ops import ensure
from pipeline.model.folder.parts import RESTORE, STEMS, Part
from pipeline.model.libraries import quiet, reason
from pipeline.notes import Note

SHOWN = 3


def check_fit(part: Part) -> list[Note]:
    """Build the part's network without memory and compare it with the headers of its weights.

    Returns:
        Notes about tensors that the network has no place for.

    Raises:
        ModelError: the class is not known, its configuration cannot be built, or a tensor is missing or has another shape.
    """
    cls = check_class(part.name, part.library, part.class_name, part.folder.parent)
    try:
        with _limited_to(part):
            missing, unexpected, shapes = (_transformers if part.library == "transformers" else _diffusers)(cls, part)
    except ClearanceError:
        raise
    except Exception as error:
        what = f"{part.class_name} cannot be built from it: {reason(error)}"
        raise ModelError(what, where=str(part.folder / "config.json"), fix=RESTORE) from error
    where = str(part.files[0])
    if missing:
        what = f"lacks {counted(len(missing), 'tensor')} of {part.class_name}, first {', '.join(missing[:SHOWN])}"
        raise ModelError(what, where=where, fix=f"{RESTORE}, or use the config.json that belongs to these weights")
    if shapes:
        name, found, wanted = shapes[0]
        what = f"{name} has shape {found}, config.json needs {wanted}"
        if len(shapes) > 1:
            what += f" ({len(shapes) - 1} more differ)"
        raise ModelError(what, where=where, fix="Use weights and config.json of the same model")
    floats = [name for name in unexpected if part.tensors.get(name, ("F32",))[0] not in ("I64", "I32", "BOOL")]
    if floats:
        many = counted(len(floats), "tensor")
        text = f"{many} in the weights of {part.name} fit nowhere in {part.class_name}, first {floats[0]}"
        return [Note("model", text)]
    return []


def check_class(name: str, library: str, class_name: str, folder: Path) -> Any:
    """The class that model_index.json names for a part.

    Raises:
        ModelError: it is not diffusers' or transformers' own, or not in the version that is here.
    """
    where = str(folder / "model_index.json")
    if library not in STEMS:
        what = f"its {name} is of class {class_name} from {library!r}: code of its own, which is never run"
        raise ModelError(what, where=where, fix="Use a model of diffusers' and transformers' own classes")
    ensure()
    module = importlib.import_module(library)
    cls = getattr(module, class_name, None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        what = f"its {name} is of class {class_name}, which {library} {module.__version__} does not have"
        raise ModelError(what, where=where, fix=f"Use a {library} that has it, or another model")
    return cls


@contextmanager
def _limited_to(part: Part) -> Iterator[None]:
    """Stop a network that grows far beyond its weights: one number in config.json can ask for a million layers.

    Raises:
        ModelError: the network has registered more parameters than the weights could fill.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    # Weights of older versions hold several of today's tensors in one, and some are derived or tied.
    most, made = 4 * len(part.tensors) + 1000, 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += parameter is not None
        if made > most:
            what = f"asks for a network of more than {most} tensors; its weights hold {len(part.tensors)}"
            raise ModelError(what, where=str(part.folder / "config.json"), fix=RESTORE)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


Difference = tuple[list[str], list[str], list[tuple[str, Any, Any]]]  # missing, unexpected, (name, shape here, shape wanted)


def _diffusers(cls: Any, part: Part) -> Difference:
    import torch

    with quiet(), torch.device("meta"):
        network = cls.from_config(cls.load_config(part.folder, local_files_only=True))
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    here: dict[str, Any] = {name: shape for name, (_, shape) in part.tensors.items()}
    network._fix_state_dict_keys_on_load(here)  # names of attention blocks before diffusers 0.16
    missing, unexpected = [n for n in wanted if n not in here], [n for n in here if n not in wanted]
    return missing, unexpected, [(n, here[n], wanted[n]) for n in wanted if n in here and here[n] != wanted[n]]


def _transformers(cls: Any, part: Part) -> Difference:
    """Check by transformers' own loading, which handles old names and tied weights, with tensors that take no memory."""
    import torch

    nothing = torch.zeros(())
    integers = torch.zeros((), dtype=torch.int64)
    with quiet():
        config = cls.config_class.from_pretrained(part.folder, local_files_only=True)
        _, found = cls.from_pretrained(
            None,
            config=config,
            state_dict={n: (nothing if kind in ("F64", "F32", "F16", "BF16") else integers).expand(shape)
                        for n, (kind, shape) in part.tensors.items()},
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    shapes = [(name, tuple(here), tuple(wanted)) for name, here, wanted in found["mismatched_keys"]]
    return sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), sorted(shapes)
