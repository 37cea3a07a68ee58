"""Verify the statement of a run: stages tree and statement, and the files of the plan that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from index.counted import counted
from index.errors import ClearanceError
from index.storage import digest_of
from pipeline.audit.erasure import Erasures
from pipeline.audit.ledger import scan_statement
from pipeline.audit.shards import RUN_FILE, ShardReceipt
from pipeline.audit.stage import EVENTS, FILES, STATEMENT, TREE, Findings
from pipeline.audit.stage_rows import Rows
from pipeline.audit.tree import merkle_root

NOT_SEALED = "the run was not sealed"


def read_statement(folder: Path, found: Findings) -> dict[str, Any] | None:
    """The statement in ``run.json``, if there is one that can be read; stage statement."""
    statement, problems = scan_statement(folder)
    found.add(STATEMENT, problems)
    found.counts["files"] += statement is not None
    return statement


def check_statement(
    statement: Mapping[str, Any] | None,
    receipts: Mapping[str, ShardReceipt],
    rows: Rows,
    events: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Hold what a statement says of the shards against the shards; stages tree and statement.

    The subjects have the digests that the files had at sealing: those of the markers, after what was erased before. What was
    erased since is in the events.
    """
    found = rows.found
    if statement is None:
        found.skipped(TREE, NOT_SEALED)
        return
    try:
        predicate, subjects = statement["predicate"], {str(s["name"]): s for s in statement["subject"]}
        stated = {name: (s["digest"]["sha256"], s["annotations"]["rows"]) for name, s in subjects.items()}
        counts, root, shards = predicate["counts"], predicate["merkle_root"], predicate["shards"]
        numbers = (counts["samples"], counts["attempts"], counts["outcomes"])
    except (KeyError, TypeError, AttributeError):
        found.problem(STATEMENT, RUN_FILE, "lacks subjects, counts or the Merkle root")
        found.skipped(TREE, f"{RUN_FILE} states no tree")
        return
    over = predicate["events"].get("count") if isinstance(predicate.get("events"), dict) else 0
    sealed_over = Erasures.of(events[:over] if type(over) is int and over >= 0 else ())
    _check_subjects(stated, receipts, sealed_over, found)
    if root != merkle_root([receipt.digest for receipt in receipts.values()]):
        found.problem(TREE, RUN_FILE, "the Merkle root does not match the committed shards")
    if shards != {shard_id: receipt.digest for shard_id, receipt in receipts.items()}:
        found.problem(TREE, RUN_FILE, "the shards' digests do not match the commit markers")
    content = predicate.get("content_root")  # statements of schema versions 1 and 2 have none
    if content is not None and content != rows.content.root:
        found.problem(TREE, RUN_FILE, "the content root does not match the rows")
    also = f", and so is the content root over {counted(len(rows.samples), 'request')}" if content is not None else ""
    found.compared(TREE, f"the Merkle root over {counted(len(receipts), 'shard')} is the one that {RUN_FILE} states{also}")
    recount = (found.counts["samples"], found.counts["attempts"], dict(sorted(rows.outcomes.items())))
    if recount != numbers:
        found.problem(STATEMENT, RUN_FILE, f"counts {numbers} are stated, {recount} are found")
    requested = predicate.get("requested")
    if requested is not None and requested != len(rows.samples):
        found.problem(STATEMENT, RUN_FILE, f"{requested} samples were requested, {len(rows.samples)} have a row")
    found.compared(STATEMENT, f"{RUN_FILE} has its own digest, and its {len(stated):,} files and its counts are those found")


def _check_subjects(
    stated: Mapping[str, tuple[str, int]], receipts: Mapping[str, ShardReceipt], erasures: Erasures, found: Findings
) -> None:
    there: dict[str, tuple[str, int]] = {}
    for shard_id, receipt in receipts.items():
        there[f"commits/{shard_id}.json"] = (hashlib.sha256(receipt.marker).hexdigest(), receipt.rows)
        for file in receipt.files:
            there[file.path] = (erasures.now(file.path, file.sha256, file.bytes).sha256, file.rows)
    for name in sorted(there.keys() | stated.keys()):
        if name not in stated:
            found.problem(STATEMENT, name, f"is not among the subjects of {RUN_FILE}: added after sealing")
        elif name not in there:
            found.problem(STATEMENT, name, f"is a subject of {RUN_FILE} but no committed shard has it")
        elif stated[name] != there[name]:
            found.problem(STATEMENT, name, f"digest or rows differ from those in {RUN_FILE}")


def check_plan_files(folder: Path, statement: Mapping[str, Any], erasures: Erasures, found: Findings) -> set[str]:
    """Hold the files that a statement names under ``plan.files`` (plan, requests) to their digests; stage files.

    Returns:
        Their names.
    """
    predicate = statement.get("predicate")
    plan = predicate.get("plan") if isinstance(predicate, dict) else None
    files = plan.get("files") if isinstance(plan, dict) else None
    for name, digest in files.items() if isinstance(files, dict) else ():
        found.counts["files"] += 1
        try:
            now, digest_now = erasures.now(name, str(digest), 0), digest_of(folder, name)
            if digest_now != now.sha256:
                changed = f"the file was changed: its digest does not match {RUN_FILE}"
                found.problem(FILES, name, now.other(digest_now) if now.earlier else changed)
            if now.broken:
                found.problem(EVENTS, name, now.broken)
        except ClearanceError as error:
            found.problem(FILES, name, f"{error.what}; the plan names it")
    return set(files) if isinstance(files, dict) else set()
