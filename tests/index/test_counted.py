"""A number with its noun."""

from __future__ import annotations

import pytest

from index.counted import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards"), (1200, "1,200 shards")])
def test_one_alone_is_in_the_singular(number: int, text: str) -> None:
    assert counted(number, "shard") == text
