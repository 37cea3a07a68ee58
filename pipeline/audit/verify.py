"""Verify a run: recompute every digest of its folder, and name every place where one does not match.

Nothing here writes. What the ledger claims (see :mod:`pipeline.audit.ledger`) is taken from the files and held against them,
from ``run.json`` down to the pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from index.errors import ClearanceError, InputError, IntegrityError
from index.fingerprint import pixel_digest
from index.padding import first_line
from index.storage import digest_of, entry_of, open_file
from pipeline.audit.binding import (
    BOUND,
    PLAN_FILE,
    RunBinding,
    header_problems,
    row_problems,
    schema_difference,
)  # fmt: skip
from pipeline.audit.chain import chain_start, record_digest, table_header
from pipeline.audit.commitments import default_salt, prompt_commitment, salt_id
from pipeline.audit.coverage import strangers, uncovered
from pipeline.audit.events import EVENTS_FILE, EVENTS_HEAD_FILE, events_head, scan_events
from pipeline.audit.ledger import RUN_FILE, SEALED, merkle_root, scan_statement
from pipeline.audit.shards import COMMITS, TABLES, ShardFile, ShardReceipt, markers, receipt_of
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, LOSSLESS, decode
from pipeline.outcome import ACCEPTED

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_PROBLEMS = 200  # a folder that is wholly wrong need not list every row


@dataclass(frozen=True)
class Problem:
    """One thing that does not hold: where (file, row, column) and what."""

    where: str
    what: str


@dataclass(frozen=True)
class Verification:
    """The result of recomputing everything.

    Attributes:
        ok: no problem was found.
        problems: what does not hold, in the order found.
        counts: how much was recomputed: shards, files, samples, attempts, pictures, pixels, prompts, events …
        not_covered: what lies in the folder and was not looked at, and why: reports, files and folders of other people, links.
    """

    ok: bool
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]
    not_covered: tuple[Problem, ...] = ()


def verify(folder: Path, salt: str | None = None) -> Verification:
    """Recompute every digest of a run folder, and name every place where one does not match.

    File digests against markers and ``run.json``; every record and chain link; every stored picture's file digest and,
    for lossless formats, its decoded pixels; thumbnails, embeddings and prompts against their commitments; one row per
    sample, attempts against samples; the Merkle root; the events; whether every shard is this run's. What lies in the folder
    beside all this is named as not covered. Tamper-evident, not tamper-proof: see :mod:`pipeline.audit.ledger`.

    Args:
        folder: the run folder.
        salt: the run's prompt salt (hex) when it had a secret one; without it prompts are counted as unchecked.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError("there is no such run folder", where=str(folder), fix="Name the folder that holds run.json")
    return _Verifier(folder, salt).run()


