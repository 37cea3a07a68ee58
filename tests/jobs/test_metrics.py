"""Metrics: they agree with the rows, and leave through a port, a file and Ray."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import ClearanceError, RunStopped
from jobs.run.event import Event
from jobs.run.local_runner import run_local
from jobs.run.metrics.meters import RunMeter, ShardMeter
from jobs.run.metrics.sinks import Nowhere, PrometheusSink, sink_of, using
from jobs.run.metrics.table import METRICS, RAY_PREFIX
from jobs.run.plan import Plan
from jobs.run.ray.runner import run_ray
from pipeline.audit.numbers import count_run
from pipeline.config import MetricsConfig
from pipeline.outcome import Sample

PROMPTS = ["cat", "a copy", "a steered owl", "", "fox"]
Open = Callable[..., Any]


def values(text: str) -> dict[str, float]:
    """The lines of an exposition: name with labels → value. What Ray adds to every line is left out."""
    found = {}
    for name, labels, value in re.findall(r"^([a-z_]+)(?:\{([^}]*)\})? (\S+)$", text, re.MULTILINE):
        own = [one for one in re.findall(r'([a-zA-Z_]+)="([^"]*)"', labels) if one[0].islower() and "otel" not in one[0]]
        inside = ",".join(f"{key}={text}" for key, text in sorted(own))
        key = name.removeprefix(RAY_PREFIX) + (f"{{{inside}}}" if inside else "")
        found[key] = found.get(key, 0.0) + float(value)
    return found


@pytest.fixture
def counted(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Open) -> tuple[dict[str, float], Path]:
    """What a local run counted, read back from its file, and the run's folder."""
    plan, file = make_plan(PROMPTS), tmp_path / "clearance.prom"
    sink = PrometheusSink(textfile=str(file))
    with using(sink), RunMeter(sink, plan) as meter:
        run_local(plan, tmp_path / "run", meter, open_loop=open_loop)
    return values(file.read_text()), tmp_path / "run"


def test_outcomes_are_those_of_the_rows(counted: tuple[dict[str, float], Path]) -> None:
    found, folder = counted
    expected = {f"clearance_requests_total{{outcome={name}}}": n for name, n in count_run(folder).outcomes.items()}
    assert {name: value for name, value in found.items() if name.startswith("clearance_requests_total")} == expected


def test_costs_are_those_of_the_rows(counted: tuple[dict[str, float], Path]) -> None:
    found, folder = counted
    counts = count_run(folder)
    assert found["clearance_pictures_total"] == counts.pictures == 5
    assert found["clearance_evaluations_total"] == counts.evals == 100
    assert found["clearance_device_seconds_total"] == pytest.approx(counts.device_seconds)


def test_flags_are_counted_by_guard_and_reason(counted: tuple[dict[str, float], Path]) -> None:
    assert counted[0]["clearance_flags_total{guard=copies,reason=copy.protected}"] == 2


def test_an_error_is_counted_by_its_class(counted: tuple[dict[str, float], Path]) -> None:
    assert counted[0]["clearance_errors_total{error_class=InputError,reason=input.empty_prompt}"] == 1


def test_a_run_that_ended_has_nothing_open(counted: tuple[dict[str, float], Path]) -> None:
    found = counted[0]
    names = ("clearance_requests_open", "clearance_shards_open", "clearance_run_active")
    assert [found[name] for name in names] == [0, 0, 0]
    assert found["clearance_commits_total"] == found["clearance_commit_seconds_bucket{le=+Inf}"] == 3
    assert abs(found["clearance_last_commit_timestamp_seconds"] - time.time()) < 60


def test_a_run_that_stopped_is_not_active_and_keeps_what_is_open(plan: Plan, tmp_path: Path, open_loop: Open) -> None:
    sink = PrometheusSink(textfile=str(tmp_path / "m.prom"))
    with pytest.raises(RunStopped), using(sink), RunMeter(sink, plan) as meter:
        run_local(plan, tmp_path / "run", meter, open_loop=open_loop)
    found = values((tmp_path / "m.prom").read_text())
    assert (found["clearance_run_active"], found["clearance_shards_open"]) == (0, 2)


def test_what_nobody_set_is_not_exported(counted: tuple[dict[str, float], Path]) -> None:
    """An age of an index that is not there would be that of 1970, and an alert."""
    assert not [name for name in counted[0] if "index" in name or "calibration" in name]
    assert counted[0]["clearance_worker_deaths_total"] == 0  # a counter begins at 0, so that its first step is seen


def test_every_name_follows_the_conventions() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"clearance_[a-z_]+[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.text and not metric.text.endswith(".")


def test_a_port_serves_them_and_is_closed_at_the_end() -> None:

    with pytest.raises(RunStopped, match="cannot be served at 203"):
        PrometheusSink(port=9, address="203.0.113.7")  # an address of documentation: no machine has it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sink = PrometheusSink(port=port)
    with using(sink):
        sink.add("clearance_commits_total")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert values(answer.read().decode())["clearance_commits_total"] == 1
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_a_file_that_cannot_be_written_stops_the_start_and_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="cannot be written"):
        PrometheusSink(textfile=str(tmp_path / "none" / "m.prom"))
    with pytest.raises(ClearanceError, match="not the name of a metrics file"):
        PrometheusSink(textfile=str(tmp_path / "m.txt"))
    folder = tmp_path / "there"
    folder.mkdir()
    sink = PrometheusSink(textfile=str(folder / "m.prom"))
    (folder / "m.prom").unlink()
    folder.rmdir()
    sink.flush(now=True)  # a run does not stop for its metrics


