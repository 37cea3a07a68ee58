"""The loop with guards beside it: outcomes, rows and bytes are those of the loop that looks for itself."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.audit.context import RunContext
from pipeline.audit.records import attempt_table, sample_table
from pipeline.config import GenerationConfig, GuardsConfig, ModelConfig, RunConfig
from pipeline.looking.beside import guard_processes
from pipeline.looking.pool import Pool
from pipeline.looking.study import Looker as RealLooker
from pipeline.model.decoder import Decoder
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.moderate import Moderation, moderate
from pipeline.outcome import Outcome, Sample
from pipeline.policy import CopiesPolicy, Policy
from pipeline.rungs import NudgeRung
from pipeline.runtime import Runtime

from .lookers import Looker, Opening
from .loop import Copies, Failing, requests, runtime

TIMES = {
    "started_at", "finished_at", "wall_seconds", "device_seconds", "guard_seconds", "retain_until", "record_sha256",
    "prev_sha256",
}  # fmt: skip
LADDER = (NudgeRung(step_size=0.1), NudgeRung(step_size=0.1, renew=True))
POLICY = Policy(copies=CopiesPolicy(), ladder=LADDER)


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def opened(model: DiffusionModel, looker: Looker, pool: Pool | None = None) -> Runtime:
    found = runtime(model, Copies(lambda _: False), policy=POLICY)
    found.study = looker  # type: ignore[method-assign, assignment]
    if pool is not None:
        found.pool, found.spent = pool, pool.activity
    return found


def rows(samples: Sequence[Sample], context: Callable[..., RunContext]) -> list[dict[str, Any]]:
    """Every row that a run would write, without times and the digests over them, and every picture."""
    ordered = sorted(samples, key=lambda sample: sample.request.row_no)
    tables = [table(ordered, context(), "0").to_pylist() for table in (sample_table, attempt_table)]
    pictures = [{"picture": a.picture.tobytes(), "norms": a.update_norms} for sample in ordered for a in sample.attempts]
    return [{k: v for k, v in row.items() if k not in TIMES} for table in tables for row in table] + pictures


def differences(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[str]:
    """Where two runs are not alike: request, attempt and column."""
    assert len(left) == len(right)
    pairs = ((a, b, name) for a, b in zip(left, right, strict=True) for name in {*a, *b})
    return [f"{a.get('request_key')} {a.get('attempt')} {name}" for a, b, name in pairs if a.get(name) != b.get(name)]


@pytest.fixture(scope="module")
def flagged(model: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Some of the pictures, and all second pictures of one request, so that some are steered and one is given up."""
    looker = Looker(tmp_path_factory.mktemp("first"))
    first = {s.request.key: s.attempts[0].pixel_sha256 for s in moderate(opened(model, looker), requests(20))}
    pictures = {s.request.key: s.attempts[0].picture for s in moderate(opened(model, looker), requests(20))}
    assert len(set(first.values())) == 20
    return frozenset(hashlib.sha256(pictures[f"key-{i}"].tobytes()).hexdigest() for i in (1, 4, 5, 12, 19))


class Shuffled(Pool):
    """Hands answers over late and in any order."""

    def __init__(self, *args: Any, seed: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._chance, self._held = random.Random(seed), list[Any]()

    def answers(self, seconds: float = 0.0) -> Any:
        self._held += super().answers(seconds if not self._held else 0.0)
        self._chance.shuffle(self._held)
        count = len(self._held) if seconds else self._chance.randint(0, len(self._held))
        given, self._held = self._held[:count], self._held[count:]
        return given


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (2, 2), (2, 3)])
def test_rows_and_pictures_do_not_depend_on_guard_processes_or_the_order_of_their_answers(
    model: DiffusionModel, flagged: frozenset[str], context: Callable[..., RunContext], tmp_path: Path, workers: int, seed: int
) -> None:
    looker = Looker(tmp_path, flags=flagged)
    alone = list(moderate(opened(model, looker), requests(20)))
    with closing(Shuffled(Opening(dataclasses.replace(looker, slow=0.02)), workers, seed=seed)) as pool:
        assert pool.wait_ready()
        there = opened(model, looker, pool)
        beside = list(moderate(there, requests(20)))
    assert sum(s.outcome is Outcome.ACCEPTED_AFTER_STEERING for s in alone) == 5
    assert pool.activity.beside == pool.activity.pictures == 25
    assert differences(rows(alone, context), rows(beside, context)) == []


