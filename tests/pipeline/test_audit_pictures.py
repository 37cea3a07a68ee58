from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audit.pictures import COLUMNS, Shown, pictures_of
from pipeline.audit.stored import sample_files
from pipeline.outcome import Outcome
from tests.pipeline.test_stored import rewrite


def shown(run: Any) -> dict[str, Shown]:
    """By request key, of the first shard."""
    from pipeline.audit.requests import rows_in

    path = next(sample_files(run.folder))
    rows = dict(rows_in(run.folder, path, "samples", [*COLUMNS, "request_key"]))
    found = pictures_of(run.folder, path, rows)
    return {row["request_key"]: found[row["sample_id"]] for row in rows.values()}


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., Any]) -> Any:
    return make_run(tmp_path / "run")


def test_every_picture_comes_back_to_the_pixel(run: Any) -> None:
    found = shown(run)
    finals = {s.request.key: s.final.picture for s in run.samples[:10] if s.final is not None}
    assert all(np.array_equal(found[key].picture, picture) for key, picture in finals.items())  # type: ignore[arg-type]
    assert all(found[key].exact for key in finals)


def test_where_no_picture_was_made_the_reason_is_given(run: Any) -> None:
    assert shown(run)["key-009"] == Shown(why="no picture was made")


def test_a_held_picture_is_the_full_one_where_it_is_kept(run: Any) -> None:
    assert run.samples[7].outcome is Outcome.REJECTED
    assert shown(run)["key-007"].suffix == "webp"


def test_a_small_picture_stands_in_where_none_is_kept(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    run = make_run(tmp_path / "run", keep_held=False)
    assert np.array_equal(shown(run)["key-007"].picture, run.samples[7].final.picture)


def test_an_erased_file_is_named_as_erased(run: Any) -> None:
    rewrite(run.folder, next(sample_files(run.folder)), "image", None, 0)
    assert shown(run)["key-000"].why == "its picture was erased"


def test_a_changed_file_is_not_looked_at(run: Any) -> None:
    path = next(sample_files(run.folder))
    rewrite(run.folder, path, "file_sha256", "0" * 64, 0)
    assert shown(run)["key-000"].picture is None
    assert "not the one that was committed" in shown(run)["key-000"].why


def test_a_picture_that_was_marked_since_is_said_to_be_another(run: Any) -> None:
    rewrite(run.folder, next(sample_files(run.folder)), "pixel_sha256", "0" * 64, 0)
    assert shown(run)["key-000"].picture is not None and not shown(run)["key-000"].exact
