"""The commands with a run on an object store: what goes through the door works there, the rest says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import storage
from index.shipped import STICKERS
from index.store import ReferenceIndex
from jobs.cli import main as cli
from jobs.export.load import load
from jobs.run.planning.stored_plan import stored_plan
from pipeline.audit.events import read_events
from pipeline.audit.ledger import sample_rows


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def done(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, (arguments, result.output)
    return result.output


@pytest.fixture
def project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_loop: Callable[..., Any],
    opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
    s3: str,
) -> Path:
    """A folder with a run file whose runs go to the object store."""
    opening(loop=open_loop, identity=identity)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text("prompt,key\ncat,a\na copy,b\nsteered,c\n,d\n")
    (tmp_path / "run.toml").write_text(f'prompts = "prompts.csv"\nout = "{s3}/monday"\nshard_size = 2\n')
    return tmp_path


@pytest.mark.slow
def test_a_run_from_dry_run_to_export(project: Path, s3: str) -> None:
    run, uri = project / "run.toml", f"{s3}/monday"
    assert storage.is_folder(storage.place(uri)) is False
    assert "an object store" in done("run", run, "--dry-run")
    assert storage.is_folder(storage.place(uri)) is False

    assert f"in {uri}" in done("run", run)
    for target in (uri, run):
        status = json.loads(done("status", target, "--json"))
        assert status["state"] == "sealed" and status["requests"].startswith("4 of 4 ended")
    assert f"intact: {uri}" in done("verify", uri)
    assert f"report: {uri}/report.html" in done("report", uri, "--pages")
    assert storage.entry_of(storage.place(uri), "pages/a.html") is not None
    assert json.loads(done("show", uri, "a", "--json"))["request_key"] == "a"
    done("hold", "set", uri, "--key", "a", "--by", "counsel", "--reason", "a claim")
    assert "general" in done("hold", "show", uri)
    done("review", "list", uri)
    done("retention", "show", uri)
    done("export", uri, "--to", project / "exported")
    assert len(list((project / "exported").rglob("*.parquet"))) == 1
    assert load(uri).num_rows == 2
    assert done("verify", uri, "--same-as", uri)


def test_a_run_by_option_resumes(project: Path, s3: str) -> None:
    run, uri = project / "run.toml", f"{s3}/tuesday"
    (project / "prompts.csv").write_text("prompt,key\ncat,a\nowl,b\ndisk-full,c\n")
    stopped = call("run", run, "--out", uri)
    assert stopped.exit_code == 2 and "No space left" in stopped.output
    assert "stopped; continue with --resume" in done("status", uri)
    again = call("run", run, "--out", uri)
    assert again.exit_code == 2 and "--resume" in again.output
    (project / "space").touch()
    done("run", run, "--out", uri, "--resume")
    assert "sealed" in done("status", uri)


def test_errors_go_into_a_new_run_elsewhere(project: Path, s3: str) -> None:
    done("run", project / "run.toml")
    done("run", project / "run.toml", "--only-failed", "--max-error-rate", "1", "--out", f"{s3}/again")
    assert json.loads(done("status", f"{s3}/again", "--json"))["requests"].startswith("1 of 1 ended")


def test_prompts_and_policy_are_read_from_the_store(project: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE", str(project / "cache"))
    inputs = storage.place(f"{s3}/inputs")
    storage.write_file(inputs, "night/part-1.csv", b"prompt,key\ncat,a\nowl,b\n")
    storage.write_file(inputs, "night/part-2.csv", b"prompt,key\nfox,c\n")
    storage.write_file(inputs, "policy.toml", b'name = "house"\nversion = "7"\n')
    (project / "run.toml").write_text(
        f'prompts = "{inputs}/night"\npolicy = "{inputs}/policy.toml"\nout = "{s3}/run"\nshard_size = 2\n'
    )
    done("run", project / "run.toml")
    folder = storage.place(f"{s3}/run")
    assert [row["request_key"] for row in sample_rows(folder)] == ["a", "b", "c"]
    stored = stored_plan(folder)
    assert stored["policy"]["name"] == "house"
    assert stored["config"]["prompts"] == f"{inputs}/night" and str(project) not in json.dumps(stored)


def test_a_slip_in_a_policy_on_the_store_names_its_place(project: Path, s3: str) -> None:
    storage.write_file(storage.place(s3), "policy.toml", b'nmae = "house"\n')
    result = call("run", project / "run.toml", "--policy", f"{s3}/policy.toml")
    assert result.exit_code == 2
    assert f"{s3}/policy.toml" in "".join(result.output.split("\n")) and "nmae" in result.output


def test_an_index_is_built_and_changed_at_a_uri(project: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE", str(project / "cache"))
    for name in ("anchor", "bell", "crown"):
        picture = (STICKERS / "references" / f"{name}.png").read_bytes()
        storage.write_file(storage.place(f"{s3}/claims"), f"{name}.png", picture)
    built = json.loads(done("index", "build", f"{s3}/claims", "--out", f"{s3}/index", "--json"))
    assert built["index"] == f"{s3}/index"
    listed = [json.loads(line) for line in done("index", "info", f"{s3}/index", "--references").splitlines()]
    [retired] = [one["ref_id"] for one in listed if one["title"] == "bell"]
    done("index", "retire", f"{s3}/index", retired, "--reason", "withdrawn")
    assert ReferenceIndex.open(storage.place(f"{s3}/index")).matching == 2
    assert "already holds an index" in call("index", "build", f"{s3}/claims", "--out", f"{s3}/index").output


WRONG = {
    "run": ("run", "run.toml", "--out", "s3://nobody-made-this/run"),
    "status": ("status", "s3://nobody-made-this/run"),
    "verify": ("verify", "s3://nobody-made-this/run"),
}


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_bucket_is_a_sentence(project: Path, command: str) -> None:
    result = call(*WRONG[command])
    assert result.exit_code == 2
    assert "s3://nobody-made-this: there is no such bucket" in result.output


def test_a_place_without_a_run_is_a_sentence(project: Path, s3: str) -> None:
    result = call("verify", f"{s3}/nothing")
    assert result.exit_code == 2 and f"{s3}/nothing: there is no such run folder" in result.output


LOCAL_ONLY = {
    "review": ("review", "export", "{uri}", "--to", "{uri}/queue"),
    "run file": ("run", "{uri}/run.toml"),
}


@pytest.mark.parametrize("command", LOCAL_ONLY)
def test_what_needs_this_machine_refuses_a_uri(project: Path, s3: str, command: str) -> None:
    result = call(*(part.format(uri=s3) for part in LOCAL_ONLY[command]))
    assert result.exit_code == 2 and "has to be on this machine" in result.output
    assert not (project / "s3:").exists()


def test_credentials_are_in_no_object_and_no_output(project: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    output = done("run", project / "run.toml")
    folder = storage.place(f"{s3}/monday")

    def everything(name: str = "") -> bytes:
        return b"".join(
            everything(path) if entry.kind == "folder" else storage.read_file(folder, path)
            for entry in storage.entries(folder, name)
            for path in [f"{name}/{entry.name}".lstrip("/")]
        )

    assert "a-very-secret-key" not in output
    assert b"a-very-secret-key" not in everything()


@pytest.mark.parametrize("versions", [False, True])
def test_an_erasure_in_a_bucket_that_keeps_old_versions_says_what_it_does_not_reach(
    project: Path, s3: str, s3_endpoint: str, versions: bool
) -> None:
    import boto3

    uri, bucket = f"{s3}/monday", "versions"
    if versions:
        known = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=s3_endpoint, **known)  # type: ignore[call-overload]
        client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        uri = f"s3://{bucket}/monday"
    done("run", project / "run.toml", "--out", uri)
    erase = ("retention", "erase", uri, "--key", "a", "--by", "privacy", "--reason", "asked")
    said, code = "this bucket keeps old versions", 1 if versions else 0

    dry = call(*erase, "--dry-run")
    assert dry.exit_code == 0 and (said in dry.output) is versions
    erased = call(*erase)
    assert erased.exit_code == code and (said in erased.output) is versions and "erased: " in erased.output
    [event] = [one for one in read_events(storage.place(uri)) if one["kind"] == "payload.erased"][:1]
    assert event["details"].get("old_versions", False) is versions
    again = call(*erase, "--json")  # they hold it still
    assert again.exit_code == code and f'"old_versions": {str(versions).lower()}' in again.output
    if versions:
        stated = call(*erase[:-4], "--key", "b", *erase[-4:], "--old-versions-days", "30")
        assert stated.exit_code == 0 and "deletes them after 30 days, as --old-versions-days says" in stated.output
        details = [one["details"] for one in read_events(storage.place(uri)) if one["kind"] == "payload.erased"][-1]
        assert details["old_versions_days"] == 30
        done("report", uri)
        told = json.loads(storage.read_file(storage.place(uri), "report.json"))["retention"]["old_versions"]
        assert told["erasures"] > told["no_end_stated"] > 0 and told["days"] == 30
    assert f"intact: {uri}" in done("verify", uri)
    assert call("retention", "apply", uri, "--by", "records", "--reason", "weekly").exit_code == 0  # nothing was due
