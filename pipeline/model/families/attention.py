"""The attention backend of a denoiser, chosen by name.

Only backends that multiply in the tensors' own number format are known. ``sage`` multiplies in 8 bits: it draws other pictures
than those that the probes and thresholds were measured on.
"""

from __future__ import annotations

from typing import Any

from index.errors import ConfigError
from index.padding import first_line

BACKENDS = {
    "native": "native", "math": "_native_math", "flash": "_native_flash", "efficient": "_native_efficient",
    "cudnn": "_native_cudnn", "flash2": "flash", "flash3": "_flash_3",
}  # fmt: skip
"""Our name → diffusers' own."""


def choose_attention(network: Any, name: str) -> None:
    """Let a denoiser attend with that backend; ``auto`` leaves the choice to torch.

    Raises:
        ConfigError: it is not installed, or does not run here; or the denoiser's blocks take no backend by name.
    """
    if name == "auto":
        return
    from diffusers.utils import logging

    wanted, level = BACKENDS[name], logging.get_verbosity()
    logging.set_verbosity_error()  # it calls its own interface experimental, every time
    try:
        network.set_attention_backend(wanted)
    except Exception as error:
        what = f"{name!r} does not run here: {first_line(error)}"
        raise ConfigError(what, where="model.attention", fix='Use "auto", or install it') from error
    finally:
        logging.set_verbosity(level)
    taken = [m for m in network.modules() if getattr(getattr(m, "processor", None), "_attention_backend", None) is not None]
    if not taken:
        what = f"the blocks of {type(network).__name__} take no backend by name"
        raise ConfigError(what, where="model.attention", fix='Use "auto": torch chooses')
