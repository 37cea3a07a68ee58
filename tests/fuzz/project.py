"""A small project of a user: model, works, index, prompts, policy, adapter, a finished run. Fuzzing starts from copies."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

COUNTS: defaultdict[str, Counter[str]] = defaultdict(Counter)  # what was tried, by group
PROMPTS = "prompt,key,seed\nred apple,a,1\ncat,b,2\nlemon,c,3\n"
RUN: dict[str, dict[str, Any]] = {
    "": {"prompts": "prompts.csv", "out": "out", "index": "index", "policy": "policy.toml", "shard_size": 2},
    "model": {"path": "model", "dtype": "float32"},
    "generation": {"steps": 1, "rows": 4},
}
POLICY: dict[str, Any] = {
    "": {"name": "mine", "version": "1"},
    "copies": {"threshold": 0.9},
    "marks": {"action": "observe"},
    "text": {"enabled": False},
    "unsafe": {"enabled": False},
}


def call(*arguments: object) -> Result:
    """One command of the command line, in this process."""
    from jobs.cli import main as cli

    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def write_toml(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Tables by name, the top level under an empty one."""
    from tests.fuzz.mutate import toml_value

    lines = []
    for table, values in tables.items():
        lines += [f"\n[{table}]"] if table else []
        lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")


def make_project(folder: Path, model: Path) -> Path:
    """Write the project and run it once; every command must succeed."""
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model
    from pipeline.steer.erase_tokens import Vocabulary
    from tests.pipeline.adapters import write_adapter

    folder.mkdir()
    shutil.copytree(model, folder / "model")
    (folder / "works").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "works" / f"work-{number}.png")
    (folder / "prompts.csv").write_text(PROMPTS)
    write_toml(folder / "policy.toml", POLICY)
    write_toml(folder / "run.toml", RUN)
    loaded = load_model(ModelConfig(path=str(folder / "model"), dtype="float32"))
    write_adapter(folder / "adapter", loaded, Vocabulary(("qr",)), weights=True, removal="model", concepts=("qr",))
    for command in (
        ("index", "build", folder / "works", "--out", folder / "index"),
        ("run", folder / "run.toml", "--out", folder / "done"),
    ):
        result = call(*command)
        assert result.exit_code == 0, result.output
    return folder
