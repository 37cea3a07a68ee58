"""Libraries that open a model which somebody else made: they run no code that comes with it, and fetch nothing unasked.

A model's configuration may name a class in a file beside it, or a repository of the hub. Clearance never runs the former, and
asks the hub only where that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OWN_CODE = "Use a model of the libraries' own classes: code that comes with a model is never run"
FROM_HUB = "Allow it (allow_download, --allow-download), or use a configuration that names no repository of the hub"


@contextmanager
def kept_shut(*, allow_download: bool) -> Iterator[None]:
    """Within it, transformers asks nobody whether to run a model's own code (it would wait 15 s for a "yes"), but refuses; and
    without ``allow_download`` no library requests anything from the hub.

    The switches are those of the process: two threads open no models at once.
    """
    from huggingface_hub import constants
    from transformers import dynamic_module_utils

    switches: list[tuple[Any, str, Any]] = [(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0)]
    if not allow_download:
        switches.append((constants, "HF_HUB_OFFLINE", True))
    before = [getattr(module, name) for module, name, _ in switches]
    for module, name, value in switches:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def advice(error: BaseException) -> str:
    """What helps against a refusal that comes from :func:`kept_shut`; empty for any other error."""
    text = str(error).lower()
    if "custom code" in text or "trust_remote_code" in text:
        return OWN_CODE
    return FROM_HUB if "offline mode" in text or "huggingface.co" in text else ""
