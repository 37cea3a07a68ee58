"""Find a released picture again by its fingerprints: the rows of runs, and their events, are the log of what was released.

Two fingerprints look at the picture, PDQ and ISCC (ISO 24138), each 256 bits. A picture that was saved again, scaled or
darkened a little differs from the released one in few of them. A cropped, turned or mirrored one is not found, nor is one that
holds hardly more than a soft gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.fingerprint import iscc, iscc_bytes, pdq, pdq_hex
from pipeline.audit.events import scan_events
from pipeline.audit.ledger import sample_rows
from pipeline.outcome import ACCEPTED

# Bits of 256 up to which two pictures count as one. PDQ: what its authors recommend. ISCC: copies that were saved again or
# scaled stay within 18, different drawings are 88 and more apart (62 drawings of 64×64 pixels).
PDQ_NEAR, ISCC_NEAR = 31, 24
PDQ_QUALITY = 50  # below it PDQ's hash means little, on either side
_COLUMNS = ["sample_id", "request_key", "outcome", "file_sha256", "pdq", "pdq_quality", "iscc"]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """A released picture that a picture is, or looks like.

    Attributes:
        folder: the run folder. sample_id, request_key: its row there.
        same_file: the file is the released one, byte for byte.
        pdq_bits, iscc_bits: how many of 256 bits differ; None where a fingerprint is missing or means little.
    """

    folder: Path
    sample_id: str
    request_key: str
    same_file: bool
    pdq_bits: int | None
    iscc_bits: int | None

    @property
    def bits(self) -> int:
        """The lesser of the two; what likenesses are ordered by."""
        return 0 if self.same_file else min(bits for bits in (self.pdq_bits, self.iscc_bits, 256) if bits is not None)


def _accepted_later(folder: Path) -> set[str]:
    """The samples that an event made accepted. What does not hold in the events is verify's to name."""
    return {
        str(sample_id)
        for event in scan_events(folder)[0]
        if event["kind"] in ("review.decided", "sample.released") and (event["details"] or {}).get("outcome") in ACCEPTED
        for sample_id in event["samples"]
    }


class Released:
    """The fingerprints of the pictures that runs released: some 200 bytes a picture in memory.

    A picture that a person accepted in review is one of them, and so is one that was withdrawn later: it may be anywhere.
    Rows of schema versions 1 and 2, and those of pictures accepted later, hold no ISCC; they are found by PDQ alone.

    Args:
        folders: run folders, sealed or not.

    Raises:
        ClearanceError: a shard cannot be read.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._rows: list[tuple[Path, str, str, str]] = []
        pdqs, isccs, known = bytearray(), bytearray(), []
        for folder in folders:
            later = _accepted_later(folder)
            for row in sample_rows(folder, _COLUMNS):
                if row["outcome"] not in ACCEPTED and row["sample_id"] not in later:
                    continue
                self._rows.append((folder, row["sample_id"], row["request_key"], row["file_sha256"] or ""))
                has_pdq = bool(row["pdq"]) and (row["pdq_quality"] or 0) >= PDQ_QUALITY
                pdqs += bytes.fromhex(row["pdq"]) if has_pdq else bytes(32)
                isccs += iscc_bytes(row["iscc"]) if row["iscc"] else bytes(32)
                known.append((has_pdq, bool(row["iscc"])))
        self._pdq = np.frombuffer(bytes(pdqs), np.uint64).reshape(-1, 4)
        self._iscc = np.frombuffer(bytes(isccs), np.uint64).reshape(-1, 4)
        self._known = np.array(known, bool).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._rows)

    def like(self, picture: np.ndarray, data: bytes = b"") -> list[Likeness]:
        """The released pictures that a picture is or looks like, the nearest first.

        Args:
            picture: uint8 RGB (H, W, 3).
            data: its file; empty: files are not compared.
        """
        if not self._rows:
            return []
        bits, quality = pdq(picture)
        by_pdq = self._distances(self._pdq, bytes.fromhex(pdq_hex(bits)), self._known[:, 0] & (quality >= PDQ_QUALITY))
        by_iscc = self._distances(self._iscc, iscc_bytes(iscc(picture)), self._known[:, 1])
        digest = hashlib.sha256(data).hexdigest() if data else ""
        same = np.array([bool(digest) and row[3] == digest for row in self._rows])
        near = np.flatnonzero(same | (by_pdq <= PDQ_NEAR) | (by_iscc <= ISCC_NEAR))
        found = [
            Likeness(
                folder=self._rows[i][0],
                sample_id=self._rows[i][1],
                request_key=self._rows[i][2],
                same_file=bool(same[i]),
                pdq_bits=int(by_pdq[i]) if by_pdq[i] <= 256 else None,
                iscc_bits=int(by_iscc[i]) if by_iscc[i] <= 256 else None,
            )
            for i in near
        ]
        return sorted(found, key=lambda one: (not one.same_file, one.bits))

    @staticmethod
    def _distances(stored: np.ndarray, own: bytes, known: np.ndarray) -> np.ndarray:
        differing = np.bitwise_count(stored ^ np.frombuffer(own, np.uint64)).sum(axis=1, dtype=np.int64)
        return np.where(known, differing, 257)
