"""A cluster of two raylets on this machine, of which one comes late and is killed: python two_machines.py BASE [head|control].

Each has one GPU in name, for two workers that take half of it. With ``head`` the driver's own raylet is killed instead, with
``control`` Ray's control service.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from index.errors import RunStopped
from jobs.run.event import Event
from jobs.run.plan import Plan
from jobs.run.ray.runner import run_ray
from pipeline.config import ModelConfig, RunConfig
from pipeline.policy import Policy
from tests.jobs.ended_by_signal import FAKES

PROMPTS, LONG = 32, 320


def open_slow(config: RunConfig, policy: Policy, base: Path) -> Any:
    """A loop that writes down where it is. Nothing is drawn until both workers of the second machine are at work, and they
    draw nothing until it is lost."""
    loop = FAKES.open_fake(config, policy, base)
    whole = loop.step
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    (base / f"worker-{os.getpid()}").write_text(f"{os.getppid()} {niceness} {os.environ['CUDA_VISIBLE_DEVICES']}")

    late = (base / "joining").exists()

    def step() -> Any:
        time.sleep(0.1)
        if late:
            (base / f"late-{os.getpid()}").touch()
        while not (base / "killed").exists() if late else (base / "joining").exists() and len(list(base.glob("late-*"))) < 2:
            time.sleep(0.05)
        return whole()

    loop.step = step
    return loop


def main(base: Path, victim: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    for module in (FAKES, sys.modules["__main__"]):
        ray.cloudpickle.register_pickle_by_value(module)
    machine: dict[str, Any] = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    others: list[Any] = []
    shards: list[str] = []

    def act(event: Event) -> None:
        print(f"{event.kind}: {event.detail}", flush=True)
        shards.extend(["."] if event.kind == "shard" else [])
        if event.kind == "shard" and len(shards) == 1 and not victim:
            (base / "joining").touch()
            others.append(cluster.add_node(**machine))
        at_work = len(list(base.glob("worker-*" if victim else "late-*")))
        if len(shards) >= 2 and at_work >= 2 and not (base / "killed").exists():
            (base / "killed").touch()
            {
                "": lambda: others[0].kill_raylet(),
                "head": lambda: cluster.head_node.kill_raylet(),
                "control": lambda: cluster.head_node.kill_gcs_server(),
            }[victim]()

    (base / "prompts.txt").write_text("\n".join(f"owl {number}" for number in range(LONG if victim == "control" else PROMPTS)))
    config = RunConfig(
        prompts=("prompts.txt",), shard_size=2, workers="auto", device_share=0.5, model=ModelConfig(device="cuda")
    )
    plan = Plan.make(config, Policy(), base, identity=FAKES.fake_identity(config, Policy(), base))
    try:
        run_ray(plan, base / "run", act, open_loop=open_slow)
    except RunStopped as stopped:
        print(f"stopped: {stopped}", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
