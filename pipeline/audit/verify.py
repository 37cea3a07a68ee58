"""Verify a run: recompute every digest of its folder, and name every place where one does not match.

Nothing here writes. What the ledger claims (see :mod:`pipeline.audit.ledger`) is taken from the files and held against them,
from ``run.json`` down to the pixels. The result comes in named stages (:mod:`pipeline.audit.stage`), each in a module of its
own or beside the stages that share its pass over the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from index.errors import InputError
from index.storage import digest_of, entry_of, is_folder
from pipeline.audit.binding import BOUND, PLAN_FILE, REQUESTS_FILE, RunBinding, is_first_version
from pipeline.audit.compacted import PARTS, index_problems
from pipeline.audit.coverage import strangers, uncovered
from pipeline.audit.envelope import ENVELOPE_FILE, last_event
from pipeline.audit.event_lines import EVENT_LINES
from pipeline.audit.event_parts import EVENTS_FOLDER, EVENTS_HEAD_FILE
from pipeline.audit.schema import REQUESTS
from pipeline.audit.shards import COMMITS, EVERY_TABLE, RUN_FILE
from pipeline.audit.stage import EVENTS, FILES, TIME_STAMP, Findings, Problem, Stage
from pipeline.audit.stage_events import check_erasures, check_events, scan_run_events
from pipeline.audit.stage_markers import read_index, read_receipts
from pipeline.audit.stage_proof import NOBODY, Trust, check_signature, check_time_stamp
from pipeline.audit.stage_requests import check_requests
from pipeline.audit.stage_rows import Rows
from pipeline.audit.stage_statement import check_plan_files, check_statement, read_statement
from pipeline.audit.state import fold
from pipeline.audit.timestamp import STAMP_FILE, STAMPED
from pipeline.audit.tree import merkle_root

_MOST_PROBLEMS = 200  # a folder that is wholly wrong need not list every row


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of recomputing everything.

    Attributes:
        ok: no problem was found. A stage that was skipped is no problem: see ``stages``.
        problems: what does not hold, in the order found.
        counts: how much was recomputed: shards, files, samples, attempts, pictures, pixels, prompts, events …
        not_covered: what lies in the folder and was not looked at, and why: reports, files and folders of other people, links.
        stages: the result of every stage, in the order of :data:`pipeline.audit.stage.STAGES`.
        roots: what was recomputed of the whole: ``merkle_root`` over the record, ``content_root`` over what must repeat.
        anchors: what to keep elsewhere and to compare: ``events`` (how many), ``head`` (digest of the last of them, which binds
            all before it; empty: there is none) and ``run_sha256`` (of ``run.json``; empty: it is missing).
    """

    ok: bool
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]
    not_covered: tuple[Problem, ...] = ()
    stages: tuple[Stage, ...] = ()
    roots: Mapping[str, str] = field(default_factory=dict)
    anchors: Mapping[str, Any] = field(default_factory=dict)

    def with_problem(self, stage: str, problem: Problem) -> Verification:
        """The same with one problem more, found outside this package."""
        stages = tuple(
            replace(one, state="fail", sentence=_also(one, problem), problems=(*one.problems, problem))
            if one.name == stage
            else one
            for one in self.stages
        )
        return replace(self, ok=False, problems=(*self.problems, problem), stages=stages)


def _also(stage: Stage, problem: Problem) -> str:
    return f"1 problem, in {problem.where}" if stage.state != "fail" else f"{stage.sentence}; and one in {problem.where}"


