"""The dry run: open everything that a run would open, print what it would take, and write nothing.

Each part is checked separately, so that all problems are found at once. Then the model is loaded, and one call of each network
is measured.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from index.counted import counted
from index.errors import ClearanceError, ConfigError, RunStopped
from jobs.explain import explain
from jobs.run.metrics.sinks import check_metrics
from jobs.run.planning.sizes import counted as counted_sizes
from jobs.run.planning.sizes import own_sides
from jobs.run.preflight.estimate import LOOKED_AT, Estimate, Measured, estimate, free_memory, measure, size
from jobs.run.preflight.notes import device_notes_of, notes_of
from jobs.run.preflight.stated_notes import (
    adapter_in_words,
    adapter_notes,
    asked_notes,
    check_bad_rows,
    groups_in_words,
    largest_note,
    length_notes,
    stated_notes,
    unguided_notes,
)
from jobs.run.progress import duration
from jobs.run.ray.address import address_of_ray, require_joinable, require_ray
from jobs.run.ray.placement import workers_here
from pipeline.copy_check import POLICY
from pipeline.model.device import cores
from pipeline.notes import Note
from pipeline.outcome import Request

if TYPE_CHECKING:
    from jobs.run.plan import Plan
    from pipeline.model.load import CheckedModel
    from pipeline.opening import Copies
    from pipeline.runtime import Runtime

T = TypeVar("T")
SIZES = 12  # of pictures that are named


@dataclass(kw_only=True)
class Preflight:
    """What a dry run found.

    Attributes:
        plan: what would be run.
        folder: where to.
        runner: ``local`` or ``ray``.
        problems: why it would fail; empty when it would not.
        notes: what is done differently from what one may expect.
        opened: what was opened and is fine, by topic.
        todo: requests that are still to be drawn.
        measured: of one call of each network; None when the model was not loaded.
        estimate: made of it.
        unmeasured: why the model was not loaded.
    """

    plan: Plan
    folder: Path
    runner: str
    problems: list[ClearanceError] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    opened: dict[str, str] = field(default_factory=dict)
    todo: Sequence[Request] = ()
    measured: Measured | None = None
    estimate: Estimate | None = None
    unmeasured: str = ""

    @property
    def workers(self) -> int:
        """Side by side; on a cluster, as many as this machine would have."""
        if self.runner != "ray":
            return 1
        from pipeline.model.device import devices

        config, shards = self.plan.config, math.ceil(len(self.todo) / self.plan.config.shard_size)
        gpus = sum(device.startswith("cuda") for device in devices()) if config.model.device.startswith("cuda") else 0
        return workers_here(config, shards, gpus=gpus)

    def attempt(self, topic: str, work: Callable[[], T]) -> T | None:
        """Do one check; its exception is a problem of the run, and the other checks continue."""
        problem: ClearanceError
        try:
            return work()
        except ClearanceError as error:
            problem = error
        except (OSError, MemoryError) as error:
            what, fix = explain(error) or (str(error), "Look at that file, then repeat the command")
            problem = RunStopped(what, where=topic, fix=fix)
        if str(problem) not in {str(known) for known in self.problems}:  # two parts may look at the same file
            self.problems.append(problem)
        return None


def preflight(
    plan: Plan, folder: Path, runner: str, *, resume: bool, notes: Sequence[Note] = (), problem: ClearanceError | None = None
) -> Preflight:
    """Look at everything that a run of this plan would use.

    Args:
        plan: what would be run.
        folder: the run folder it would write.
        runner: ``local`` or ``ray``.
        resume: whether a run that stopped would be continued.
        notes: those that were made with the plan.
        problem: what is known already: why the plan has no identity, or that the folder is a slip; the rest is checked anyway.
    """
    from pipeline.opening import open_copies, open_faithfulness, open_policy_guards, open_prompts, prepare

    found = Preflight(plan=plan, folder=folder, runner=runner, notes=list(notes), todo=plan.requests)
    found.problems += [problem] if problem is not None else []
    config = plan.config
    found.attempt("out", lambda: _look_at_folder(found, resume=resume))
    found.attempt("marks", lambda: _look_at_marks(found))
    here = found.attempt("model.device", lambda: _look_at_device(found))
    for key, name in (("embedder.device", config.embedder_device), ("guards.device", config.guard_device)):
        found.attempt(key, lambda key=key, name=name: _look_at_networks(found, key, name))  # type: ignore[misc]
    if runner == "local":
        found.attempt("metrics", lambda: check_metrics(config.metrics, plan.base))
    else:
        found.attempt("ray", _look_at_ray)
    model = found.attempt("model", lambda: _look_at_model(found))
    found.notes += found.attempt("adapters", lambda: adapter_notes(plan.config, plan.requests, model, base=plan.base)) or []
    found.notes += asked_notes(found.todo, plan.policy)
    noted = functools.partial(
        notes_of, config, plan.policy, plan.base, plan.requests, model_digest=plan.identity.get("model_digest", "")
    )
    found.notes += found.attempt("model", noted) or []
    prepare(config)
    opened = found.attempt("guards", lambda: open_policy_guards(plan.policy, base=plan.base))
    copies = found.attempt("index", lambda: open_copies(config, plan.policy, base=plan.base))
    if copies is not None or not config.index:
        prompts = found.attempt("policy", lambda: open_prompts(plan.policy, copies))
        faithfulness = found.attempt("policy", lambda: open_faithfulness(plan.policy, copies))
        beside = [one for one in (prompts[0] if prompts is not None else None, faithfulness) if one is not None]
        found.notes += [Note("guards", f"left out: {reason}") for reason in (prompts[1] if prompts is not None else [])]
    else:
        beside = []  # why the index cannot be opened stands there already
    if opened is not None:
        found.opened["guards"] = ", ".join(f"{guard.name} {guard.version}" for guard in (*opened[0], *beside)) or "none"
        found.notes += [Note("guards", f"left out: {reason}") for reason in opened[1]]
    if copies is not None:
        found.opened["index"] = _index(copies)
    if found.problems or model is None or opened is None:
        found.unmeasured = "the problems come first"
    elif not here:
        found.unmeasured = f"this machine has no {config.model.device}; the workers need one"
    else:
        found.attempt("model", lambda: _load(found, model, opened[0], opened[1], copies))
    found.attempt("out", lambda: _room(found))
    found.attempt("prompts", lambda: check_bad_rows(plan.requests, config.max_error_rate))
    found.notes = list(dict.fromkeys(found.notes))
    return found


def _look_at_ray() -> None:
    """Whether there is a Ray to start, or one that the run could join."""
    require_ray()
    require_joinable(address_of_ray())


def _look_at_folder(found: Preflight, *, resume: bool) -> None:
    from index.storage import entry_of, is_remote, require_writable
    from jobs.run.folder import look
    from pipeline.audit.binding import PLAN_FILE
    from pipeline.audit.shards import committed

    if is_remote(found.folder):
        require_writable(found.folder)
    else:
        _require_local(found.folder)
    if found.problems and entry_of(found.folder, PLAN_FILE) is not None:
        return  # without the plan's digests it is unknown whether the folder holds this plan
    place = look(found.folder, found.plan, resume=resume)
    if place.note:
        found.notes.append(Note("folder", place.note))
    if place.state == "begun":
        done = committed(found.folder)
        found.todo = [r for shard in place.plan.shards if shard.shard_id not in done for r in shard.requests]
    left = f"holds this plan, with {counted(len(found.todo), 'request')} still to be drawn"
    states = {"new": "new", "begun": left, "replaced": "holds another plan, of which nothing was committed"}
    found.opened["folder"] = f"{found.folder} ({states[place.state]})"


def _require_local(folder: Path) -> None:
    there = _nearest(folder)
    if there.is_symlink() and not there.exists():
        raise RunStopped("is a symbolic link that leads nowhere", where=str(there), fix="Remove it, or name another --out")
    if not there.is_dir():
        raise RunStopped("is a file, not a folder", where=str(there), fix="Name another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there == folder else f"cannot be made: {there} cannot be written to"
        raise RunStopped(what, where=str(folder), fix="Name another --out, or change the permissions of that folder")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())


def _look_at_device(found: Preflight) -> bool:
    """Whether the model can be drawn here. On Ray the workers may be on other machines."""
    from pipeline.model.device import devices

    config = found.plan.config
    if not _here(found, "model.device", config.model.device):
        return False
    found.notes += device_notes_of(config.model)
    gpus = sum(device.startswith("cuda") for device in devices())
    if config.model.device.startswith("cuda") and found.workers * config.device_share > gpus:
        each = "a GPU" if config.device_share == 1 else f"{config.device_share:g} of a GPU"
        text = f"{found.workers} workers want {each} each and this machine has {gpus}: the others wait, or need more machines"
        found.notes.append(Note("device", text))
    wanted = found.workers * config.generation.threads
    if config.model.device.startswith("cpu") and wanted > cores():
        text = f"{found.workers} workers of {config.generation.threads} threads on {cores()} cores share them: expect longer"
        found.notes.append(Note("device", text))
    return True


def _look_at_networks(found: Preflight, key: str, name: str) -> None:
    """The device of the embedder or of the guards' networks, which the dry run itself opens on the CPU."""
    if (found.plan.config.index or key != "embedder.device") and name != found.plan.config.model.device:
        _here(found, key, name)


