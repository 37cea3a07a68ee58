"""A data set as one: the runs that continue one another, of each request the latest outcome, nothing counted twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, InputError
from index.printable import visible
from jobs.export.select import Source
from jobs.run.dataset.chain import Chain, Member
from pipeline.outcome import Outcome

if TYPE_CHECKING:
    from jobs.show import Shown
    from pipeline.audit.numbers import Counts
    from pipeline.audit.stage_proof import Trust
    from pipeline.audit.verify import Verification
    from pipeline.copy_check import CopyCheck


@dataclass(frozen=True, kw_only=True)
class RunInSet:
    """One run of a data set.

    Attributes:
        name: of its folder. run_id: its id. sealed: whether it is finished.
        requests: of its plan. ended: rows. counted: rows that no later run has replaced.
        outcomes: of these, as they are in force now.
        waiting: of these, how many wait for a person.
    """

    name: str
    run_id: str
    sealed: bool
    requests: int
    ended: int
    counted: int
    outcomes: dict[str, int]
    waiting: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A data set in numbers.

    Attributes:
        dataset_id: its name. runs: its runs, the oldest first.
        counts: of the rows in force. checks: what the copy check of each run is worth, by name of the run.
        superseded: rows that a later run has replaced; they, and what they cost, are in no other number.
    """

    dataset_id: str
    runs: tuple[RunInSet, ...]
    counts: Counts
    checks: dict[str, CopyCheck | None]
    superseded: int

    @property
    def outcomes(self) -> Counter[str]:
        """Outcomes in force: those of the rows, with what reviews and claims have changed since."""
        total: Counter[str] = Counter()
        for run in self.runs:
            total.update(run.outcomes)
        return total

    @property
    def check(self) -> CopyCheck | None:
        """The copy check of the latest run."""
        return self.checks[self.runs[-1].name]

    @property
    def one_check(self) -> bool:
        """Whether every run has the same."""
        return all(check == self.check for check in self.checks.values())

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        from pipeline.audit.summary import plain

        return {
            "dataset_id": self.dataset_id,
            "runs": [asdict(run) for run in self.runs],
            "outcomes_in_force": dict(sorted(self.outcomes.items())),
            "review_queue": sum(run.waiting for run in self.runs),
            "superseded": self.superseded,
            "same_copy_check": self.one_check,
            **plain(self.counts, self.check),
        }


def summary(chain: Chain) -> Summary:
    """Count a data set.

    Raises:
        ClearanceError: a file of a run cannot be read, or was changed.
    """
    from pipeline.audit.binding import PLAN_FILE
    from pipeline.audit.numbers import Counts, count_into
    from pipeline.copy_check import CopyCheck

    counts, runs, checks = Counts(), [], {}
    for one, counted in zip(chain.members, chain.counted, strict=True):
        count_into([counts], one.folder, keys=counted)
        runs.append(_run_in_set(one, counted))
        where = str(one.folder / PLAN_FILE)
        checks[one.folder.name] = CopyCheck.read(one.stored.get("copy_check"), where=where)
    superseded = sum(run.ended - run.counted for run in runs)
    return Summary(dataset_id=chain.dataset_id, runs=tuple(runs), counts=counts, checks=checks, superseded=superseded)


def _run_in_set(one: Member, counted: Container[str]) -> RunInSet:
    from jobs.reaudit.standing import Standing
    from jobs.review.queue import waiting
    from pipeline.audit.ledger import sample_rows

    standing = Standing.of(one.folder)
    ended, outcomes, ids = 0, Counter[str](), set[str]()
    for row in sample_rows(one.folder, ["sample_id", "request_key", "outcome"]):
        ended += 1
        if row["request_key"] in counted:
            ids.add(row["sample_id"])
            outcomes[str(standing.outcome(row["sample_id"], row["outcome"]))] += 1
    return RunInSet(
        name=one.folder.name, run_id=str(one.stored["run_id"]), sealed=one.sealed, requests=int(one.stored["requests"]),
        ended=ended, counted=outcomes.total(), outcomes=dict(sorted(outcomes.items())),
        waiting=sum(found.sample_id in ids for found in waiting(one.folder, standing)),
    )  # fmt: skip


