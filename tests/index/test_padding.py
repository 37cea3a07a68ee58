"""Calls that do not fit into memory: halved, begun again, and remembered; and which errors mean that."""

from __future__ import annotations

import pickle

import pytest
import torch

from index.errors import OutOfMemory
from index.padding import PaddedCalls, first_line, out_of_memory


def test_what_one_run_returns_has_one_shape() -> None:
    """The second block is the one too many: the first is done again in the smaller shape."""
    calls, seen = PaddedCalls(4, "decoder", "Draw less"), []

    def call(rows: list[int]) -> torch.Tensor:
        seen.append(rows)
        if len(rows) == 4 and 5 in rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor(rows)

    assert calls.run(call, 7).tolist() == list(range(7)) and calls.rows == 2
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 4], [0, 1], [2, 3], [4, 5], [6, 6]]


def test_one_row_that_does_not_fit_and_other_errors_are_raised() -> None:
    def never(rows: list[int]) -> torch.Tensor:
        raise MemoryError("no room")

    def wrong(rows: list[int]) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    calls = PaddedCalls(4, "decoder", "Draw less")
    with pytest.raises(OutOfMemory, match=r"decoder: not even one row .*no room.*Draw less") as raised:
        calls.run(never, 1)
    assert out_of_memory(raised.value) and isinstance(pickle.loads(pickle.dumps(raised.value)), MemoryError)
    assert calls.shapes == (4, 2, 1)
    calls = PaddedCalls(4, "decoder", "Draw less")
    with pytest.raises(RuntimeError, match="shapes"):
        calls.run(wrong, 1)
    assert calls.shapes == (4,)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried …"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9"),
        MemoryError(),
    ],
)
def test_what_means_out_of_memory(error: Exception) -> None:
    assert out_of_memory(error) and not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot be read\nmore", "cannot be read"),
        ("Error(s) in loading X:\n\tsize mismatch for a\n\tsize mismatch for b", "Error(s) in loading X: size mismatch for a"),
        ("nothing follows:", "nothing follows:"),
        ("", "ValueError"),
        ("x" * 500, "x" * 160),
    ],
)
def test_the_first_line_of_an_error_says_what_is_wrong(text: str, shown: str) -> None:
    assert first_line(ValueError(text)) == shown
