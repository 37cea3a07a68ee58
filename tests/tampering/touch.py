"""What the kinds of tampering share: a file, a shard or a row by chance, and a change to it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.audit.shards import committed
from tests.tampering import forge

EDITS: dict[str, dict[str, Any]] = {
    "samples": {"outcome": "review", "reason": "", "request_key": "x", "policy_name": "better", "seed": 7, "base_seed": 7,
                "copy_threshold": 0.99, "denoiser_evals": 0.0, "retain_until": None, "legal_hold": True,
                "model_licence": "MIT"},
    "attempts": {"decision": "review", "reason": "fine", "seed": 7, "denoiser_evals": 1.0, "request_key": "x"},
    "kept": {"attempt": 9, "width": 3, "request_key": "x"},
}  # fmt: skip


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def one_of(folder: Path, pattern: str, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))


def a_shard(folder: Path, rng: random.Random) -> str:
    return rng.choice(sorted(committed(folder)))


def name_of(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def an_edit(rng: random.Random, table: str) -> Callable[[forge.Rows], Any]:
    def change(rows: forge.Rows) -> None:
        row = rng.choice(rows)
        options = {name: value for name, value in EDITS[table].items() if name in row and row[name] != value}
        row.update([rng.choice(list(options.items()))])

    return change


def editable(folder: Path, rng: random.Random) -> tuple[str, str]:
    """A shard, and a table of it that has rows."""
    shard_id = a_shard(folder, rng)
    return shard_id, rng.choice([file.table for file in committed(folder)[shard_id].files if file.rows])
