"""The same run has the same counts wherever they are printed: run's end, status, demo, report.json, report.html."""

from __future__ import annotations

import errno
import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from index.errors import IntegrityError, RunStopped
from jobs.cli import main as cli
from jobs.demo import DemoPrompt, show
from jobs.funnel import print_counts
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.config import RunConfig
from pipeline.copy_check import CopyCheck, copy_check_record
from pipeline.outcome import Request, Sample
from pipeline.policy import Policy

from ..counted import one_of_each
from .conftest import FakeRuntime

STICKERS_EMBEDDER = "openclip-a5e0fe2ba4838284"
RECALL = "This check finds 91 % of edited copies (88–94 %, 428 measured); it misses the rest."
# Label on the terminal → measure in report.json, and bar of the funnel in report.html where there is one.
SAME = {
    "requested": ("requested", "Requested"),
    "flagged at first": ("flagged", "Flagged at first"),
    "caught in mid-flight": ("caught", ""),
    "on the first picture": ("acted_on", ""),
    "only observed": ("observed", ""),
    "steered": ("steered", "Steered"),
    "accepted": ("accepted", "Accepted"),
    "after steering": ("accepted_after_steering", ""),
    "too near a reference": ("copy_rate_accepted", "– too near"),
    "near, cleared by the second look": ("cleared_rate_accepted", "– near, cleared"),
    "would have been flagged": ("would_be_flagged_rate", "– observed"),
    "review": ("review", "Review"),
    "rejected": ("rejected", "Rejected"),
    "error": ("error", "Error"),
    "pictures generated": ("pictures", ""),
}
EXPECTED = dict(zip(SAME, (10, 6, 1, 4, 1, 3, 6, 2, 0, 1, 1, 1, 1, 2, 11), strict=True))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return copy_check_record(RunConfig(prompts="p.csv", index="index"), Policy(), STICKERS_EMBEDDER, base=Path("nowhere"))


class Prepared:
    """A loop whose requests end as the samples made for counting; from row ``stop`` on the disk is full."""

    room, busy = True, False

    def __init__(self, runtime: FakeRuntime, stop: int) -> None:
        self.runtime, self.stop = runtime, stop

    def submit(self, request: Request) -> list[Sample]:
        if request.row_no >= self.stop:
            raise OSError(errno.ENOSPC, "No space left on device")
        return [replace(one_of_each()[request.row_no], request=request)]

    def step(self) -> list[Sample]:
        return []


def carried_out(plan: Plan, folder: Path, stop: int = 10) -> Path:
    run_local(plan, folder, open_loop=lambda config, policy, base: Prepared(FakeRuntime(config, policy, base), stop))
    return folder


@pytest.fixture
def plan(make_plan: Any, record: dict[str, Any]) -> Plan:
    return replace(make_plan([f"thing {number}" for number in range(10)], shard_size=5), copy_check=record)


@pytest.fixture
def folder(tmp_path: Path, plan: Plan) -> Path:
    return carried_out(plan, tmp_path / "run")


def call(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)
    assert done.exit_code == 0, done.output
    return done.stdout


def recorded() -> Console:
    return Console(width=160, record=True, file=io.StringIO())


def table_rows(text: str, column: int) -> dict[str, int]:
    """Labels and whole numbers of a table with lines."""
    rows = (line.strip("│ ").split("│") for line in text.splitlines() if "│" in line)
    return {row[0].strip(): int(row[column]) for row in rows if row[column].strip().isdigit()}


def grid_rows(text: str) -> dict[str, int]:
    """Labels and whole numbers of a table without lines."""
    found = (re.fullmatch(r"\s*(\S.*?)\s{2,}(\d+)\s*", line) for line in text.splitlines())
    return {match[1]: int(match[2]) for match in found if match}


def of_json(numbers: dict[str, Any]) -> dict[str, int]:
    measures = numbers["measures"]
    return {label: measures[name].get("k", measures[name]["value"]) for label, (name, _) in SAME.items()}


def bars(page: str) -> dict[str, int]:
    """Labels and numbers of the table of bars."""
    table = page[page.index('<table class="bars">') :].split("</table>")[0]
    found = re.findall(r'<th scope="row">([^<]+)</th>.*?<td class="total">(\d+)</td>', table)
    return {unescape(label): int(number) for label, number in found}


