"""Write a run's report, with the pictures of the references its index may show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, IntegrityError
from index.storage import entry_of, is_uri, place, read_object
from jobs.run.planning.stored_plan import stored_plan

if TYPE_CHECKING:
    import numpy as np

    from index.store import ReferenceIndex
    from pipeline.audit.sections.beside import Beside
    from pipeline.audit.stage_proof import Trust


def report_run(
    folder: Path, base: Path | None = None, *, salt: str | None = None, trust: Trust | None = None
) -> tuple[Path, dict[str, Any], str]:
    """Write ``report.html`` and ``report.json`` of a run folder, and the event that names their digests.

    Args:
        folder: the run folder.
        base: the run file's folder, where the index is looked for; see :class:`ReferencePictures`.
        salt: the deployment's secret salt. trust: whom to trust for signature and time stamp.

    Returns:
        The page, its content, and a remark: why reference pictures could not be shown, or why no event names the report.
        Empty otherwise.

    Raises:
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    from jobs.run.verdict import verify_run
    from pipeline.audit.events import NewEvent, append_events
    from pipeline.audit.report import write_report
    from pipeline.audit.report_digest import REPORTED, digests_of
    from pipeline.audit.stage_proof import NOBODY

    pictures = ReferencePictures(folder, base)
    verification = verify_run(folder, salt, trust or NOBODY, reports=False)
    beside = dataclasses.replace(beside_run(folder, pictures), verification=verification)
    path, content = write_report(folder, pictures, copy_check=pictures.stored.get("copy_check"), beside=beside)
    remarks = [pictures.remark]
    try:
        append_events(folder, [NewEvent(kind=REPORTED, actor="reporter", reason="report written", digests=digests_of(folder))])
    except ClearanceError as error:  # the page is there, and says on top that the events are damaged
        remarks.append(f"no event names the report: {error}")
    return path, content, "; ".join(remark for remark in remarks if remark)


def beside_run(folder: Path, pictures: ReferencePictures) -> Beside:
    """What a report shows beside the run folder: the index, the default policy, and other runs of the data set."""
    from jobs.earlier import previous_run, runs_beside, unsteered
    from jobs.run.plan import read_policy
    from pipeline.audit.sections.beside import Beside
    from pipeline.audit.shards import RUN_FILE
    from pipeline.marking.robustness import measured

    stored = pictures.stored
    try:
        mine = read_object(folder, RUN_FILE)["predicate"] if entry_of(folder, RUN_FILE) is not None else {}
    except (ClearanceError, KeyError):
        mine = {}  # the verdict on the cover says so
    mine = mine if isinstance(mine, dict) else {}
    config = stored.get("config")
    dataset_id = str(mine.get("dataset_id") or (config or {}).get("dataset_id") or "")
    others = runs_beside(folder, dataset_id)
    return Beside(
        planned=stored,
        default_policy=dataclasses.asdict(read_policy("default", folder)),
        previous=previous_run(mine or {"started_at": stored.get("created_at")}, others),
        index=pictures.facts(str(mine.get("index_id", ""))),
        about=pictures.about,
        robustness=measured(),
        unsteered=lambda sample_ids: unsteered(mine, others, sample_ids),
    )


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
        except IntegrityError as error:  # the verdict on the cover reports it
            self.remark = f"no reference pictures in the report: {error}"
        up = self.stored.get("base", "")
        self._base = base or (folder / up if up else None)

    def __call__(self, ref_id: str) -> np.ndarray | None:
        """uint8 (H, W, 3), or None where the index does not keep the picture, or is not there."""
        try:
            return None if self._index is None or self._index.get(ref_id) is None else self._index.picture(ref_id)
        except ClearanceError as error:
            self.remark = f"no reference pictures in the report: {error}"
            return None

    def about(self, ref_id: str) -> Mapping[str, str]:
        """Rightsholder, licence, source and claim of a reference; nothing where the index is not there."""
        known = self._index.get(ref_id) if self._index is not None else None
        names = ("rightsholder", "licence", "source_uri", "claim_id")
        return {} if known is None else {name: str(getattr(known, name)) for name in names}

    def facts(self, since: str) -> dict[str, Any] | None:
        """What the index holds now, and its changes since that ``index_id``; None where it is not there."""
        from jobs.earlier import index_facts

        return None if self._index is None else index_facts(self._index, since)

    @cached_property
    def _index(self) -> ReferenceIndex | None:
        from index.store import ReferenceIndex

        try:
            name = self.stored["config"]["index"] if self.stored else ""
            if name and self._base is None and not is_uri(name):
                where = "the run folder does not lie in the run file's folder; name the run file: clearance report RUN.toml"
                self.remark = f"no reference pictures in the report: {where}"
            return ReferenceIndex.open(place(name, self._base)) if name and (self._base is not None or is_uri(name)) else None
        except (KeyError, TypeError, ClearanceError) as error:
            self.remark = f"no reference pictures in the report: {error}"
            return None
