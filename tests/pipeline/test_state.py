"""State is a pure fold of events: what is in force, whatever was decided before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.event_kinds import KINDS
from pipeline.audit.events import append_event
from pipeline.audit.state import EFFECTS, Contradiction, State, fold, state_of

A, B = "sample-a", "sample-b"


def happened(*events: tuple[Any, ...]) -> State:
    """Fold (kind, samples, details) triples."""
    named = enumerate(dict(zip(("kind", "samples", "details"), event, strict=True)) for event in events)
    return fold([{"seq": seq, **event} for seq, event in named])


def decided(outcome: str, *samples: str) -> tuple[Any, ...]:
    return ("review.decided", samples or (A,), {"outcome": outcome})


def erased(columns: list[str], *samples: str) -> tuple[Any, ...]:
    cells = {column: list(samples) for column in columns}
    file = {"path": "samples/x.parquet", "table": "samples", "columns": cells, "after_bytes": 7}
    return ("payload.erased", samples, {"files": [file | {"before_sha256": "aa", "after_sha256": "bb"}]})


def test_without_events_the_row_stands() -> None:
    state = happened()
    assert state.of(A).outcome is None and state.of(A).review_state is None and not state.of(A).hold
    assert state.outcome({"sample_id": A, "outcome": "review"}) == "review"


def test_a_decision_is_in_force_for_its_samples_alone() -> None:
    state = happened(decided("accepted"))
    assert state.outcome({"sample_id": A, "outcome": "review"}) == "accepted"
    assert state.outcome({"sample_id": B, "outcome": "review"}) == "review"
    assert state.of(A).review_state == "decided" and state.of(A).events == (0,)


def test_the_last_of_contradicting_decisions_is_in_force_and_the_contradiction_is_listed() -> None:
    state = happened(decided("accepted"), decided("accepted"), decided("rejected"))
    assert state.of(A).outcome == "rejected" and state.of(A).events == (0, 1, 2)
    assert state.contradictions == (Contradiction(A, 1, 2),)


def test_the_order_of_events_decides() -> None:
    one, other = decided("accepted"), decided("rejected")
    assert (happened(one, other).of(A).outcome, happened(other, one).of(A).outcome) == ("rejected", "accepted")


def test_folding_changes_nothing_it_was_given_and_gives_the_same_again() -> None:
    events = [{"seq": 0, "kind": "hold.set", "samples": [A], "details": {"matter": "m"}}]
    before = repr(events)
    assert fold(events) == fold(events) and repr(events) == before


def test_a_quarantine_outlasts_a_decision() -> None:
    state = happened(("sample.quarantined", [A], {"claim": "c1"}), decided("accepted"))
    assert state.of(A).outcome == "quarantined"
    ended = happened(
        ("sample.quarantined", [A], {"claim": "c1"}), decided("accepted"), ("sample.released", [A], {"claim": "c1"})
    )
    assert ended.of(A).outcome == "accepted"


def test_two_claims_hold_a_sample_until_both_are_released() -> None:
    both = [("sample.quarantined", [A], {"claim": claim}) for claim in ("c1", "c2")]
    first = ("sample.released", [A], {"claim": "c1"})
    assert happened(*both, first).of(A).claims == ("c2",) and happened(*both, first).of(A).outcome == "quarantined"
    assert happened(*both, first, ("sample.released", [A], {"claim": "c2"})).of(A).outcome is None
    assert happened(*both, ("sample.released", [A], {})).of(A).outcome is None, "without a claim all end"


def test_a_release_may_name_the_outcome() -> None:
    assert happened(("sample.released", [A], {"outcome": "accepted"})).of(A).outcome == "accepted"


def test_a_hold_is_of_a_matter_and_ends_where_it_was_set() -> None:
    set_, lift = ("hold.set", [A], {"matter": "x v. y"}), ("hold.lifted", [A], {"matter": "x v. y"})
    other = ("hold.set", [A], {"matter": "audit"})
    assert happened(set_).of(A).hold and not happened(set_).of(B).hold
    assert happened(set_, other, lift).of(A).holds == ("audit",)
    assert not happened(set_, lift).of(A).hold


def test_a_hold_of_the_run_holds_every_sample_until_the_runs_is_lifted() -> None:
    whole, lift_one = ("hold.set", [], {"matter": "m"}), ("hold.lifted", [A], {"matter": "m"})
    assert happened(whole).of(A).hold and happened(whole).of("never seen").hold
    assert happened(whole, lift_one).of(A).hold, "a sample does not leave the hold of the run"
    assert not happened(whole, ("hold.lifted", [], {"matter": "m"})).of(A).hold
    both = happened(whole, ("hold.set", [A], {"matter": "m"}), ("hold.lifted", [], {"matter": "m"}))
    assert both.of(A).hold and not both.of(B).hold


def test_erased_columns_add_up() -> None:
    state = happened(erased(["image"], A), erased(["prompt"], A, B))
    assert state.of(A).erased == {"image", "prompt"} and state.of(B).erased == {"prompt"}


def test_an_exported_sample_stays_decided() -> None:
    assert happened(("review.exported", [A], {})).of(A).review_state == "exported"
    assert happened(decided("accepted"), ("review.exported", [A], {})).of(A).review_state == "decided"


def test_a_decision_may_move_the_end_of_retention() -> None:
    state = happened(("review.decided", [A], {"outcome": "accepted", "retain_until": "2030-01-02T00:00:00+01:00"}))
    assert state.of(A).retain_until == datetime(2030, 1, 1, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (("review.decided", [A], {"outcome": "fine"}), "names no outcome"),
        (("review.decided", [A], {}), "names no outcome"),
        (("review.decided", [], {"outcome": "accepted"}), "names no sample"),
        (("sample.released", [A], {"outcome": 7}), "names no outcome"),
        (("review.decided", [A], {"outcome": ["accepted"]}), "names no outcome"),
        (("sample.released", [A], {"outcome": {}}), "names no outcome"),
        (("review.decided", [A], {"outcome": "accepted", "retain_until": "soon"}), "names no time"),
        (("review.decided", [A], {"outcome": "accepted", "retain_until": "0001-01-01T00:00:00+14:00"}), "names no time"),
        (("payload.erased", [A], {"files": "all"}), "names no file"),
        (("payload.erased", [A], {"files": [{"path": 7}]}), "names no file"),
        (("weather.changed", [A], {"outcome": "accepted"}), "does not know"),
    ],
)
def test_what_cannot_be_folded_lets_nothing_out_and_is_named(event: tuple[Any, ...], why: str) -> None:
    state = happened(decided("rejected"), event)
    assert state.of(A).outcome in ("rejected", "review") and state.of(A).erased == frozenset()
    named = state.ignored if why in ("does not know", "names no file") else state.unfit
    assert len(state.ignored + state.unfit) == len(named) == 1 and named[0][0] == 1 and why in named[0][1]


@pytest.mark.parametrize(
    ("details", "outcome"),
    [
        ({"outcome": "acceptd"}, "review"),
        ({"outcome": "accepted", "retain_until": "soon"}, "review"),
        ({"outcome": "rejected", "retain_until": "soon"}, "rejected"),
    ],
)
def test_a_decision_that_cannot_be_read_takes_an_accepted_picture_back(details: dict[str, Any], outcome: str) -> None:
    assert happened(decided("accepted"), ("review.decided", [A], details)).of(A).outcome == outcome


def test_what_only_decisions_state_voids_no_quarantine_and_no_hold() -> None:
    odd = {"retain_until": "soon", "outcome": 7}
    state = happened(("sample.quarantined", [A], {"claim": "c", **odd}), ("hold.set", [A], {"matter": "m", **odd}))
    assert state.of(A).outcome == "quarantined" and state.of(A).hold and not state.unfit
    assert happened(("sample.quarantined", [A], {"claim": "c"}), ("sample.released", [A], odd)).of(A).outcome == "quarantined"


def test_every_effect_belongs_to_a_kind() -> None:
    assert set(EFFECTS) <= set(KINDS)


def test_the_state_of_a_folder(tmp_path: Path) -> None:
    append_event(tmp_path, "review.decided", "reviewer", "fine", samples=[A], details={"outcome": "accepted"})
    append_event(tmp_path, "run.noted", "runner", "x")
    state = state_of(tmp_path)
    assert state.of(A).outcome == "accepted" and state.ignored == ()


@pytest.mark.parametrize(("outcome", "waits"), [("rejcted", True), ("review", True), ("rejected", False)])
def test_a_decision_that_cannot_be_read_settles_nothing_that_a_claim_holds(outcome: str, waits: bool) -> None:
    state = happened(("sample.quarantined", (A,), {"claim": "12"}), decided(outcome))
    row = {"sample_id": A, "outcome": "accepted"}
    assert state.outcome(row) == "quarantined" and state.waits(row) is waits
