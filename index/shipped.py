"""The folder of the weights that ship, which are data of the package and hold no code."""

from __future__ import annotations

from pathlib import Path

STICKERS = Path(__file__).resolve().parents[1] / "pipeline" / "weights" / "stickers"
