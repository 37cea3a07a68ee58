"""Verify a run: recompute every digest of its folder, and name every place where one does not match.

Nothing here writes. What the ledger claims (see :mod:`pipeline.audit.ledger`) is taken from the files and held against them,
from ``run.json`` down to the pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import InputError, IntegrityError
from pipeline.audit.ledger import (
    EVENTS_FILE,
    PREDICATE_TYPE,
    RUN_FILE,
    SEALED,
    STATEMENT_TYPE,
    events_head,
    merkle_root,
    scan_events,
    statement_bytes,
    statement_digest,
)
from pipeline.audit.provenance import DIGITAL_SOURCE_TYPE, LOSSLESS, decode, pixel_digest
from pipeline.audit.records import chain_start, default_salt, prompt_commitment, record_digest, salt_id, table_header
from pipeline.audit.schema import attempts_schema, samples_schema
from pipeline.shard import TEMPORARY, ShardFile, ShardReceipt, digest_file

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
    """

    ok: bool
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]


def verify(folder: Path, salt: str | None = None) -> Verification:
    """Recompute every digest of a run folder, and name every place where one does not match.

    File digests against markers and ``run.json``; every record and chain link; every stored picture's file digest and,
    for lossless formats, its decoded pixels; thumbnails, embeddings and prompts against their commitments; one row per
    sample, attempts against samples; the Merkle root; the events. Tamper-evident, not tamper-proof: see
    :mod:`pipeline.audit.ledger`.

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

    def run(self) -> Verification:
        statement = self._statement()
        receipts = self._receipts()
        for receipt in receipts.values():
            for file in receipt.files:
                self._file(receipt, file)
        self._no_strangers(receipts)
        self._counts_match()
        if statement is not None:
            self._statement_matches(statement, receipts)
        self._events(statement)
        problems = tuple(self.problems[:_MOST_PROBLEMS])
        return Verification(not self.problems, problems, dict(self.counts))

    # the parts, from the top down

    def _statement(self) -> dict[str, Any] | None:
        path = self.folder / RUN_FILE
        if not path.is_file():
            self.problem(RUN_FILE, "is missing: the run was never sealed, or the file was removed")
            return None
        data = path.read_bytes()
        try:
            statement = json.loads(data)
            kind = (statement["_type"], statement["predicateType"])
            same = (
                statement["predicate"]["statement_sha256"] == statement_digest(statement) and statement_bytes(statement) == data
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            self.problem(RUN_FILE, "was changed: it is no longer a statement that can be read")
            return None
        self.counts["files"] += 1
        if not same:
            self.problem(RUN_FILE, "was changed: its digest does not match its content")
        elif kind != (STATEMENT_TYPE, PREDICATE_TYPE):
            self.problem(RUN_FILE, f"is another kind of statement: {kind[1]}")
        return dict(statement)

    def _receipts(self) -> dict[str, ShardReceipt]:
        receipts: dict[str, ShardReceipt] = {}
        for path in sorted((self.folder / "commits").glob("[!.]*.json")):
            where = f"commits/{path.name}"
            self.counts["files"] += 1
            try:
                receipt = ShardReceipt.parse(path.read_bytes(), where=where)
            except IntegrityError as error:
                self.problem(where, error.what)
                continue
            if receipt.shard_id != path.stem:
                self.problem(where, f"is the marker of shard {receipt.shard_id!r}")
            receipts[path.stem] = receipt
            self.counts["shards"] += 1
        return receipts

    def _file(self, receipt: ShardReceipt, file: ShardFile) -> None:
        path = self.folder / file.path
        if not path.is_file():
            self.problem(file.path, f"is missing; shard {receipt.shard_id} committed it")
            return
        self.counts["files"] += 1
        intact = path.stat().st_size == file.bytes and digest_file(path) == file.sha256
        if not intact:
            self.problem(file.path, "the file was changed: its digest does not match its commit marker")
        table = self._read(path, file.path, intact=intact)
        if table is None:
            return
        schema = samples_schema() if file.table == "samples" else attempts_schema()
        missing = [name for name in schema.names if name not in table.column_names]
        if missing:
            self.problem(file.path, f"columns are missing: {', '.join(missing)}")
            return
        try:
            shard_header = table_header(table.schema)
        except IntegrityError as error:
            self.problem(file.path, error.what)
            return
        if shard_header.get("shard_id") != receipt.shard_id or shard_header.get("table") != file.table:
            self.problem(file.path, f"belongs to shard {shard_header.get('shard_id')!r}, table {shard_header.get('table')!r}")
        if table.num_rows != file.rows:
            self.problem(file.path, f"holds {table.num_rows} rows; its commit marker says {file.rows}")
        head = self._rows(table, file, shard_header)
        if head != file.chain_head:
            self.problem(file.path, "the chain does not end where the commit marker says")

    def _read(self, path: Path, where: str, *, intact: bool) -> pa.Table | None:
        """Read a data file; of a damaged one, name the damaged columns and read what can still be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        broken = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, UnicodeDecodeError)
        try:
            if not intact:
                checked = pq.ParquetFile(path, page_checksum_verification=True)
                for name in checked.schema_arrow.names:
                    try:
                        checked.read(columns=[name])
                    except broken:
                        self.problem(f"{where} column {name}", "a page of this column does not match its checksum")
            table = pq.ParquetFile(path).read()
            table.validate(full=True)
            return table
        except broken as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.problem(where, f"cannot be read as Parquet ({text[:120]})")
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
                if file.table == "samples":
                    self._sample(row, where, shard_header)
                else:
                    self._attempt(row, where)
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

    def _no_strangers(self, receipts: Mapping[str, ShardReceipt]) -> None:
        known = {file.path for receipt in receipts.values() for file in receipt.files}
        for name in ("samples", "attempts", "commits"):
            for path in sorted((self.folder / name).glob("**/*")):
                where = path.relative_to(self.folder).as_posix()
                if path.is_dir():
                    continue
                if path.name.startswith(TEMPORARY):
                    self.problem(where, "is a leftover of an unfinished write; resuming the run sweeps it away")
                elif name == "commits":
                    if path.suffix != ".json" or path.parent != self.folder / name:
                        self.problem(where, "is no commit marker")
                elif where not in known:
                    self.problem(where, "belongs to no committed shard")

    def _counts_match(self) -> None:
        for sample_id, (where, row) in self.samples.items():
            made = self.attempts.pop(sample_id, {})
            if sorted(made) != list(range(row["attempts"])):
                self.problem(f"{where} column attempts", f"says {row['attempts']}; the attempts table has {sorted(made)}")
            accepted = row["accepted_attempt"]
            if (accepted is not None) != str(row["outcome"]).startswith("accepted"):
                self.problem(f"{where} column accepted_attempt", f"does not go with outcome {row['outcome']}")
            final = accepted if accepted is not None else max(made, default=None)
            if final is not None and final in made and made[final][1] != row["pixel_sha256"]:
                self.problem(f"{where} column pixel_sha256", f"is not that of attempt {final} ({made[final][0]})")
        for made in self.attempts.values():
            for where, _ in made.values():
                self.problem(where, "belongs to no sample")

    def _statement_matches(self, statement: Mapping[str, Any], receipts: Mapping[str, ShardReceipt]) -> None:
        try:
            predicate, subjects = statement["predicate"], {s["name"]: s for s in statement["subject"]}
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
        self._plan_files(predicate)
        requested = predicate.get("requested")
        if requested is not None and requested != len(self.samples):
            self.problem(RUN_FILE, f"{requested} samples were requested, {len(self.samples)} have a row")

    def _plan_files(self, predicate: Mapping[str, Any]) -> None:
        """The files a caller named under ``plan.files`` (the plan, the requests) are held to their digests as well."""
        plan = predicate.get("plan")
        for name, digest in (plan.get("files") or {}).items() if isinstance(plan, dict) else ():
            path = self.folder / name
            self.counts["files"] += 1
            if not path.is_file():
                self.problem(name, "is missing; the plan names it")
            elif digest_file(path) != digest:
                self.problem(name, f"the file was changed: its digest does not match {RUN_FILE}")

    def _events(self, statement: Mapping[str, Any] | None) -> None:
        events, problems = scan_events(self.folder)
        self.problems += [Problem(where, what) for where, what in problems]
        self.counts["events"] += len(events)
        if (self.folder / EVENTS_FILE).exists():
            self.counts["files"] += 1
        if statement is None:
            return
        stated = statement.get("predicate", {}).get("events", {})
        count, head = stated.get("count"), stated.get("head")
        if not isinstance(count, int) or len(events) < count or events_head(events[:count]) != head:
            self.problem(EVENTS_FILE, f"events that {RUN_FILE} was sealed over are missing or changed")
        sealed = [event for event in events if event.get("kind") == SEALED]
        run_sha256 = digest_file(self.folder / RUN_FILE)
        if not sealed:
            self.problem(EVENTS_FILE, "holds no event of sealing")
        elif sealed[-1].get("digests", {}).get("run_sha256") != run_sha256:
            self.problem(RUN_FILE, f"is not the statement that the last sealing event in {EVENTS_FILE} names")
