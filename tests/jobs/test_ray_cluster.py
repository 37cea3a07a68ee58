"""A cluster that a run joins: which addresses are refused, what is said of it, and machines that lack what the driver has."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from index.errors import IndexMismatch, RunStopped
from index.storage import digest_of
from jobs.doctor_run import _ray
from jobs.run.event import Event
from jobs.run.folder import look, open_folder
from jobs.run.plan import Plan
from jobs.run.preflight.dry_run import preflight
from jobs.run.ray import address, cluster
from jobs.run.ray.actor import Failure, require_folder_of_driver
from jobs.run.ray.placement import Need
from jobs.run.ray.pool import cannot_begin
from jobs.run.ray.runner import run_ray
from jobs.run.retries import STORAGE_WAITS
from pipeline.audit.context import Anchors

from .conftest import open_fake

MakePlan = Callable[..., Plan]
SETUP = "ray._private.authentication.authentication_token_setup"


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("value", "what", "fix"),
    [
        ("http://head:8265", "is the address of a dashboard", "ray job submit --address http://head:8265 -- clearance run"),
        ("ray://head:10001", "cannot be driven through Ray Client", "ray job submit"),
        ("tcp://head:6379", "is not an address of a Ray cluster", "HOST:PORT"),
        ("head", "is not an address of a Ray cluster", "HOST:PORT"),
        ("atuo", "is not an address of a Ray cluster", "to auto"),
        ("head:port", "is not an address of a Ray cluster", "HOST:PORT"),
    ],
)
def test_an_address_of_another_kind_is_refused_at_once(value: str, what: str, fix: str) -> None:
    with pytest.raises(RunStopped, match=what) as refused:
        address.require_joinable(value)
    assert refused.value.where == f"RAY_ADDRESS={value}" and fix in refused.value.fix


@pytest.mark.parametrize(("value", "found"), [(" head:6379 ", "head:6379"), ("local", ""), (" ", ""), ("auto", "auto")])
def test_spaces_are_no_address_and_local_is_a_ray_of_its_own(value: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert address.address_of_ray() == found


def test_what_is_no_control_service_is_not_waited_for(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard accepts the connection as well."""
    end = threading.Event()
    monkeypatch.setattr("ray._raylet.GcsClient", lambda **_: end.wait())
    monkeypatch.setattr(address, "GREETING_SECONDS", 0.0)
    with pytest.raises(RunStopped, match="is not the control service of a Ray cluster"):
        address.require_joinable(listening)
    end.set()


@pytest.mark.parametrize("at", ["ray._raylet.GcsClient", f"{SETUP}.ensure_token_if_auth_enabled"])
def test_a_cluster_that_wants_a_token_says_so(at: str, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import AuthenticationError

    def refuse(**_: Any) -> None:
        raise AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr("ray._raylet.GcsClient", lambda **_: None)
    monkeypatch.setattr(at, refuse)
    with pytest.raises(RunStopped, match="asks for its token") as refused:
        address.require_joinable(listening)
    assert "RAY_AUTH_MODE=token" in refused.value.fix


def test_a_ray_that_knows_no_tokens_is_asked_all_the_same(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before 2.52, which pyproject.toml allows."""
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, SETUP, None)
    monkeypatch.setattr("ray._raylet.GcsClient", lambda address: asked.append(address))
    address.require_joinable(listening)
    assert asked == [listening]


def test_why_ray_cannot_join_is_what_lies_behind_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect") from RuntimeError("Version mismatch:\n    Ray: 2.9\n")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(RunStopped, match=r"cannot be joined \(RuntimeError: Version mismatch: Ray: 2\.9\)") as refused:
        cluster._start("head:6379", 1)
    assert refused.value.fix.startswith("Start the run with the cluster's versions")


def test_the_ray_of_another_run_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` finds the latest Ray of a machine: it may be one that ends with its run."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.init", lambda **given: asked.append(given))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    cluster._start("", 1)
    monkeypatch.setattr(cluster.Cluster, "machines", lambda _: {"a": asked[0]["resources"]})
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RunStopped, match="is that of another run"), cluster.cluster(Need(1, 0)):
        pass
    assert "resources" not in asked[1]  # a cluster has its own


def test_the_machines_of_a_cluster_are_waited_for_where_none_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers late is not the same as one without a machine: whose Ray it is would not be seen."""
    waits: list[float] = []

    def within(seconds: float, do: Callable[[], object]) -> None:
        waits.append(seconds)
        do()

    monkeypatch.setattr(cluster, "within", within)
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 1.0}}])
    joined = cluster.Cluster(own=False)
    assert joined.machines() == joined.machines() == {"a": {"CPU": 1.0}}
    assert waits == [cluster.ASKED * cluster.ASK_SECONDS, cluster.ASK_SECONDS]


