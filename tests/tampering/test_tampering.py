"""Whatever is changed in a run folder is found, and the place named; or it is named as not covered.

A few tamperings of every kind, always the same, belong to the suite. ``CLEARANCE_TAMPER=1000 pytest tests/tampering`` does that
many (``CLEARANCE_TAMPER_SEED`` chooses which) and prints a table by kind. Every tampering is shown to both verifiers.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from index.errors import ClearanceError
from jobs.run.local_runner import run_local
from jobs.run.verdict import verify_run
from pipeline.audit.stage import Problem
from pipeline.audit.stage_proof import NOBODY, Trust
from pipeline.audit.verifier.clearance_verify import Run
from pipeline.audit.verify import Verification, verify
from tests.jobs.conftest import open_fake
from tests.tampering.kinds import KINDS, Kind
from tests.tampering.runs import Runs, copy_of, make_runs

MANY, SEED = int(os.environ.get("CLEARANCE_TAMPER", "0")), int(os.environ.get("CLEARANCE_TAMPER_SEED", "0"))
EACH = 2  # of a kind, in the suite


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(tmp_path_factory.mktemp("tampering"))


def names(places: tuple[str, ...], problems: tuple[Problem, ...]) -> bool:
    return not places or any(problem.where.startswith(place) for place in places for problem in problems)


def judge(kind: Kind, seed: int, runs: Runs, place: Path) -> str:
    """Do it and look; returns what is wrong with the answer, nothing when it is right."""
    folder = copy_of(kind.victim(runs), place)
    places = kind.apply(folder, random.Random(seed), runs)
    if kind.stopped:
        return continued(folder, places, runs)
    found = verify_run(folder, trust=runs.trust)
    if kind.expected == "not covered":
        if not found.ok:
            return f"is a problem: {found.problems[0]}"
        if not any(left.where.startswith(places[0]) for left in found.not_covered):
            return "is not named as not covered"
        return disagreement(kind, folder)
    if found.ok:
        return "was not found"
    if not names(places, found.problems):
        return f"was found at {[p.where for p in found.problems[:3]]}, not at {places}"
    return disagreement(kind, folder)


def disagreement(kind: Kind, folder: Path) -> str:
    """The two verifiers, neither of which has a key, see the same, by the same stage; where only pixels or keys tell, they say
    what they lack."""
    ours, small = verify_run(folder), Run(str(folder)).verify()
    states = {name: state for name, state, _ in small.stages()}
    if kind.by_pixels:
        return "" if not ours.ok and "not decoded here" in small.sentence["pictures"] else "is not named as undecoded"
    if kind.by_key:
        return "" if states["signature"] in ("skip", "fail") else "the signature passes without a key"
    if ours.ok == bool(small.problems):
        return f"verify finds {len(ours.problems)} problems, the small verifier {list(small.problems)[:2]}"
    failed = {stage.name for stage in ours.stages if stage.state == "fail"}
    theirs = {name for name, state in states.items() if state == "fail"}
    return "" if ours.ok or failed & theirs else f"verify fails at {sorted(failed)}, the small verifier at {sorted(theirs)}"


def continued(folder: Path, places: tuple[str, ...], runs: Runs) -> str:
    """Continue a stopped run: what was changed is refused and named, or found afterwards."""
    (runs.plan.base / "space").touch()
    try:
        run_local(runs.plan, folder, open_loop=open_fake, resume=True)
    except ClearanceError as error:
        where = error.where.removeprefix(f"{folder}/")
        return "" if names(places, (Problem(where, error.what),)) else f"was refused at {where}, not at {places}: {error.what}"
    finally:
        (runs.plan.base / "space").unlink()
    found = verify_run(folder)
    return "" if not found.ok and names(places, found.problems) else "was believed, and sealed"


def test_the_untouched_runs_verify_by_both(runs: Runs, tmp_path: Path) -> None:
    """Otherwise everything that is found below would show nothing."""
    for folder in (runs.whole, runs.other, runs.foreign, runs.unerased, runs.erased, runs.compacted):
        trust: Trust = runs.trust if folder != runs.foreign else NOBODY
        found: Verification = verify_run(folder, trust=trust)
        assert found.ok and {s.state for s in found.stages} <= {"pass", "skip"}, found.problems
        assert list(Run(str(folder)).verify().problems) == []
    states = {stage.name: stage.state for stage in verify_run(runs.whole, trust=runs.trust).stages}
    assert set(states.values()) == {"pass"}
    stopped = copy_of(runs.stopped, tmp_path / "run")
    (runs.plan.base / "space").touch()
    run_local(runs.plan, stopped, open_loop=open_fake, resume=True)
    (runs.plan.base / "space").unlink()
    assert verify_run(stopped).ok


def test_an_erasure_passes_both_and_is_counted_by_both(runs: Runs) -> None:
    ours, small = verify(runs.erased), Run(str(runs.erased)).verify()
    assert ours.ok and not small.problems
    assert ours.counts["erased"] == small.counts["erased"] > 4
    assert "erased, as events name them" in small.sentence["pictures"]


def test_the_runs_have_what_is_tampered_with(runs: Runs) -> None:
    for pattern in ("samples/*", "attempts/*", "kept/*", "commits/*", "events/*", "run.dsse.json", "run.tsr", "report.html"):
        assert list(runs.whole.glob(pattern)), pattern


@pytest.mark.slow
@pytest.mark.skipif(MANY > 0, reason="many tamperings are done instead")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_tampering_is_found_and_its_place_named(kind: Kind, runs: Runs, tmp_path: Path) -> None:
    for seed in range(EACH):
        assert judge(kind, seed, runs, tmp_path / str(seed)) == "", f"seed {seed}"


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(MANY == 0, reason="CLEARANCE_TAMPER is not set")
def test_many_tamperings(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, wrong = Counter[str](), list[str]()
    for number in range(MANY):
        kind, seed = KINDS[number % len(KINDS)], SEED + number
        try:
            answer = judge(kind, seed, runs, tmp_path / "run")
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        done[kind.name] += 1
        if answer:
            wrong.append(f"{kind.name} (seed {seed}): {answer}")
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with capsys.disabled():
        print()
        for kind in KINDS:
            failed = sum(line.startswith(f"{kind.name} (") for line in wrong)
            print(f"{done[kind.name] - failed:4d} of {done[kind.name]:4d}  {kind.expected:12s} {kind.name}")
    assert wrong == []
