"""A measurement in a process of its own."""

from __future__ import annotations

import subprocess

import pytest

from jobs.lab.bench.apart import run_apart


@pytest.mark.parametrize("threads", [1, 2])
def test_every_library_has_so_many_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = "import os, torch; print(torch.get_num_threads(), os.environ['OPENBLAS_NUM_THREADS'])"
    assert run_apart(code, threads).split() == [str(threads)] * 2


def test_a_failure_is_not_a_result() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run_apart("raise SystemExit(3)")
