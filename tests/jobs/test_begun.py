"""A run that goes on takes its requests from its folder, where its prompt files are those it began with."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.errors import InputError, IntegrityError, PlanMismatch
from jobs.run.folder import look
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.planning.groups import pieces_of
from jobs.run.planning.sizes import by_size, counted
from jobs.run.planning.stored_plan import plan_json_digest
from jobs.run.planning.stored_requests import StoredRequests, requests_table, row_numbers
from pipeline.config import ColumnsConfig, ModelConfig, RunConfig
from pipeline.outcome import Request, Stated
from pipeline.policy import Policy

ROWS = "prompt,key,seed\n" + "".join(f"a cat {n},k{n},{n}\n" for n in range(9)) + ",k9,\n"


@pytest.fixture
def make(identity: Any, tmp_path: Path) -> Callable[..., Plan]:
    (tmp_path / "p.csv").write_text(ROWS)

    def made(begun: Path | None = None, **keys: Any) -> Plan:
        config = RunConfig(**{"prompts": ("p.csv",), "shard_size": 4, "max_error_rate": 1.0} | keys)
        return Plan.make(config, Policy(), tmp_path, identity=identity(config, Policy(), tmp_path), begun=begun)

    return made


@pytest.fixture
def run(make: Callable[..., Plan], open_loop: Any, tmp_path: Path) -> Path:
    return run_local(make(), tmp_path / "run", open_loop=open_loop).folder


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a prompt file was read")

    monkeypatch.setattr("jobs.run.plan.read_sources", read)


def test_files_that_did_not_change_are_not_read_again(make: Callable[..., Plan], run: Path, unread: None) -> None:
    plan = make(begun=run)
    assert isinstance(plan.requests, StoredRequests)
    place = look(run, plan, resume=True)
    assert place.state == "begun" and place.plan.plan_sha256 == Plan.load(run).plan_sha256
    assert place.plan.shards == Plan.load(run).shards and len(place.plan.shards) == 3


def test_they_give_the_plan_that_reading_gives(make: Callable[..., Plan], run: Path) -> None:
    read, there = make(), make(begun=run)
    assert there == read and read == there and there.plan_sha256 == read.plan_sha256
    assert there.requests_file == read.requests_file and there.prompts_sha256 == read.prompts_sha256 != ""
    assert tuple(there.requests) == read.requests and there.requests[9].problem is not None


@pytest.mark.parametrize("text", [ROWS + "a dog,k10,1\n", ROWS.replace("a cat 3", "a cow 3"), ROWS.replace("\n", "\r\n")])
def test_files_that_changed_are_read(make: Callable[..., Plan], run: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text, newline="")
    plan = make(begun=run)
    assert plan.requests == make().requests and isinstance(plan.requests, tuple)


@pytest.mark.parametrize("keys", [
    {"base_seed": 3}, {"samples_per_prompt": 2}, {"columns": ColumnsConfig(seed="none")},
    {"columns": ColumnsConfig(key="prompt")},
])  # fmt: skip
def test_so_are_files_that_are_read_otherwise(make: Callable[..., Plan], run: Path, keys: dict[str, Any]) -> None:
    plan = make(begun=run, **keys)
    assert plan.requests == make(**keys).requests and isinstance(plan.requests, tuple)


@pytest.mark.parametrize("change", [{"model": ModelConfig(snap=True)}, {"identity": {"model_digest": "other"}}])
def test_files_are_read_for_another_model(
    make: Callable[..., Plan], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """What a row's size is snapped to, and which steps contradict a preset, hangs on the model too."""
    plan = make()
    config, identity = (
        replace(plan.config, model=change.get("model", plan.config.model)),
        {**plan.identity, **change.get("identity", {})},
    )
    made = Plan.make(config, Policy(), tmp_path, identity=identity, begun=run)
    assert isinstance(made.requests, tuple) and made.requests == plan.requests
    assert isinstance(Plan.make(plan.config, Policy(), tmp_path, identity=plan.identity, begun=run).requests, StoredRequests)


def test_a_file_of_another_name_in_its_place_is_read(make: Callable[..., Plan], run: Path, tmp_path: Path) -> None:
    # its kind is told by its name, and messages about its rows hold its label
    shutil.copy(tmp_path / "p.csv", tmp_path / "p.tsv")
    assert make(prompts=("p.tsv",)).prompts_sha256 != make().prompts_sha256
    shutil.copy(tmp_path / "p.csv", tmp_path / "q.csv")
    assert make(prompts=("q.csv",)).prompts_sha256 == make().prompts_sha256  # one file has no label: it may be moved
    two = "prompt,key\na dog,d\n"
    (tmp_path / "r.csv").write_text(two)
    named = [make(prompts=names).prompts_sha256 for names in (("p.csv", "r.csv"), ("q.csv", "r.csv"), ("r.csv", "p.csv"))]
    assert len(set(named)) == 3