def plain_text(text: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_a_run_ends_with_its_counts(folder: Path) -> None:
    console = recorded()
    print_counts(folder, console)
    assert table_rows(console.export_text(), 1) == EXPECTED


def test_status_has_the_same_counts(folder: Path) -> None:
    found = grid_rows(call("status", folder))
    assert {label: found[label] for label in SAME} == EXPECTED
    assert of_json(json.loads(call("status", folder, "--json"))) == EXPECTED


def test_the_report_has_the_same_counts(folder: Path) -> None:
    printed = json.loads(call("report", folder, "--json"))
    assert of_json(printed) == EXPECTED
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert bars(page) == {bar: EXPECTED[label] for label, (_, bar) in SAME.items() if bar} | {"Generated": 9}
    rows = re.findall(r'<th scope="row" class="nowrap">(.*?)</th><td class="n nowrap" data-label="Value">(.*?)</td>', page)
    listed = {name: value for name, value in rows if value.isdigit()}
    counted = {
        name.replace("_", " "): label for label, (name, _) in SAME.items() if not name.endswith("_rate") and "rate_" not in name
    }
    assert {label: int(listed[name]) for name, label in counted.items()} == {
        label: EXPECTED[label] for label in counted.values()
    }


def test_the_demo_has_the_same_counts(folder: Path) -> None:
    console = recorded()
    prompts = [DemoPrompt("protected", f"row-{number:06d}", "") for number in range(5)]
    numbers = show({"observed": folder, "steered": folder}, prompts, console)
    text = console.export_text()
    assert table_rows(text, 1) == table_rows(text, 2) == EXPECTED
    assert [of_json(run) for run in numbers.values()] == [EXPECTED, EXPECTED]
    assert "without steering: 2 of 5 protected captions copy" in text  # row 3 was caught, row 4 was flagged
    assert f"report:   {folder / 'report.html'}" in text


def test_the_sentences_are_the_same_everywhere(folder: Path) -> None:
    console = recorded()
    print_counts(folder, console)
    printed = plain_text(console.export_text())
    report = json.loads(call("report", folder, "--json"))
    page = plain_text((folder / "report.html").read_text(encoding="utf-8"))
    status = plain_text(call("status", folder))
    for topic, sentence in report["sentences"].items():
        assert plain_text(sentence) in page, topic
        assert plain_text(sentence) in status, topic
        assert plain_text(sentence) in printed, topic
    assert set(report["sentences"]) == {"observed", "copies", "nearest", "check", "measured_on"}
    assert plain_text(report["sentences"]["check"]).startswith(RECALL)


def test_an_unfinished_run_has_counts_and_recall(tmp_path: Path, plan: Plan) -> None:
    folder = tmp_path / "stopped"
    with pytest.raises(RunStopped):
        carried_out(plan, folder, stop=7)
    status = json.loads(call("status", folder, "--json"))
    assert (status["requests"], status["measures"]["flagged"]["value"]) == ("5 of 10 ended, 100 % accepted", 3)
    assert plain_text(status["sentences"]["check"]).startswith(RECALL)
    assert RECALL in plain_text(call("status", folder))
    report = json.loads(call("report", folder, "--json"))
    assert report["measures"] == status["measures"] and report["sentences"] == status["sentences"]


# --- what the check is worth, in the plan and in the seal ------------------------------------------------------------------


def test_the_record_is_sealed_with_the_run(folder: Path, record: dict[str, Any]) -> None:
    statement = json.loads((folder / "run.json").read_bytes())
    assert statement["predicate"]["copy_check"] == json.loads(json.dumps(record))


def test_the_record_is_bound_by_the_plan(folder: Path, plan: Plan, record: dict[str, Any]) -> None:
    better = {**record, "recall": {**record["recall"], "hits": 428}}
    assert replace(plan, copy_check=better).plan_sha256 != plan.plan_sha256
    assert Plan.load(folder).plan_sha256 == plan.plan_sha256
    stored = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**stored, "copy_check": better}))
    with pytest.raises(IntegrityError, match=re.escape("plan.json")):
        Plan.load(folder)


def test_a_threshold_set_by_the_policy_is_named() -> None:
    policy = Policy(copies=replace(Policy().copies, threshold=0.85))
    record = copy_check_record(RunConfig(prompts="p.csv", index="index"), policy, STICKERS_EMBEDDER, base=Path("nowhere"))
    check = CopyCheck.read(record, "plan.json")
    assert check is not None and (check.set_by, check.threshold, check.recall, check.warning) == ("policy", 0.85, None, "")
    assert check.sentence.startswith("Threshold set by the policy (0.850): recall not measured.")


def test_a_run_without_index_has_no_check() -> None:
    assert copy_check_record(RunConfig(prompts="p.csv"), Policy(), "", base=Path("nowhere")) == {}
    assert CopyCheck.read({}, "plan.json") is None


@pytest.mark.parametrize(
    ("hits", "forced", "warned"),
    [(428, False, False), (235, False, False), (230, False, True), (0, False, True), (428, True, True)],
)
def test_a_check_is_warned_of_by_the_lower_end_of_its_recall(
    record: dict[str, Any], hits: int, forced: bool, warned: bool
) -> None:
    """Of 428 copies 235 show at least half, 230 do not; a forced calibration is always named."""
    check = CopyCheck.read(record | {"recall": {"hits": hits, "n": 428}, "forced": forced}, "plan.json")
    assert check is not None and bool(check.warning) == warned


def test_the_lower_recall_is_the_one_to_state(record: dict[str, Any]) -> None:
    check = CopyCheck.read(record | {"either_recall": {"hits": 300, "n": 428}}, "plan.json")
    assert check is not None and check.found is not None and check.found.hits == 300


@pytest.mark.parametrize("odd", [None, "text", 7, [], {}, {"hits": 9, "n": 1}, {"hits": "x", "n": 1}, float("nan")])
@pytest.mark.parametrize("key", ["set_by", "threshold", "recall", "false_positive_rate", "least_recall", "veto_below"])
def test_an_odd_record_is_named(record: dict[str, Any], key: str, odd: object) -> None:
    allowed = odd is None and key in ("recall", "false_positive_rate")
    allowed |= odd == 7 and key in ("threshold", "least_recall", "veto_below")
    if allowed:
        assert CopyCheck.read(record | {key: odd}, "plan.json") is not None
        return
    with pytest.raises(IntegrityError, match=re.escape("the record of the copy check cannot be read")):
        CopyCheck.read(record | {key: odd}, "plan.json")


@pytest.mark.parametrize("odd", ["text", 7, [1], True])
def test_a_record_that_is_no_table_is_named(odd: object) -> None:
    with pytest.raises(IntegrityError):
        CopyCheck.read(odd, "plan.json")