def open_real(decoder: Decoder, bad: set[str]) -> RealLooker:
    torch.set_num_threads(1)
    return RealLooker(decoder, Copies(lambda p: p.mean() > 127), [Failing(bad)], decoder_calls=decoder.calls)  # type: ignore[list-item, arg-type]


def test_the_decoder_and_the_guards_give_the_same_bytes_in_another_process(
    model: DiffusionModel, context: Callable[..., RunContext]
) -> None:
    """The real decoder and looker; one guard fails on one picture, there as here."""
    here = runtime(model, Copies(lambda p: p.mean() > 127), [Failing(set())], POLICY)
    digest = {s.request.key: hashlib.sha256(s.attempts[0].picture.tobytes()).hexdigest() for s in moderate(here, requests())}
    bad = {digest["key-2"]}
    here = runtime(model, Copies(lambda p: p.mean() > 127), [Failing(bad)], POLICY)
    alone = list(moderate(here, requests()))
    there = runtime(model, None, policy=POLICY)
    there.copies, there.index, there.early = here.copies, here.index, None
    with closing(Pool(partial(open_real, model.decoder, bad), 1)) as there.pool:
        assert there.pool.wait_ready()
        beside = list(moderate(there, requests()))
    assert sum(s.reason == "error.guard" and s.error_message == "guard marks: cannot look at this one" for s in beside) == 1
    assert differences(rows(alone, context), rows(beside, context)) == []


def test_a_request_that_is_given_up_while_guards_look_at_it_ends_once(model: DiffusionModel, tmp_path: Path) -> None:
    with closing(Pool(Opening(Looker(tmp_path, slow=1.5)), 1)) as pool:
        assert pool.wait_ready()
        loop = Moderation(opened(model, Looker(tmp_path), pool))
        for request in requests(3):
            assert loop.submit(request) == []
        while not pool.activity.deepest and not loop._looks.waiting:
            assert loop.step() == []
        ended = loop.give_up(1, "error.deadline", "too late")
        while loop.busy:
            ended += loop.step()
    assert [s.request.row_no for s in ended if s.reason == "error.deadline"] == [1]
    assert sorted(s.request.row_no for s in ended) == [0, 1, 2] and ended[0].lost_evals == 5


@pytest.mark.parametrize(
    ("device", "threads", "processors", "workers"),
    [
        ("cpu", 1, 1, 0), ("cpu", 1, 2, 1), ("cpu", 2, 2, 0), ("cpu", 2, 8, 1), ("cuda", 1, 1, 0), ("cuda", 1, 3, 2),
        ("cuda:1", 4, 64, 4),
    ],
)  # fmt: skip
def test_auto_takes_the_processors_that_the_denoiser_leaves(device: str, threads: int, processors: int, workers: int) -> None:
    config = RunConfig(prompts="-", model=ModelConfig(device=device), generation=GenerationConfig(threads=threads))
    assert guard_processes(config, processors) == workers
    assert guard_processes(dataclasses.replace(config, guards=GuardsConfig(workers=3)), processors) == 3


@pytest.mark.parametrize(
    ("device", "embedder", "guards"), [("cpu", "cpu", "cpu"), ("cuda:1", "cuda:1", "cuda:1"), ("mps", "cpu", "cpu")]
)
def test_auto_is_the_models_device_where_that_is_cuda(device: str, embedder: str, guards: str) -> None:
    config = RunConfig(prompts="-", model=ModelConfig(device=device))
    assert (config.embedder_device, config.guard_device) == (embedder, guards)
