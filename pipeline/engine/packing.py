"""Choose the samples of the next denoiser call: its size first, then the combination that leaves the fewest rows empty."""

from __future__ import annotations

from collections.abc import Collection, Sequence

WINDOW = 2  # number of calls that the oldest samples under way would fill
# With nine sizes in any order, R = 8, 30 steps and 15 % of the samples coming back, 14 % of the rows stay empty; 22 % with a
# patience of 0, 25 % with 4 windows (tests/pipeline/test_size_queue.py). Sorted by size it is 8 %.
WINDOWS = 6  # number of calls that all samples under way would fill, where they are of several sizes
PATIENCE = 8  # calls in a row that may pass the oldest sample over


def room(queued: Collection[int], capacity: int) -> bool:
    """Whether another request can be admitted, given the rows queued of each size and those of a call.

    One size may queue ``WINDOW`` calls' worth of rows, all sizes together ``WINDOWS``. So a size that comes to its end does not
    keep the next one from filling its calls.
    """
    return max(queued, default=0) < WINDOW * capacity and sum(queued) < WINDOWS * capacity


def next_size(queued: Sequence[int], capacity: int, passed_over: int) -> int:
    """Choose the size of the next call: the oldest sample's, or one that fills more rows of it.

    Args:
        queued: rows that wait, of each size; that of the oldest sample is the first.
        capacity: rows of a call.
        passed_over: calls in a row that did not hold the oldest sample. At ``PATIENCE`` it is its turn, so that every sample
            ends, and a size of which no more come does not wait until all others have ended.

    Returns:
        Position in ``queued``.
    """
    if passed_over >= PATIENCE or not queued:
        return 0
    return max(range(len(queued)), key=lambda i: min(queued[i], capacity))  # of equals, the one with the older sample


def next_call(standing: Sequence[tuple[int, int]], capacity: int) -> list[int]:
    """Choose the samples of the next call among all that wait.

    The oldest is always in it and takes a step in every call, so that every sample becomes the oldest and ends. The others are
    taken from the oldest that would fill ``WINDOW`` calls, so that samples end in about the order in which they came and few
    are under way at a time. Those with the most steps ahead go first, so that none is left to end alone.

    Args:
        standing: rows needed now and steps ahead of each sample, the oldest first.
        capacity: rows of the call.

    Returns:
        Positions in ``standing``, ascending; see :func:`best_fit`.
    """
    rows, window = 0, 0
    while window < len(standing) and rows < WINDOW * capacity:
        rows += standing[window][0]
        window += 1
    order = [*range(min(1, window)), *sorted(range(1, window), key=lambda i: (-standing[i][1], i))]
    return sorted(order[i] for i in best_fit([standing[i][0] for i in order], capacity))


def best_fit(needs: Sequence[int], capacity: int) -> list[int]:
    """Choose the samples that leave the fewest rows empty (exact subset sum), the first always; of equals, earlier ones.

    Args:
        needs: rows that each needs, in order of preference; each at least 1.
        capacity: rows to fill.

    Returns:
        Positions in ``needs``, ascending; their rows sum to at most ``capacity``.

    Raises:
        ValueError: the first alone does not fit.
    """
    if not needs:
        return []
    if needs[0] > capacity:
        raise ValueError(f"the first needs {needs[0]} rows of {capacity}")
    # Bit s of within[i]: some of needs[i:] sum to s.
    within, sums, mask = [1] * (len(needs) + 1), 1, (1 << capacity + 1) - 1
    for i in range(len(needs) - 1, 0, -1):
        sums |= sums << needs[i] & mask
        within[i] = sums
    left = (within[1] & (mask >> needs[0])).bit_length() - 1
    chosen = [0]
    for i in range(1, len(needs)):
        if needs[i] <= left and within[i + 1] >> left - needs[i] & 1:
            chosen.append(i)
            left -= needs[i]
    return chosen
