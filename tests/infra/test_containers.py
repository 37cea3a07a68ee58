"""The Dockerfile as far as it can be checked without building it: bases, user, files, entry point, and the linter."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


ALL = list(instructions())


def of(name: str) -> list[str]:
    return [rest for instruction, rest in ALL if instruction == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out; the last line that matches decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if pattern == "*" or fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
                out = not line.startswith("!")
    return out


def test_bases_are_official_and_pinned() -> None:
    stages: set[str] = set()
    for base, _, name in (re.match(r"(\S+)( AS (\w+))?", rest).groups() for rest in of("FROM")):  # type: ignore[union-attr]
        assert base in stages or re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
        stages.add(name)
    assert {"build", "cpu", "cuda"} <= stages


def test_it_runs_as_a_user_without_rights() -> None:
    assert of("USER")[-1] == "1000:1000" and "--uid 1000" in " ".join(of("RUN"))
    later = ALL[max(n for n, (name, _) in enumerate(ALL) if name == "USER") :]
    assert not [name for name, _ in later if name in ("RUN", "COPY", "ADD")]


def test_every_file_that_is_copied_exists_and_reaches_the_build() -> None:
    for rest in of("COPY"):
        parts = rest.split()
        if parts[0].startswith("--from="):
            continue
        for source in parts[:-1]:
            assert (ROOT / source).exists() and not ignored(source), source
    assert ignored("runs") and ignored(".git") and ignored("clearance-keys") and ignored("tests")


def test_all_that_the_package_needs_is_copied() -> None:
    copied = {source for rest in of("COPY") if not rest.startswith("--from") for source in rest.split()[:-1]}
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*build["packages"], PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert needed <= copied
    for source in build["force-include"]:
        assert any(source == one or source.startswith(f"{one}/") for one in copied), source


def test_the_weights_of_the_embedded_world_are_in_the_package() -> None:
    assert "pipeline" in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (ROOT / "pipeline/weights/stickers/model").is_dir() and not ignored("pipeline/weights/stickers/digests.json")


def test_nothing_is_fetched_when_it_starts() -> None:
    assert "HF_HUB_OFFLINE=1" in " ".join(of("ENV")) and not of("ADD")


def test_the_entry_point_is_the_command() -> None:
    assert of("ENTRYPOINT") == ['["tini", "--", "clearance"]'] and "clearance" in PROJECT["project"]["scripts"]
    assert "tini" in " ".join(of("RUN"))


def test_versions_are_those_of_the_lock() -> None:
    for rest in of("RUN"):
        for part in rest.split("&&"):
            if "pip install" in part:
                assert "--constraint requirements.lock" in part
    done = subprocess.run(["sh", "infra/docker/versions.sh", "torch", "hatchling"], cwd=ROOT, capture_output=True, text=True)
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert done.returncode == 0 and set(done.stdout.split()) <= set(lock) and len(done.stdout.split()) == 2
    assert subprocess.run(["sh", "infra/docker/versions.sh", "none"], cwd=ROOT, capture_output=True).returncode == 1


def test_no_address_of_a_registry_is_in_it() -> None:
    assert "://" not in re.sub(r"#.*", "", DOCKERFILE.read_text())


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", [ROOT / "infra/docker/versions.sh", ROOT / "infra/slurm/nightly.sbatch"], ids=lambda p: p.name)
def test_shell_scripts_parse(path: Path) -> None:
    assert subprocess.run(["sh", "-n", str(path)]).returncode == 0
    assert shlex.split(path.read_text().splitlines()[0])[0] == "#!/bin/sh"
