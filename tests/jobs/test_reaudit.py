"""Looking again at runs of drawings, with the real embedder and the real copies guard."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from index.embed import OpenCLIPEmbedder
from index.errors import IndexMismatch
from index.store import ReferenceIndex
from index.undone import EDITS
from jobs.by import By
from jobs.cli import main as cli
from jobs.compact import compact_run
from jobs.reaudit.facts import RunFacts
from jobs.reaudit.look import Seen, Standard, look
from jobs.reaudit.reaudit import Rules, reaudit
from jobs.reaudit.standing import Standing
from pipeline.audit.events import append_event, read_events
from pipeline.audit.layout import data_files
from pipeline.audit.ledger import sample_rows
from pipeline.audit.requests import Row
from pipeline.audit.verify import verify
from pipeline.policy import MarksPolicy
from tests.jobs.drawn_run import OBSERVE, STRICT, draw, drawing, make_index
from tests.pipeline.test_stored import rewrite
from tests.tampering.forge import put, redo_events, rewritten, table_of

REVIEWED = {"outcome": "accepted"}


class World(NamedTuple):
    base: Path
    index: ReferenceIndex
    embedder: OpenCLIPEmbedder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An index, a run that only observes, and one that acts."""
    base = tmp_path_factory.mktemp("drawn")
    index, embedder = make_index(base / "index")
    draw(base, index, embedder, policy=OBSERVE, out="observed")
    draw(base, index, embedder, policy=STRICT, out="strict")
    return World(base, index, embedder)


@pytest.fixture
def world(drawn: World, tmp_path: Path) -> Iterator[World]:
    """A copy of it that a test may change."""
    shutil.copytree(drawn.base, tmp_path / "world")
    yield World(tmp_path / "world", ReferenceIndex.open(tmp_path / "world" / "index"), drawn.embedder)


def standard(world: World, run: str = "observed") -> Standard:
    facts = RunFacts.of(world.base / run, world.index.embedder_id)
    copies = facts.policy.copies
    return Standard.of(world.index, world.embedder, point=facts.point, k=copies.k, hues=copies.hues)


def rows(folder: Path) -> dict[str, Row]:
    return {row["request_key"]: row for row in sample_rows(folder)}


def born(row: Row) -> set[tuple[str, str, float]]:
    """The copies that the run's guard found."""
    found = (f for f in row["findings"] if f["triggered"] and f["category"].startswith("copy."))
    return {(f["category"], f["ref_id"], f["score"]) for f in found}


def again(seen: Seen) -> set[tuple[str, str, float]]:
    return {(finding.category, finding.ref_id, finding.score) for finding in seen.hits}


def outcomes(folder: Path) -> dict[str, str]:
    """Outcomes in force, by request key."""
    standing = Standing.of(folder)
    return {key: standing.outcome(row["sample_id"], row["outcome"]) for key, row in rows(folder).items()}


def run_again(world: World, run: str = "observed", **rules: Any) -> Any:
    return reaudit(world.index, world.embedder, Rules(**rules), [str(world.base / run)]).runs[0]


# --- the screen and the guard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["observed", "strict"])
def test_it_flags_exactly_what_the_guard_flagged(drawn: World, run: str) -> None:
    found = {seen.request_key: again(seen) for seen in look(drawn.base / run, standard(drawn, run)).hits}
    assert found == {key: flagged for key, row in rows(drawn.base / run).items() if (flagged := born(row))}