@pytest.mark.parametrize("name", ["plan.json", "requests.parquet"])
def test_a_damaged_folder_lends_nothing(make: Callable[..., Plan], run: Path, name: str) -> None:
    data = bytearray((run / name).read_bytes())
    data[len(data) // 2] ^= 1
    (run / name).write_bytes(data)
    plan = make(begun=run)
    assert isinstance(plan.requests, tuple)
    with pytest.raises(IntegrityError):
        look(run, plan, resume=True)


def test_other_requests_under_a_digest_that_was_made_to_fit_are_found(make: Callable[..., Plan], run: Path) -> None:
    from pipeline.audit.shards import write_parquet

    others = [replace(one, prompt=f"{one.prompt}!") for one in Plan.load(run).requests]
    with (run / "requests.parquet").open("wb") as stream:
        write_parquet(requests_table(others), stream)
    import hashlib

    stored = json.loads((run / "plan.json").read_bytes())
    stored["requests_sha256"] = hashlib.sha256((run / "requests.parquet").read_bytes()).hexdigest()
    stored["plan_json_sha256"] = plan_json_digest(stored)
    (run / "plan.json").write_text(json.dumps(stored))
    with pytest.raises((IntegrityError, PlanMismatch)):
        look(run, make(begun=run), resume=True)


def test_a_folder_of_a_version_before_lends_nothing_and_goes_on(make: Callable[..., Plan], run: Path) -> None:
    stored = json.loads((run / "plan.json").read_bytes())
    del stored["prompts_sha256"]
    stored["plan_json_sha256"] = plan_json_digest(stored)
    (run / "plan.json").write_text(json.dumps(stored))
    plan = make(begun=run)
    assert isinstance(plan.requests, tuple) and look(run, plan, resume=True).state == "begun"


@pytest.mark.parametrize(("name", "what"), [("gone.csv", "does not exist"), ("run/plan.json", "unknown kind of prompt file")])
def test_files_that_cannot_be_read_are_named_by_their_reader(
    make: Callable[..., Plan], run: Path, name: str, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        make(begun=run, prompts=(name,))


def test_a_part_of_the_requests_has_no_digest_of_the_files(make: Callable[..., Plan], run: Path, tmp_path: Path) -> None:
    plan = make()
    part = Plan.make(plan.config, plan.policy, tmp_path, identity=plan.identity, only=["k1"], parent="p", begun=run)
    assert len(part.requests) == 1 and part.prompts_sha256 == ""


REQUESTS = [
    *(Request(row_no=n, key=f"k{n}", prompt=f"p{n}", seed=n) for n in range(5000)),
    Request(row_no=5000, key="bad", prompt="", problem=("input.empty_prompt", "line 1: the prompt is empty")),
]
OWN = [
    Request(row_no=n, key=f"k{n}", prompt="p", stated=Stated(width=(64, 32)[n % 2]) if n else Stated(), columns='{"a":1}')
    for n in range(7)
]
GROUPED = [Request(row_no=n, key=f"g#{n}", prompt="p", group=f"g{n // 3}", member=n % 3, group_size=3) for n in range(12)]


@pytest.mark.parametrize("made", [REQUESTS, OWN, GROUPED, REQUESTS[:0]], ids=["plain", "sizes", "groups", "none"])
def test_rows_of_a_table_are_the_requests_it_was_made_of(made: list[Request]) -> None:
    stored, given = StoredRequests(requests_table(made)), tuple(made)
    assert stored == given and given == stored and len(stored) == len(given) and [*stored] == made
    assert hash(stored) == hash(given) and (not made or stored != given[1:])
    part = pickle.loads(pickle.dumps(stored))[2:9]
    assert part == given[2:9] and part[1:3] == given[3:5] and stored[::-1] == given[::-1]
    assert not made or (stored[-1] == given[-1] and part[-1] == given[2:9][-1])
    assert row_numbers(part) == row_numbers(given[2:9])
    assert list(map(tuple, pieces_of(stored, 4))) == list(map(tuple, pieces_of(given, 4)))
    model = ModelConfig(size=48)
    assert by_size(stored, model) == by_size(given, model)
    assert counted(stored, (48, 48)) == counted(given, (48, 48))
    assert counted(part, (None, None)) == counted(given[2:9], (None, None))
