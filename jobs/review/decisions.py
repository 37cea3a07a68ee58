"""Take decisions of people in: every line is checked first; then all become chained events, in one part, or none does."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from index.errors import InputError
from index.once import Twice, once
from index.parquet import parquet_file
from jobs.reaudit.reach import alone_in
from jobs.reaudit.standing import DECIDED, RELEASED, Standing
from jobs.review.queue import AUDIT, HELD, QUEUE
from jobs.review.reasons import ACCEPT, BY_CODE, REJECT
from pipeline.audit.events import NewEvent, append_events
from pipeline.audit.stored import rows_of
from pipeline.outcome import Outcome

LARGEST = 1 << 30  # bytes of a file of decisions
KEYS = {
    "run_id", "sample_id", "request_key", "pixel_sha256", "purpose", "decision", "reason", "note", "decided_at", "seconds",
    "references", "claims",
}  # fmt: skip
NAMED = 10  # lines that a message names
# What to do about decisions that cannot be taken: about the lines of a file, and about one of the command line.
MEND = "Mend or remove these, then import the file again; --overrule of `clearance review decide` replaces a decision"
ONE = "`clearance review list RUN` names the samples that wait for a person; --overrule replaces a decision"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line of a file of decisions.

    Attributes:
        line: its number. sample_id: the sample. pixel_sha256: what was looked at.
        decision: ``accept`` or ``reject``. reason: a code. note: what the person wrote.
        purpose: ``queue``, ``quarantine`` or ``audit``.
        decided_at: when, as it stands in the file. seconds: how long it took.
        references: ids of the references that the person was shown. claims: those that the person was told of. What claims hold
            back is accepted by nobody who does not know of them, and what for.
        overrule: it may replace a person's decision before it.
    """

    line: int
    sample_id: str
    pixel_sha256: str
    decision: str
    reason: str
    note: str = ""
    purpose: str = QUEUE
    decided_at: str = ""
    seconds: float | None = None
    references: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    overrule: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What came of decisions.

    Attributes:
        decisions: how many there are; accepted, rejected: of those that were taken.
        audited: of those that were taken, on accepted samples drawn at random. overturned: of these, rejected.
        again: how many the run holds already, word by word; they change nothing.
        lifted: claims that the accepted samples were held back by, and no longer are.
        before: whether it holds all of them.
    """

    decisions: int
    accepted: int = 0
    rejected: int = 0
    audited: int = 0
    overturned: int = 0
    again: int = 0
    lifted: tuple[str, ...] = ()
    before: bool = False


def import_file(folder: Path, file: Path, *, actor: str, person: str = "") -> Imported:
    """Import a file of decisions, JSONL or Parquet.

    What the run holds already changes nothing, and the result says so: the same file again, or the lines of a page's earlier
    download, which its later ones repeat.

    Args:
        folder: the run folder.
        file: what the page's download, or anything else, wrote.
        actor: the role of who decided. person: its pseudonym.

    Raises:
        InputError: any line cannot be taken (all are named), and nothing is taken.
        ClearanceError: the run cannot be read or written.
    """
    data = _read(file)
    sha256 = hashlib.sha256(data).hexdigest()
    with alone_in(folder, dry_run=False):
        standing = Standing.of(folder)
        known = [
            event for event in standing.events if event["kind"] == DECIDED and event["digests"].get("file_sha256") == sha256
        ]
        if known:
            return Imported(decisions=len(known), again=len(known), before=True)
        decisions = _decisions(folder, file, _lines(data, file))
        return _take(folder, standing, decisions, where=str(file), actor=actor, person=person, sha256=sha256)


def decide_one(folder: Path, key: str, decision: Decision, *, actor: str, person: str = "") -> Imported:
    """One decision, made now, about the sample of a request key or a sample id, and about all that holds it back now.

    Raises:
        InputError: no such sample, or it cannot be decided about.
    """
    with alone_in(folder, dry_run=False):
        sample_id, pixels = _find(folder, key)
        standing = Standing.of(folder)
        claims, named = tuple(standing.held_for(sample_id)), tuple(sorted(standing.named(sample_id)))
        purpose = HELD if claims else decision.purpose
        one = replace(
            decision, sample_id=sample_id, pixel_sha256=pixels, purpose=purpose, references=named, claims=claims
        )  # fmt: skip
        return _take(folder, standing, [one], where=f"{folder}: {key}", actor=actor, person=person)


def _take(
    folder: Path, standing: Standing, decisions: Sequence[Decision], *, where: str, actor: str, person: str, sha256: str = ""
) -> Imported:
    said: dict[str, list[Mapping[str, Any]]] = {}
    for event in standing.events if sha256 else ():
        if event["kind"] == DECIDED:
            for sample_id in event["samples"]:
                said.setdefault(sample_id, []).append(event)
    new = [one for one in decisions if not _said_before(one, said.get(one.sample_id, ()), standing)]
    problems = _problems(folder, standing, new)
    _refuse(problems, where, MEND if sha256 else ONE)
    if new:
        append_events(folder, [event for one in new for event in _events(one, standing, actor, person, sha256)])
    audited = [one for one in new if one.purpose == AUDIT]
    lifted = [claim for one in new if one.decision == ACCEPT for claim in standing.held_for(one.sample_id)]
    return Imported(
        decisions=len(decisions), accepted=sum(one.decision == ACCEPT for one in new),
        rejected=sum(one.decision == REJECT for one in new), audited=len(audited),
        overturned=sum(one.decision == REJECT for one in audited), again=len(decisions) - len(new), before=not new,
        lifted=tuple(dict.fromkeys(lifted)),
    )  # fmt: skip


def _said_before(one: Decision, said: Sequence[Mapping[str, Any]], standing: Standing) -> bool:
    """Whether a line was imported before: one of its sample's decisions says the same, of the same moment, or is in force."""
    details = {
        "decision": one.decision, "code": one.reason, "note": one.note, "purpose": one.purpose, "decided_at": one.decided_at,
        "seconds": one.seconds, "references": list(one.references), "claims": list(one.claims),
    }  # fmt: skip

    in_force = standing.decision(one.sample_id)
    return any(
        event["digests"].get("pixel_sha256") == one.pixel_sha256
        and all(event["details"].get(name, value) == value for name, value in details.items())
        and (bool(one.decided_at) or event is in_force)
        for event in said
    )


