"""A measurement in a process of its own, with a fixed number of threads in every library that it uses."""

from __future__ import annotations

import os
import subprocess
import sys

NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_apart(code: str, threads: int = 1) -> str:
    """Run Python code; returns what it prints. Its errors and progress go to this process's own stderr.

    The libraries read their number of threads when they are loaded, so that only a new process can have another one. Threads
    that wait spin: they cost processor time that a measurement would take for work.

    Raises:
        CalledProcessError: it failed.
    """
    environment = os.environ | dict.fromkeys(NAMES, str(threads))
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
