"""A digest of a set of digests that can be changed row by row: what an index holds, without reading it all again.

LtHash with 1024 lanes of 16 bits (Lewi, Kim, Maykov and Weis, "Securing Update Propagation with Homomorphic Hashing", IACR
ePrint 2019/227, section 2): each member is expanded to 1024 numbers, and the numbers are added modulo 2^16. The order does not
matter, and a member can be taken out again. Finding two sets with one sum takes more than 2^200 steps; a plain sum of 256-bit
digests would fall to a birthday attack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

LANES = 1024


class SetHash:
    """The sum over a set of digests.

    Args:
        hexadecimal: the sum to start from, as :meth:`hex` gives it; empty: of the empty set.

    Raises:
        ValueError: it is no such sum.
    """

    def __init__(self, hexadecimal: str = "") -> None:
        stored = bytes.fromhex(hexadecimal) if hexadecimal else bytes(2 * LANES)
        if len(stored) != 2 * LANES:
            raise ValueError(f"a sum has {2 * LANES} bytes, not {len(stored)}")
        self._lanes = np.frombuffer(stored, "<u2").copy()

    def add(self, digests: Iterable[bytes]) -> SetHash:
        """Put members in; returns itself."""
        for digest in digests:
            self._lanes += _expanded(digest)
        return self

    def remove(self, digests: Iterable[bytes]) -> SetHash:
        """Take members out; returns itself."""
        for digest in digests:
            self._lanes -= _expanded(digest)
        return self

    def join(self, other: SetHash) -> SetHash:
        """Put all members of another set in; returns itself."""
        self._lanes += other._lanes
        return self

    def hex(self) -> str:
        """The sum as text."""
        return self._lanes.tobytes().hex()


def _expanded(digest: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.shake_128(digest).digest(2 * LANES), "<u2")
