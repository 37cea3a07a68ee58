"""The collector of cycles stands still while something is loaded, and only then."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator

import pytest

from index.embed import OpenCLIPEmbedder
from index.loading import leave, loading
from pipeline.config import ModelConfig
from pipeline.model.load import load_model
from pipeline.opening import open_policy_guards
from pipeline.policy import Policy


class _Cycle:
    itself: _Cycle


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_in_the_block_and_blocks_may_lie_in_one_another() -> None:
    with loading():
        assert not gc.isenabled()
        with loading():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_block_that_fails_lets_the_collector_go_on() -> None:
    with pytest.raises(OSError), loading():
        raise OSError
    assert gc.isenabled()


def test_where_a_program_keeps_the_collector_off_it_stays_off() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_a_cycle_from_the_block_is_garbage_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with loading():
        monkeypatch.setitem(sys.modules, "loaded_in_the_block", types.ModuleType("loaded_in_the_block"))
        cycle = _Cycle()
        cycle.itself, seen = cycle, weakref.ref(cycle)
        del cycle
    assert seen() is not None and gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_what_a_program_set_apart_stays_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.freeze()
    apart = gc.get_freeze_count()
    with loading():
        monkeypatch.setitem(sys.modules, "loaded_in_the_block", types.ModuleType("loaded_in_the_block"))
    assert gc.get_freeze_count() == apart > 0


def test_a_process_that_leaves_searches_nothing() -> None:
    leave()
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("what", ["model", "guards", "embedder"])
def test_models_guards_and_embedders_are_loaded_so(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def look(*_: object, **__: object) -> None:
        seen.append(gc.isenabled())
        raise OSError

    monkeypatch.setattr("pipeline.model.load.look_at", look)
    monkeypatch.setattr("guards.registry.open_guards", look)
    monkeypatch.setattr("index.embed.folder_of", look)
    load = {
        "model": lambda: load_model(ModelConfig(path="stickers")),
        "guards": lambda: open_policy_guards(Policy()),
        "embedder": lambda: OpenCLIPEmbedder.open("stickers"),
    }
    with pytest.raises(OSError):
        load[what]()
    assert seen == [False] and gc.isenabled()
