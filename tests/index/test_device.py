"""Where an index is searched: the CPU unless FAISS and a device are there; what the device finds is ranked as on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index import ann, device
from index.errors import InputError


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_without_a_device_nothing_is_placed_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_present", lambda: 0)
    assert device.devices() == 0 and device.place(unit(5, 0)) is None
    assert device.named().startswith("the CPU (this FAISS has no CUDA")


def test_a_device_can_be_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_present", lambda: 1)
    assert device.devices() == 1 and "CUDA device" in device.named()
    monkeypatch.setenv(device.VARIABLE, "cpu")
    assert device.devices() == 0 and device.named() == "the CPU"


def test_an_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.VARIABLE, "cuda")
    with pytest.raises(InputError, match="is 'cuda'"):
        device.devices()


def on_fake_device(vectors: np.ndarray) -> device.OnDevice:
    """An index whose device is FAISS on the CPU, in float16."""
    import faiss

    made = object.__new__(device.OnDevice)
    made.ntotal, made.d = vectors.shape
    made._vectors = vectors
    rough = vectors.astype(np.float16).astype(np.float32)
    found: Any = lambda queries, k: faiss.knn(queries, rough, k, metric=faiss.METRIC_INNER_PRODUCT)  # noqa: E731
    made._index = SimpleNamespace(search=found)
    return made


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
def test_what_a_device_proposes_is_ranked_exactly_among_those_that_may_match(share: float) -> None:
    vectors, queries = unit(2000, 1), unit(40, 2)
    may = np.random.default_rng(3).random(2000) < share
    allowed = None if share == 1.0 else ann.bits(may)
    for query, (rows, cosines) in zip(queries, ann.nearest(on_fake_device(vectors), vectors, queries, 3, allowed), strict=True):
        exact = np.sum(vectors.astype(np.float64) * query.astype(np.float64), axis=1)
        exact[~may] = -2
        assert rows.tolist() == np.argsort(-exact)[:3].tolist() and cosines[0] == exact.max()


@pytest.mark.gpu
def test_a_device_finds_what_the_cpu_finds() -> None:
    if not device.devices():
        pytest.skip("needs faiss-gpu and a CUDA device")
    vectors, queries = unit(30_000, 4), unit(200, 5)
    placed = device.place(vectors)
    assert placed is not None
    for query, (rows, cosines) in zip(queries, ann.nearest(placed, vectors, queries, 3), strict=True):
        exact = np.sum(vectors.astype(np.float64) * query.astype(np.float64), axis=1)
        assert rows[0] == exact.argmax() and cosines[0] == exact.max()