def _here(found: Preflight, key: str, name: str) -> bool:
    """Whether this machine has a device. On Ray one that is elsewhere is a note.

    Raises:
        ConfigError: there is no such device, or it cannot be used here and the run is a local one.
    """
    from pipeline.model.device import check_device

    try:
        check_device(name, where=key)
    except ConfigError as error:
        if found.runner != "ray" or not error.what.startswith(f"{name!r} cannot be used"):
            raise
        found.notes.append(Note("device", f"{error.what}; the Ray workers need machines that have it"))
        return False
    return True


def _look_at_marks(found: Preflight) -> None:
    """Whether the keys are there, outside the run, and whether a picture can be signed with them today."""
    from pipeline.keys import Keys, refuse_inside
    from pipeline.marking.markers import open_markers

    plan = found.plan
    keys = Keys.find(plan.config.marks.keys, base=plan.base)
    refuse_inside(keys, found.folder)
    markers = open_markers(plan.config.marks, keys)
    signer = markers.signer
    found.opened["C2PA"] = f"signed by {signer.key.subject}" if signer is not None else "no manifest"
    if keys.folder is not None and found.runner == "ray" and address_of_ray():
        text = (
            f"every machine of the cluster needs {keys.folder}, or names its own in CLEARANCE_KEYS; else its worker is refused"
        )
        found.notes.append(Note("keys", text))


