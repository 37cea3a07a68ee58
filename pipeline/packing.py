"""Who goes into the next denoiser call: rows filled best, the oldest always in it."""

from __future__ import annotations

from collections.abc import Sequence


def best_fit(needs: Sequence[int], capacity: int) -> list[int]:
    """Choose who shares a call.

    The oldest is always chosen: whatever comes after him, he takes a step in every call, so everybody becomes the oldest and
    ends. Beside him go those who leave the fewest rows empty (subset sum, exact); of equal fillings, the oldest first.

    Args:
        needs: rows that each standing sample needs now, the oldest first; each at least 1.
        capacity: rows of the call.

    Returns:
        Their positions in ``needs``, ascending; their rows sum to at most ``capacity``.

    Raises:
        ValueError: the oldest alone does not fit.
    """
    if not needs:
        return []
    if needs[0] > capacity:
        raise ValueError(f"the oldest needs {needs[0]} rows of {capacity}")
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
