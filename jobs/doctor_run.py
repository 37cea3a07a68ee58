"""``clearance doctor RUN.toml``: whether this machine can do one run, and what the run needs: four lines, then the details.

Everything is opened as the dry run opens it (:mod:`jobs.run.preflight.dry_run`); nothing is drawn that is kept, and nothing is
written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.counted import counted
from index.errors import ClearanceError
from jobs.doctor import Line, version_of
from jobs.run.preflight.estimate import free_memory, size
from jobs.run.progress import duration

if TYPE_CHECKING:
    from jobs.run.preflight.dry_run import Preflight
    from pipeline.config import RunConfig

DAY = 24 * 3600.0
OLD = 90 * DAY  # an index that nobody changed for so long is worth a look; a calibration too


@dataclass(frozen=True, kw_only=True)
class RunLooks:
    """What a look at a run found.

    Attributes:
        four: the four lines that matter. details: one line a topic.
        preflight: the dry run behind them; None where there is not even a plan.
    """

    four: tuple[Line, ...]
    details: tuple[Line, ...]
    preflight: Preflight | None

    @property
    def ok(self) -> bool:
        return all(line.state != "missing" for line in (*self.four, *self.details))


def examine_run(config: RunConfig, base: Path, runner: str = "local", *, now: float | None = None) -> RunLooks:
    """Look at what a run needs.

    Args:
        config: the run file. base: its folder.
        runner: ``local`` or ``ray``.
        now: Unix seconds; by default the present.
    """
    from jobs.run.dataset.which import next_run
    from jobs.run.plan import Plan, read_policy
    from jobs.run.preflight.dry_run import preflight

    now = time.time() if now is None else now
    problems: list[ClearanceError] = []
    folder, more = base, dict[str, Any]()
    try:
        which = next_run(config, base)
        if which.nothing:
            return RunLooks(four=(Line("run", "ok", f"nothing to draw: {which.about}"),), details=(), preflight=None)
        folder, more = which.folder, {"only": which.only, "parent": which.parent, "begun": which.folder}
    except ClearanceError as error:
        problems.append(error)
    try:
        policy = read_policy(config.policy, base)
        settings = replace(config, out=str(folder))
        try:
            plan = Plan.make(settings, policy, base, **more)
        except ClearanceError as error:
            problems.append(error)
            plan = Plan.make(settings, policy, base, **more, identity={})
    except ClearanceError as error:
        problems = [*problems, *([error] if str(error) not in map(str, problems) else [])]
        lines = tuple(Line("run", "missing", _sentence(one)) for one in problems)
        return RunLooks(four=lines[:4], details=lines[4:], preflight=None)
    found = preflight(plan, folder, runner, resume=True, problem=problems[-1] if problems else None)
    found.problems[:0] = [one for one in problems if str(one) not in map(str, found.problems)]
    details = tuple(_details(found, now))
    return RunLooks(four=tuple(_four(found, details)), details=details, preflight=found)


def _sentence(error: ClearanceError) -> str:
    where = f"{error.where}: " if error.where else ""
    return f"{where}{error.what}" + (f"; {error.fix}" if error.fix else "")


def _four(found: Preflight, details: tuple[Line, ...]) -> Iterator[Line]:
    """Can it run; is there room; how long; what is looked for."""
    plan = found.plan
    by = {line.topic: line for line in reversed(details)}  # the first of a topic: notes may follow it
    draws = f"{len(found.todo)} of {counted(len(plan.requests), 'request')} to draw in {counted(len(plan.shards), 'shard')}"
    workers = f"{found.runner}, {counted(found.workers, 'worker')}"
    if found.problems:
        count = len(found.problems)
        first = f"{counted(count, 'problem')}, the first: {_sentence(found.problems[0])}"
        yield Line("run", "missing", f"would fail: {first}")
    else:
        yield Line("run", "ok", f"can begin: {draws} ({workers}), into {found.folder}")
    room = [by[topic] for topic in ("disk", "memory")]
    worst = max((line.state for line in room), key=("ok", "note", "missing").index)
    yield Line("room", worst, "; ".join(f"{line.topic} {line.what}" for line in room))
    if found.estimate is None:
        yield Line("time", "note", f"not estimated: {found.unmeasured or 'see the problems'}")
    else:
        times = f"; the ladders allow up to {found.estimate.times} times as much" if found.estimate.times > 1 else ""
        yield Line("time", "ok", f"about {duration(found.estimate.seconds)} if nothing is steered{times}")
    copies = [by[topic] for topic in ("index", "calibration") if topic in by]
    states = [by["guards"].state, *(line.state for line in copies)]
    what = "; ".join([f"guards {by['guards'].what}", *(f"{line.topic} {line.what}" for line in copies)])
    yield Line("looks for", max(states, key=("ok", "note", "missing").index), what)


def _details(found: Preflight, now: float) -> Iterator[Line]:
    config = found.plan.config
    yield disk_line(found)
    yield _memory(found)
    yield from _ray(found)
    if "model" in found.opened:
        sampler = f"; {found.opened['sampler']}" if "sampler" in found.opened else ""
        yield Line("model", "ok", f"{found.opened['model']} on {config.model.device}, {config.model.dtype}{sampler}")
    yield from (
        Line(topic, "ok", found.opened[topic]) for topic in ("preset", "adapters", "diversity") if topic in found.opened
    )
    left = [note.text for note in found.notes if note.topic == "guards"]
    guards = found.opened.get("guards", "not opened")
    state: Any = "missing" if "guards" not in found.opened else "note" if left else "ok"
    yield Line("guards", state, "; ".join([guards, *left]))
    yield from _copies(found, now)
    bad = sum(request.problem is not None for request in found.plan.requests)
    many = f"{counted(len(found.plan.requests), 'request')} from {', '.join(config.prompts)}"
    yield Line(
        "prompts",
        "note" if bad else "ok",
        many + (f"; {bad} bad row{'s become error rows' if bad > 1 else ' becomes an error row'}" if bad else ""),
    )
    if "C2PA" in found.opened:
        yield Line("marks", "ok", f"C2PA: {found.opened['C2PA']}")
    for note in found.notes:
        if note.topic not in ("guards", "copies", "calibration"):
            yield Line(note.topic, "note", note.text)
    yield from (Line("problem", "missing", _sentence(problem)) for problem in found.problems)


def disk_line(found: Preflight, free: int | None = None) -> Line:
    """Whether the disk holds what the run writes; ``free``: bytes that are free, by default those of its disk."""
    from index.storage import is_remote

    need = None if found.estimate is None else found.estimate.bytes
    needed = "not estimated" if need is None else f"at most about {size(need)} needed"
    if is_remote(found.folder):
        return Line("disk", "note", f"{needed}; what an object store holds is not limited here")
    if free is None:
        free = shutil.disk_usage(next(place for place in (found.folder, *found.folder.parents) if place.exists())).free
    short = need is not None and need > free
    return Line("disk", "missing" if short else "ok" if need is not None else "note", f"{needed}, {size(free)} free")


def _memory(found: Preflight) -> Line:
    device, measured = found.plan.config.model.device, found.measured
    if measured is None:  # the device may not even be here
        return Line("memory", "note", f"not measured on {device}")
    free = free_memory(device)
    have = f"{size(free)} free on {device}" if free else f"free memory of {device} not known"
    need = measured.memory_bytes * (1 if device.startswith("cuda") else found.workers)
    by = "" if found.workers == 1 else f" for {found.workers} workers"
    # What this process holds now is no longer free, and the run will hold it in its place.
    return Line("memory", "note" if free and need > free + measured.memory_bytes else "ok", f"{size(need)} needed{by}, {have}")


def _ray(found: Preflight) -> Iterator[Line]:
    from jobs.run.ray.address import VARIABLE, address_of_ray

    version, address = version_of("ray"), address_of_ray()
    if found.runner != "ray":
        yield Line("ray", "ok", f"{version or 'not installed'}; not used by the local runner")
    elif not version:
        yield Line("ray", "missing", "not installed: pip install 'ray'")
    elif any(problem.where.startswith(VARIABLE) for problem in found.problems):
        yield Line("ray", "missing", f"{version}; the cluster at {address} cannot be joined: see the problems")
    else:
        yield Line("ray", "ok", f"{version}; " + (f"the cluster at {address}" if address else "begins one on this machine"))
        if not address and (free := _shared_memory()) is not None and free < 256 * 2**20:
            yield Line("ray", "note", f"{size(free)} free in /dev/shm, where Ray keeps objects: docker run --shm-size=1g")


def _shared_memory() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def _copies(found: Preflight, now: float) -> Iterator[Line]:
    """The index and its calibration: how old they are, and what the check is worth."""
    from index.storage import place
    from index.store import ReferenceIndex
    from jobs.run.metrics.meters import times_of
    from pipeline.copy_check import CopyCheck

    config, base = found.plan.config, found.plan.base
    if not config.index:
        yield Line("index", "note", "none: copies are not looked for, and every row records it")
        return
    if "index" not in found.opened:
        yield Line("index", "missing", f"{config.index} was not opened: see the problems")
        return
    index, times = ReferenceIndex.open(place(config.index, base)), times_of(found.plan)
    changed = times.get("clearance_index_changed_timestamp_seconds", 0.0)
    old = bool(changed) and now - changed > OLD
    when = f", last changed {ago(now - changed)}" if changed else ""
    yield Line("index", "note" if old else "ok", f"of {len(index)} references{when}")
    check = CopyCheck.read(dict(found.plan.copy_check), where="the plan")
    if check is None:
        return
    stale = [note.text for note in found.notes if note.topic == "calibration"]
    text = check.sentence + (f" {check.warning}" if check.warning else "")
    calibrated = times.get("clearance_calibration_changed_timestamp_seconds") if check.calibration_id else None
    age = now - calibrated if calibrated is not None else None
    text += f" Calibrated {ago(age)}." if age is not None else ""
    worn = bool(stale or check.warning) or (age is not None and age > OLD)
    yield Line("calibration", "note" if worn else "ok", " ".join([text, *stale]))


def ago(seconds: float) -> str:
    """ "3 days ago"; "today" within one day."""
    days = int(seconds // DAY)
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"


def summary(lines: list[Line]) -> list[Line]:
    """Four lines about a machine, from the forty of :func:`jobs.doctor.examine`: installation, device, guards, keys."""
    groups: Mapping[str, tuple[str, ...]] = {
        "device": ("cpu", "cuda", "bf16", "torchvision"),
        "guards": ("guard ",),
        "keys": ("keys", "mark ", "key of", "salt"),
    }

    def of(topic: str) -> str:
        return next((name for name, begins in groups.items() if topic.startswith(begins)), "installation")

    found = []
    for name in ("installation", *groups):
        mine = [line for line in lines if of(line.topic) == name]
        missing, notes = ([line for line in mine if line.state == state] for state in ("missing", "note"))
        state: Any = "missing" if missing else "note" if notes else "ok"
        odd = [line.topic for line in (*missing, *notes)]
        good = f"{len(mine) - len(odd)} of {len(mine)} fine"
        named = f"; {', '.join(dict.fromkeys(odd))}" if odd else ""
        if name == "device":
            shown = [line for line in mine if line.topic == "cpu" or line.topic.startswith("cuda:")]
            good = "; ".join(f"{line.topic} {line.what}" for line in shown) or "torch cannot be used"
            named = "" if shown else named
        found.append(Line(name, state, good + named))
    return found