def _look_at_model(found: Preflight) -> CheckedModel:
    from pipeline.model.load import check_model

    checked = check_model(found.plan.config.model)
    found.notes += checked.notes
    found.opened["model"] = (
        f"{checked.cls.pipeline}, {sum(part.parameters for part in checked.parts.parts) / 1e6:,.1f} million parameters"
    )
    return checked


def _index(copies: Copies) -> str:
    by = "the policy" if copies.calibration_id == POLICY else copies.calibration_id
    undone = f"; undoes edits: {', '.join(copies.guard.edits)}" if copies.guard.edits else ""
    return f"{counted(len(copies.index), 'reference')}; a copy from similarity {copies.threshold:.3f} on, set by {by}{undone}"


def _load(
    found: Preflight, checked: CheckedModel, guards: Sequence[Any], skipped: Sequence[str], copies: Copies | None
) -> None:
    from pipeline.respond.early import set_aside
    from pipeline.respond.negtome import feature_note
    from pipeline.rungs import NegToMeRung
    from pipeline.runtime import Runtime

    config, need = found.plan.config, checked.parts.memory
    free = free_memory(config.model.device)
    if free and need > free:
        what = f"its weights take {size(need)}, and {size(free)} are free on {config.model.device}"
        fix = 'Choose model.dtype = "bfloat16" or a smaller model, close other programs, or use a larger machine'
        raise ConfigError(what, where=str(checked.folder), fix=fix)
    runtime = Runtime.with_looks(config, found.plan.policy, guards, skipped, copies, base=found.plan.base)
    for number, rung in enumerate(found.plan.policy.ladder, 1):
        if isinstance(rung, NegToMeRung) and (note := feature_note(rung, runtime.engine, runtime.context_of(""), number)):
            found.notes.append(Note("memory", note))
    if copies is not None and not any(note.topic == "early" for note in found.notes):
        probes = set_aside(found.plan.policy, copies.index, runtime.model.digest, math.prod(runtime.references.shape))
        found.notes += [Note("early", probes)] if probes else []
    found.opened["sampler"] = f"{runtime.engine.sampler.name}, {len(runtime.engine.sampler)} steps"
    if runtime.preset:
        found.opened["preset"] = f"{runtime.preset}, guidance {runtime.engine.inner_guidance:g}"
    if runtime.config.generation.diversity.size:
        found.opened["diversity"] = groups_in_words(found.plan, len(runtime.engine.sampler))
    adapters = [*(adapter.name for adapter, _ in runtime.erasers.loaded), *map(adapter_in_words, runtime.adapters.files)]
    if adapters:
        found.opened["adapters"] = ", ".join(adapters)
    found.notes += stated_notes(found.todo, runtime)
    found.notes += length_notes(found.todo, runtime)
    found.notes += unguided_notes(found.todo, runtime, config.generation.drawn_guidance)
    found.measured = measure(runtime, config)
    for guard, why in found.measured.unanswered.items():
        text = f"{guard} got no answer about the pictures of this dry run ({why}): see vision_language.when_unanswered"
        found.notes.append(Note("guards", text))
    found.notes += largest_note(found.todo, (found.measured.width, found.measured.height))
    found.estimate = _estimate(found, runtime)


