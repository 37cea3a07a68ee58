"""Where the weights that ship are: data of the package, known to every floor and imported by none."""

from __future__ import annotations

from pathlib import Path

STICKERS = Path(__file__).resolve().parents[1] / "pipeline" / "weights" / "stickers"