@pytest.mark.slow
def test_it_flags_exactly_what_the_guard_flagged_on_drawn_pictures(tmp_path: Path) -> None:
    """The demo's world from prompt to picture: the denoiser that ships, the whole index, a policy that only observes."""
    from index.collect import Reading, Works
    from jobs.demo import DRAWINGS, demo_prompts
    from jobs.run.local_runner import run_local
    from jobs.run.plan import Plan, read_policy
    from pipeline.config import GenerationConfig, RunConfig

    embedder = OpenCLIPEmbedder.open("stickers")
    index = ReferenceIndex.build(tmp_path / "index", Works(DRAWINGS, Reading(keep_pictures=True)), embedder)
    lines = [f"{prompt.key},{prompt.prompt}" for prompt in demo_prompts(12)]
    (tmp_path / "prompts.csv").write_text("\n".join(["key,prompt", *lines]) + "\n", encoding="utf-8")
    config = RunConfig(
        prompts="prompts.csv",
        index="index",
        dataset_id="demo",
        base_seed=20,
        shard_size=6,
        generation=GenerationConfig(steps=8),
    )
    run_local(Plan.make(config, read_policy("observe", tmp_path), tmp_path), tmp_path / "observed")
    world = World(tmp_path, index, embedder)
    found = {seen.request_key: again(seen) for seen in look(tmp_path / "observed", standard(world)).hits}
    assert found == {key: flagged for key, row in rows(tmp_path / "observed").items() if (flagged := born(row))}
    assert len(found) >= 3


def test_the_run_holds_every_kind_of_finding_that_is_compared(drawn: World) -> None:
    found = {category for row in rows(drawn.base / "observed").values() for category, _, _ in born(row)}
    assert found == {"copy.protected", "copy.geometry", "copy.recoloured"}


def test_it_does_not_look_at_what_is_near_to_nothing(drawn: World) -> None:
    looked = look(drawn.base / "observed", standard(drawn))
    assert looked.compared == 22
    assert "other-ant" not in {seen.request_key for seen in looked.seen}


def test_every_picture_can_be_looked_at(drawn: World) -> None:
    looked = look(drawn.base / "observed", dataclasses.replace(standard(drawn), every_picture=True))
    assert len(looked.seen) == 22
    assert {s.request_key for s in looked.hits} == {key for key, row in rows(drawn.base / "observed").items() if born(row)}


