"""Legal holds: nothing of a sample, or of a whole run, is erased or retained away while a hold is in force.

A hold is of a *matter* (a case, an inquiry): two matters may hold one sample, and lifting one of them leaves the other. A hold
of the whole run and a hold of a sample are lifted each where it was set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from index.errors import InputError
from jobs.by import By
from pipeline.audit.by_key import samples_by_key
from pipeline.audit.events import NewEvent, append_events, read_events
from pipeline.audit.state import State, fold


@dataclass(frozen=True, kw_only=True)
class Holds:
    """The holds in force.

    Attributes:
        run: the matters that hold the whole run. samples: the matters of each held sample, by request key.
    """

    run: tuple[str, ...] = ()
    samples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {"run": list(self.run), "samples": {key: list(matters) for key, matters in self.samples.items()}}


def change_hold(
    folder: Path, kind: Literal["hold.set", "hold.lifted"], keys: Sequence[str] | None, matter: str, by: By
) -> Holds:
    """Set or lift a hold, and write the event.

    Args:
        folder: the run folder.
        kind: which of both.
        keys: request keys; None: the whole run.
        matter: what the hold is for.
        by: who does it, and why.

    Returns:
        The holds in force afterwards.

    Raises:
        InputError: an unknown key; a hold that is in force already; none of this matter that could be lifted.
        IntegrityError: the events were changed.
        RunStopped: the event cannot be written, or another event came meanwhile.
    """
    chosen = samples_by_key(folder, keys) if keys is not None else {}
    if keys is not None and not chosen:
        raise InputError("no sample was named", where="--key", fix="Name request keys with --key, or the run with --all")
    events = read_events(folder)
    state = fold(events)
    for key, held in _own(state, chosen).items():
        _require(kind, key, held, matter)
    event = NewEvent(
        kind=kind,
        actor=by.role,
        person=by.person,
        reason=by.reason,
        samples=tuple(chosen.values()),
        details={"matter": matter, "keys": list(chosen)} if chosen else {"matter": matter},
    )
    append_events(folder, [event], known=len(events))
    return holds_of(folder)


def holds_of(folder: Path) -> Holds:
    """The holds in force.

    Raises:
        IntegrityError: the events were changed.
    """
    from pipeline.audit.ledger import sample_rows

    state = fold(read_events(folder))
    own = {sample_id: one.holds for sample_id, one in state.samples.items() if one.holds}
    if not own:
        return Holds(run=state.holds)
    keys = {row["sample_id"]: row["request_key"] for row in sample_rows(folder, ["sample_id", "request_key"])}
    return Holds(run=state.holds, samples={keys.get(sample_id, sample_id): matters for sample_id, matters in own.items()})


def _own(state: State, chosen: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The holds that a change is about, by what they hold: those of the samples themselves, or those of the run."""
    if not chosen:
        return {"the run": state.holds}
    nothing: tuple[str, ...] = ()
    return {key: state.samples[one].holds if one in state.samples else nothing for key, one in chosen.items()}


def _require(kind: str, what: str, held: Sequence[str], matter: str) -> None:
    if kind == "hold.set" and matter in held:
        raise InputError(f"{what} is under hold for {matter!r} already", where=what, fix="Name another --matter, or leave it")
    if kind == "hold.lifted" and matter not in held:
        there = f"its own holds are for {', '.join(map(repr, held))}" if held else "it has no hold of its own"
        fix = (
            "Name the matter with --matter" if held else "See `clearance hold show`; a hold of the whole run is lifted by --all"
        )
        raise InputError(f"{what} is not under hold for {matter!r}; {there}", where=what, fix=fix)
