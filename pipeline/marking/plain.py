"""Mark a picture of any program, for people who draw with diffusers alone.

from pipeline.marking.plain import mark_picture
data = mark_picture(image, model="stabilityai/stable-diffusion-xl-base-1.0", keys="clearance-keys")
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from index.errors import ConfigError, InputError
from pipeline.config import MarksConfig
from pipeline.keys import Keys
from pipeline.marking.encode import SUFFIXES
from pipeline.marking.mark import Origin, mark
from pipeline.marking.markers import Markers, open_markers

if TYPE_CHECKING:
    from PIL import Image

_OPENED: dict[tuple[str, tuple[tuple[str, int, int], ...], MarksConfig], Markers] = {}


def mark_picture(
    image: Image.Image | np.ndarray,
    *,
    model: str,
    version: str = "",
    keys: str | Path = "",
    image_format: Literal["webp", "png", "jpeg"] = "webp",
    save: str | Path = "",
    marks: MarksConfig | None = None,
) -> bytes:
    """The file of a generated picture with every mark that the keys allow: XMP, watermark, and a signed C2PA manifest.

    Args:
        image: a picture of PIL's, or uint8 RGB (H, W, 3).
        model: the name of the model that drew it, as XMP and manifest state it; not a path.
        version: its revision.
        keys: a folder of `clearance keys new`; empty: the one that ``CLEARANCE_KEYS`` names, else none.
        image_format: of the file; WebP is lossless, JPEG has quality 95.
        save: where to write it as well; its ending must be the format's.
        marks: the run file's table, to require or leave out a mark.

    Raises:
        ConfigError: no name of a model, a path in its place, a key that cannot be used, an ending of another format.
        InputError: it is no picture of 8-bit RGB.
        RunStopped: it could not be signed.
    """
    if not model.strip():
        raise ConfigError("has no name", where="model", fix='Pass the name of the model, such as model="SDXL base 1.0"')
    if Path(model).is_absolute() or "\\" in model or model.startswith(("~", ".")):
        fix = "Pass a name: a path would tell every reader about your machine"
        raise ConfigError(f"{model!r} is a path", where="model", fix=fix)
    config = marks or MarksConfig()
    found = Keys.find(str(keys) or config.keys, base=Path.cwd())
    software = f"Clearance {importlib.metadata.version('clearance')}"
    marked = mark(_pixels(image), image_format, Origin(model, version, software), _markers(found, config))
    if save:
        place, endings = Path(save), {"jpg": (".jpg", ".jpeg")}.get(SUFFIXES[marked.media_type])
        if place.suffix.lower() not in (endings or (f".{marked.suffix}",)):
            fix = f"Call it {place.with_suffix('.' + marked.suffix).name}, or pass another image_format"
            raise ConfigError(f"does not end like a {image_format} file", where=str(place), fix=fix)
        place.write_bytes(marked.data)
    return marked.data


def _markers(keys: Keys, config: MarksConfig) -> Markers:
    """What is open for these keys already; a changed file is opened again."""
    state: tuple[tuple[str, int, int], ...] = ()
    if keys.folder is not None:
        stats = [(path.name, path.stat()) for path in sorted(keys.folder.iterdir())]
        state = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
    at = (str(keys.folder), state, config)
    if at not in _OPENED:
        _OPENED.clear()  # one deployment at a time
        _OPENED[at] = open_markers(config, keys)
    return _OPENED[at]


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    fix = "Pass a PIL picture, or uint8 RGB (H, W, 3): with diffusers, output_type='pil'"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"is {image.dtype} {image.shape}", where="image", fix=fix)
        return image
    if not hasattr(image, "convert"):
        raise InputError(f"is a {type(image).__name__}", where="image", fix=fix)
    return np.asarray(image.convert("RGB"))
