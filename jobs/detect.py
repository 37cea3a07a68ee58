"""Look for marks in files and folders, and for the pictures among those that runs released."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from index.errors import ClearanceError, InputError
from index.picture import UnreadablePicture, read_picture, why_no_picture
from index.walk import files_below
from jobs.run.planning.stored_plan import stored_plan
from pipeline.audit.lookup import ISCC_NEAR, PDQ_NEAR, Released
from pipeline.keys import Keys
from pipeline.marking.detect import Detector, Layer
from pipeline.marking.watermark import DEFAULT, run_tag

LARGEST = 256 << 20  # bytes of a file
Verdict = Literal["identified", "not identified", "failed", "damaged"]
FINGERPRINT_ALARMS = (
    f"none among 62 different drawings (88 bits apart or more; a copy has at most {ISCC_NEAR} by ISCC or {PDQ_NEAR} by PDQ); "
    "drawings that look alike pass"
)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One file.

    Attributes:
        file: as it was named or found.
        verdict: ``failed``: a layer fails; ``identified`` as generated: one passes and none fails; ``not identified``: none
            passes; ``damaged``: the picture cannot be read.
        layers: what each look found; none for a damaged file.
        problem: why the file is damaged.
    """

    file: str
    verdict: Verdict
    layers: tuple[Layer, ...] = ()
    problem: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class Summary:
    """Counts over the files that were looked at."""

    verdicts: Counter[str] = field(default_factory=Counter)
    layers: dict[str, Counter[str]] = field(default_factory=dict)
    other_files: int = 0

    def add(self, looked: Looked) -> None:
        self.verdicts[looked.verdict] += 1
        for layer in looked.layers:
            self.layers.setdefault(layer.name, Counter())[layer.state] += 1

    @property
    def files(self) -> int:
        return sum(self.verdicts.values())

    @property
    def exit_code(self) -> int:
        """0: every picture is identified; 1: a layer fails, or a picture cannot be read; 3: neither, and one is not or there
        is none."""
        if self.verdicts["failed"] or self.verdicts["damaged"]:
            return 1
        return 3 if self.verdicts["not identified"] or not self.files else 0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "files": self.files, "verdicts": dict(self.verdicts), "other_files": self.other_files,
            "layers": {name: dict(states) for name, states in self.layers.items()},
        }  # fmt: skip


class Detection:
    """Looks at files with the keys of a deployment and the rows of runs.

    Args:
        keys: see :class:`pipeline.marking.detect.Detector`.
        runs: run folders whose released pictures are compared with; none: no fingerprints are looked at.
        schemes: watermarks to look for.

    Raises:
        ClearanceError: a key or a run cannot be read, or a watermark cannot run here.
    """

    def __init__(self, keys: Sequence[Keys] = (), runs: Sequence[Path] = (), schemes: Sequence[str] = (DEFAULT,)) -> None:
        self.detector, self.runs = Detector(keys, schemes), tuple(runs)
        self.released = Released(runs) if runs else None
        self.tags = {f"{run_tag(str(stored_plan(run)['plan_sha256'])):08x}": run.name for run in runs}
        self.summary = Summary()

    def look(self, place: Path) -> Iterator[Looked]:
        """One file, or every picture below a folder; files that are no pictures are counted.

        Raises:
            InputError: there is no such place, or a folder cannot be listed.
        """
        if place.is_dir():
            for path in files_below(place):
                if self._is_picture(path):
                    yield self._file(path)
        elif place.exists():
            yield self._file(place)
        else:
            raise InputError("does not exist", where=str(place), fix="Name a picture or a folder of pictures")

    def _is_picture(self, path: Path) -> bool:
        try:
            other = why_no_picture(path)
        except UnreadablePicture:
            return True  # it should be one: it becomes a line
        self.summary.other_files += other is not None
        return other is None

    def _file(self, path: Path) -> Looked:
        looked = self._looked(path)
        self.summary.add(looked)
        return looked

    def _looked(self, path: Path) -> Looked:
        try:
            if path.stat().st_size > LARGEST:
                return Looked(file=str(path), verdict="damaged", problem=f"is larger than {LARGEST >> 20} MiB")
            data = path.read_bytes()
            layers = self.detector.look(data)
            layers = [self._with_run(layer) for layer in layers] + [self._fingerprint(data)]
        except ClearanceError as error:
            return Looked(file=str(path), verdict="damaged", problem=error.what)
        except OSError as error:
            problem = f"cannot be read ({error.strerror or type(error).__name__})"
            return Looked(file=str(path), verdict="damaged", problem=problem)
        states = {layer.state for layer in layers}
        verdict: Verdict = "failed" if "fail" in states else "identified" if "pass" in states else "not identified"
        return Looked(file=str(path), verdict=verdict, layers=tuple(layers))

    def _with_run(self, layer: Layer) -> Layer:
        """A watermark whose payload is the tag of one of the runs names that run."""
        run = self.tags.get(str(layer.facts.get("payload")))
        if run is None or layer.state != "pass":
            return layer
        return Layer(
            name=layer.name, state=layer.state, what=f"{layer.what}: the tag of run {run}", false_alarms=layer.false_alarms,
            facts={**layer.facts, "run": run},
        )  # fmt: skip

    def _fingerprint(self, data: bytes) -> Layer:
        name = "fingerprint"
        if self.released is None:
            what = "not looked at: no run is named (--run)"
            return Layer(name=name, state="skip", what=what, false_alarms=FINGERPRINT_ALARMS)
        found = self.released.like(read_picture(data), data)
        if not found:
            what = f"like none of {len(self.released):,} released pictures; a cropped, turned or mirrored one is not found"
            return Layer(name=name, state="absent", what=what, false_alarms=FINGERPRINT_ALARMS)
        first = found[0]
        how = "the released file itself" if first.same_file else f"{first.bits} of 256 bits from the released picture"
        more = f", and like {len(found) - 1} more" if len(found) > 1 else ""
        facts = {
            "run": first.folder.name, "request_key": first.request_key, "sample_id": first.sample_id,
            "same_file": first.same_file, "pdq_bits": first.pdq_bits, "iscc_bits": first.iscc_bits, "like": len(found),
        }  # fmt: skip
        what = f"{how}: {first.request_key} of run {first.folder.name}{more}"
        return Layer(name=name, state="pass", what=what, false_alarms=FINGERPRINT_ALARMS, facts=facts)
