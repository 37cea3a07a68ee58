"""Whatever is wrong with a file: a sentence and exit 2, or a whole run. Never a traceback, never a row less.

A few inputs a group, always the same, belong to the suite. ``CLEARANCE_FUZZ=125 pytest tests/fuzz`` tries that many others of
each group (``CLEARANCE_FUZZ_SEED`` chooses which), and lists every kind of failure once.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.groups import GROUPS, Group, out_of_range
from tests.fuzz.project import COUNTS, RUN, call, write_toml

MANY, SEED = int(os.environ.get("CLEARANCE_FUZZ", "0")), int(os.environ.get("CLEARANCE_FUZZ_SEED", "0"))
ENDED, REFUSED, BUG = (0, 4), (1, 2), 70  # 4: a run whose requests were errors for more than a quarter


@pytest.mark.slow
def test_the_undamaged_project_is_accepted(project: Path, tmp_path: Path) -> None:
    """With its adapter too: otherwise every input that is refused below would show nothing."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    write_toml(copy / "run.toml", {**RUN, "": {**RUN[""], "adapters": [{"path": "adapter"}]}})
    for command in (("run", copy / "run.toml"), ("index", "info", copy / "index"), ("verify", copy / "done")):
        assert call(*command).exit_code == 0
    _nothing_is_lost(copy, "")


@pytest.mark.slow
@pytest.mark.skipif(MANY > 0, reason="many inputs are tried instead")
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_damaged_input_ends_in_a_sentence_or_a_whole_run(group: Group, project: Path) -> None:
    @settings(
        max_examples=3, derandomize=True, deadline=None, database=None, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(st.integers(0, 2**63 - 1))
    def attempt(seed: int) -> None:
        _attempt(group, project, seed)

    attempt()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(MANY == 0, reason="CLEARANCE_FUZZ is not set")
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_many_damaged_inputs(group: Group, project: Path) -> None:
    failures: dict[str, str] = {}
    for seed in range(SEED, SEED + MANY):
        try:
            _attempt(group, project, seed)
        except AssertionError as error:
            told = str(error).split("\nassert")[0]
            kind = re.sub(r"/\S+|\d+|seed", "", next((line for line in told.splitlines() if "error:" in line), told))
            failures.setdefault(kind, told)
            COUNTS[group.__name__]["failures"] += 1
    assert not failures, f"{len(failures)} kinds:\n" + "\n---\n".join(failures.values())


def _attempt(group: Group, project: Path, seed: int) -> None:
    folder = Path(tempfile.mkdtemp(dir=project.parent))
    try:
        copy = folder / "project"
        shutil.copytree(project, copy, symlinks=True)
        what, commands = group(copy, random.Random(seed))
        COUNTS[group.__name__]["inputs"] += 1
        refused = False
        for command in commands:
            result = call(*command)
            shown = f"{what} (seed {seed}): {' '.join(map(str, command[:2]))}\n{result.output[-1500:]}"
            assert result.exit_code != BUG and "Traceback" not in result.output, shown
            assert result.exit_code in (*ENDED, *REFUSED), f"exit {result.exit_code}: {shown} {result.exception!r}"
            refused = refused or result.exit_code in REFUSED
            if command[0] == "run" and "--dry-run" not in command and result.exit_code in ENDED:
                _nothing_is_lost(copy, shown)
        COUNTS[group.__name__]["refused" if refused else "accepted"] += 1
        assert refused or group is not out_of_range, f"accepted in silence: {what} (seed {seed})"
    finally:
        shutil.rmtree(folder)


def _nothing_is_lost(project: Path, shown: str) -> None:
    """Every request of the plan has its row, in order, and the seal holds."""
    from jobs.run.plan import Plan
    from pipeline.audit.ledger import sample_rows
    from pipeline.audit.verify import verify

    folder = next(f for f in (project / "out", project / "done") if (f / "plan.json").exists())
    assert [row["request_key"] for row in sample_rows(folder)] == [r.key for r in Plan.load(folder).requests], shown
    assert verify(folder).ok, shown