def test_progress_goes_on_while_pictures_are_looked_at(drawn: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at pictures takes most of the time, and nothing told of it."""
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr("jobs.reaudit.look.AT_ONCE", 4)
    looked = look(
        drawn.base / "observed",
        dataclasses.replace(standard(drawn), every_picture=True),
        progress=lambda *now: told.append(now),
    )
    first = told.index((22, 0, 22))
    assert [compared for compared, done, near in told[:first]] == [8, 16, 22] and not any(near for *_, near in told[:first])
    assert [done for _, done, _ in told[first:]] == [0, 4, 8, 12, 16, 20, 22] and len(looked.seen) == 22


def test_a_line_is_printed_for_every_so_many_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli.again import watching

    with watching() as progress:
        for now in ((99_000, 0, 0), (250_000, 0, 0), (250_000, 0, 1000), (250_000, 32, 1000), (250_000, 512, 1000)):
            progress("monday", *now)
        progress("small", 20, 3, 20)
    assert capsys.readouterr().err.splitlines() == [
        "monday: 250000 embeddings compared",
        "monday: 0 of 1000 samples that came near are looked at",
        "monday: 512 of 1000 samples that came near are looked at",
    ]


def test_an_erased_embedding_leaves_the_picture_to_look_at(world: World) -> None:
    _erase(world, "copy-anchor", "embedding")
    found = look(world.base / "observed", standard(world))
    assert "copy-anchor" in {seen.request_key for seen in found.hits} and not found.unreached


def test_an_erased_picture_leaves_the_embedding_and_is_named(world: World) -> None:
    sample_id = _erase(world, "copy-anchor", "image")
    found = look(world.base / "observed", standard(world))
    seen = next(seen for seen in found.seen if seen.request_key == "copy-anchor")
    assert seen.by == "embedding" and [hit.category for hit in seen.hits] == ["copy.protected"]
    assert [where for where, _ in found.unreached] == [sample_id]


def test_without_embedding_and_picture_it_is_named_and_nothing_is_claimed(world: World) -> None:
    sample_id = _erase(world, "copy-anchor", "image")
    _erase(world, "copy-anchor", "embedding")
    found = look(world.base / "observed", standard(world))
    assert "copy-anchor" not in {seen.request_key for seen in found.seen}
    gone = "its picture is gone, and no event names it as erased"
    assert found.unreached == [(sample_id, f"its embedding was erased, and {gone}: it was not looked at")]


def test_a_marked_picture_is_judged_by_the_embedding_of_the_unmarked_one(world: World) -> None:
    """Its pixels are not those that the guards saw, so the stored embedding stands for them."""
    put(world.base / "observed", "copy-anchor", "pixel_sha256", "0" * 64)
    seen = next(s for s in look(world.base / "observed", standard(world)).hits if s.request_key == "copy-anchor")
    exact = next(
        score for category, _, score in born(rows(world.base / "observed")["copy-anchor"]) if category == "copy.protected"
    )
    score = next(hit.score for hit in seen.hits if hit.category == "copy.protected")
    assert score != exact and score == pytest.approx(exact, abs=2**-11)


def _erase(world: World, key: str, column: str) -> str:
    """A row as an erasure leaves it, and no event about it."""
    return put(world.base / "observed", key, column, None)


# --- what comes of it ------------------------------------------------------------------------------------------------------


def test_a_policy_that_only_observes_holds_nothing_back(world: World) -> None:
    found = run_again(world)
    assert (len(found.quarantined), len(found.observed)) == (0, 12)
    assert set(outcomes(world.base / "observed").values()) == {"accepted"}


def test_a_stricter_policy_holds_back_what_it_would_not_release(world: World) -> None:
    found = run_again(world, policy=STRICT)
    assert {change.request_key for change in found.quarantined} == {
        key for key, row in rows(world.base / "observed").items() if born(row)
    }
    held = {key for key, outcome in outcomes(world.base / "observed").items() if outcome == "quarantined"}
    assert held == {change.request_key for change in found.quarantined}


def test_a_dry_run_finds_the_same_and_writes_nothing(world: World) -> None:
    before = read_events(world.base / "observed")
    found = run_again(world, policy=STRICT, dry_run=True)
    assert len(found.quarantined) == 12
    assert read_events(world.base / "observed") == before


def test_the_same_again_changes_nothing(world: World) -> None:
    run_again(world, policy=STRICT)
    before = read_events(world.base / "observed")
    found = run_again(world, policy=STRICT)
    assert (len(found.quarantined), found.held_already, found.changed) == (0, 12, False)
    assert read_events(world.base / "observed") == before


def test_what_an_earlier_one_held_back_is_released_by_milder_rules(world: World) -> None:
    run_again(world, policy=STRICT)
    found = run_again(world)
    assert len(found.released) == 12
    assert set(outcomes(world.base / "observed").values()) == {"accepted"}


def test_what_was_not_looked_at_is_not_released(world: World) -> None:
    """A picture of the strict run is kept apart; without that file nobody knows what the sample shows."""
    folder = world.base / "strict"
    held = {key: row["sample_id"] for key, row in rows(folder).items() if row["kept_sha256"]}
    assert held
    append_event(folder, "sample.quarantined", "reaudit", "near", samples=[*held.values()], details={"claim": "re-audit"})
    for path in data_files(folder, "kept"):
        (folder / path).unlink()
    found = run_again(world, "strict", policy=OBSERVE)
    assert not {change.request_key for change in [*found.released, *found.held_at_birth]} & set(held)
    assert found.unreached and {*held.values()} <= {*Standing.of(folder).held()}


@pytest.mark.parametrize(
    ("rows_stay", "why"),
    [(True, "its picture is gone, and no event names it as erased"), (False, "its kept picture is missing from the run")],
)
def test_a_kept_picture_that_is_gone_without_an_event_is_not_called_erased(
    world: World, monkeypatch: pytest.MonkeyPatch, rows_stay: bool, why: str
) -> None:
    folder = world.base / "strict"
    held = {row["sample_id"] for row in rows(folder).values() if row["kept_sha256"]}
    append_event(folder, "sample.quarantined", "reaudit", "near", samples=[*held], details={"claim": "re-audit"})
    for path in data_files(folder, "kept"):
        table = table_of(folder / path)
        gone = rewritten(table, lambda rows: [row.update(image=None) for row in rows], rechain=False)
        pq.write_table(gone if rows_stay else table.slice(0, 0), folder / path)
    monkeypatch.setattr("pipeline.audit.pictures._small", lambda *names: {})  # at this size a small picture is a full one
    found = run_again(world, "strict", policy=OBSERVE)
    assert {what for where, what in found.unreached if where in held} == {f"{why}: it was not looked at"}
    assert found.may_be_mended and not found.lasting


def test_a_sample_that_a_person_rejected_is_let_go_and_not_released(world: World) -> None:
    run_again(world, policy=STRICT)
    folder = world.base / "observed"
    sample_id = rows(folder)["copy-bell"]["sample_id"]
    append_event(folder, "review.decided", "compliance", "a copy", samples=[sample_id], details={"outcome": "rejected"})
    found = run_again(world)
    assert (len(found.released), found.held_already) == (11, 1)
    assert sample_id not in Standing.of(folder).held() and outcomes(folder)["copy-bell"] == "rejected"


def test_what_a_claim_holds_back_is_not_released_by_rules(world: World) -> None:
    folder = world.base / "observed"
    sample_id = rows(folder)["other-ant"]["sample_id"]
    append_event(folder, "sample.quarantined", "takedown", "claimed", samples=[sample_id], details={"claim": "claim-1"})
    assert not run_again(world).released
    assert outcomes(folder)["other-ant"] == "quarantined"


def test_a_lower_threshold_adds_and_a_higher_one_takes_away(world: World) -> None:
    low, high = (run_again(world, policy=STRICT, threshold=t, dry_run=True).hits for t in (0.4, 0.999))
    assert low >= 12 > high


def test_a_persons_acceptance_of_the_same_reference_stands(world: World) -> None:
    folder = world.base / "observed"
    sample_id = rows(folder)["copy-bell"]["sample_id"]
    append_event(folder, "review.decided", "compliance", "licensed", samples=[sample_id], details=REVIEWED)
    found = run_again(world, policy=STRICT)
    assert [change.request_key for change in found.by_person] == ["copy-bell"]
    assert outcomes(folder)["copy-bell"] == "accepted"


def test_another_threshold_of_another_guard_needs_no_picture(world: World) -> None:
    rules = dataclasses.replace(OBSERVE, marks=MarksPolicy(threshold=0.25, action="reject"))
    found = run_again(world, policy=rules)
    assert len(found.quarantined) == 22
    assert {change.category for change in found.quarantined} == {"mark.watermark"}
    assert len(run_again(world).released) == 22


def test_samples_that_the_run_held_back_are_named_once_nothing_speaks_against_them(world: World) -> None:
    strict = rows(world.base / "strict")
    assert strict["copy-bell"]["outcome"] == "rejected"
    bell = next(reference for reference in world.index.references() if reference.title == "bell")
    world.index.retire([bell.ref_id])
    found = run_again(world, "strict")
    assert "copy-bell" in {change.request_key for change in found.held_at_birth}
    assert "copy-anchor" not in {change.request_key for change in found.held_at_birth}
    assert outcomes(world.base / "strict")["copy-bell"] == "rejected"


def test_references_that_came_later_count(world: World) -> None:
    from index.reference import NewReference

    assert not run_again(world, policy=STRICT, dry_run=True).changed
    world.index.add([NewReference(title="ant", picture=drawing("ant"), keep_picture=True)], world.embedder)
    found = run_again(world, policy=STRICT)
    assert {"other-ant", "moved-ant"} <= {change.request_key for change in found.quarantined}


# --- runs that cannot be looked at -----------------------------------------------------------------------------------------


def test_a_run_of_another_embedder_is_named(world: World) -> None:
    with pytest.raises(IndexMismatch, match="its embeddings are of embedder openclip-"):
        RunFacts.of(world.base / "observed", "openclip-other")


def test_a_run_under_way_is_left_alone(world: World) -> None:
    from jobs.run.lease.lock import lease

    before = read_events(world.base / "observed")
    with lease(world.base / "observed"):
        found = run_again(world, policy=STRICT)
    assert not found.reached and "is under way" in found.why_not
    assert read_events(world.base / "observed") == before


def test_a_run_without_index_has_nothing_to_compare(world: World, tmp_path: Path) -> None:
    plan = json.loads((world.base / "observed" / "plan.json").read_text())
    del plan["identity"]["embedder_id"]
    _write_plan(world.base / "observed", plan)
    digest = hashlib.sha256((world.base / "observed" / "plan.json").read_bytes()).hexdigest()

    def named(events: Any) -> Any:
        return [{**one, "digests": {**one["digests"], "plan_file_sha256": digest}} for one in events]

    redo_events(world.base / "observed", named)
    assert "without a reference index" in run_again(world).why_not


def _write_plan(folder: Path, plan: dict[str, Any]) -> None:
    from jobs.run.planning.stored_plan import plan_json_digest

    plan["plan_json_sha256"] = plan_json_digest(plan)
    (folder / "plan.json").write_text(json.dumps(plan))


def test_a_changed_plan_decides_nothing(world: World) -> None:
    """Whoever raises the threshold in plan.json, and redoes the digest in it, leaves the run unreached."""
    plan = json.loads((world.base / "observed" / "plan.json").read_text())
    plan["copy_check"] |= dict.fromkeys(("threshold", "look_from", "alone_threshold", "recoloured_threshold"), 1.5)
    _write_plan(world.base / "observed", plan)
    found = run_again(world, policy=STRICT)
    assert "is not the plan that the run started with" in found.why_not and not found.quarantined


@pytest.mark.parametrize("table", ["samples", "attempts"])
def test_rows_that_were_changed_are_not_judged(world: World, table: str) -> None:
    folder = world.base / "observed"
    path = next(data_files(folder, table))
    rewrite(folder, path, "findings", [], 0)
    found = run_again(world, policy=STRICT)
    assert found.why_not.startswith(f"{path}: is not the file that was committed")
    assert not read_events(folder)[-1]["kind"].startswith("sample.")


def test_a_folder_that_moved_away_is_named_and_the_others_are_reached(world: World) -> None:
    names = [str(world.base / "moved"), str(world.base / "observed")]
    done = reaudit(world.index, world.embedder, Rules(), names)
    assert [run.reached for run in done.runs] == [False, True]
    assert len(done.gaps) == 1 and "no such folder" in done.gaps[0]


def test_a_damaged_file_is_named_and_the_rest_is_looked_at(world: World) -> None:
    from pipeline.audit.stored import sample_files

    path = next(sample_files(world.base / "observed"))
    (world.base / "observed" / path).write_bytes(b"gone")
    found = look(world.base / "observed", standard(world))
    assert found.compared == 14
    assert path in {where for where, _ in found.unreached}


def test_a_run_that_moved_as_a_whole_is_looked_at_where_it_is(world: World, tmp_path: Path) -> None:
    shutil.move(world.base / "observed", tmp_path / "elsewhere")
    done = reaudit(world.index, world.embedder, Rules(policy=STRICT), [str(tmp_path / "elsewhere")])
    assert len(done.runs[0].quarantined) == 12


# --- the command -----------------------------------------------------------------------------------------------------------


def call(world: World, *arguments: object) -> Any:
    receipts = ["--index", str(world.base / "index"), "--receipts", str(world.base / "receipts")]
    return CliRunner().invoke(cli.app, ["reaudit", *map(str, arguments), *receipts], terminal_width=200)


def test_the_command_writes_a_receipt_and_says_complete(world: World) -> None:
    done = call(world, world.base / "observed", "--dry-run", "--json")
    data = json.loads(done.stdout)
    assert (done.exit_code, data["complete"], data["dry_run"]) == (0, True, True)
    assert json.loads(Path(data["receipt"]).read_text())["runs"] == data["runs"]


def test_the_command_never_says_complete_where_a_run_was_not_reached(world: World) -> None:
    done = call(world, world.base / "nowhere", "--dry-run")
    assert done.exit_code == 1
    assert "NOT COMPLETE" in done.stdout and "Complete:" not in done.stdout


def test_rounding_never_hides_a_picture_at_the_threshold(drawn: World) -> None:
    """With the threshold at exactly a picture's similarity, the screen keeps it although float16 may have moved it below."""
    copies = {key: row for key, row in rows(drawn.base / "observed").items() if key.startswith("copy-")}
    for key, row in copies.items():
        exact = max(match["similarity"] for match in row["nearest"])
        base = standard(drawn)
        point = dataclasses.replace(base.point, threshold=float(exact), look_from=float(exact), alone_threshold=2.0)
        at = Standard.of(drawn.index, drawn.embedder, point=point, k=3, hues=1)
        assert key in {seen.request_key for seen in look(drawn.base / "observed", at).hits}
        assert np.isfinite(exact)


def behind_edits() -> dict[str, np.ndarray]:
    """Drawings in the index upside down, inverted and in another drawing; and another's likewise, which nobody has claimed."""
    scene = drawing("bread").copy()
    scene[16:54, 2:40] = cv2.resize(drawing("butterfly"), (38, 38), interpolation=cv2.INTER_AREA)
    turned = {f"turned-{name}": np.rot90(drawing(name), 2).copy() for name in ("anchor", "ant")}
    return turned | {f"negative-{name}": 255 - drawing(name) for name in ("banana", "cactus")} | {"inset-butterfly": scene}


def test_copies_behind_edits_are_found_in_every_picture_and_not_let_go_by_a_later_look(tmp_path: Path) -> None:
    index, embedder = make_index(tmp_path / "index")
    draw(tmp_path, index, embedder, out="observed", shown=behind_edits())
    world = World(tmp_path, index, embedder)
    assert not any(born(row) for row in rows(tmp_path / "observed").values()), "as they are, none is near"
    undoing = dataclasses.replace(STRICT, copies=dataclasses.replace(STRICT.copies, edits=EDITS))

    screened = run_again(world, policy=undoing)
    assert any("--every-picture undoes them in all" in note for note in screened.notes)
    every = run_again(world, policy=undoing, every_picture=True)
    held = {change.request_key: change.category for change in (*screened.quarantined, *every.quarantined)}
    assert held == {
        "turned-anchor": "copy.turned", "negative-banana": "copy.negative", "inset-butterfly": "copy.inset",
    }  # fmt: skip
    assert not any("--every-picture" in note for note in every.notes)

    again = run_again(world, policy=undoing)
    assert again.released == [] and len(outcomes(tmp_path / "observed")) == 5
    assert sorted(outcomes(tmp_path / "observed").values()) == ["accepted"] * 2 + ["quarantined"] * 3
    assert len(run_again(world, policy=STRICT).released) == 3


def test_a_large_index_proposes_by_its_own_search_and_says_what_that_misses(drawn: World) -> None:
    from jobs.reaudit.judge import notes
    from jobs.reaudit.result import LARGE

    large = dataclasses.replace(standard(drawn), views=None)
    found = {seen.request_key for seen in look(drawn.base / "observed", large).hits}
    expected = {
        key for key, row in rows(drawn.base / "observed").items()
        if any(category in ("copy.protected", "copy.geometry") for category, _, _ in born(row))
    }  # fmt: skip
    assert expected <= found
    assert notes(RunFacts.of(drawn.base / "observed", drawn.index.embedder_id), large) == [LARGE]


@pytest.mark.parametrize("part_bytes", [1, 10**9])
def test_a_compacted_run_is_looked_at_as_its_small_files_were(world: World, drawn: World, part_bytes: int) -> None:
    run = world.base / "observed"
    compact_run(run, By(role="operator", reason="fewer files"), part_bytes=part_bytes)
    found, before = look(run, standard(world)), look(drawn.base / "observed", standard(drawn))
    assert [(seen.request_key, again(seen)) for seen in found.hits] == [(seen.request_key, again(seen)) for seen in before.hits]
    assert len(found.hits) > 5
    held = {change.request_key for change in run_again(world, policy=STRICT).quarantined}
    assert held == {seen.request_key for seen in before.hits} == {k for k, one in outcomes(run).items() if one == "quarantined"}
    assert verify(run).ok
