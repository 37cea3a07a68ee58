"""Which run a command means: the folder it writes, and the requests it draws, when a data set grows by a run at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from index.counted import counted
from index.errors import ConfigError, InputError
from jobs.run.dataset.chain import Chain, Member, latest, member
from jobs.run.dataset.out import NUMBER, Out
from jobs.run.plan import Plan, requests_of
from pipeline.config import RunConfig
from pipeline.notes import Note


@dataclass(frozen=True, kw_only=True)
class Which:
    """The run that is meant.

    Attributes:
        folder: its folder.
        only: keys of the requests that it draws; None: all.
        parent: plan digest of the run that it continues; empty: none.
        about: a sentence for people on what is drawn and what is there; empty where everything is drawn.
        before: the run that a further run continues; None: it is none.
    """

    folder: Path
    only: Sequence[str] | None = None
    parent: str = ""
    about: str = ""
    before: Member | None = None

    def notes_of(self, plan: Plan) -> list[Note]:
        """That a further run is drawn with other weights than the run that it continues, whatever their files are called."""
        if self.before is None or not plan.identity:
            return []
        there = self.before.stored["identity"]
        names = {"model_digest": "model", "adapters_sha256": "adapters"}
        other = [name for part, name in names.items() if there.get(part, "") != plan.identity.get(part, "")]
        text = f"the {' and '.join(other)} of this run are others than those of {self.before.folder.name}, which it continues"
        return [Note("model", text)] if other else []

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to draw."""
        return self.only is not None and not self.only


def which_run(
    config: RunConfig, base: Path, named: str = "", *, resume: bool = False, only_new: bool = False, only_failed: bool = False,
    now: datetime | None = None,
) -> Which:  # fmt: skip
    """The run that ``clearance run`` means.

    Args:
        config: the run file. base: its folder.
        named: ``--out``, from the current folder; empty: ``out`` of the run file.
        resume: continue the latest run that is not finished, where there is one.
        only_new: draw the requests that the data set does not hold.
        only_failed: draw those of which it holds errors.
        now: the time; by default the present.

    Raises:
        ConfigError: ``out`` is missing or cannot be.
        InputError: there is no run to continue, or one that must be finished first.
        PlanMismatch: requests that the data set holds were changed.
        IntegrityError: the plan of a run was changed.
    """
    out = Out.of(named or config.out, Path.cwd() if named else base, config.dataset_id)
    if resume and (begun := _begun(out)) is not None:
        if not begun.parent:
            return Which(folder=begun.folder, about=f"{begun.folder.name} is continued" if out.pattern else "")
        keys = [request.key for request in Plan.load(begun.folder).requests]
        return Which(folder=begun.folder, only=keys, parent=begun.parent, about=f"{begun.folder.name} is continued")
    if not only_new and not only_failed:
        if NUMBER in out.pattern and (there := out.runs()):
            what = f"holds {len(there)} runs of this name already, and every request would be drawn again"
            fix = "Add --only-new to draw what is new, --only-failed to repeat errors, or name another folder with --out"
            raise InputError(what, where=str(out.folder), fix=fix)
        return Which(folder=out.today(now))
    home = Out.of(config.out, base, config.dataset_id) if named and config.out else out
    if not home.pattern and out.folder == home.folder:
        option = "--only-failed" if only_failed else "--only-new"
        fix = 'Name another folder with --out, or write out = "FOLDER/{number}" and move this run to FOLDER/0001'
        raise ConfigError(f"{option} writes a new run", where=str(out.folder), fix=fix)
    there = home.runs()
    last = latest(there)
    if last is None:
        if only_failed and not only_new:
            raise InputError("there is no run yet whose errors could be repeated", where=str(home.folder), fix="Run it first")
        return Which(folder=out.next(now))
    return _further(Chain.of(last, there), config, base, out.next(now), only_new=only_new, only_failed=only_failed)


def next_run(config: RunConfig, base: Path, now: datetime | None = None) -> Which:
    """The run that comes next: the one that is open, a new one, or where its name is taken what is new; raises as above."""
    out = Out.of(config.out, base, config.dataset_id)
    there = out.runs() if out.pattern else []
    taken = NUMBER in out.pattern or any(one.folder == out.today(now) for one in there)
    return which_run(config, base, resume=True, only_new=bool(there) and taken, now=now)


def _begun(out: Out) -> Member | None:
    """The run that ``--resume`` continues; None where a new one begins."""
    if not out.pattern:
        return member(out.folder)
    return latest([one for one in out.runs() if not one.sealed])


def _further(chain: Chain, config: RunConfig, base: Path, folder: Path, *, only_new: bool, only_failed: bool) -> Which:
    """A further run of a data set."""
    if chain.dataset_id != config.dataset_id:
        what = f"the runs there belong to data set {chain.dataset_id!r}, and the run file to {config.dataset_id!r}"
        raise ConfigError(what, where="dataset_id", fix="Write the same dataset_id, or name another folder with --out")
    if (open_run := chain.unfinished()) is not None:
        fix = "Finish it with --resume first, or end it as it is (clearance end)"
        raise InputError("this run of the data set is not finished", where=str(open_run.folder), fix=fix)
    wanted, parts = set[str](), []
    requests = requests_of(config, base)
    if only_new:
        new = chain.new(requests)
        wanted.update(new)
        parts.append(f"{len(new)} of {len(requests)} requests are new, {len(requests) - len(new)} are there")
    if only_failed:
        failed = chain.failed()
        wanted.update(failed)
        parts.append(f"{len(failed)} ended as errors and are repeated" if failed else "no request failed")
    ordered = [one.key for one in requests if one.key in wanted] + sorted(wanted - {one.key for one in requests})
    runs = f"{counted(len(chain.members), 'run')}"
    about = f"data set {chain.dataset_id} ({runs}): {'; '.join(parts)}"
    return Which(folder=folder, only=ordered, parent=chain.last.plan_sha256, about=about, before=chain.last)