def test_nothing_is_counted_unless_asked_for(tmp_path: Path) -> None:
    assert isinstance(sink_of(MetricsConfig(), "local", tmp_path), Nowhere)


def test_the_file_is_relative_to_the_run_file(tmp_path: Path) -> None:
    sink_of(MetricsConfig(textfile="m.prom"), "local", tmp_path)
    assert (tmp_path / "m.prom").is_file()


def test_without_an_activity_waiting_is_the_rest_of_the_workers_time() -> None:
    now = [0.0]
    sink = PrometheusSink()
    meter = ShardMeter(sink, clock=lambda: now[0])
    sample: Any = _sample(device_seconds=6.0)
    now[0] = 100.0
    meter.begin(resting=True)  # the 100 seconds before are nobody's
    now[0] = 110.0
    meter.committed([sample], 1.0)
    assert seconds_of(sink) == {"computing": 6.0, "waiting": 4.0}


def test_a_runtime_that_counts_itself_is_believed() -> None:
    sink = PrometheusSink()
    meter = ShardMeter(sink)
    meter.committed([], 1.0, {"computed": 9.0, "waited": 1.0, "queues": {"guards": 3}, "deaths": 1, "processes": 1})
    meter.committed([], 1.0, {"computed": 19.0, "waited": 1.5, "queues": {"guards": 2}, "deaths": 3, "processes": 2})
    assert seconds_of(sink) == {"computing": 19.0, "waiting": 1.5}
    get = sink.registry.get_sample_value
    assert get("clearance_queue_depth", {"queue": "guards"}) == 2
    assert (get("clearance_guard_process_deaths_total"), get("clearance_guard_processes")) == (3, 2)


def test_the_activity_of_a_runtime_has_what_is_counted() -> None:
    from pipeline.looking.activity import Activity

    plain = Activity(elapsed=10.0, computed=9.0, queued=2, deaths=1, processes=3).plain()
    sink = PrometheusSink()
    ShardMeter(sink).committed([], 1.0, plain)
    assert seconds_of(sink) == {"computing": 9.0, "waiting": 1.0}
    assert sink.registry.get_sample_value("clearance_guard_processes") == 3


def test_a_death_and_a_lease_are_counted(make_plan: Callable[..., Plan]) -> None:
    sink = PrometheusSink()
    meter = RunMeter(sink, make_plan(["cat"]), lease=lambda: 17.0)
    with meter:
        meter(Event(kind="retried", done=0, total=1, outcomes={}, run_id="r1"))
    assert sink.registry.get_sample_value("clearance_worker_deaths_total") == 1
    assert sink.registry.get_sample_value("clearance_lease_timestamp_seconds") == 17
    assert sink.registry.get_sample_value("clearance_run_info", {"run_id": "r1", "dataset_id": "default"}) == 1


def test_the_lease_is_not_looked_at_for_every_sample(make_plan: Callable[..., Plan]) -> None:
    """On an object store each look is a request, in the denoiser's thread."""
    looks: list[int] = []
    event = Event(kind="sample", done=0, total=1, outcomes={}, run_id="r1")
    for sink in (PrometheusSink(), Nowhere()):
        with RunMeter(sink, make_plan(["cat"]), lease=lambda: looks.append(1)) as meter:  # type: ignore[func-returns-value]
            for _ in range(100):
                meter(event)
    assert len(looks) == 1  # as the ticking begins; none where the metrics go nowhere


def seconds_of(sink: PrometheusSink) -> dict[str, float]:
    get = sink.registry.get_sample_value
    return {s: get("clearance_denoiser_seconds_total", {"state": s}) or 0.0 for s in ("computing", "waiting")}


def _sample(device_seconds: float) -> Sample:
    from pipeline.outcome import Outcome, Request

    request = Request(row_no=0, key="a", prompt="cat")
    return Sample(request=request, outcome=Outcome.ERROR, lost_seconds=device_seconds)


@pytest.mark.ray
def test_on_ray_the_node_exports_what_its_workers_counted(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Open, small_ray: None
) -> None:
    import ray

    run_ray(make_plan(PROMPTS, workers=1), tmp_path / "run", open_loop=open_loop)
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline, found = time.monotonic() + 30, dict[str, float]()
    while "clearance_commits_total" not in found and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            found = values(answer.read().decode())
    assert found["clearance_requests_total{outcome=accepted}"] >= 2  # of this run; other tests share the node
    assert found["clearance_flags_total{guard=copies,reason=copy.protected}"] >= 2


class Blind:
    """An embedder that sees one and the same in every picture."""

    embedder_id, dim = "blind", 4

    def images(self, pictures: np.ndarray) -> np.ndarray:
        return np.tile(np.array([1, 0, 0, 0], np.float32), (len(pictures), 1))

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


def test_index_and_calibration_have_an_age(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    from index.reference import NewReference
    from index.store import ReferenceIndex
    from jobs.run.metrics.meters import times_of

    picture = np.full((16, 16, 3), 9, np.uint8)
    ReferenceIndex.build(tmp_path / "index", [NewReference(title="grey", picture=picture)], Blind())
    found = times_of(make_plan(["cat"], index="index"))
    assert abs(found["clearance_index_changed_timestamp_seconds"] - time.time()) < 60
    assert found["clearance_calibration_stale"] == 0 and "clearance_calibration_changed_timestamp_seconds" not in found
    (tmp_path / "index" / "calibration.json").write_text("{}")
    found = times_of(make_plan(["cat"], index="index"))
    assert abs(found["clearance_calibration_changed_timestamp_seconds"] - time.time()) < 60


def test_where_nothing_is_counted_the_index_is_not_opened(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan(["cat"], index="index")  # not there: whoever opened it would be told
    assert RunMeter(Nowhere(), plan)._times == {}
