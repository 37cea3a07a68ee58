"""Samplers by the names that other programs give them: what to write for each in a run file, where that is the nearest."""

from __future__ import annotations

import re

_NAMES = {
    "ddim": ("pndm", "plms", "ddpm", "ddim parallel"),
    "euler": ("k_euler", "heun", "dpm2", "kdpm2", "lms", "k_lms", "ipndm"),
    "euler_a": (
        "euler ancestral", "k_euler_a", "dpm2 a", "dpm2 ancestral", "kdpm2 ancestral", "dpm++ 2s a", "dpmpp_2s_ancestral",
    ),
    "dpmpp_2m": (
        "dpm++ 2m", "dpm++", "dpm solver", "dpm solver multistep", "dpm solver singlestep", "dpm fast", "dpm adaptive", "deis",
        "deis multistep", "res multistep",
    ),
    "dpmpp_2m_sde": ("dpm++ 2m sde", "dpm++ sde", "dpm++ 3m sde", "dpm solver sde"),
    "unipc": ("uni_pc", "uni_pc_bh2", "unipc multistep"),
    "lcm": (),
    "tcd": (),
    "flow_match_euler": ("flow match", "flow match heun"),
}  # fmt: skip


def _plain(name: str) -> str:
    """A name without what programs write in their own ways: "DPM++ 2M Karras" and "dpmpp_2m" are one."""
    small = name.strip().lower().replace("++", "pp").replace("+", "p")
    for end in ("scheduler", "discrete", "karras", "exponential", "simple", "normal"):
        small = small.removesuffix(end).strip()
    return re.sub(r"[^a-z0-9]", "", small)


_NEAREST = {_plain(name): ours for ours, names in _NAMES.items() for name in (ours, *names)}


def nearest_sampler(name: str) -> str:
    """What to write in a run file for a sampler that another program calls so; empty: it is not known."""
    return _NEAREST.get(_plain(name), "")
