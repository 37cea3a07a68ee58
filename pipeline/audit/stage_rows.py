"""Verify the rows of a run: stages files, chains, pictures and prompts, in one pass over the data files of its shards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from index.counted import counted
from index.errors import ClearanceError, IntegrityError
from index.fingerprint import pixel_digest
from index.padding import first_line
from index.parquet import parquet_file, rows_of
from index.storage import open_file, parsing
from pipeline.audit.binding import REQUESTS_FILE, RunBinding, header_problems, row_problems, schema_difference
from pipeline.audit.chain import chain_start, record_digest, table_header
from pipeline.audit.commitments import default_salt, prompt_commitment, uncommitted
from pipeline.audit.compacted import PARTS_INDEX, LargePart, PartsIndex, header_of
from pipeline.audit.content import ContentTree, attempt_digest, content_digest, sample_digest
from pipeline.audit.erasure import FileNow
from pipeline.audit.requests import Opener
from pipeline.audit.schema import KEPT
from pipeline.audit.shards import ShardFile, ShardReceipt
from pipeline.audit.stage import CHAINS, EVENTS, FILES, PICTURES, PROMPTS, Findings
from pipeline.audit.stage_requests import ALONE, BOTH, Asked
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, LOSSLESS, SUFFIXES, decode
from pipeline.marking.mark import LOST
from pipeline.outcome import ACCEPTED
from pipeline.salt import salt_id

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_NOT_PARQUET = "cannot be read as Parquet"


class Rows:
    """Every row of every shard, held against its digests and against the other rows.

    Attributes:
        samples: sample_id → where its row stands, and the columns that are compared later.
        outcomes: rows by outcome.
        content: the digests of the requests' content.
        asked: what samples say of the requests, where these are to be held against it.
    """

    def __init__(
        self, folder: Path, binding: RunBinding, salt: str | None, found: Findings, *, opener: Opener = open_file,
        pixels: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.binding, self.salt, self.found = folder, binding, salt, found
        self._open, self._pixels = opener, pixels  # whether pictures are decoded
        self.samples: dict[str, tuple[str, dict[str, Any]]] = {}
        self.outcomes: Counter[str] = Counter()
        self.content = ContentTree()
        self._kept: dict[str, tuple[str, str, str]] = {}  # sample_id → where, kept_sha256, pixel_sha256
        self._erased: frozenset[str] = frozenset()  # columns of the present row whose payloads events name as erased
        # What samples say of the requests; only where events say that the file of the requests was changed.
        self.asked = Asked() if REQUESTS_FILE in binding.erasures.paths else None
        self._attempts: dict[str, dict[int, tuple[str, str, str]]] = {}  # sample_id → number → where, pixel_sha256, content

    def check(self, receipts: Mapping[str, ShardReceipt], index: PartsIndex | None = None) -> None:
        """Recompute the rows of every shard, and say what each stage compared."""
        if index is not None:
            for part in index.parts:
                self.part(part, index, receipts)
        for receipt in receipts.values():
            for file in receipt.files:
                if index is None:
                    self.file(receipt, file)
                elif file.table not in index.slices[receipt.shard_id]:
                    self.found.problem(FILES, PARTS_INDEX, f"names no part for {file.path}")
        self._whole()
        counts = self.found.counts
        if not receipts:
            for stage in (CHAINS, PICTURES, PROMPTS):
                self.found.skipped(stage, "no shard was committed")
            return
        rows = f"{counted(counts['samples'], 'sample')} and {counted(counts['attempts'], 'attempt')}"
        self.found.compared(CHAINS, f"every row of {rows} has the digest stated in it and follows the row before it")
        kinds = ("pictures", "pixels", "kept_pictures", "thumbnails", "embeddings")
        numbers = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in kinds if counts[name])
        erased = f"; {counts['erased']:,} payloads are erased, as events name them" if counts["erased"] else ""
        if numbers:
            self.found.compared(PICTURES, f"{numbers} match their digests{erased}")
        elif erased:
            self.found.compared(PICTURES, f"nothing is left to compare{erased}")
        else:
            self.found.skipped(PICTURES, "no row holds a picture, a thumbnail or an embedding")
        many = f"{counts['prompts']:,} prompts match their commitments"
        self.found.compared(PROMPTS, "1 prompt matches its commitment" if counts["prompts"] == 1 else many)
        if counts["prompts_unchecked"]:
            why = "their commitments are under a secret salt that was not given"
            if self.salt:
                why = f"{why}; the salt that was given, {salt_id(self.salt)}, is that of none of them"
            self.found.skipped(PROMPTS, f"{counts['prompts_unchecked']:,} prompts were not compared: {why}")

    def part(self, part: LargePart, index: PartsIndex, receipts: Mapping[str, ShardReceipt]) -> None:
        """A part of a compacted run: every shard's chain in it, from the header that the index keeps."""
        slices = index.in_part(part)
        now = self.binding.erasures.now(part.path, part.sha256, part.bytes)
        try:
            with self._open(self.folder, part.path) as stream, parsing(part.path, fix="", what=_NOT_PARQUET):
                intact, known = self._same(stream, part.path, now)
                if not known:
                    self._damaged_columns(stream, part.path)
                file = parquet_file(stream)
                if difference := schema_difference(part.table, file.schema_arrow):
                    self.found.problem(CHAINS, part.path, difference)
                    return
                if [own.first for _, own in slices] != [0, *ends(slices)][: len(slices)] or [part.rows] != ends(slices)[-1:]:
                    self.found.problem(CHAINS, PARTS_INDEX, f"does not name every row of {part.path} once")
                    return
                rows, number = _checked_rows(file), 0
                for shard_id, own in slices:
                    receipt = receipts.get(shard_id)
                    mine = [one for one in receipt.files if one.table == part.table] if receipt is not None else []
                    if receipt is None or not mine:
                        self.found.problem(FILES, PARTS_INDEX, f"names rows of shard {shard_id} that no marker states")
                        return
                    before = self.binding.erasures.now(mine[0].path, mine[0].sha256, mine[0].bytes)
                    self.found.add(EVENTS, [(mine[0].path, before.broken)] if before.broken else [])
                    own_now = replace(now.also(before), whole=intact)
                    head = self._slice(islice(rows, own.rows), mine[0], (part.path, number), own.header, own_now)
                    number += own.rows
                    if head != mine[0].chain_head or own.rows != mine[0].rows:
                        what = (
                            f"rows {own.first} to {number - 1}: the chain of shard {shard_id} does not end as its marker says"
                        )
                        self.found.problem(CHAINS, part.path, what)
                if next(rows, None) is not None:
                    self.found.problem(CHAINS, part.path, f"holds more than the {part.rows} rows that {PARTS_INDEX} states")
        except ClearanceError as error:
            self.found.problem(FILES, part.path, f"{error.what}; {PARTS_INDEX} names it")

    def _slice(
        self, rows: Iterable[Mapping[str, Any]], file: ShardFile, place: tuple[str, int], header: str, now: FileNow
    ) -> str:
        """Recompute the chain of a shard inside a part; returns the digest that it ends with."""
        shard_header = header_of(header)
        shard_id = str(shard_header.get("shard_id"))
        self.found.add(CHAINS, header_problems(shard_header, shard_id, file, self.binding))
        return self._chain(rows, file.table, place, shard_header, now)

    def _same(self, stream: IO[bytes], path: str, now: FileNow) -> tuple[bool, bool]:
        """Whether a file is the one that it has to be; and whether it is that, or was that once."""
        self.found.counts["files"] += 1
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        intact = stream.tell() == now.bytes and sha256 == now.sha256
        if not intact:
            self.found.problem(FILES, path, now.other(sha256))
        if now.broken:
            self.found.problem(EVENTS, path, now.broken)
        return intact, intact or sha256 in now.earlier

    def file(self, receipt: ShardReceipt, file: ShardFile) -> None:
        """Recompute the rows of a shard's file."""
        now = self.binding.erasures.now(file.path, file.sha256, file.bytes)
        try:
            with self._open(self.folder, file.path) as stream:
                intact, known = self._same(stream, file.path, now)
                table = self._read(stream, file.path, intact=known)
        except (ClearanceError, OSError) as error:
            what = error.what if isinstance(error, ClearanceError) else f"cannot be read ({first_line(error)})"
            self.found.problem(FILES, file.path, f"{what}; shard {receipt.shard_id} committed it")
            return
        if table is None:
            return
        if difference := schema_difference(file.table, table.schema):
            self.found.problem(CHAINS, file.path, difference)
            return
        try:
            shard_header = table_header(table.schema)
        except IntegrityError as error:
            self.found.problem(CHAINS, file.path, error.what)
            return
        self.found.add(CHAINS, header_problems(shard_header, receipt.shard_id, file, self.binding))
        if table.num_rows != file.rows:
            self.found.problem(CHAINS, file.path, f"holds {table.num_rows} rows; its commit marker says {file.rows}")
        head = self._table(table, file, shard_header, now if intact else replace(now, whole=False))
        if head != file.chain_head:
            self.found.problem(CHAINS, file.path, "the chain does not end where the commit marker says")

    def _read(self, stream: IO[bytes], where: str, *, intact: bool) -> pa.Table | None:
        """Read a data file; of a damaged one, name the damaged columns and read what can still be read."""
        try:
            with parsing(where, fix="", what=_NOT_PARQUET):
                if not intact:
                    self._damaged_columns(stream, where)
                table = parquet_file(stream).read(use_threads=False)
                table.validate(full=True)
                return table
        except IntegrityError as error:
            self.found.problem(FILES, where, error.what)
            return None

    def _damaged_columns(self, stream: IO[bytes], where: str) -> None:
        checked = parquet_file(stream, checksums=True)
        for name in checked.schema_arrow.names:
            try:
                with parsing(where, fix=""):
                    for group in range(checked.metadata.num_row_groups):
                        checked.read_row_group(group, columns=[name], use_threads=False)
            except IntegrityError:
                self.found.problem(FILES, f"{where} column {name}", "a page of this column does not match its checksum")

    def _table(self, table: pa.Table, file: ShardFile, shard_header: Mapping[str, Any], now: FileNow) -> str:
        """Recompute the chain of a file; returns the digest that it ends with."""
        try:
            rows = (row for batch in table.to_batches(max_chunksize=64) for row in rows_of(batch))
            return self._chain(rows, file.table, (file.path, 0), shard_header, now)
        except (ValueError, OverflowError) as error:  # text that is no UTF-8; a time outside of Python's
            self.found.problem(CHAINS, file.path, f"cannot be read ({error})")
            return ""

    def _chain(
        self,
        rows: Iterable[Mapping[str, Any]],
        table: str,
        place: tuple[str, int],
        shard_header: Mapping[str, Any],
        now: FileNow,
    ) -> str:
        """Recompute a shard's chain; ``place``: the file, and the number of the first row in it."""
        prev = chain_start(shard_header)
        for number, row in enumerate(rows, place[1]):
            where = f"{place[0]} row {number}"
            self.found.counts[table] += 1
            self._links(row, prev, where)
            prev = str(row["record_sha256"])
            self._erased = self._erased_of(row, where, now)
            problems = row_problems(row, table, shard_header)
            self.found.add(CHAINS, ((f"{where} column {column}", what) for column, what in problems))
            try:
                self._path(table, row, where)
                self._row(table, row, where, shard_header)
            except (TypeError, ValueError, AttributeError) as error:  # an empty cell where no writer leaves one
                self.found.problem(CHAINS, where, f"holds a value that no row has ({first_line(error)})")
        return prev

    def _row(self, table: str, row: Mapping[str, Any], where: str, shard_header: Mapping[str, Any]) -> None:
        if table == "samples":
            self._sample(row, where, shard_header)
        elif table == KEPT:
            self._kept_row(row, where)
        else:
            self._attempt(row, where)

    def _erased_of(self, row: Mapping[str, Any], where: str, now: FileNow) -> frozenset[str]:
        """The columns whose payloads events name as erased; one that is here nevertheless is a problem."""
        erased = set()
        for column in (name for name, samples in now.erased.items() if row["sample_id"] in samples):
            value = row.get(column)
            if value is None or (isinstance(value, dict) and value.get("bytes") is None):
                erased.add(column)
                self.found.counts["erased"] += 1
            elif now.whole:
                self.found.problem(PICTURES, f"{where} column {column}", "an event names it as erased, and it is here")
        return frozenset(erased)

    def _links(self, row: Mapping[str, Any], prev: str, where: str) -> None:
        if row["prev_sha256"] != prev:
            broken = "the chain is broken: a row before was changed or removed"
            self.found.problem(CHAINS, f"{where} column prev_sha256", broken)
        if record_digest(row, str(row["prev_sha256"])) != row["record_sha256"]:
            self.found.problem(CHAINS, f"{where} column record_sha256", "a committed column of this row was changed")

    def _sample(self, row: Mapping[str, Any], where: str, shard_header: Mapping[str, Any]) -> None:
        self.outcomes[str(row["outcome"])] += 1
        if row["sample_id"] in self.samples:
            first = self.samples[row["sample_id"]][0]
            self.found.problem(CHAINS, f"{where} column sample_id", f"the sample has a row already: {first}")
        noted = ("attempts", "accepted_attempt", "pixel_sha256", "outcome", "row_no")
        about = {"content": sample_digest(row), "kept_sha256": row.get("kept_sha256"), **{name: row[name] for name in noted}}
        self.samples[row["sample_id"]] = (where, about)
        self._picture(row, where)
        embedding = row["embedding"]
        if "embedding" in self._erased:
            pass
        elif (embedding is None) != (row["embedding_sha256"] is None):
            self.found.problem(PICTURES, f"{where} column embedding", "the embedding or its digest is missing")
        elif embedding is not None:
            stored = np.asarray(embedding, dtype="<f2").tobytes()
            self._match(f"{where} column embedding", stored, row["embedding_sha256"], "embeddings")
        self._prompt(row, where, shard_header)

    def _picture(self, row: Mapping[str, Any], where: str) -> None:
        if "image" in self._erased:
            return
        data = (row["image"] or {}).get("bytes")
        if (data is None) != (row["file_sha256"] is None):
            what = "the picture is missing" if data is None else "a picture without a digest"
            self.found.problem(PICTURES, f"{where} column image", what)
            return
        if data is None:
            return
        self._match(f"{where} column image", data, row["file_sha256"], "pictures")
        if not self._pixels:
            return
        try:
            pixels, xmp = decode(data)
        except IntegrityError as error:
            self.found.problem(PICTURES, f"{where} column image", error.what)
            return
        if row["media_type"] in LOSSLESS:
            self.found.counts["pixels"] += 1
            lost = row.get("watermark_reason") == LOST  # the pixels carry a watermark that no look finds
            stored, changed = row.get("stored_pixel_sha256"), row["watermark_scheme"] or lost or row.get("visible_label")
            # A picture that neither label nor watermark changed has the digest it was born with.
            named = {"stored_pixel_sha256": stored is not None, "pixel_sha256": stored is None or not changed}
            digest = pixel_digest(pixels)
            for column in (name for name, held in named.items() if held and row[name] != digest):
                self.found.problem(PICTURES, f"{where} column {column}", "the decoded pixels do not match")
        if row["xmp_present"] != (DIGITAL_SOURCE_TYPE.encode() in xmp):
            self.found.problem(PICTURES, f"{where} column xmp_present", "does not say what the file carries")

    def _path(self, table: str, row: Mapping[str, Any], where: str) -> None:
        """The name beside a picture is in no digest: it has to be the one that the writer gives it."""
        column = "thumbnail" if table == "attempts" else "image"
        picture, written = row[column] or {}, None
        if picture.get("bytes") is not None:
            sample = row["sample_id"]
            kind = SUFFIXES.get(str(row.get("media_type")), "")
            written = f"{sample}-{row['attempt']}.webp" if table == "attempts" else f"{sample}.{kind}"
        if picture.get("path") != written:
            what = f"its path is {str(picture.get('path'))[:64]!r}; the writer's is {written!r}"
            self.found.problem(PICTURES, f"{where} column {column}", what)

    def _prompt(self, row: Mapping[str, Any], where: str, shard_header: Mapping[str, Any]) -> None:
        gone = self._erased.intersection(BOTH)
        for column in BOTH if gone else ():
            if row[column] is not None:
                self.found.problem(PROMPTS, f"{where} column {column}", ALONE)
            elif column not in gone:
                self.found.problem(PROMPTS, f"{where} column {column}", "is empty, and no event names it as erased")
        # A deployment that has a secret salt now may have had none when this run was made.
        salts = [salt for salt in (self.salt, default_salt(str(shard_header.get("dataset_id", "")))) if salt]
        salt = next((salt for salt in salts if salt_id(salt) == shard_header.get("salt_id")), "")
        if self.asked is not None:
            self.asked.add(row, salt)
        if not salt:
            self.found.counts["prompts_unchecked"] += 1  # a secret salt that nobody passed: the stage says so
            return
        if gone:
            pass
        elif row["prompt"] is None or row["negative_prompt"] is None:
            self.found.problem(PROMPTS, f"{where} column prompt", "the prompt is missing")
        elif prompt_commitment(row["prompt"], row["negative_prompt"], salt) != row["prompt_commit"]:
            self.found.problem(PROMPTS, f"{where} column prompt", "the prompt does not match its commitment")
        else:
            self.found.counts["prompts"] += 1
        wrong = [one for one in uncommitted(row, salt) if one[0] not in self._erased]
        self.found.add(PROMPTS, ((f"{where} column {column}", what) for column, what in wrong))

    def _attempt(self, row: Mapping[str, Any], where: str) -> None:
        numbers = self._attempts.setdefault(row["sample_id"], {})
        if row["attempt"] in numbers:
            first = numbers[row["attempt"]][0]
            self.found.problem(CHAINS, f"{where} column attempt", f"the attempt has a row already: {first}")
        numbers[row["attempt"]] = (where, row["pixel_sha256"], attempt_digest(row))
        if "thumbnail" in self._erased:
            return
        data = (row["thumbnail"] or {}).get("bytes")
        if data is not None or row["thumbnail_sha256"] is not None:  # a hard stop keeps no thumbnail
            self._match(f"{where} column thumbnail", data or b"", row["thumbnail_sha256"], "thumbnails")

    def _kept_row(self, row: Mapping[str, Any], where: str) -> None:
        if row["sample_id"] in self._kept:
            first = self._kept[row["sample_id"]][0]
            self.found.problem(CHAINS, f"{where} column sample_id", f"a picture of this sample is kept already: {first}")
        self._kept[row["sample_id"]] = (where, row["kept_sha256"], row["pixel_sha256"])
        if "image" in self._erased:
            return
        data = (row["image"] or {}).get("bytes")
        if data is None:
            self.found.problem(PICTURES, f"{where} column image", "the picture is missing")
            return
        self._match(f"{where} column image", data, row["kept_sha256"], "kept_pictures")
        if not self._pixels:
            return
        try:
            if pixel_digest(decode(data)[0]) != row["pixel_sha256"]:
                self.found.problem(PICTURES, f"{where} column pixel_sha256", "the decoded pixels do not match")
        except IntegrityError as error:
            self.found.problem(PICTURES, f"{where} column image", error.what)

    def _match(self, where: str, data: bytes, digest: str, count: str) -> None:
        self.found.counts[count] += 1
        if hashlib.sha256(data).hexdigest() != digest:
            self.found.problem(PICTURES, where, "the stored bytes do not match their digest")

    def _whole(self) -> None:
        """Hold the two tables against each other: every sample has the attempts that it counts, every attempt a sample."""
        for sample_id, (where, row) in self.samples.items():
            made = self._attempts.pop(sample_id, {})
            if type(row["row_no"]) is int:
                self.content.add(row["row_no"], content_digest(row["content"], [made[n][2] for n in sorted(made)]))
            self._whole_kept(sample_id, where, row)
            if row["attempts"] is None:
                self.found.problem(CHAINS, f"{where} column attempts", "is empty")
                continue
            if len(made) != row["attempts"] or sorted(made) != list(range(len(made))):
                what = f"says {row['attempts']}; the attempts table has {sorted(made)}"
                self.found.problem(CHAINS, f"{where} column attempts", what)
            accepted = row["accepted_attempt"]
            if (accepted is not None) != (row["outcome"] in ACCEPTED):
                self.found.problem(CHAINS, f"{where} column accepted_attempt", f"does not go with outcome {row['outcome']}")
            final = accepted if accepted is not None else max(made, default=None)
            if final is not None and final in made and made[final][1] != row["pixel_sha256"]:
                what = f"is not that of attempt {final} ({made[final][0]})"
                self.found.problem(CHAINS, f"{where} column pixel_sha256", what)
        for where, *_ in self._kept.values():
            self.found.problem(CHAINS, where, "belongs to no sample")
        for made in self._attempts.values():
            for where, *_ in made.values():
                self.found.problem(CHAINS, where, "belongs to no sample")

    def _whole_kept(self, sample_id: str, where: str, row: Mapping[str, Any]) -> None:
        place, kept, pixels = self._kept.pop(sample_id, ("", None, None))
        if kept != row["kept_sha256"]:
            what = f"is not that of {place}" if place else "names a picture that is not kept"
            self.found.problem(CHAINS, f"{where} column kept_sha256", what)
        elif kept is not None and pixels != row["pixel_sha256"]:
            self.found.problem(CHAINS, f"{place} column pixel_sha256", f"is not that of {where}")
        elif kept is not None and row["outcome"] in ACCEPTED:
            self.found.problem(CHAINS, f"{where} column kept_sha256", f"does not go with outcome {row['outcome']}")


def ends(slices: Iterable[tuple[str, Any]]) -> list[int]:
    """The number of the row after each slice."""
    return [own.first + own.rows for _, own in slices]


def _checked_rows(file: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    """The rows of a part, each batch checked for what a forged file may hold."""
    for batch in file.iter_batches(batch_size=64, use_threads=False):
        batch.validate(full=True)
        yield from rows_of(batch)
