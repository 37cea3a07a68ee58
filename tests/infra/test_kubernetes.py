"""The manifests hold against the schemas of Kubernetes and KubeRay, against each other, and against the command line."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
SCHEMAS = {
    path.name: json.loads(path.read_text())
    for path in (ROOT / "tests" / "data" / "kubernetes.schema.json", ROOT / "tests" / "data" / "kuberay.schema.json")
}
REGISTRY: Any = Registry().with_resources(
    (name, Resource.from_contents({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema))
    for name, schema in SCHEMAS.items()
)
KINDS = {kind: f"{name}#/$defs/{where}" for name, schema in SCHEMAS.items() for kind, where in schema["kinds"].items()}
MANIFESTS = [
    (f"{path.name}: {document['kind']}", document)
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
RAYJOBS = sorted(
    (document for _, document in MANIFESTS if document["kind"] == "RayJob"), key=lambda job: len(job["metadata"]["name"])
)  # that on the volume first


def problems(document: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator({"$ref": KINDS[document["kind"]]}, registry=REGISTRY)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


def pods(document: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in a manifest."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}) if isinstance(document.get("spec"), dict) else False:
            yield document["spec"]
        for below in document.values():
            yield from pods(below)
    elif isinstance(document, list):
        for below in document:
            yield from pods(below)


PODS = [(where, pod) for where, document in MANIFESTS for pod in pods(document)]


def test_there_is_something_to_check() -> None:
    assert len(RAYJOBS) == 2 and len(PODS) == 5


@pytest.mark.parametrize(("where", "document"), MANIFESTS, ids=[where for where, _ in MANIFESTS])
def test_a_manifest_follows_its_schema(where: str, document: dict[str, Any]) -> None:
    assert problems(document) == []


def test_the_schemas_find_a_wrong_key_a_wrong_type_and_a_missing_part() -> None:
    job = json.loads(json.dumps(RAYJOBS[0]))
    job["spec"]["backofLimit"] = 1
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "8080"
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    found = "\n".join(problems(job))
    assert "backofLimit" in found and "'8080' is not of type 'integer'" in found and "'groupName' is a required" in found


@pytest.mark.parametrize("job", RAYJOBS, ids=lambda job: job["metadata"]["name"])
def test_a_rayjob_ends_retries_and_goes_away(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1 and spec["activeDeadlineSeconds"] > 0
    lock = (ROOT / "requirements.lock").read_text()
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}\n" in lock


@pytest.mark.parametrize("job", RAYJOBS, ids=lambda job: job["metadata"]["name"])
def test_the_entrypoint_is_a_command_of_clearance(job: dict[str, Any]) -> None:
    import typer

    from jobs.cli.main import app

    command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert command == "clearance" and arguments[0] == "run"
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = {option for parameter in run.params for option in parameter.opts}
    assert {part for part in arguments if part.startswith("--")} <= options
    assert {"--resume", "--runner"} <= set(arguments)


@pytest.mark.parametrize(("where", "pod"), PODS, ids=[where for where, _ in PODS])
def test_pods_are_confined_and_ask_for_what_they_need(where: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] or where.startswith(
            "nightly"
        )
        assert (
            container["securityContext"] | {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            == container["securityContext"]
        )
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize(("where", "pod"), PODS, ids=[where for where, _ in PODS])
def test_secrets_are_named_and_never_written_down(where: str, pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        for variable in container.get("env", []):
            assert "value" in variable or "secretKeyRef" in variable["valueFrom"]
            if re.search("KEY|SECRET|TOKEN", variable["name"]) and variable["name"] != "CLEARANCE_KEYS":  # that one is a folder
                assert "value" not in variable


def test_two_nights_never_overlap() -> None:
    nightly = next(document for _, document in MANIFESTS if document["kind"] == "CronJob")["spec"]
    assert nightly["concurrencyPolicy"] == "Forbid"
    pod = nightly["jobTemplate"]["spec"]
    launcher = pod["template"]["spec"]["containers"][0]["command"]
    assert launcher[1].endswith("/launch.py"), (
        "it waits for the RayJob; creating it alone would end at once, and Forbid with it"
    )
    assert pod["activeDeadlineSeconds"] > RAYJOBS[0]["spec"]["activeDeadlineSeconds"]


def test_the_launcher_may_do_what_it_does_and_nothing_else() -> None:
    by_kind = {document["kind"]: document for _, document in MANIFESTS if document["metadata"]["name"] == "clearance-nightly"}
    (rule,) = by_kind["Role"]["rules"]
    used = {
        {"GET": "get", "POST": "create", "DELETE": "delete"}[m]
        for m in re.findall(r'call\("(\w+)"', (FOLDER / "launch.py").read_text())
    }
    assert set(rule["verbs"]) == used and rule["resources"] == ["rayjobs"]
    account = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    assert by_kind["RoleBinding"]["subjects"][0]["name"] == account == by_kind["ServiceAccount"]["metadata"]["name"]
    assert by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"]


def test_kustomize_brings_every_file_that_a_pod_reads() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (made,) = kustomization["configMapGenerator"]
    assert all((FOLDER / name).is_file() for name in (*made["files"], *kustomization["resources"]))
    read = set(re.findall(r"/etc/clearance/([\w.]+)", "".join(p.read_text() for p in FOLDER.glob("*.yaml"))))
    assert read == set(made["files"])
    names = {v["configMap"]["name"] for _, pod in PODS for v in pod["volumes"] if "configMap" in v}
    assert names == {made["name"]} and kustomization["generatorOptions"]["disableNameSuffixHash"] is True


def test_the_run_file_is_one_and_asks_for_the_workers_that_the_cluster_has() -> None:
    from jobs.run.ray.placement import guards_on_ray
    from pipeline.config import RunConfig
    from pipeline.settings import from_dict

    config = from_dict(RunConfig, tomllib.loads((FOLDER / "run.toml").read_text()), where="run.toml")
    (group,) = RAYJOBS[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.workers == group["replicas"] == group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    asked = config.generation.threads + guards_on_ray(config)
    assert int(container["resources"]["requests"]["cpu"]) >= asked > config.generation.threads  # guards have one of their own


# --- the launcher, against an API server that is made up ---------------------------------------------------------------------


class Server(HTTPServer):
    """Keeps one RayJob; its states come in the order given, one with each look."""

    def __init__(self, states: list[tuple[str, str]], there: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states, self.job, self.calls = states, there, list[str]()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        job = self.server.job
        if job is not None and "created" in job and self.server.states:
            deployment, status = self.server.states.pop(0)
            job["status"] = {"jobDeploymentStatus": deployment, "jobStatus": status}
        self._answer(job)

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == "Bearer a-token"
        self.server.job = json.loads(self.rfile.read(int(self.headers["Content-Length"]))) | {"created": True}
        self._answer(self.server.job)

    def do_DELETE(self) -> None:
        self.server.job = None
        self._answer({})

    def _answer(self, body: Any) -> None:
        self.server.calls.append(f"{self.command} {self.path.rpartition('/rayjobs')[2]}")
        data = json.dumps(body).encode()
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a-token\n")
    (tmp_path / "namespace").write_text("nights")
    return tmp_path


def launched(server: Server, account: Path) -> tuple[int, list[dict[str, Any]]]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    where = {"LAUNCH_SERVER": f"http://127.0.0.1:{server.server_port}", "LAUNCH_ACCOUNT": str(account)}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "launch.py"), str(FOLDER / "rayjob.yaml")],
        env=os.environ | where | {"LAUNCH_POLL_SECONDS": "0.02"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert not done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_launcher_waits_until_the_job_succeeded(account: Path) -> None:
    server = Server([("Initializing", ""), ("Running", "RUNNING"), ("Complete", "SUCCEEDED")])
    code, lines = launched(server, account)
    assert code == 0 and [line.get("state") for line in lines] == [None, "Initializing", "Running", "Complete"]
    assert re.search(r"--out /data/runs/\d{4}-\d\d-\d\d ", server.job["spec"]["entrypoint"])


def test_the_launcher_fails_with_its_job(account: Path) -> None:
    assert launched(Server([("Failed", "FAILED")]), account)[0] == 1


def test_the_launcher_waits_for_a_run_that_still_goes_and_starts_none(account: Path) -> None:
    server = Server([("Running", "RUNNING"), ("Complete", "SUCCEEDED")], {"created": True})
    code, lines = launched(server, account)
    assert code == 0 and lines[0]["event"] == "found" and not any(call.startswith("POST") for call in server.calls)


def test_the_launcher_removes_the_job_of_the_night_before(account: Path) -> None:
    server = Server([("Complete", "SUCCEEDED")], {"status": {"jobDeploymentStatus": "Failed"}})
    code, lines = launched(server, account)
    assert code == 0 and [line["event"] for line in lines] == ["deleting", "created", "state"]


@pytest.mark.skipif("CLEARANCE_RAY_JOB" not in os.environ, reason="a minute: CLEARANCE_RAY_JOB=1 runs it")
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_entrypoint_of_the_manifest_runs_by_ray_job_submit(tmp_path: Path) -> None:
    """On a cluster of this machine, with the folders of the pods replaced by temporary ones."""
    work, etc = tmp_path / "work", tmp_path / "etc"
    work.mkdir(), etc.mkdir()
    (work / "prompts.csv").write_text("prompt,key\na red apple,a\na blue car,b\n,c\na cat,d\nan owl,e\n")

    def here(text: str) -> str:
        return text.replace("/etc/clearance", str(etc)).replace("/data", str(work)).replace("{date}", "2026-01-01")

    (etc / "run.toml").write_text(here((FOLDER / "run.toml").read_text()).replace("workers = 4", "workers = 1"))
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment.pop("RAY_ADDRESS", None)

    def command(*parts: str, timeout: int = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(parts, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)

    built = command(
        "clearance", "index", "build", str(ROOT / "pipeline/weights/stickers/references"), "--out", str(work / "index")
    )
    assert built.returncode == 0, built.stderr
    port, dashboard = free_port(), free_port()
    head = ["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--disable-usage-stats"]
    others = [
        f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "dashboard-agent-grpc", "ray-client-server")
    ]
    # Ended by its process alone: `ray stop` would end every Ray of this machine.
    started = subprocess.Popen(
        [*head, *others, "--num-cpus=2", "--object-store-memory=150000000"],
        env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while command("ray", "job", "list", f"--address=http://127.0.0.1:{dashboard}").returncode:
            assert started.poll() is None and time.monotonic() < deadline
        entrypoint = shlex.split(here(RAYJOBS[0]["spec"]["entrypoint"]))
        for _ in range(20):
            done = command("ray", "job", "submit", f"--address=http://127.0.0.1:{dashboard}", "--", *entrypoint)
            if "No available agent" not in done.stderr:  # the dashboard answers before the node's agent does
                break
            time.sleep(3)
        assert done.returncode == 0, done.stdout + done.stderr
        status = command("clearance", "status", str(work / "runs/2026-01-01"), "--json")
        assert json.loads(status.stdout)["now"]["state"] == "sealed"
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"time"')]
        assert lines[-1]["event"] == "finished" and lines[-1]["outcomes"]["error"] == 1
    finally:
        started.terminate()
        started.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