def verify(folder: Path, salt: str | None = None, trust: Trust = NOBODY) -> Verification:
    """Recompute every digest of a run folder, and name every place where one does not match.

    File digests against markers and ``run.json``; every record and chain link; every stored picture's file digest and,
    for lossless formats, its decoded pixels; thumbnails, embeddings and prompts against their commitments; one row per
    sample, attempts against samples; the Merkle root; the events; whether every shard is this run's. What lies in the folder
    beside all this is named as not covered. Tamper-evident, not tamper-proof: see :mod:`pipeline.audit.ledger`.

    Args:
        folder: the run folder.
        salt: the run's prompt salt (hex) when it had a secret one; without it stage prompts is skipped.
        trust: whose signature and time stamp to accept; where nobody is named, their stages are skipped. Where roots of
            authorities are named, a run without a time stamp fails.

    Raises:
        InputError: there is no such folder.
        ConfigError: what ``trust`` holds is no key, or no certificates.
    """
    if not is_folder(folder):
        raise InputError("there is no such run folder", where=str(folder), fix="Name the folder that holds run.json")
    found = Findings()
    statement = read_statement(folder, found)
    index = read_index(folder, found)
    receipts = read_receipts(folder, found, index)
    events = scan_run_events(folder, found, first_version=is_first_version(folder, receipts))
    binding = _binding(folder, statement).known(events)
    rows = Rows(folder, binding, salt, found)
    rows.check(receipts, index)
    tables = {file.path: file.table for receipt in receipts.values() for file in receipt.files}
    found.add(FILES, strangers(folder, tables, index))
    found.add(FILES, index_problems(index, binding.index_sha256 or "") if index is not None else ())
    check_statement(statement, receipts, rows, events)
    covered = {RUN_FILE, ENVELOPE_FILE, STAMP_FILE, EVENTS_FOLDER, EVENT_LINES, EVENTS_HEAD_FILE, COMMITS, *EVERY_TABLE}
    covered |= {PARTS} if index is not None else set()
    plan_files = check_plan_files(folder, statement, binding.erasures, found) if statement is not None else set()
    covered |= plan_files
    tables |= {part.path: part.table for part in index.parts} if index is not None else {}
    tables |= {REQUESTS_FILE: REQUESTS} if REQUESTS_FILE in plan_files else {}
    check_erasures(binding.erasures, tables, found)
    if rows.asked is not None:
        check_requests(folder, rows.asked, binding.erasures, found)
    check_events(folder, statement, events, binding.plan_file_sha256, found)
    check_signature(folder, events, trust, found)
    check_time_stamp(folder, events, trust, found)
    found.add(TIME_STAMP, _not_stamped(folder, events, trust))
    state = fold(events)
    found.add(EVENTS, ((f"event {seq}", why) for seq, why in state.unfit))
    found.compared(FILES, f"{found.counts['files']:,} files are there, with the digests that markers and statement state")
    ignored = ((f"event {seq}", why) for seq, why in state.ignored)
    left = tuple(Problem(*one) for one in (*uncovered(folder, covered), *ignored))
    problems = found.problems
    return Verification(
        ok=not problems,
        problems=problems[:_MOST_PROBLEMS],
        counts=dict(found.counts),
        not_covered=left,
        stages=found.stages(_MOST_PROBLEMS),
        roots={
            "merkle_root": merkle_root([receipt.digest for receipt in receipts.values()]),
            "content_root": rows.content.root,
        },
        anchors={
            "events": len(events),
            "head": str(events[-1]["record_sha256"]) if events else "",
            "run_sha256": _digest(folder, RUN_FILE),
        },
    )


def _not_stamped(folder: Path, events: Sequence[Mapping[str, Any]], trust: Trust) -> Iterator[tuple[str, str]]:
    """That a time stamp is missing, where whom to trust for it was named: a stamp can be removed together with its event."""
    if trust.tsa_roots and last_event(events, STAMPED) is None and entry_of(folder, STAMP_FILE) is None:
        yield STAMP_FILE, "is missing: the run has no time stamp, or it was removed"


def _binding(folder: Path, statement: Mapping[str, Any] | None) -> RunBinding:
    predicate = (statement or {}).get("predicate")
    stated = predicate if isinstance(predicate, dict) else {}
    header = {name: stated[name] for name in BOUND if name in stated}
    return RunBinding(header=header, plan_file_sha256=_digest(folder, PLAN_FILE))


def _digest(folder: Path, name: str) -> str:
    entry = entry_of(folder, name)
    return digest_of(folder, name) if entry is not None and entry.kind == "file" else ""
