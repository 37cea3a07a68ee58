"""Write a run's report, with the pictures of the references its index may show."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, IntegrityError
from jobs.run.stored_plan import stored_plan

if TYPE_CHECKING:
    import numpy as np

    from index.store import ReferenceIndex


def report_run(folder: Path, base: Path | None = None) -> tuple[Path, dict[str, Any], str]:
    """Write ``report.html`` and ``report.json`` of a run folder.

    Args:
        folder: the run folder.
        base: the run file's folder, where the index is looked for; see :class:`ReferencePictures`.

    Returns:
        The page, the numbers, and a remark when reference pictures could not be shown (empty otherwise).

    Raises:
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    from pipeline.audit.report import write_report

    pictures = ReferencePictures(folder, base)
    path, numbers = write_report(folder, pictures, copy_check=pictures.stored.get("copy_check"))
    return path, numbers, pictures.remark


class ReferencePictures:
    """Pictures of references by their ids, read from the index when they are needed.

    The index is looked for from the run file's folder, which a run folder knows when it lies inside. A report without it is
    still a report: its numbers come from the run folder alone.

    Attributes:
        stored: the run's plan.json; empty when it cannot be read.
        remark: why pictures could not be shown; empty while there is no reason.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self.remark, self.stored = "", dict[str, Any]()
        try:
            self.stored = stored_plan(folder)
        except IntegrityError as error:  # the verdict on the cover says so
            self.remark = f"no reference pictures in the report: {error}"
        up = self.stored.get("base", "")
        self._base = base or (folder / up if up else None)

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
            name = self.stored["config"]["index"] if self.stored else ""
            if name and self._base is None:
                where = "the run folder does not lie in the run file's folder; name the run file: clearance report RUN.toml"
                self.remark = f"no reference pictures in the report: {where}"
            return ReferenceIndex.open(self._base / name) if name and self._base is not None else None
        except (KeyError, TypeError, ClearanceError) as error:
            self.remark = f"no reference pictures in the report: {error}"
            return None

    @cached_property
    def _known(self) -> set[str]:
        return {reference.ref_id for reference in self._index.references()} if self._index is not None else set()
