"""A run folder that was named by a slip: beside it lies the run that ``--resume`` is to continue."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

from index.errors import ClearanceError, InputError
from index.storage import is_folder, is_uri
from jobs.run.dataset.chain import Member, folders_in, member
from jobs.run.plan import Plan, run_place

NEAR = 0.75  # `cast` for `cats`; two days of a week, as in `monday` and `sunday`, are farther apart
_NUMBER = re.compile(r"[\W_]*\d+")


def refuse_slip(folder: Path, plan: Plan, *, named: str = "", base: Path) -> bool:
    """Refuse to begin a run in a folder without one where a folder of nearly the same name holds a run of the same plan.

    Names that differ in their numbers alone (``2026-11-28``, ``night-7``) are a series: a scheduled job that always passes
    ``--resume`` begins the next one.

    Args:
        folder: the run folder that ``--resume`` names.
        plan: what is to be run in it.
        named: ``--out``, as it was typed. base: the run file's folder, from which ``--out`` does not start.

    Returns:
        Whether a run begins there: it holds none.

    Raises:
        InputError: the run that is probably meant lies elsewhere.
        IntegrityError: the folder holds a run whose plan was changed.
    """
    if member(folder) is not None:
        return False
    for other in _others(folder, named, base):
        found = _run_in(other)
        if found is None or found.plan_sha256 != plan.plan_sha256:
            continue
        state = "finished" if found.sealed else "not finished"
        what = f"no run to continue; {other} holds a run of this plan ({state}), whose pictures would all be drawn again"
        fix = f"Write --out {_as_typed(other)}; or leave out --resume, and a run begins in {folder.name}"
        raise InputError(what, where=str(folder), fix=fix)
    return True


def _others(folder: Path, named: str, base: Path) -> Iterator[Path]:
    """The folders that may be meant: that of the run file's folder, and those with a name like the first that is not there."""
    if named and not is_uri(named) and (beside := run_place(named, base)) != folder:
        yield beside
    missing, rest = folder, ""
    while not is_folder(missing.parent) and missing.parent != missing:
        missing, rest = missing.parent, f"{missing.name}/{rest}"
    try:
        names = [place.name for place in folders_in(missing.parent)[0] if place.name != missing.name]
    except ClearanceError:
        return  # a folder that may be entered but not listed
    near = {name: _nearness(name, missing.name) for name in names if not _one_series(name, missing.name)}
    for name in sorted(near, key=lambda name: -near[name]):
        if near[name] >= NEAR:
            yield missing.parent / name / rest


def _nearness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.casefold(), other.casefold()).ratio()


def _one_series(one: str, other: str) -> bool:
    return _NUMBER.sub("", one) == _NUMBER.sub("", other)


def _run_in(folder: Path) -> Member | None:
    try:
        return member(folder)
    except ClearanceError:
        return None  # a damaged neighbour is not what this run is about


def _as_typed(folder: Path) -> str:
    """A local folder from the current one, where it lies below it."""
    here = os.getcwd()
    return os.path.relpath(folder, here) if str(folder).startswith(f"{here}{os.sep}") else str(folder)