def _events(one: Decision, standing: Standing, actor: str, person: str, sha256: str) -> list[NewEvent]:
    """A decision as events. Accepting a sample that is held back ends what holds it; its acceptance then is in force."""
    outcome = str(Outcome.ACCEPTED if one.decision == ACCEPT else Outcome.REJECTED)
    code = BY_CODE[one.reason]
    reason = one.note if code.note else f"{code.text}: {one.note}" if one.note else code.text
    details = {
        "outcome": outcome, "decision": one.decision, "code": one.reason, "note": one.note, "purpose": one.purpose,
        "decided_at": one.decided_at, "seconds": one.seconds, "references": list(one.references),
        "claims": list(one.claims),
    }  # fmt: skip
    digests = {"pixel_sha256": one.pixel_sha256} | ({"file_sha256": sha256} if sha256 else {})
    found = [NewEvent(
        kind=DECIDED, actor=actor, person=person, reason=reason, samples=[one.sample_id], details=details, digests=digests
    )]  # fmt: skip
    if one.decision == ACCEPT:
        found += [
            NewEvent(
                kind=RELEASED, actor=actor, person=person, reason=f"a person accepted it: {reason}", samples=[one.sample_id],
                details={"claim": claim, "because_of": "review"},
            )
            for claim in standing.held_for(one.sample_id)
        ]  # fmt: skip
    return found


# --- checking --------------------------------------------------------------------------------------------------------------


