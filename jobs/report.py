"""Write a run's report, with the pictures of the references its index may show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError
from jobs.plan import stored_plan

if TYPE_CHECKING:
    import numpy as np


def report_run(folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Write ``report.html`` and ``report.json`` of a run folder.

    Returns:
        The page, the numbers, and a remark when reference pictures could not be shown (empty otherwise).

    Raises:
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    from pipeline.audit.report import write_report

    pictures, remark = reference_pictures(folder)
    path, numbers = write_report(folder, references=pictures)
    return path, numbers, remark


def reference_pictures(folder: Path) -> tuple[dict[str, np.ndarray | None], str]:
    """Pictures uint8 (H, W, 3) of the references that any attempt of the run came near to, and a remark if there are none.

    The index is looked for where it was when the plan was made. A report without it is still a report: its numbers come from
    the run folder alone.
    """
    stored = stored_plan(folder)
    if not stored["config"]["index"]:
        return {}, ""
    from index.store import ReferenceIndex
    from pipeline.audit.ledger import attempt_rows

    near = {match["ref_id"] for row in attempt_rows(folder, ["nearest"]) for match in row["nearest"]}
    try:
        index = ReferenceIndex.open(Path(stored["base"]) / stored["config"]["index"])
        kept = {reference.ref_id for reference in index.references()}
        return {ref_id: index.picture(ref_id) for ref_id in sorted(near & kept)}, ""
    except ClearanceError as error:
        return {}, f"no reference pictures in the report: {error}"
