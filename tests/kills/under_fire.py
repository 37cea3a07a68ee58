"""A run in a process of its own that kills somebody at one point: python under_fire.py BASE OUT RUNNER KILL.

Points lie where a shard may be torn: a picture was drawn, is accepted, marked, signed; a shard's files are written, its
marker is written. They are reached through the seams of the product (the loop, the marks, the disk, the object store), not by
sleeping, and are counted over all processes of the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from index import storage
from index.places import schemes
from index.places.backend import Backend
from jobs.run.event import Event
from jobs.run.local_runner import RUNNERS
from jobs.run.plan import Plan
from pipeline.config import GenerationConfig, MarksConfig, RunConfig
from pipeline.policy import Policy
from tests.jobs.ended_by_signal import FAKES

PROMPTS = [f"{('', 'large ', 'steered ', 'copy ')[n % 4]}owl {n}" for n in range(24)]
SHARD, WORKERS, ROWS = 2, 2, 4
SIDE = 128  # the watermark's least
IN_WORKER = ("drawn", "accepted", "marked", "signed", "placing", "placed", "committing", "committed")
IN_DRIVER = ("sealing", "sealed")


@dataclass(frozen=True)
class Kill:
    """Who is killed (``driver``, ``worker``, ``raylet``; empty: nobody), at which point, the how-manieth time it is reached."""

    victim: str = ""
    point: str = ""
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.victim}-{self.point}-{self.nth}"


class Fuse:
    """Kills when its point is reached for the n-th time, in whatever process of the run."""

    def __init__(self, base: Path, kill: Kill) -> None:
        self.base, self.kill = base, kill

    def at(self, point: str) -> None:
        if not point or point != self.kill.point:
            return
        handle = os.open(self.base / "points", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, b".")
        passed = os.fstat(handle).st_size
        os.close(handle)
        if passed < self.kill.nth:
            return
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.base / "fired", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            driver = int((self.base / "driver").read_text())
            os.kill({"worker": os.getpid(), "driver": driver, "raylet": os.getppid()}[self.kill.victim], signal.SIGKILL)


class Disk(storage.Disk):
    """Local folders."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse

    def replace(self, old: str, new: str, *, at: int) -> None:
        around = {"part": ("placing", "placed"), "run.": ("sealing", "sealed")}.get(new[:4], ("", ""))
        self.fuse.at(around[0])
        super().replace(old, new, at=at)
        self.fuse.at(around[1])

    def link(self, old: str, new: str, *, at: int) -> None:
        committing = new.endswith(".json")
        self.fuse.at("committing" if committing else "")
        super().link(old, new, at=at)
        self.fuse.at("committed" if committing else "")


class Store:
    """Object stores."""

    def __init__(self, store: Backend, fuse: Fuse) -> None:
        self._store, self._fuse = store, fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, content: Any) -> None:
        leaf = key.rpartition("/")[2]
        around = {"part": ("placing", "placed"), "run.": ("sealing", "sealed")}.get(leaf[:4], ("", ""))
        self._fuse.at(around[0])
        self._store.put(key, content)
        self._fuse.at(around[1])

    def create(self, key: str, data: bytes) -> bool:
        committing = "/commits/" in key
        self._fuse.at("committing" if committing else "")
        made = self._store.create(key, data)
        self._fuse.at("committed" if committing else "")
        return made


class Watched:
    """A watermark or a signer; its work is a point."""

    def __init__(self, made: Any, fuse: Fuse) -> None:
        self._made, self._fuse = made, fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def embed(self, *arguments: Any) -> Any:
        self._fuse.at("accepted")
        marked = self._made.embed(*arguments)
        self._fuse.at("marked")
        return marked

    def sign(self, *arguments: Any, **more: Any) -> Any:
        signed = self._made.sign(*arguments, **more)
        self._fuse.at("signed")
        return signed


def armed(fuse: Fuse) -> list[Any]:
    """The storage of this process is watched, for as long as somebody holds the result."""
    stores: Any = {"s3": lambda root: Store(schemes.SCHEMES["s3"](root), fuse)}
    watched: list[Any] = [storage.using(Disk(fuse)), schemes.using(stores)]
    for one in watched:
        one.__enter__()
    return watched


def opener(base: Path, kill: Kill) -> Callable[..., Any]:
    """A loop of large fake pictures, that writes down what it draws."""

    def opened(config: RunConfig, policy: Policy, base: Path) -> Any:
        fuse, loop = Fuse(base, kill), FAKES.open_fake(config, policy, base)
        loop.watched = armed(fuse) if kill.victim else []
        runtime, whole, small = loop.runtime, loop.step, loop.runtime._attempt
        markers = runtime.markers
        signer, watermark = Watched(markers.signer, fuse), Watched(markers.watermark, fuse)
        runtime.markers = replace(markers, signer=signer, watermark=watermark)

        def attempt(*arguments: Any) -> Any:
            made = small(*arguments)
            picture = made.picture.repeat(SIDE // 64, 0).repeat(SIDE // 64, 1)
            return replace(made, picture=picture, pixel_sha256=FAKES.pixel_digest(picture))

        def step() -> Any:
            time.sleep(0.02)
            samples = whole()
            with (base / "drawn").open("a") as stream:
                stream.writelines(f"{sample.request.row_no}\n" for sample in samples)
            fuse.at("drawn")
            return samples

        runtime._attempt, loop.step = attempt, step
        return loop

    return opened


def plan_in(base: Path) -> Plan:
    (base / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    config = RunConfig(
        prompts=("prompts.txt",), shard_size=SHARD, workers=WORKERS, marks=MarksConfig(keys="keys"),
        generation=GenerationConfig(rows=ROWS),
    )  # fmt: skip
    return Plan.make(config, Policy(), base, identity=FAKES.fake_identity(config, Policy(), base))


def drawn(base: Path) -> list[int]:
    """Row numbers of what was drawn so far, by all sessions."""
    return [int(line) for line in (base / "drawn").read_text().split()] if (base / "drawn").exists() else []


def command(base: Path, out: Path, runner: str, kill: Kill) -> list[str]:
    return [sys.executable, __file__, str(base), str(out), runner, json.dumps(asdict(kill))]


def main(base: Path, out: str, runner: str, kill: Kill) -> None:
    def say(event: Event) -> None:
        print(f"{event.kind}: {event.detail}", flush=True)

    (base / "driver").write_text(str(os.getpid()))
    if runner == "ray":
        import ray

        for module in (FAKES, sys.modules["__main__"]):
            ray.cloudpickle.register_pickle_by_value(module)
    watched = armed(Fuse(base, kill))
    RUNNERS[runner](plan_in(base), storage.place(out), say, open_loop=opener(base, kill))
    del watched


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Kill(**json.loads(sys.argv[4])))
