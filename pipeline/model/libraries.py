"""Calls of diffusers and transformers: their remarks silenced, their exceptions in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from index.padding import first_line


@contextmanager
def quiet(*, errors: bool = True) -> Iterator[None]:
    """Silence progress bars and remarks of diffusers and transformers, such as that AutoencoderTiny is not AutoencoderKL.

    ``errors``: whether they may still log errors; not where each is an exception too, which is shown in our own words.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    kits = (diffusers_logging, transformers_logging)
    levels = [kit.get_verbosity() for kit in kits]
    bars = [kit.is_progress_bar_enabled() for kit in kits]
    for kit in kits:
        kit.set_verbosity(logging.ERROR if errors else logging.CRITICAL)
        kit.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # diffusers hands tensors to numpy in a way that numpy 2 is going to drop.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # Chroma's own use of it
            yield
    finally:
        for kit, level, bar in zip(kits, levels, bars, strict=True):
            kit.set_verbosity(level)
            if bar:
                kit.enable_progress_bar()


def reason(error: BaseException) -> str:
    """A library's exception with its class, in one line of a readable length."""
    text, name = first_line(error), type(error).__name__
    return name if text == name else f"{name}: {text}"
