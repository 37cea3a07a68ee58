"""The bench of memory: a leak is seen, noise is not taken for one, and what is kept on purpose is full before it counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index.heap import Heap, _trim
from jobs.lab.bench.memory import GOAL, PROTECTED, Enough, Readings, fill, measures, memory, prompts, slope
from jobs.run.event import Event
from pipeline.model.contexts import Contexts

pytestmark = pytest.mark.lab
DRAWN = np.arange(16.0, 10_000.0, 16.0)


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, len(DRAWN))


def test_a_leak_is_outside_the_interval_of_a_worker_that_has_none() -> None:
    value, low, high = slope(DRAWN, 1000 + noise())
    assert low < 0 < high and abs(value) < 0.2
    leaking, low, high = slope(DRAWN, 1000 + 3 * DRAWN / 1000 + noise())
    assert low < leaking < high and low > GOAL and leaking == pytest.approx(value + 3)


def test_one_step_up_widens_the_interval() -> None:
    """One late growth looks like a slope; leaving its block out in turn shows that it hangs on few readings."""
    step = 1000 + 20.0 * (DRAWN > 9_500)
    _, low, high = slope(DRAWN, step)
    _, least, most = slope(DRAWN, 1000 + DRAWN / 1000 + noise())
    assert high - low > 3 * (most - least)


def readings(resident: np.ndarray, held: float = 0.0) -> list[dict[str, float]]:
    """One after each commit, and one after each twentieth time of giving back: 100 MB lower, growing by ``held`` a thousand."""
    made: list[dict[str, float]] = []
    for at, (n, mb) in enumerate(zip(DRAWN, resident, strict=True)):
        made.append({"samples": n, "resident": mb, "anonymous": mb - 200})
        if at % 20 == 0:
            low = 900 + held * n / 1000
            made.append({"samples": n, "resident": low, "anonymous": low - 200, "given_back": True})
    return made


def test_readings_of_the_warm_up_do_not_count() -> None:
    resident = np.where(DRAWN <= 1000, DRAWN, 1000.0) + noise()
    found = {one.id: one for one in measures(readings(resident), {"outcomes": {"accepted": 9, "error": 1}}, 10_000)}
    resident_slope = found["resident memory, MB more for each 1,000 samples"]
    assert resident_slope.met and resident_slope.n == (DRAWN > 1000).sum()
    early = {one.id: one for one in measures(readings(resident), {"outcomes": {}}, 100)}
    assert not early["resident memory, MB more for each 1,000 samples"].met


def test_what_is_held_on_to_has_a_slope_of_its_own() -> None:
    """A saw's teeth hide slow growth; right after memory was given back there are none, and they do not pull the other down."""
    found = {one.id: one for one in measures(readings(1000 + noise(), held=1.5), {"outcomes": {}}, 10_000)}
    held = found["resident memory right after freed memory was given back, MB more for each 1,000 samples"]
    assert held.value == pytest.approx(1.5) and not held.met and held.n < 40
    resident = found["resident memory, MB more for each 1,000 samples"]
    assert resident.met and resident.n == (DRAWN > 1000).sum()


def test_a_run_that_was_stopped_early_misses_its_number_of_samples() -> None:
    found = {one.id: one for one in measures(readings(1000 + noise()), {"outcomes": {}}, 10_000)}
    assert (found["samples of one process"].value, found["samples of one process"].met) == (9_984, False)


def test_prompts_differ_and_some_ask_for_protected_drawings() -> None:
    made = prompts(400)
    assert len(set(made)) == 400
    captions = [prompt.rsplit(",", 1)[0] for prompt in made]
    protected = set(captions[::PROTECTED])
    assert not protected & {one for row, one in enumerate(captions) if row % PROTECTED}


def event(kind: str, done: int) -> Event:
    return Event(kind=kind, done=done, total=99, outcomes={"accepted": done})  # type: ignore[arg-type]


def test_memory_is_read_after_every_commit_until_the_minutes_are_over(tmp_path: Path) -> None:
    path = tmp_path / "readings.jsonl"
    listener = Readings(path, minutes=60)
    for one in (event("worker", 0), event("sample", 1), event("shard", 16), event("shard", 32)):
        listener(one)
    with pytest.raises(Enough):
        Readings(path, minutes=0)(event("shard", 48))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["samples"] for line in lines] == [16, 32, 48] and listener.outcomes == {"accepted": 32}
    assert all(line["resident"] > line["anonymous"] > 0 for line in lines)


def test_memory_is_read_right_after_it_was_given_back(tmp_path: Path) -> None:
    path = tmp_path / "readings.jsonl"
    listener, kept = Readings(path, minutes=60), Heap.give_back
    listener(event("shard", 16))
    with listener.of(Heap):
        assert Heap(0.0).give_back() is (_trim() is not None)
        assert not Heap(60.0).give_back()  # nothing was given back: nothing is read
    assert Heap.give_back is kept
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["samples"], line.get("given_back")) for line in lines] == [(16, None), (16, True)][: 2 if _trim() else 1]


def test_the_kernel_counts_what_this_process_takes() -> None:
    before = memory()["anonymous"]
    taken = np.ones(64 * 2**17)  # 64 MB
    assert memory()["anonymous"] - before > 60 and taken[-1] == 1


def test_the_cache_of_prompts_is_full_before_the_run() -> None:
    encoded: list[str] = []

    def encode(texts: Any) -> list[Any]:
        encoded.extend(texts)
        return list(texts)

    contexts = Contexts(encode, 20)  # type: ignore[arg-type]
    assert fill(SimpleNamespace(contexts=contexts, context_of=contexts)) == 20
    assert len(set(encoded)) == 20
    contexts("a prompt of the run")
    contexts("a thing, 0")  # the first of them is what the prompt replaced
    assert encoded[20:] == ["a prompt of the run", "a thing, 0"]
