"""What resuming costs grows with the shards of a run, not with its rows; and no row is read.

``CLEARANCE_ROWS=1000000 pytest tests/jobs/test_resume_cost.py`` commits that many rows in shards of 256, and resumes them.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import IntegrityError, RunStopped
from jobs.run.event import Event
from jobs.run.folder import look
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.prompts.files import BadRow
from jobs.run.prompts.requests import derived_seed
from jobs.run.session import Session
from pipeline.audit.binding import header_in
from pipeline.audit.chain import table_header
from pipeline.audit.shards import committed
from pipeline.config import RunConfig
from pipeline.outcome import Outcome, Request, Sample, Stated
from pipeline.policy import Policy
from tests.jobs.conftest import FakeModeration, FakeRuntime, fake_identity

ROWS = int(os.environ.get("CLEARANCE_ROWS", "0"))


class Quick(FakeModeration):
    """Many at a time; every request ends as an error row, which is committed like any other. The last one finds a full disk."""

    last = -1

    @property
    def room(self) -> bool:
        return len(self.standing) < 64

    def step(self) -> list[Sample]:
        now = {"started_at": 1.7e9, "finished_at": 1.7e9}
        requests = [request for request in self.standing if request.row_no != self.last]
        if not requests:
            raise OSError(28, "No space left on device")
        self.standing = [request for request in self.standing if request.row_no == self.last]
        return [Sample(request=one, outcome=Outcome.ERROR, reason="fake", error_class="Fake", **now) for one in requests]


def stopped_run(make_plan: Callable[..., Plan], folder: Path, rows: int, shard_size: int) -> Plan:
    """A run that stopped at its last shard."""
    plan = make_plan([f"a drawing of {n}" for n in range(rows)], shard_size=shard_size, max_error_rate=1.0)

    def open_loop(config: Any, policy: Any, base: Path) -> Quick:
        loop = Quick(FakeRuntime(config, policy, base))
        loop.last = rows - 1
        return loop

    with pytest.raises(RunStopped):
        run_local(plan, folder, open_loop=open_loop)
    return plan


class Counting(storage.Disk):
    """A disk that counts what is opened, by name."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        self.opened[name] += not flags & os.O_DIRECTORY
        return super().open(name, flags, mode, at=at)


def begin(plan: Plan, folder: Path) -> Session:
    """What `run --resume` does before its first shard."""
    look(folder, plan, resume=True)
    session = Session(plan, folder, "local", lambda event: None, None, True)
    session.begin()
    return session


def opened(make_plan: Callable[..., Plan], folder: Path, shards: int, shard_size: int) -> int:
    plan, disk = stopped_run(make_plan, folder, shards * shard_size, shard_size), Counting()
    with storage.using(disk):
        session = begin(plan, folder)
    session.close(None)
    assert len(session.pending()) == 1
    return disk.opened.total()


def test_the_files_that_a_resumed_run_opens_grow_with_shards_and_not_with_rows(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    few, long, many = (opened(make_plan, tmp_path / f"{n}-{size}", n, size) for n, size in ((4, 2), (4, 40), (8, 2)))
    assert few == long
    assert many - few == 4 * 3  # a shard: its marker and its two files, once


def test_a_plan_that_is_there_lends_its_requests(plan: Plan, stopped: Path) -> None:
    assert Plan.load(stopped, plan).requests is plan.requests
    assert Plan.load(stopped, plan) == Plan.load(stopped)
    assert Plan.load(stopped).requests is not plan.requests


def test_other_requests_are_not_lent(plan: Plan, stopped: Path, make_plan: Callable[..., Plan]) -> None:
    other = make_plan(["cat", "owl", "a wolf", "dog", "fox"])
    assert Plan.load(stopped, other) == Plan.load(stopped) != other


@pytest.mark.parametrize("name", ["requests.parquet", "plan.json"])
def test_changed_files_are_found_beside_a_plan_that_is_there(plan: Plan, stopped: Path, name: str) -> None:
    Plan.load(stopped, plan)  # what was seen before does not hide what changed since
    data = bytearray((stopped / name).read_bytes())
    data[len(data) // 2] ^= 1
    (stopped / name).write_bytes(data)
    with pytest.raises(IntegrityError):
        Plan.load(stopped, plan)


def test_a_stored_configuration_that_was_changed_with_its_digest_is_found(plan: Plan, stopped: Path) -> None:
    from jobs.run.planning.stored_plan import plan_json_digest

    stored = json.loads((stopped / "plan.json").read_bytes())
    stored["config"]["retention_days"] = 3
    stored["plan_json_sha256"] = plan_json_digest(stored)
    (stopped / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(IntegrityError, match="does not match its digest"):
        Plan.load(stopped, plan)


def test_a_header_is_found_in_a_footer_without_parsing_it(identity: Any, tmp_path: Path, open_loop: Any) -> None:
    import pyarrow.parquet as pq

    # Statistics of the keys stand in the footer: one that looks like a header.
    key = "a\x18\tclearance\x18\x02{}"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"key": f"{key}{n}", "prompt": "cat"}) + "\n" for n in range(3)))
    config = RunConfig(prompts=("p.jsonl",), shard_size=2)
    plan = Plan.make(config, Policy(), tmp_path, identity=identity(config, Policy(), tmp_path))
    folder = run_local(plan, tmp_path / "run", open_loop=open_loop).folder
    paths = sorted(folder.glob("*/part-*.parquet"))
    assert len(paths) == 4
    for path in paths:
        with path.open("rb") as stream:
            assert header_in(stream, path.stat().st_size) == table_header(pq.read_schema(path))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(20), b"PAR1\x18\x09clearance\x18\x7f\x12\0\0\0PAR1"])
