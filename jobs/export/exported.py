"""What an export wrote: the content of its ``export.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What there is in an export.

    Attributes:
        folder: the export. format: its format. only: the outcomes asked for.
        run_id: of the run; roots: what its statement states (empty: the run is not sealed). Of several runs: the latest's id,
            and no roots, because none is over all of them.
        runs: of several runs, the id and the roots of each.
        samples: samples written. left_out: samples selected and not written, by reason.
        columns: the columns beside the picture.
        files: data files, with digest and size.
        fewer_marks: pictures accepted in review that lack a mark which those released by the run carry, by mark.
    """

    folder: Path
    format: str
    only: str
    run_id: str
    roots: dict[str, str]
    samples: int
    left_out: dict[str, int]
    columns: tuple[str, ...]
    files: tuple[dict[str, Any], ...] = field(default=())
    runs: tuple[dict[str, Any], ...] = field(default=())
    fewer_marks: dict[str, int] = field(default_factory=dict)

    @property
    def fewer_marks_note(self) -> str:
        """What to say where pictures lack marks, and what to do; empty where none does."""
        if not self.fewer_marks:
            return ""
        lacking = ", ".join(f"{mark} ({count})" for mark, count in self.fewer_marks.items())
        return (
            f"pictures accepted in review lack marks that the pictures released by the run carry: {lacking}. "
            "Export again with the run's folder of keys: --keys FOLDER"
        )

    def plain(self) -> dict[str, Any]:
        """For JSON, without the place on this machine."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}
