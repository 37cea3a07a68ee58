"""A driver in a process of its own, with a slow fake plan, for tests that kill it: python object_driver.py FOLDER URI."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from index.storage import place
from jobs.run.event import Event
from jobs.run.local_runner import run_local
from pipeline.config import RunConfig
from pipeline.policy import Policy
from tests.jobs.ended_by_signal import FAKES

PROMPTS = [f"owl {number}" for number in range(24)]


def open_slow(config: RunConfig, policy: Policy, base: Path) -> Any:
    loop = FAKES.open_fake(config, policy, base)
    whole = loop.step

    def step() -> Any:
        time.sleep(0.05)
        return whole()

    loop.step = step
    return loop


def show(event: Event) -> None:
    if event.kind == "shard":
        print(event.kind, flush=True)


if __name__ == "__main__":
    run_local(FAKES._plan(Path(sys.argv[1]), PROMPTS), place(sys.argv[2]), show, open_loop=open_slow)