def test_where_there_is_no_header_none_is_found(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as stream:
        assert header_in(stream, len(data)) is None


def test_an_event_counts_what_is_committed_and_what_is_under_way(plan: Plan, stopped: Path, open_loop: Any) -> None:
    events: list[Event] = []
    result = run_local(plan, stopped, events.append, open_loop=open_loop)
    before = sum(receipt.rows for receipt in committed(stopped).values())
    assert events[0].done > 0 and [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done == before == len(plan.requests) and events[-1].outcomes == result.outcomes


def test_seeds_are_those_of_the_json_of_base_key_and_repeat() -> None:
    import hashlib

    for key in ("row-000001", 'a "b" \\ \n', "Größe 😀", "\u2028"):
        material = json.dumps([7, key, 2]).encode()
        assert derived_seed(7, key, 2) == int.from_bytes(hashlib.sha256(material).digest()[:8], "big") & (2**63 - 1)


def test_the_digest_of_requests_is_that_of_one_json_text() -> None:
    import hashlib

    from jobs.run.planning.stored_requests import requests_digest

    requests = [Request(row_no=n, key=f"k{n}", prompt="ü", seed=n, columns="{}" if n % 3 else "") for n in range(10_000)]
    rows = [[r.row_no, r.key, r.prompt, "", r.seed, None, *([r.columns] if r.columns else [])] for r in requests]
    whole = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
    assert requests_digest(requests) == whole
    assert requests_digest([]) == hashlib.sha256(b"[]").hexdigest()


def test_shards_and_all_requests_have_the_digests_that_each_has_alone() -> None:
    from jobs.run.planning.stored_requests import StoredRequests, digests_of, requests_digest, requests_table

    plain = [
        Request(row_no=n, key=f'k"{n}', prompt="Größe\u2028\n😀", negative_prompt="\\", seed=2**63 - 1 - n) for n in range(9)
    ]
    odd = [
        Request(row_no=9, key="a", prompt="", seed=0, problem=("input.empty_prompt", "line 9: the prompt is empty")),
        Request(row_no=10, key="b", prompt="p", seed=1, columns='{"x":1}', adapter="ink:0.6"),
        Request(row_no=11, key="c", prompt="p", seed=2, stated=Stated(width=64, guidance_scale=1.5)),
        Request(row_no=12, key="d", prompt="p", seed=3, group="d-2", member=1, group_size=2),
    ]
    requests = [*plain, *odd]
    pieces = [requests[first : first + 4] for first in range(0, len(requests), 4)]
    stored = StoredRequests(requests_table(requests))
    for given in (requests, stored, StoredRequests(requests_table([*plain[:2], *requests]))[2:]):
        each, whole = digests_of(given, map(len, pieces))
        assert each == [requests_digest(piece) for piece in pieces]
        assert whole == requests_digest(given)
    # As versions before wrote them: a plan that stands in a run folder keeps its digest.
    assert whole == "5351fcf3dac953124e9e8614b0cf9f4a620c859689033f439f45bb12c28b6b38"


@pytest.mark.parametrize("row", [
    {"prompt": "a cat"}, {"prompt": "a cat", "key": "k"}, {"prompt": "Größe \u2028", "key": "k", "seed": 7},
    {"prompt": "a cat", "key": "k", "seed": None}, {"prompt": "a cat", "seed": 2**63 - 1},
])  # fmt: skip
def test_a_usual_row_becomes_the_request_that_it_becomes_the_long_way(row: dict[str, Any]) -> None:
    from jobs.run.prompts import requests as module

    [short] = module._plain(row, 3, 5, 11)
    own = module._Row(number=3, place="line 4", row=row, first_row_no=5, kept=frozenset())
    assert [short] == [*module._requests(own, 11, 1, lambda: None, module.NO_ADAPTERS)]


@pytest.mark.parametrize("row", [
    {"prompt": " "}, {"prompt": None}, {"prompt": 3}, {"prompt": "a\0b"}, {"prompt": "\ud800"}, {"key": "k"},
    {"prompt": "a", "key": ""},
    {"prompt": "a", "key": 7}, {"prompt": "a", "key": None}, {"prompt": "a", "seed": "7"}, {"prompt": "a", "seed": -1},
    {"prompt": "a", "seed": True}, {"prompt": "a", "seed": 2**63}, {"prompt": "a", "width": 64}, {"prompt": "a", "mine": 1},
    {"prompt": "a", "negative_prompt": "b"}, BadRow("x"),
])  # fmt: skip
def test_any_other_row_takes_the_long_way(row: Any) -> None:
    from jobs.run.prompts.requests import _plain

    assert _plain(row, 0, 0, 0) == ()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(ROWS == 0, reason="CLEARANCE_ROWS is not set")
def test_a_million_committed_rows_are_resumed_in_five_seconds(
    make_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CPU time, because machines are shared: of everything from the prompt file to the first open shard."""
    folder = tmp_path / "run"
    plan = stopped_run(make_plan, folder, ROWS, 256)
    config, policy, base = plan.config, plan.policy, plan.base
    del plan
    started = time.process_time()
    plan = Plan.make(config, policy, base, identity=fake_identity(config, policy, base), begun=folder)
    planned = time.process_time()
    session = begin(plan, folder)
    ended = time.process_time()
    session.close(None)
    with capsys.disabled():
        shards = len(plan.shards)
        print(f"\n{ROWS} rows, {shards} shards: {ended - started:.1f} s, of it {planned - started:.1f} s until there is a plan")
    assert len(session.pending()) == 1
    assert ended - started < 5 * ROWS / 1_000_000 + 1