def show_in(chain: Chain, key: str) -> tuple[Path, Shown, list[str]]:
    """A request of a data set, in the run whose outcome of it is in force.

    Returns:
        That run's folder, the request, and the names of earlier runs that hold it too.

    Raises:
        InputError: no run holds it, or several requests are meant.
        IntegrityError: a file of a run cannot be read.
    """
    from jobs.show import show_request

    found: list[tuple[Path, Shown]] = []
    refused: InputError | None = None
    for one in reversed(chain.members):
        try:
            found.append((one.folder, show_request(one.folder, key, near=not found and refused is None)))
        except InputError as error:
            refused = refused or error
    if not found:
        assert refused is not None  # there is at least one run
        raise refused
    (folder, shown), *earlier = found
    return folder, shown, [place.name for place, _ in earlier]


def sources_of(chain: Chain) -> list[Source]:
    """The runs to export from, each with the requests that are in force."""
    pairs = zip(chain.members, chain.counted, strict=True)
    return [Source(folder=one.folder, counted=counted) for one, counted in pairs]


def write_set_report(chain: Chain, damaged: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """Write ``report.html`` and ``report.json`` of a data set, beside its runs.

    Args:
        chain: the runs.
        damaged: by name of the run, what is wrong with it; empty where it is intact.

    Returns:
        The page, and what the JSON holds.
    """
    import jinja2

    from index.storage import write_file
    from jobs.funnel import lines, rows
    from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON

    found, folder = summary(chain), chain.last.folder.parent
    template = (Path(__file__).parent / "dataset.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template)
    text = page.render(
        found=found,
        links={one.folder.name: f"{one.folder.name}/{REPORT_HTML}" for one in chain.members},
        damaged={one.folder.name: visible(damaged.get(one.folder.name, "")) for one in chain.members},
        waiting=sum(run.waiting for run in found.runs),
        rows={label: values[0] for label, values in rows({"set": found.counts}).items()},
        lines=lines(found.counts, found.check),
        listed=listed,
    )
    content = {**found.plain(), "damaged": dict(damaged)}
    write_file(folder, REPORT_JSON, json.dumps(content, indent=1).encode() + b"\n")
    write_file(folder, REPORT_HTML, text.encode())
    return folder / REPORT_HTML, content


def listed(outcomes: Mapping[str, int]) -> str:
    """Outcomes in words: "3 accepted, 1 accepted after steering"."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(outcomes.items())) or "none"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What verifying a data set found: of each run, by name of its folder; and of the runs together."""

    runs: dict[str, Verification]
    together: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.together and all(found.ok for found in self.runs.values())


def verify_set(chain: Chain, salt: str | None, trust: Trust) -> Verified:
    """Verify every run of a data set, and that its runs belong together.

    Raises:
        ClearanceError: a folder is no run any more.
    """
    from jobs.run.verdict import verify_run

    found = {one.folder.name: verify_run(one.folder, salt, trust) for one in chain.members}
    together: list[str] = []
    others = sorted({one.dataset_id for one in chain.members} - {chain.dataset_id})
    if others:
        together.append(f"the runs belong to several data sets: {', '.join([chain.dataset_id, *others])}")
    try:
        together += _replaced(chain)
    except ClearanceError as error:
        if all(one.ok for one in found.values()):
            together.append(f"{error.where}: {error.what}")
    return Verified(runs=found, together=tuple(together))


def _replaced(chain: Chain) -> list[str]:
    """Rows in force no more that were no errors: a later run may repeat errors alone."""
    from pipeline.audit.ledger import sample_rows

    found = []
    for one, counted in zip(chain.members, chain.counted, strict=True):
        rows = sample_rows(one.folder, ["request_key", "outcome"])
        odd = [row for row in rows if row["request_key"] not in counted and row["outcome"] != Outcome.ERROR]
        if odd:
            first = f"{odd[0]['request_key']!r} ended there as {odd[0]['outcome']}"
            what = "a later run has" if len(odd) == 1 else "later runs have"
            found.append(f"{one.folder.name}: {what} {len(odd)} requests again that were no errors: {first}")
    return found
