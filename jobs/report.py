"""Write a run's report, with the pictures of the references its index may show."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError
from jobs.plan import stored_plan

if TYPE_CHECKING:
    import numpy as np

    from index.store import ReferenceIndex


def report_run(folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Write ``report.html`` and ``report.json`` of a run folder.

    Returns:
        The page, the numbers, and a remark when reference pictures could not be shown (empty otherwise).

    Raises:
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    from pipeline.audit.report import write_report

    pictures, stored = ReferencePictures(folder), stored_plan(folder)
    path, numbers = write_report(folder, pictures, copy_check=stored.get("copy_check"))
    return path, numbers, pictures.remark


class ReferencePictures:
    """Pictures of references by their ids, read from the index when they are asked for.

    The index is looked for where it was when the plan was made. A report without it is still a report: its numbers come from
    the run folder alone.

    Attributes:
        remark: why pictures could not be shown; empty while there is no reason.
    """

    def __init__(self, folder: Path) -> None:
        self._stored = stored_plan(folder)
        self.remark = ""

    def __call__(self, ref_id: str) -> np.ndarray | None:
        """uint8 (H, W, 3), or None where the index does not keep the picture, or is not there."""
        try:
            return None if self._index is None or ref_id not in self._known else self._index.picture(ref_id)
        except ClearanceError as error:
            self.remark = f"no reference pictures in the report: {error}"
            return None

    @cached_property
    def _index(self) -> ReferenceIndex | None:
        from index.store import ReferenceIndex

        try:
            name = self._stored["config"]["index"]
            return ReferenceIndex.open(Path(self._stored["base"]) / name) if name else None
        except (KeyError, TypeError, ClearanceError) as error:
            self.remark = f"no reference pictures in the report: {error}"
            return None

    @cached_property
    def _known(self) -> set[str]:
        return {reference.ref_id for reference in self._index.references()} if self._index is not None else set()
