"""The components of a model's folder, as its ``model_index.json`` names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from index.errors import ModelError

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline folder that are not loaded


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's ``model_index.json``: settings, and components as [library, class] or [None, None].

    Raises:
        ModelError: it is missing, or not of this form.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError("has no model_index.json", where=str(folder), fix="Name a folder saved by a diffusers pipeline")
    restore = "Restore the file: copy or download the folder again"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON ({str(error) or 'nested too deeply'})", where=str(path), fix=restore) from None
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), fix=restore) from None
    if not isinstance(index, dict):
        raise ModelError("is not a table of components", where=str(path), fix=restore)
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if len(value) != 2 or not (value[0] is value[1] is None or all(isinstance(x, str) and x for x in value)):
            what = f"{name!r} is {json.dumps(value)[:80]}, not a library and a class"
            raise ModelError(what, where=str(path), fix=f'Write it as ["diffusers", "CLASS"], or restore the file: {restore}')
        if not name.isidentifier():
            raise ModelError(f"{name!r} is not the name of a component", where=str(path), fix=restore)
    return index


def components(folder: Path) -> list[str]:
    """Names of the folders a pipeline is made of, without those that are never run here."""
    index = read_index(folder)
    parts = [n for n, value in index.items() if not n.startswith("_") and isinstance(value, list) and value[0] is not None]
    return [name for name in parts if name not in UNUSED]