class _Verifier:
    def __init__(self, folder: Path, salt: str | None) -> None:
        self.folder, self.salt = folder, salt
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self.samples: dict[str, tuple[str, dict[str, Any]]] = {}  # sample_id → where, row
        self.attempts: dict[str, dict[int, tuple[str, str]]] = {}  # sample_id → number → where, pixel_sha256
        self.outcomes: Counter[str] = Counter()

    def problem(self, where: str, what: str) -> None:
        self.problems.append(Problem(where, what))

    def add(self, found: Iterable[tuple[str, str]]) -> None:
        self.problems += [Problem(where, what) for where, what in found]

    def run(self) -> Verification:
        statement, problems = scan_statement(self.folder)
        self.add(problems)
        self.counts["files"] += statement is not None
        events, problems = scan_events(self.folder)
        self.add(problems)
        receipts = self._receipts()
        self.binding = self._binding(statement).known(events)
        for receipt in receipts.values():
            for file in receipt.files:
                self._file(receipt, file)
        self.add(strangers(self.folder, {file.path for receipt in receipts.values() for file in receipt.files}))
        self._counts_match()
        covered = {RUN_FILE, EVENTS_FILE, EVENTS_HEAD_FILE, COMMITS, *TABLES}
        if statement is not None:
            self._statement_matches(statement, receipts)
            covered |= self._plan_files(statement)
        self._events(statement, events)
        unique = tuple(dict.fromkeys(self.problems))
        left = tuple(Problem(*found) for found in uncovered(self.folder, covered))
        return Verification(not unique, unique[:_MOST_PROBLEMS], dict(self.counts), left)

    # the parts, from the top down

    def _binding(self, statement: Mapping[str, Any] | None) -> RunBinding:
        predicate = (statement or {}).get("predicate")
        stated = predicate if isinstance(predicate, dict) else {}
        plan = entry_of(self.folder, PLAN_FILE)
        digest = digest_of(self.folder, PLAN_FILE) if plan is not None and plan.kind == "file" else ""
        return RunBinding({name: stated[name] for name in BOUND if name in stated}, digest)

    def _receipts(self) -> dict[str, ShardReceipt]:
        receipts: dict[str, ShardReceipt] = {}
        try:
            names = markers(self.folder)
        except IntegrityError as error:
            self.problem(COMMITS, error.what)
            return {}
        for shard_id in names:
            self.counts["files"] += 1
            try:
                receipts[shard_id] = receipt_of(self.folder, shard_id)
                self.counts["shards"] += 1
            except ClearanceError as error:
                self.problem(f"{COMMITS}/{shard_id}.json", error.what)
        return receipts

    def _file(self, receipt: ShardReceipt, file: ShardFile) -> None:
        try:
            with open_file(self.folder, file.path) as stream:
                self.counts["files"] += 1
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                intact = stream.tell() == file.bytes and sha256 == file.sha256
                if not intact:
                    self.problem(file.path, "the file was changed: its digest does not match its commit marker")
                table = self._read(stream, file.path, intact=intact)
        except (ClearanceError, OSError) as error:
            what = error.what if isinstance(error, ClearanceError) else f"cannot be read ({first_line(error)})"
            self.problem(file.path, f"{what}; shard {receipt.shard_id} committed it")
            return
        if table is None:
            return
        if difference := schema_difference(file.table, table.schema):
            self.problem(file.path, difference)
            return
        try:
            shard_header = table_header(table.schema)
        except IntegrityError as error:
            self.problem(file.path, error.what)
            return
        self.add(header_problems(shard_header, receipt.shard_id, file, self.binding))
        if table.num_rows != file.rows:
            self.problem(file.path, f"holds {table.num_rows} rows; its commit marker says {file.rows}")
        head = self._rows(table, file, shard_header)
        if head != file.chain_head:
            self.problem(file.path, "the chain does not end where the commit marker says")

    def _read(self, stream: IO[bytes], where: str, *, intact: bool) -> pa.Table | None:
        """Read a data file; of a damaged one, name the damaged columns and read what can still be read."""
        import pyarrow.parquet as pq

        try:
            if not intact:
                checked = pq.ParquetFile(stream, page_checksum_verification=True)
                for name in checked.schema_arrow.names:
                    try:
                        checked.read(columns=[name])
                    except Exception:
                        self.problem(f"{where} column {name}", "a page of this column does not match its checksum")
            table = pq.ParquetFile(stream).read()
            table.validate(full=True)
            return table
        except Exception as error:  # the reader of damaged bytes may raise anything
            self.problem(where, f"cannot be read as Parquet ({first_line(error)})")
            return None

    def _rows(self, table: pa.Table, file: ShardFile, shard_header: Mapping[str, Any]) -> str:
        prev = chain_start(shard_header)
        number = -1
        for batch in table.to_batches(max_chunksize=64):
            try:
                rows = batch.to_pylist()
            except (UnicodeDecodeError, ValueError) as error:
                self.problem(f"{file.path} after row {number}", f"cannot be read ({error})")
                return ""
            for row in rows:
                number += 1
                where = f"{file.path} row {number}"
                self.counts[file.table] += 1
                if row["prev_sha256"] != prev:
                    self.problem(f"{where} column prev_sha256", "the chain is broken: a row before was changed or removed")
                if record_digest(row, str(row["prev_sha256"])) != row["record_sha256"]:
                    self.problem(f"{where} column record_sha256", "a committed column of this row was changed")
                prev = str(row["record_sha256"])
                self.add((f"{where} column {column}", what) for column, what in row_problems(row, file.table, shard_header))
                try:
                    self._sample(row, where, shard_header) if file.table == "samples" else self._attempt(row, where)
                except (TypeError, ValueError, AttributeError) as error:  # an empty cell where no writer leaves one
                    self.problem(where, f"holds a value that no row has ({first_line(error)})")
        return prev

    def _sample(self, row: Mapping[str, Any], where: str, shard_header: Mapping[str, Any]) -> None:
        self.outcomes[str(row["outcome"])] += 1
        if row["sample_id"] in self.samples:
            self.problem(f"{where} column sample_id", f"the sample has a row already: {self.samples[row['sample_id']][0]}")
        kept = ("attempts", "accepted_attempt", "pixel_sha256", "outcome")
        self.samples[row["sample_id"]] = (where, {name: row[name] for name in kept})
        data = (row["image"] or {}).get("bytes")
        if (data is None) != (row["file_sha256"] is None):
            self.problem(f"{where} column image", "the picture is missing" if data is None else "a picture without a digest")
        elif data is not None:
            self._picture(row, data, where)
        embedding = row["embedding"]
        if (embedding is None) != (row["embedding_sha256"] is None):
            self.problem(f"{where} column embedding", "the embedding or its digest is missing")
        elif embedding is not None:
            stored = np.asarray(embedding, dtype="<f2").tobytes()
            self._match(f"{where} column embedding", stored, row["embedding_sha256"], "embeddings")
        salt = self.salt or default_salt(str(shard_header.get("dataset_id", "")))
        if salt_id(salt) != shard_header.get("salt_id"):
            self.counts["prompts_unchecked"] += 1  # a secret salt that nobody passed: said in the counts, not hidden
        elif prompt_commitment(row["prompt"] or "", row["negative_prompt"] or "", salt) != row["prompt_commit"]:
            self.problem(f"{where} column prompt", "the prompt does not match its commitment")
        else:
            self.counts["prompts"] += 1

    def _picture(self, row: Mapping[str, Any], data: bytes, where: str) -> None:
        self._match(f"{where} column image", data, row["file_sha256"], "pictures")
        try:
            pixels, xmp = decode(data)
        except IntegrityError as error:
            self.problem(f"{where} column image", error.what)
            return
        if row["media_type"] in LOSSLESS:
            self.counts["pixels"] += 1
            if pixel_digest(pixels) != row["pixel_sha256"]:
                self.problem(f"{where} column pixel_sha256", "the decoded pixels do not match")
        if row["xmp_present"] != (DIGITAL_SOURCE_TYPE.encode() in xmp):
            self.problem(f"{where} column xmp_present", "does not say what the file carries")

    def _attempt(self, row: Mapping[str, Any], where: str) -> None:
        numbers = self.attempts.setdefault(row["sample_id"], {})
        if row["attempt"] in numbers:
            self.problem(f"{where} column attempt", f"the attempt has a row already: {numbers[row['attempt']][0]}")
        numbers[row["attempt"]] = (where, row["pixel_sha256"])
        data = (row["thumbnail"] or {}).get("bytes")
        self._match(f"{where} column thumbnail", data or b"", row["thumbnail_sha256"], "thumbnails")

    def _match(self, where: str, data: bytes, digest: str, count: str) -> None:
        self.counts[count] += 1
        if hashlib.sha256(data).hexdigest() != digest:
            self.problem(where, "the stored bytes do not match their digest")

    # the whole

    def _counts_match(self) -> None:
        for sample_id, (where, row) in self.samples.items():
            made = self.attempts.pop(sample_id, {})
            if row["attempts"] is None:
                self.problem(f"{where} column attempts", "is empty")
                continue
            if sorted(made) != list(range(row["attempts"])):
                self.problem(f"{where} column attempts", f"says {row['attempts']}; the attempts table has {sorted(made)}")
            accepted = row["accepted_attempt"]
            if (accepted is not None) != (row["outcome"] in ACCEPTED):
                self.problem(f"{where} column accepted_attempt", f"does not go with outcome {row['outcome']}")
            final = accepted if accepted is not None else max(made, default=None)
            if final is not None and final in made and made[final][1] != row["pixel_sha256"]:
                self.problem(f"{where} column pixel_sha256", f"is not that of attempt {final} ({made[final][0]})")
        for made in self.attempts.values():
            for where, _ in made.values():
                self.problem(where, "belongs to no sample")

    def _statement_matches(self, statement: Mapping[str, Any], receipts: Mapping[str, ShardReceipt]) -> None:
        try:
            predicate, subjects = statement["predicate"], {str(s["name"]): s for s in statement["subject"]}
            stated = {name: (s["digest"]["sha256"], s["annotations"]["rows"]) for name, s in subjects.items()}
            counts, root, shards = predicate["counts"], predicate["merkle_root"], predicate["shards"]
            numbers = (counts["samples"], counts["attempts"], counts["outcomes"])
        except (KeyError, TypeError, AttributeError):
            self.problem(RUN_FILE, "lacks subjects, counts or the Merkle root")
            return
        found: dict[str, tuple[str, int]] = {}
        for shard_id, receipt in receipts.items():
            found[f"commits/{shard_id}.json"] = (hashlib.sha256(receipt.marker).hexdigest(), receipt.rows)
            found.update({file.path: (file.sha256, file.rows) for file in receipt.files})
        for name in sorted(found.keys() | stated.keys()):
            if name not in stated:
                self.problem(name, f"is not among the subjects of {RUN_FILE}: added after sealing")
            elif name not in found:
                self.problem(name, f"is a subject of {RUN_FILE} but no committed shard has it")
            elif stated[name] != found[name]:
                self.problem(name, f"digest or rows differ from those in {RUN_FILE}")
        if root != merkle_root([receipt.digest for receipt in receipts.values()]):
            self.problem(RUN_FILE, "the Merkle root does not match the committed shards")
        if shards != {shard_id: receipt.digest for shard_id, receipt in receipts.items()}:
            self.problem(RUN_FILE, "the shards' digests do not match the commit markers")
        recount = (self.counts["samples"], self.counts["attempts"], dict(sorted(self.outcomes.items())))
        if recount != numbers:
            self.problem(RUN_FILE, f"counts {numbers} are stated, {recount} are found")
        requested = predicate.get("requested")
        if requested is not None and requested != len(self.samples):
            self.problem(RUN_FILE, f"{requested} samples were requested, {len(self.samples)} have a row")

    def _plan_files(self, statement: Mapping[str, Any]) -> set[str]:
        """The files a caller named under ``plan.files`` (the plan, the requests) are held to their digests as well."""
        predicate = statement.get("predicate")
        plan = predicate.get("plan") if isinstance(predicate, dict) else None
        files = plan.get("files") if isinstance(plan, dict) else None
        for name, digest in files.items() if isinstance(files, dict) else ():
            self.counts["files"] += 1
            try:
                if digest_of(self.folder, name) != digest:
                    self.problem(name, f"the file was changed: its digest does not match {RUN_FILE}")
            except ClearanceError as error:
                self.problem(name, f"{error.what}; the plan names it")
        return set(files) if isinstance(files, dict) else set()

    def _events(self, statement: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> None:
        self.counts["events"] += len(events)
        self.counts["files"] += entry_of(self.folder, EVENTS_FILE) is not None
        plan = self.binding.plan_file_sha256
        for event in events:
            if plan and event["digests"].get("plan_file_sha256", plan) != plan:
                self.problem(PLAN_FILE, f"is not the plan that the event in {EVENTS_FILE} line {event['seq'] + 1} names")
        sealed = [event for event in events if event["kind"] == SEALED]
        if statement is None:
            if sealed:
                self.problem(
                    RUN_FILE, f"the run was sealed ({EVENTS_FILE} line {sealed[-1]['seq'] + 1}); its statement is gone"
                )
            return
        predicate = statement.get("predicate")
        stated = predicate.get("events") if isinstance(predicate, dict) else None
        count, head = (stated.get("count"), stated.get("head")) if isinstance(stated, dict) else (None, None)
        if not isinstance(count, int) or len(events) < count or events_head(events[: max(count, 0)]) != head:
            self.problem(EVENTS_FILE, f"events that {RUN_FILE} was sealed over are missing or changed")
        if not sealed:
            self.problem(EVENTS_FILE, "holds no event of sealing")
        elif sealed[-1]["digests"].get("run_sha256") != digest_of(self.folder, RUN_FILE):
            self.problem(RUN_FILE, f"is not the statement that the last sealing event in {EVENTS_FILE} names")