def test_a_cluster_is_named_with_the_room_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}
    monkeypatch.setattr(cluster.Cluster, "machines", lambda _: machines)
    monkeypatch.setattr(cluster.Cluster, "address", "head:6379")
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 3.0})
    joined = cluster.Cluster(own=False)
    assert joined.about(Need(1, 0), None) == "joined the Ray at head:6379: 2 machines, 3 CPUs, room for 3 workers of 1 CPU"
    assert joined.about(Need(2, 0), 4).endswith("room for 1 worker of 2 CPUs; 4 are asked for, and the others wait for room")


@pytest.mark.parametrize(("free", "said"), [({"CPU": 1.0}, "other work has 2 CPUs of them now"), ({}, "other work has 3 CPUs")])
def test_a_cluster_at_which_others_work_is_said_to_be_busy(
    free: dict[str, float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run holds its workers to its end, and this one would seem to load its models all the while."""
    monkeypatch.setattr(cluster.Cluster, "machines", lambda _: {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}})
    monkeypatch.setattr("ray.available_resources", lambda: free)
    assert said in cluster.Cluster(own=False).about(Need(1, 0), None)


def test_the_runner_says_what_it_joined(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Joined:
        own, address = False, "head:6379"

        def about(self, need: Need, workers: int | None) -> str:
            raise RunStopped(f"{need}, {workers}")  # nothing further is of interest here

    @contextmanager
    def joined(*_: Any) -> Iterator[Joined]:
        yield Joined()

    monkeypatch.setattr("jobs.run.ray.runner.cluster", joined)
    with pytest.raises(RunStopped, match="1 CPU, 2"):
        run_ray(make_plan(["cat"], workers=2), tmp_path / "run", open_loop=open_fake)


def test_the_dry_run_looks_at_the_address(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    found = preflight(make_plan(["cat"]), tmp_path / "run", "ray", resume=False)
    (ray,) = (line for line in _ray(found))
    assert [problem.where for problem in found.problems].count("RAY_ADDRESS=http://head:8265") == 1
    assert ray.state == "missing" and "cannot be joined" in ray.what


# --- machines that lack what the driver has -------------------------------------------------------------------------------


def test_a_worker_that_sees_another_run_folder_commits_nothing(make_plan: MakePlan, tmp_path: Path) -> None:
    plan, waits = make_plan(["cat"]), list[float]()
    folder, _ = open_folder(tmp_path / "run", plan)
    anchors = Anchors(digest_of(folder, "plan.json"), "")
    require_folder_of_driver(folder, anchors, waits.append)
    assert waits == []
    other, _ = open_folder(tmp_path / "other", make_plan(["owl"]))
    for place in (tmp_path / "missing", other):
        with pytest.raises(RunStopped, match="is another one on this machine") as refused:
            require_folder_of_driver(place, anchors, waits.append)
        assert refused.value.where == str(place) and "shares" in refused.value.fix
    assert waits == [*STORAGE_WAITS] * 2


def test_a_worker_asks_for_the_run_folder_once(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_loop: Any
) -> None:
    from jobs.run.lease.process import Process
    from jobs.run.ray import actor

    monkeypatch.setattr(actor, "STORAGE_WAITS", ())
    plan = make_plan(["cat", "owl", "fox", "dog"])
    folder, run_id = open_folder(tmp_path / "run", plan)
    worker = actor.Actor(plan, tmp_path / "elsewhere", run_id, "ray-0", open_loop, actor.Driver(process=Process.this()))
    worker.open()
    anchors = Anchors(digest_of(folder, "plan.json"), "")
    failed = worker.work(0, (), anchors)
    assert isinstance(failed, Failure) and "is another one on this machine" in failed.error.what
    assert not (tmp_path / "elsewhere").exists()


def test_an_error_of_another_machine_names_it() -> None:
    failure = Failure(IndexMismatch("is not a reference index", where="/data/index", fix="Build one"), "", "gpu-7", "id")
    told = failure.told("ray-3", opening=True)
    assert isinstance(told, IndexMismatch) and told.where == "ray-3 on gpu-7: /data/index"
    assert told.fix == "Build one; every machine of the cluster needs the same files, keys and versions"
    assert failure.told("ray-3", opening=False).fix == "Build one"


def test_a_machine_without_clearance_is_named_with_what_it_lacks() -> None:
    said = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::ActorProcess.__init__()\x1b[39m "
        "(pid=7, ip=10.0.0.7, actor_id=ab)\nRuntimeError: The actor with name ActorProcess failed to import on the worker.\n\n"
        "  File \"x.py\", line 1\nModuleNotFoundError: No module named 'jobs'\n"
    )
    told = cannot_begin("ray-1", RuntimeError(said))
    assert told.what == "a worker cannot begin (ModuleNotFoundError: No module named 'jobs')"
    assert told.where == "ray-1 on 10.0.0.7" and told.fix.startswith("Install this version of Clearance")


class Unreadable:
    """Cannot be read in another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _missing, ()


def _missing() -> None:
    raise ModuleNotFoundError("No module named 'jobs'")


@pytest.mark.ray
def test_a_worker_that_cannot_read_what_it_is_ends_the_run(make_plan: MakePlan, tmp_path: Path, small_ray: None) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    events: list[Event] = []
    with pytest.raises(RunStopped, match="a worker cannot begin") as stopped:
        run_ray(make_plan(["cat"], workers=1), tmp_path / "run", events.append, open_loop=Unreadable())  # type: ignore[arg-type]
    assert "No module named 'jobs'" in stopped.value.what and "memory" not in stopped.value.fix
    assert [event.kind for event in events] == ["started"] and not (tmp_path / "run").exists()


@pytest.mark.ray
def test_the_statement_counts_the_workers_that_were_at_work(
    make_plan: MakePlan, tmp_path: Path, open_loop: Any, small_ray: None
) -> None:
    """Of the ten that are asked for, two fit at most."""
    result = run_ray(make_plan(["cat", "owl", "fox", "dog"], workers=10), tmp_path / "run", open_loop=open_loop)
    runner = result.statement["predicate"]["runner"]
    assert 1 <= runner["workers"] <= 2


def test_a_run_in_rays_copy_of_a_working_directory_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    place = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs" / "monday"
    with pytest.raises(RunStopped, match="Ray removes it"):
        look(place, make_plan(["cat"]), resume=False)
    assert not place.parent.exists()


@pytest.mark.parametrize("at", ["", "head:6379"])
def test_a_ray_of_our_own_starts_without_what_no_run_uses(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's processes are its own."""
    from ray._private.node import Node

    assert all(hasattr(Node, name) for name in cluster.UNUSED)
    before = [getattr(Node, name) for name in cluster.UNUSED]
    seen: list[list[Any]] = []
    monkeypatch.setattr("ray.init", lambda **_: seen.append([getattr(Node, name) for name in cluster.UNUSED]))
    cluster._start(at, 1)
    assert (seen[0] == before) is bool(at)
    assert [getattr(Node, name) for name in cluster.UNUSED] == before
