"""Export what waits for a person: rows, pictures, and a page that goes through them with the keyboard, offline.

The page needs nothing but its folder. The decisions made on it are downloaded as JSONL, one a line, and come back with
``clearance review import``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.counted import counted
from index.errors import InputError
from index.storage import write_file
from jobs.reaudit.standing import Standing
from jobs.review.queue import AUDIT, HELD, QUEUE, WHY, Waiting, drawn, rows_for, waiting
from jobs.review.reasons import REASONS
from pipeline.audit.committed_files import CommittedFiles
from pipeline.audit.events import NewEvent, append_events
from pipeline.audit.pictures import Shown, pictures_of
from pipeline.audit.requests import Row

if TYPE_CHECKING:
    import numpy as np

PAGE, PICTURES, REFERENCES = "queue.html", "pictures", "references"
EXPORTED = "review.exported"
NEAREST = 3  # references shown beside a picture, if fewer hold it back
Reference = Callable[[str], "np.ndarray | None"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is exported: the queue, ``random`` accepted samples for an audit (drawn with ``seed``), as ``format``."""

    queue: bool = True
    random: int = 0
    seed: int = field(default_factory=lambda: secrets.randbelow(2**32))
    format: str = "jsonl"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export made: the folder, the page, how many samples by purpose, and those without a picture."""

    folder: Path
    page: Path
    counts: dict[str, int]
    without_picture: list[str]


def export(folder: Path, to: Path, wanted: Wanted, reference: Reference, *, actor: str, person: str = "") -> Exported:
    """Export a run's queue.

    Args:
        folder: the run folder.
        to: where to; a new or empty folder outside the run folder.
        wanted: what.
        reference: reference id → its picture, or None where the index does not keep it or is not at hand.
        actor: the role that exports. person: its pseudonym.

    Raises:
        InputError: the folder is not empty, nothing waits, or fewer accepted samples are there than are to be drawn.
        IntegrityError: events, statement or a data file of the run were changed.
        ClearanceError: a file of the run cannot be read, or the export not written.
    """
    _require_new(to, folder)
    standing = Standing.of(folder)
    those = [*waiting(folder, standing)] if wanted.queue else []
    those += drawn(folder, standing, wanted.random, wanted.seed) if wanted.random else []
    if not those:
        fix = "Nothing is to be done; --random N draws accepted samples for an audit"
        raise InputError("no sample waits for a person", where=str(folder), fix=fix)
    from jobs.run.planning.stored_plan import stored_plan

    run_id = str(stored_plan(folder)["run_id"])
    shown: dict[str, str | None] = {}
    items, without = [], []
    opener = CommittedFiles.of(folder).open  # a person decides on what is shown: it comes out of no file that was changed
    for path, block in _by_file(rows_for(folder, those, opener=opener)):
        pictures = pictures_of(folder, path, {number: row for number, (_, row) in block.items()}, opener=opener)
        for one, row in block.values():
            kept = pictures[one.sample_id]
            if kept.picture is None:
                without.append(one.sample_id)
            items.append(_item(one, row, _write_picture(to, one.sample_id, kept), lambda r: _shown(to, r, reference, shown)))
    name = f"decisions-{run_id}.jsonl"
    page = {
        "run_id": run_id, "export_id": secrets.token_hex(8), "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "file": name, "reasons": [asdict(reason) for reason in REASONS], "items": items,
    }  # fmt: skip
    rows = _write_rows(to, items, wanted.format)
    write_file(to, PAGE, render(page).encode())
    counts = {purpose: n for purpose in (QUEUE, HELD, AUDIT) if (n := sum(one.purpose == purpose for one in those))}
    details = {"counts": counts, "without_picture": without} | ({"seed": wanted.seed} if wanted.random else {})
    for purpose, count in counts.items():
        ids = [one.sample_id for one in those if one.purpose == purpose]
        append_events(folder, [NewEvent(
            kind=EXPORTED, actor=actor, person=person, reason=f"{counted(count, 'sample')} for review ({purpose})", samples=ids,
            details={**details, "purpose": purpose}, digests={"rows_sha256": rows},
        )])  # fmt: skip
    return Exported(folder=to, page=to / PAGE, counts=counts, without_picture=without)


def render(page: dict[str, Any]) -> str:
    """The page: its data inside, and a policy that lets it load its own script and the pictures beside it, and nothing else."""
    template = (Path(__file__).parent / PAGE).read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    style = template.split("<style>")[1].split("</style>")[0]
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' file:; base-uri 'none'; "
        "form-action 'none'"
    )
    # Whatever a prompt holds, it ends no script element.
    data = (
        json.dumps(page, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )
    return template.replace("@@POLICY@@", policy).replace("@@DATA@@", data)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _require_new(to: Path, folder: Path) -> None:
    if folder.resolve() in (to.resolve(), *to.resolve().parents):
        fix = "Name a folder elsewhere: what lies among a run's files and is not the run's looks like a change to it"
        raise InputError("lies in the run folder", where=str(to), fix=fix)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError("is not a new folder", where=str(to), fix="Name a folder that is empty or does not exist yet")


def _by_file(rows: Iterable[tuple[Waiting, tuple[str, int], Row]]) -> Iterable[tuple[str, dict[int, tuple[Waiting, Row]]]]:
    """In blocks of one file each, of at most 64 rows, by their numbers in it: so many pictures are in memory."""
    block: dict[int, tuple[Waiting, Row]] = {}
    at = ""
    for one, (path, number), row in rows:
        if block and (path != at or len(block) >= 64):
            yield at, block
            block = {}
        at = path
        block[number] = (one, row)
    if block:
        yield at, block


def _item(one: Waiting, row: Row, picture: str | None, shown: Callable[[str], str | None]) -> dict[str, Any]:
    """What the page knows of a sample."""
    near = [{name: match[name] for name in ("ref_id", "title", "similarity", "confirm")} for match in row["nearest"] or []]
    first = [
        {"ref_id": ref_id, "title": ref_id, "similarity": look.get("similarity"), "confirm": look.get("confirm")}
        for look in one.looks for ref_id in look.get("ref_ids", ())
    ]  # fmt: skip
    references = {match["ref_id"]: match for match in [*near, *first]}
    named = [match["ref_id"] for match in [*first, *near]]
    # All that hold it back: a person who accepts it must know them.
    chosen = [references[ref_id] for ref_id in list(dict.fromkeys(named))[: max(NEAREST, len({m["ref_id"] for m in first}))]]
    findings = [
        {name: finding[name] for name in ("guard", "category", "score", "threshold", "triggered", "confirmed", "box", "detail")}
        for finding in sorted(row["findings"] or [], key=lambda f: not f["triggered"])
    ]
    return {
        "sample_id": one.sample_id, "request_key": str(row["request_key"]), "pixel_sha256": row["pixel_sha256"] or "",
        "purpose": one.purpose, "outcome": one.outcome, "why": WHY[one.purpose].format(reason=one.reason or row["reason"]),
        "prompt": row["prompt"] or "", "drawn_prompt": row.get("drawn_prompt") or "", "attempts": row["attempts"],
        "picture": picture, "findings": findings,
        "references": [{**match, "picture": shown(match["ref_id"])} for match in chosen], "claims": list(one.claims),
    }  # fmt: skip


def _write_picture(to: Path, sample_id: str, kept: Shown) -> str | None:
    if kept.picture is None:
        return None
    name = f"{PICTURES}/{sample_id}.{kept.suffix}"
    write_file(to, name, kept.data)
    return name


def _shown(to: Path, ref_id: str, reference: Reference, shown: dict[str, str | None]) -> str | None:
    """The file of a reference's picture, written once; None where the index does not show it."""
    if ref_id not in shown:
        picture = reference(ref_id)
        shown[ref_id] = None
        if picture is not None:
            from PIL import Image

            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "PNG")
            shown[ref_id] = f"{REFERENCES}/{ref_id}.png"
            write_file(to, str(shown[ref_id]), stream.getvalue())
    return shown[ref_id]


def _write_rows(to: Path, items: Sequence[dict[str, Any]], form: str) -> str:
    """The rows as JSONL or Parquet; returns their digest."""
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in item.items()} for item in items]
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(flat), stream)
        data, name = stream.getvalue(), "rows.parquet"
    else:
        data, name = b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items), "rows.jsonl"
    write_file(to, name, data)
    return hashlib.sha256(data).hexdigest()
