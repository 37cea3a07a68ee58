"""Memory that was freed below a block in use goes back to the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from index import heap
from index.heap import Heap

GAPS = """
import sys
from pathlib import Path
from index.heap import Heap

def resident():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])

heap = Heap(0.0)
blocks = [bytes([n % 251 + 1]) * 60_000 for n in range(3000)]  # each below the size that gets a mapping of its own
top = bytes(60_001)
full = resident()
del blocks
gaps = resident()
done = heap.give_back() if sys.argv[1] == "give" else False
print(full, gaps, resident(), int(done), len(top))
"""


@pytest.mark.skipif(heap._trim() is None, reason="the C library is not glibc")
def test_what_lies_free_below_a_block_in_use_goes_back() -> None:
    kept, given = (
        [int(word) for word in subprocess.run(
            [sys.executable, "-c", GAPS, how], capture_output=True, text=True, check=True, cwd=Path(heap.__file__).parents[1]
        ).stdout.split()]
        for how in ("keep", "give")
    )  # fmt: skip
    assert kept[3] == 0 and kept[0] - kept[2] < 40_000  # kB of the 180,000 that were freed: glibc alone keeps them
    assert given[3] == 1 and given[0] - given[2] > 140_000


def test_it_is_not_asked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, now = list[int](), [100.0]
    monkeypatch.setattr(heap, "_trim", lambda: asked.append)
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    mine = Heap(30.0)
    assert not mine.give_back() and asked == []
    now[0] = 131.0
    assert mine.give_back() and not mine.give_back() and asked == [0]
    now[0] = 160.0
    assert not mine.give_back()
    now[0] = 161.0
    assert mine.give_back() and asked == [0, 0]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", lambda: None)
    assert not Heap(0.0).give_back()