def _problems(folder: Path, standing: Standing, decisions: Sequence[Decision]) -> list[tuple[int, str]]:
    """What is wrong with decisions against the run, as (line, what)."""
    wanted = {one.sample_id for one in decisions}
    columns = ("sample_id", "outcome", "pixel_sha256")
    rows = {row["sample_id"]: row for _, _, row in rows_of(folder, wanted, columns)}
    problems: list[tuple[int, str]] = []
    first: dict[str, int] = {}
    for one in decisions:
        if one.sample_id in first:
            problems.append((one.line, f"decides about sample {one.sample_id} again, as line {first[one.sample_id]} does"))
            continue
        first[one.sample_id] = one.line
        row = rows.get(one.sample_id)
        if row is None:
            problems.append((one.line, f"names sample {one.sample_id!r}, which this run does not have"))
        elif not row["pixel_sha256"]:
            problems.append((one.line, f"decides about sample {one.sample_id}, of which no picture was made"))
        elif row["pixel_sha256"] != one.pixel_sha256:
            theirs, ours = one.pixel_sha256[:12], row["pixel_sha256"][:12]
            problems.append((one.line, f"was made on another picture: its pixel_sha256 is {theirs}…, the row's {ours}…"))
        elif row["outcome"] == Outcome.ERROR:
            problems.append((one.line, f"decides about sample {one.sample_id}, which ended as an error"))
        elif not one.overrule and (event := standing.decision(one.sample_id)) is not None:
            by = f"{event['actor']}{' (' + event['person'] + ')' if event['person'] else ''} on {str(event['at'])[:10]}"
            problems.append((one.line, f"decides about sample {one.sample_id} again: {by} did, in event {event['seq']}"))
        elif what := _unknown(one, standing.held_for(one.sample_id)):
            problems.append((one.line, what))
    return problems


def _unknown(one: Decision, held_for: Mapping[str, set[str]]) -> str:
    """What holds a sample back that the person who accepts it was not shown; empty where that is nothing."""
    if one.decision != ACCEPT or not held_for:
        return ""
    missing = sorted({ref_id for ref_ids in held_for.values() for ref_id in ref_ids} - set(one.references))
    untold, claims = [claim for claim in held_for if claim not in one.claims], ", ".join(held_for)
    if not missing and not untold:
        return ""
    seen = f"the line does not know of {untold[0]}" if untold else f"reference {missing[0]}, which that is for, was not shown"
    return f"accepts sample {one.sample_id}, held back by {claims}, but {seen}: export the queue again and decide on that page"


def _refuse(problems: Sequence[tuple[int, str]], where: str, fix: str) -> None:
    if problems:
        lines = "; ".join(f"line {line} {what}" if line else what for line, what in problems[:NAMED])
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise InputError(f"nothing was taken: {lines}{more}", where=where, fix=fix)


def _find(folder: Path, key: str) -> tuple[str, str]:
    """Sample id and pixel digest of a request key or sample id."""
    from pipeline.audit.ledger import sample_rows

    found = [
        (row["sample_id"], row["pixel_sha256"] or "")
        for row in sample_rows(folder, ["sample_id", "request_key", "pixel_sha256"])
        if key in (row["request_key"], row["sample_id"])
    ]
    if not found:
        raise InputError("there is no such request", where=f"{folder}: {key}", fix="List them: clearance review list RUN")
    if len(found) > 1:
        what = f"is the key of {len(found)} samples: {', '.join(sample_id for sample_id, _ in found[:3])}"
        raise InputError(what, where=f"{folder}: {key}", fix="Name one of them by its sample id")
    return found[0]


# --- reading ---------------------------------------------------------------------------------------------------------------


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        fix = "Name the file that the page downloaded"
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(file), fix=fix) from None
    if len(data) > LARGEST:
        raise InputError("is larger than 1 GiB", where=str(file), fix="Name a file of decisions")
    return data


