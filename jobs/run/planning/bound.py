"""What a plan binds of the run file: everything that determines its pictures and rows, and nothing that names a place.

A key that came later is bound only where it is in use, so that a plan of before keeps its digest: a run that an earlier version
began can be read and resumed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.config import DiversityConfig, KeepConfig, MarksConfig, RunConfig

# Keys that name places or who does the work. The content at these places is bound by the other digests.
_NOT_BOUND = (
    "workers", "device_share", "feature_mib", "deadline_seconds", "max_error_rate", "out", "prompts", "columns", "index",
    "policy", "embedder", "guards", "claims_contact", "metrics",
)  # fmt: skip

MODEL_KEYS_OF_LATER: dict[str, object] = {
    "width": None, "height": None, "snap": False, "attention": "auto", "compile": "off", "vae_dtype": "float32",
    "vae_tiling": False,
}  # fmt: skip


def bound(config: RunConfig) -> dict[str, Any]:
    """The run file as plain data, as far as a plan binds it."""
    settings = dataclasses.asdict(config)
    for name in _NOT_BOUND:
        del settings[name]
    # Kinds of devices are bound, not their numbers: on Ray each worker has its own card, as the first.
    settings["model"]["device"] = config.model.device.partition(":")[0]
    devices = [one.partition(":")[0] for one in (config.embedder_device, config.guard_device)]
    if set(devices) != {"cpu"}:  # a plan of before there were these keys, when both were on the CPU, keeps its digest
        settings["devices"] = devices
    for name in ("path", "allow_download", "text_encoders", "graphs"):
        del settings["model"][name]
    for name, value in MODEL_KEYS_OF_LATER.items():
        if settings["model"][name] == value:
            del settings["model"][name]  # as retention_days_held below
    settings["adapters"] = [adapter.bound for adapter in config.adapters]
    if not config.generation.prompt_weighting:
        del settings["generation"]["prompt_weighting"]
    if config.retention_days_held == RunConfig.retention_days_held:
        del settings["retention_days_held"]  # as marks below
    if dataclasses.replace(config.marks, keys="", signer="") == MarksConfig():
        del settings["marks"]  # a plan that says nothing of marks keeps the digest that it had before there was this table
    else:
        del settings["marks"]["keys"], settings["marks"]["signer"]
    if config.generation.diversity.window_from == 0:  # as it was before there was this key
        del settings["generation"]["diversity"]["window_from"]
    for name, unstated in (("diversity", DiversityConfig()), ("preset", "auto"), ("timestep_spacing", None)):
        if getattr(config.generation, name) == unstated:
            del settings["generation"][name]
    if config.keep == KeepConfig():
        del settings["keep"]  # for the same reason
    return settings
