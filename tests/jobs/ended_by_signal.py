"""A command of its own process that runs a slow fake plan, for tests that end it from outside.

python ended_by_signal.py run FOLDER RUNNER
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from jobs.cli.main import Commands
from jobs.run.event import Event
from jobs.run.local_runner import RUNNERS
from jobs.run.plan import Plan
from pipeline.config import RunConfig
from pipeline.policy import Policy


def fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fakes"] = module
    spec.loader.exec_module(module)
    return module


FAKES = fakes()
app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)


def open_slow(config: RunConfig, policy: Policy, base: Path) -> Any:
    loop = FAKES.open_fake(config, policy, base)
    whole = loop.step
    (base / f"worker-{os.getpid()}").write_text(str(os.nice(0)))

    def step() -> Any:
        time.sleep(0.3)
        return whole()

    loop.step = step
    return loop


@app.callback()
def root() -> None:
    """A group, as the real command line is."""


@app.command()
def run(folder: Path, runner: str) -> None:
    base = folder.parent
    (base / "prompts.txt").write_text("\n".join(f"owl {i}" for i in range(40)))
    config = RunConfig(prompts="prompts.txt", shard_size=2, workers=2)
    plan = Plan.make(config, Policy(), base, identity=FAKES.fake_identity(config, Policy(), base))

    def say(event: Event) -> None:
        print(event.kind, os.nice(0), flush=True)

    if runner == "ray":
        import ray

        for module in (FAKES, sys.modules["__main__"]):
            ray.cloudpickle.register_pickle_by_value(module)
    RUNNERS[runner](plan, folder, say, open_loop=open_slow)


if __name__ == "__main__":
    app()
