"""`generation.threads` holds for every library of a worker, whenever it is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.model.device import cores
from pipeline.opening import THREADS

PROBE = """
import json, sys
import numpy
from threadpoolctl import threadpool_info
def seen():
    import cv2, pyarrow
    pools = [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()]
    return [*pools, ("opencv", cv2.getNumThreads()), ("arrow", pyarrow.cpu_count())]
def arrow_first():  # loaded before: it is set, not read from the environment
    import pyarrow
if sys.argv[1] == "held":
    from pipeline.config import GenerationConfig, RunConfig
    from pipeline.opening import prepare
    arrow_first()
    prepare(RunConfig(prompts=("-",), generation=GenerationConfig(threads=1)))
import faiss
print(json.dumps(seen()))
"""


def threads(how: str) -> list[tuple[str, int]]:
    free = {name: value for name, value in os.environ.items() if name not in THREADS}
    done = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True, env=free)
    return [(name, number) for name, number in json.loads(done.stdout)]


@pytest.mark.skipif(cores() < 2, reason="on one processor every library has one thread")
def test_one_thread_is_one_thread_in_every_library() -> None:
    """NumPy's OpenBLAS and Arrow are loaded before, torch's OpenMP, FAISS's OpenBLAS and OpenCV after."""
    held, free = threads("held"), threads("left alone")
    names = {name for name, _ in held}
    assert {"openblas", "openmp", "opencv", "arrow"} <= names
    assert {number for _, number in held} == {1}
    assert all(number > 1 for _, number in free)  # what would be if nothing held it