def _lines(data: bytes, file: Path) -> list[tuple[int, Any]]:
    """Plain data with line numbers (of Parquet: row numbers), from 1."""
    if data[:4] == b"PAR1":
        try:
            table = parquet_file(io.BytesIO(data)).read(use_threads=False)
            once([(name, None) for name in table.column_names])
            return [*enumerate(table.to_pylist(), 1)]
        except Exception as error:  # the reader of damaged bytes may raise anything
            raise InputError(f"cannot be read as Parquet ({error})", where=str(file), fix="Write it again") from None
    found: list[tuple[int, Any]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line, object_pairs_hook=once)))
        except Twice as error:
            found.append((number, error))
        except (ValueError, RecursionError):
            found.append((number, None))
    return found


def _decisions(folder: Path, file: Path, lines: Sequence[tuple[int, Any]]) -> list[Decision]:
    """Lines as decisions.

    Raises:
        InputError: a line is none, or is of another run; all are named.
    """
    from jobs.run.planning.stored_plan import stored_plan

    run_id = str(stored_plan(folder)["run_id"])
    problems: list[tuple[int, str]] = []
    decisions: list[Decision] = []
    for number, plain in lines:
        if what := _odd(plain, run_id):
            problems.append((number, what))
            continue
        decisions.append(
            Decision(
                line=number,
                **{k: plain[k] for k in ("sample_id", "pixel_sha256", "decision", "reason")},
                note=plain.get("note") or "",
                purpose=plain.get("purpose") or QUEUE,
                decided_at=plain.get("decided_at") or "",
                seconds=plain.get("seconds"),
                references=tuple(plain.get("references") or ()),
                claims=tuple(plain.get("claims") or ()),
            )
        )
    if not lines:
        problems.append((0, "the file holds no decision"))
    _refuse(problems, str(file), MEND)
    return decisions


def _odd(plain: Any, run_id: str) -> str:
    """Why a line is no decision about this run; empty when it is one."""
    if isinstance(plain, Twice):
        return f"is no decision: {plain}"
    if not isinstance(plain, dict):
        return "is no JSON object"
    if unknown := sorted(set(plain) - KEYS):
        return f"has the unknown key {unknown[0]!r}"
    texts = ("run_id", "sample_id", "pixel_sha256", "decision", "reason")
    if missing := [name for name in texts if not isinstance(plain.get(name), str) or not plain[name]]:
        return f"lacks {missing[0]!r}"
    if plain["run_id"] != run_id:
        return f"is of run {plain['run_id'][:64]!r}; this is {run_id!r}"
    if plain["decision"] not in (ACCEPT, REJECT):
        return f"decides {plain['decision'][:40]!r}: write {ACCEPT} or {REJECT}"
    return _odd_rest(plain)


def _odd_rest(plain: Mapping[str, Any]) -> str:
    reason = BY_CODE.get(plain["reason"])
    if reason is None or reason.decision != plain["decision"]:
        fitting = ", ".join(code for code, one in BY_CODE.items() if one.decision == plain["decision"])
        return f"gives the reason {plain['reason'][:40]!r} to {plain['decision']}; one of: {fitting}"
    note, purpose = plain.get("note") or "", plain.get("purpose") or QUEUE
    if not isinstance(note, str) or len(note) > 2000:
        return "has a note that is no text of at most 2,000 characters"
    if reason.note and not note.strip():
        return f"gives the reason {reason.code!r}, which needs a note"
    if purpose not in (QUEUE, HELD, AUDIT):
        return f"has the purpose {str(purpose)[:40]!r}; one of: {QUEUE}, {HELD}, {AUDIT}"
    try:
        datetime.fromisoformat(plain.get("decided_at") or "2000-01-01")
    except (ValueError, TypeError):
        return f"was decided at {str(plain['decided_at'])[:40]!r}, which is no time"
    for name in ("references", "claims"):
        named = plain.get(name) or []
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            return f"has {name} {str(named)[:40]!r}, which are no list of ids"
    seconds = plain.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9):
        return f"took {str(seconds)[:40]!r} seconds"
    return ""
