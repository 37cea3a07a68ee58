"""Shared fixtures: tiny random models of the real classes, one thread, no network."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("CLEARANCE_KEYS", None)  # a test names its keys

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import typer.testing

from index.loading import leave
from index.torchvision_ops import ensure
from tests.pipeline.tiny_models import BUILDERS

ensure()
gc.set_threshold(20_000, 20, 50)  # millions of objects outlive their test's module, and are not looked through as often
typer.testing._get_command = cache(typer.testing._get_command)  # the commands do not change, and each test would make them all

# The same inputs each time, so that a change fails by its own fault; new ones are looked for with CLEARANCE_FUZZ.
hypothesis.settings.register_profile("suite", derandomize=True)
if "CLEARANCE_FUZZ" not in os.environ:
    hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Hand out the files with slow tests first, then those with many: none of them is what others wait for at the end.

    ``make test`` keeps this order (``--no-loadscope-reorder``); xdist's own has the files with few and long tests last.
    """
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    leave()  # else every process of the suite searches for cycles for some seconds when its last test has passed


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    yield


@pytest.fixture(autouse=True, scope="session")
def no_power_cuts() -> Iterator[None]:
    """Files are not waited for until they are on the disk: no test cuts the power, and a run of fakes has twenty of them.

    Tests of what is made durable, and when, put a disk of their own in its place; runs in other processes wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.places.disk.Disk.fsync", lambda self, handle: None)
        yield


@pytest.fixture(autouse=True)
def no_waiting_for_stores(request: pytest.FixtureRequest) -> Iterator[None]:
    """A store that answers that it is away is not asked again for minutes, but where a test holds the clock."""
    from index.storage import impatient

    with nullcontext() if "clock" in request.fixturenames else impatient():
        yield


@pytest.fixture(autouse=True, scope="session")
def one_processor() -> Iterator[None]:
    """By "auto" a run starts a guard process where a processor is free: the suite uses them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.looking.beside.cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function (diffusers' pipeline class) → a folder of a tiny random model of it, built once a session."""

    @cache
    def built(pipeline: str) -> Path:
        return BUILDERS[pipeline](tmp_path_factory.mktemp(pipeline))

    return built


@pytest.fixture(scope="session")
def tiny_sd(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("StableDiffusionPipeline")


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("StableDiffusionXLPipeline")


@pytest.fixture(scope="session")
def tiny_sd3(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("StableDiffusion3Pipeline")


@pytest.fixture(scope="session")
def tiny_flux(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("FluxPipeline")


# --- object stores ---------------------------------------------------------------------------------------------------------

BUCKET = "clearance-tests"


# A process of its own: it makes a thread for every request, and a fault in one would end the tests' process. It ends with that.
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server with one bucket."""
    import subprocess
    import sys

    import boto3

    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        endpoint = server.stdout.readline().strip()
        assert endpoint.startswith("http://127.0.0.1:"), "the S3 server does not start"
        known = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **known).create_bucket(Bucket=BUCKET)  # type: ignore[call-overload]
        yield endpoint
        server.kill()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of a folder on that server, of this test's own, with the credentials in the environment."""
    from tests.object_stores import s3_environment

    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{_own(request)}"


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> str:
    """The URI of a folder in the memory of this process, of this test's own."""
    return f"memory://tests/{_own(request)}"


def _own(request: pytest.FixtureRequest) -> str:
    import re
    import secrets

    return f"{re.sub('[^A-Za-z0-9_.-]+', '-', request.node.name)}-{secrets.token_hex(4)}"