def _estimate(found: Preflight, runtime: Runtime) -> Estimate:
    assert found.measured is not None
    plan = found.plan
    return estimate(found.measured, plan.config, plan.policy, found.todo, guides=runtime.engine.guides, workers=found.workers)


def _room(found: Preflight) -> None:
    """Whether the disk holds what is going to be written."""
    from index.storage import is_remote

    if is_remote(found.folder):
        found.opened["disk"] = "an object store: its room is not known"
        return
    free = shutil.disk_usage(_nearest(found.folder)).free
    found.opened["disk"] = f"{size(free)} free"
    if found.estimate is not None:
        check_room(found.estimate.bytes, free, found.folder)


def check_room(need: int, free: int, folder: Path) -> None:
    """Whether so many bytes fit.

    Raises:
        RunStopped: they do not.
    """
    if need > free:
        what = f"up to {size(need)} are needed, and {size(free)} are free"
        raise RunStopped(what, where=str(folder), fix="Free some space, or name an --out on another disk")


# --- what is shown ---------------------------------------------------------------------------------------------------------


def lines(found: Preflight) -> dict[str, str]:
    """What a dry run prints, by name: first what the run takes, then what was opened, last what the plan binds."""
    plan, bad = found.plan, [request for request in found.plan.requests if request.problem]
    pictures = f"{len(found.todo) - sum(request.problem is not None for request in found.todo)}"
    if found.estimate is not None:
        pictures += f" to release at most; up to {found.estimate.times} drawn for one request"
    shown = {
        "requests": f"{len(plan.requests)} in {counted(len(plan.shards), 'shard')}",
        "bad rows": f"{len(bad)}" + (" (each becomes an error row)" if bad else ""),
        "pictures": pictures,
        **_sizes(found),
        **(_sums(found) if found.estimate else {"time": f"not estimated: {found.unmeasured or 'see the problems'}"}),
        "runner": f"{found.runner}, {counted(found.workers, 'worker')}",
        "policy": f"{plan.policy.name} {plan.policy.version}; ladder of {counted(len(plan.policy.ladder), 'rung')}, "
        f"for marks {len(plan.policy.mark_ladder)}",
    }
    shown |= {name: value for name, value in found.opened.items() if name not in shown}
    if not plan.identity:
        return shown | {"plan": "not made: see the problems"}
    return shown | {"plan": plan.plan_sha256, "binds": ", ".join(plan.parts) + " (--json gives their digests)"}


