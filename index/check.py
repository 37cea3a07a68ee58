"""Check an index: every file, row and picture, the hash of its rows, its id, and its journal."""

from __future__ import annotations

from pathlib import Path

from index import at_uri, journal
from index.errors import IntegrityError
from index.files import RESTORE
from index.segments import hash_of_rows, open_segment
from index.snapshot import early_index_id_of, index_id_of, read_snapshot, snapshot_path


def check(folder: Path) -> None:
    """Recompute every digest of an index: files, pictures, rows, the index id, the journal.

    Of an index on an object store, every object there of the snapshot in force by now, and its copy on this machine.

    Raises:
        IntegrityError: naming the file (and reference) that does not match.
        InputError: there is no index.
    """
    if (place := at_uri.origin(folder)) is not None:
        folder = at_uri.checked(place)
    snapshot_sha256, snapshot = read_snapshot(folder)
    where = str(snapshot_path(folder, snapshot_sha256))
    segments = [open_segment(folder, entry, snapshot.dim, afresh=True) for entry in snapshot.segments]
    for segment, entry in zip(segments, snapshot.segments, strict=True):
        segment.check_rows()
        if "set_hash" in entry and entry["set_hash"] != hash_of_rows([segment], [{}], {}).hex():
            raise IntegrityError(f"names another hash of the rows of segment {entry['name']}", where=where, fix=RESTORE)
    if snapshot.set_hash is None:
        at = {ref_id: (segment, row) for segment in segments for row, ref_id in enumerate(segment.ref_ids())}
        rows = [segment.digest(row, snapshot.amendments.get(ref_id, {})).hex() for ref_id, (segment, row) in at.items()]
        expected = early_index_id_of(snapshot.embedder_id, snapshot.dim, rows, snapshot.tombstones)
    else:
        sums = hash_of_rows(segments, snapshot.segments, snapshot.amendments).hex()
        if sums != snapshot.set_hash:
            raise IntegrityError("names another hash of its rows", where=where, fix=RESTORE)
        expected = index_id_of(snapshot.embedder_id, snapshot.dim, sums, snapshot.tombstones)
    if expected != snapshot.index_id:
        raise IntegrityError(f"names {snapshot.index_id}, its content is {expected}", where=where, fix=RESTORE)
    journal.read(folder, snapshot.journal)