def _sizes(found: Preflight) -> dict[str, str]:
    """How many pictures there are of each size, where requests state their own."""
    measured = found.measured
    own = own_sides(found.plan.config.model) if measured is None else (measured.width, measured.height)
    if len(sizes := counted_sizes(found.todo, own)) < 2:
        return {}
    named = [f"{many} of {width or 'own'} × {height or 'own'}" for (width, height), many in sizes.most_common()]
    more = f" and {len(named) - SIZES} more sizes" if len(named) > SIZES else ""
    return {"sizes": f"{', '.join(named[:SIZES])}{more}; a denoiser call holds one size"}


def _assumed_of_sizes(found: Preflight) -> str:
    """That pictures of other sizes than the one that was measured are drawn; empty: none is."""
    assert found.measured is not None
    here = (found.measured.width, found.measured.height)
    others = sum(many for of, many in counted_sizes(found.todo, here).items() if of != here)
    text = (
        f"; {counted(others, 'picture')} of other sizes than {here[0]} × {here[1]}: not measured, taken to grow with the pixels"
    )
    return text if others else ""


def _sums(found: Preflight) -> dict[str, str]:
    measured, sums, g = found.measured, found.estimate, found.plan.config.generation
    assert measured is not None and sums is not None
    rows = f"of {g.rows} rows" if measured.rows == g.rows else f"of {g.rows} rows ({measured.rows} measured)"
    more = f"; the ladders allow up to {sums.times} times as much" if sums.times > 1 else ""
    long = f"about {duration(sums.seconds)}" if sums.seconds >= 1 else "less than a second"
    by = "" if found.workers == 1 else f", {found.workers} workers, each as fast as this one"
    return {
        "time": f"{long} if nothing is steered{more}",
        "measured": f"a denoiser call {rows} {measured.call_seconds:.3g} s, a look at a picture {measured.look_seconds:.3g} s "
        f"(of {LOOKED_AT} together); assumed: {sums.calls} calls, all of them full{by}{_assumed_of_sizes(found)}",
        "disk": f"at most about {size(sums.bytes)}, {found.opened['disk']}; a {measured.width} × {measured.height} picture of "
        f"noise takes {size(measured.picture_bytes)} as {found.plan.config.image_format}, a drawing less",
        "memory": f"{size(measured.memory_bytes)} a worker, the peak of this dry run",
    }


def as_json(found: Preflight) -> dict[str, Any]:
    """The same for programs."""
    plan, bad = found.plan, [request for request in found.plan.requests if request.problem]
    return {
        "ok": not found.problems,
        "plan_sha256": plan.plan_sha256 if plan.identity else None,
        "parts": dict(plan.parts) if plan.identity else {},
        "folder": str(found.folder),
        "runner": found.runner,
        "workers": found.workers,
        "requests": len(plan.requests),
        "shards": len(plan.shards),
        "to_draw": sum(request.problem is None for request in found.todo),
        "bad_rows": [{"key": r.key, "code": r.problem[0], "what": r.problem[1]} for r in bad if r.problem],
        "opened": found.opened,
        "measured": asdict(found.measured) if found.measured else None,
        "estimate": asdict(found.estimate) if found.estimate else None,
        "unmeasured": found.unmeasured,
        "notes": [asdict(note) for note in found.notes],
        "problems": [{"what": p.what, "where": p.where, "fix": p.fix} for p in found.problems],
    }
